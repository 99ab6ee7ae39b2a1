"""Optimizers, schedules and clipping, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lm_jax import trees
from lm_jax.config import (
    RNN,
    SGD,
    Adam,
    AdamW,
    Config,
    Constant,
    Cosine,
    Data,
    Epochs,
    Momentum,
    Plateau,
    RMSprop,
    Train,
    resolve,
)
from lm_jax.config.optimizer import RangeTest
from lm_jax.data.batches import streams
from lm_jax.settings import UserError
from lm_jax.training.optimizer import clip, learning_rate, optimizer
from lm_jax.training.step import init, run_until

RATE = 0.1
RNG = np.random.default_rng(0)
START, GRADS = RNG.normal(size=(4,)), RNG.normal(size=(3, 4))


def sgd(w):
    for g in GRADS:
        w = w - RATE * g
    return w


def momentum(w):
    trace = 0
    for g in GRADS:
        trace = g + 0.8 * trace
        w = w - RATE * trace
    return w


def nesterov(w):
    trace = 0
    for g in GRADS:
        trace = g + 0.8 * trace
        w = w - RATE * (g + 0.8 * trace)
    return w


def adam(w, weight_decay=0.0):
    """Kingma & Ba (2015), algorithm 1; decay as in Loshchilov & Hutter (2019), algorithm 2."""
    m, v = 0, 0
    for t, g in enumerate(GRADS, 1):
        m, v = 0.7 * m + 0.3 * g, 0.9 * v + 0.1 * g**2
        step = (m / (1 - 0.7**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
        w = w - RATE * (step + weight_decay * w)
    return w


def rmsprop(w):
    v = 0
    for g in GRADS:
        v = 0.9 * v + 0.1 * g**2
        w = w - RATE * g / np.sqrt(v + 1e-3)
    return w


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        (SGD(), sgd),
        (Momentum(momentum=0.8), momentum),
        (Momentum(momentum=0.8, nesterov=True), nesterov),
        (Adam(beta1=0.7, beta2=0.9, eps=1e-3), adam),
        (AdamW(beta1=0.7, beta2=0.9, eps=1e-3, weight_decay=0.05), lambda w: adam(w, 0.05)),
        (RMSprop(decay=0.9, eps=1e-3), rmsprop),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_an_optimizer_is_its_formula(config, formula):
    w = jnp.asarray(START)
    train = Train(optimizer=config)
    state = optimizer(train, 0.0).init(w)
    for g in GRADS:
        updates, state = optimizer(train, RATE).update(jnp.asarray(g), state, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(w, formula(START), rtol=1e-10)


@pytest.mark.parametrize("config", [Adam(), AdamW(), RMSprop()], ids=lambda config: config.kind)
def test_a_gradient_too_large_to_square_is_not_divided_by_infinity(config):
    """The step would be 0 now and for ever: NaN ends the run as diverged."""
    w, train = jnp.zeros(2, jnp.float32), Train(optimizer=config)
    for length, moves in ((1e18, True), (1e25, False)):
        g = jnp.float32([length, 0])
        rule = optimizer(train, RATE, trees.norm(g))
        step, _ = rule.update(g, rule.init(w), w)
        assert np.isfinite(step).all() == moves
        assert step[0] != 0


def rates(schedule, steps, *, epoch_length=10, cut=1.0):
    train = Train(learning_rate=2.0, schedule=schedule)
    return np.array(
        [
            float(
                learning_rate(train, jnp.int32(s), jnp.int32(s // epoch_length), jnp.float64(cut))
            )
            for s in steps
        ]
    )


def test_a_gradient_whose_norm_overflows_is_not_divided_by_infinity_without_a_limit_either():
    config = Train(optimizer=Adam(), clip_norm=float("inf"))
    params, grads = {"w": jnp.ones(4)}, {"w": jnp.full(4, 1e308)}
    clipped, _, clipped_norm = clip(config, grads, trees.norm(grads))
    rule = optimizer(config, RATE, clipped_norm)
    updates, _ = rule.update(clipped, rule.init(params), params)
    assert np.all(np.isnan(updates["w"]))


def test_constant_is_constant():
    np.testing.assert_array_equal(rates(Constant(), [0, 99]), 2.0)


def test_cosine_warms_up_in_a_line_and_comes_down_half_a_cosine():
    schedule = Cosine(warmup_steps=4, steps=24, final=0.1)
    np.testing.assert_allclose(rates(schedule, range(4)), [0.5, 1.0, 1.5, 2.0], rtol=1e-12)
    np.testing.assert_allclose(rates(schedule, [4, 14, 24, 99]), [2.0, 1.1, 0.2, 0.2], rtol=1e-12)
    assert np.all(np.diff(rates(schedule, range(4, 25))) < 0)
    np.testing.assert_allclose(rates(Cosine(warmup_steps=0, steps=10), [0]), [2.0], rtol=1e-12)


def test_epochs_follow_zaremba():
    """Small model, Zaremba et al. (2014): 4 epochs at the full rate, then half of it each epoch."""
    expected = [2.0, 2.0, 2.0, 2.0, 1.0, 0.5, 0.25]
    np.testing.assert_allclose(rates(Epochs(), range(0, 70, 10)), expected, rtol=1e-12)
    np.testing.assert_allclose(rates(Epochs(), range(9, 79, 10)), expected, rtol=1e-12)


def test_a_range_test_goes_up_by_equal_factors():
    schedule = RangeTest(low=0.002, steps=4)
    np.testing.assert_allclose(rates(schedule, range(4)), [0.002, 0.02, 0.2, 2.0], rtol=1e-12)
    np.testing.assert_allclose(rates(schedule, [99]), [2.0], rtol=1e-12)
    with pytest.raises(UserError, match=r"low=2 must be below train\.learning_rate=2, the end"):
        Train(learning_rate=2.0, schedule=RangeTest(low=2.0))
    assert resolve(Config(train=Train(steps=7, learning_rate=1.0, schedule=RangeTest()))).train == (
        Train(steps=7, learning_rate=1.0, schedule=RangeTest(steps=7))
    )


@pytest.mark.parametrize("schedule", [Constant(), Cosine(steps=9), Epochs(), Plateau()])
def test_cuts_scale_the_rate_of_every_schedule(schedule):
    np.testing.assert_array_equal(
        rates(schedule, [5, 70], cut=0.0625), rates(schedule, [5, 70]) * 0.0625
    )


def test_clipping_by_norm_and_by_value():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]])}
    for train, expected, changed in [
        (Train(), grads, False),
        (Train(clip_norm=5.0), grads, False),
        (Train(clip_norm=1.0), jax.tree.map(lambda g: g / 5, grads), True),
        (Train(clip_value=4.0), grads, False),
        (Train(clip_value=3.5), {**grads, "b": jnp.array([[-3.5]])}, True),
        (
            Train(clip_norm=2.5, clip_value=1.75),
            {"a": jnp.array([1.5, 0.0]), "b": jnp.array([[-1.75]])},
            True,
        ),
        (Train(clip_norm=2.5, clip_value=2.0), jax.tree.map(lambda g: g / 2, grads), True),
        (Train(clip_norm=float("inf"), clip_value=float("inf")), grads, False),
    ]:
        clipped, was_changed, length = clip(train, grads, trees.norm(grads))
        tiny.assert_trees_close(clipped, expected)
        assert bool(was_changed) == changed
        np.testing.assert_allclose(length, optax.tree.norm(expected), rtol=1e-12)


@pytest.mark.parametrize("entry", [0.0, 3.0, 1e30, np.nan])
def test_clipping_by_norm_is_optax_s(entry):
    """Also where the norm is 0 or no number; where it overflows, see the tests of trees."""
    grads = {"a": jnp.array([entry, 0.0]), "b": jnp.array([[-4.0 * (entry != 0)]])}
    for threshold in (0.5, 100.0):
        expected, _ = optax.clip_by_global_norm(threshold).update(grads, optax.EmptyState())
        clipped, _, _ = clip(Train(clip_norm=threshold), grads, trees.norm(grads))
        tiny.assert_trees_close(clipped, expected)


@pytest.mark.quick("by norm and by value")
@pytest.mark.parametrize(
    "clipping",
    [{}, {"clip_norm": 1.0}, {"clip_norm": 1.0, "clip_value": 1.0}],
    ids=["off", "by norm", "by norm and by value"],
)
def test_nothing_as_large_as_a_table_is_held_beside_the_gradient(clipping, monkeypatch):
    """Of the two matrices of a large vocabulary, with Adam, which reads the gradient twice."""
    monkeypatch.setattr(trees, "LARGE", 2**22)
    words, size = 200_000, 64
    model = RNN(embedding_size=size, hidden_size=size)
    train = Train(optimizer=Adam(), **clipping)
    config = resolve(Config(data=Data(batch_size=2, length=4), model=model, train=train))
    state = init.eval_shape(config, words)
    source = streams(np.zeros(80, np.int32), 0, 2)
    planned = run_until.lower(config, state, source, 2, words).compile().memory_analysis()
    matrix = state.params["embedding"]["C"]
    of_one = matrix.size * matrix.dtype.itemsize
    assert 2 * of_one < planned.temp_size_in_bytes < 2.75 * of_one
    assert planned.alias_size_in_bytes > 8 * of_one  # the state is changed where it lies
