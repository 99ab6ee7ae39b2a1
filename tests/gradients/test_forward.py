"""Gradients forward in time and cut at random, against full backpropagation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.flatten_util import ravel_pytree

import lm_jax
from lm_jax import gradients as g
from lm_jax import models
from lm_jax.config import (
    ARTBP,
    RNN,
    Adding,
    Config,
    Data,
    RecurrentDropout,
    SampledSoftmax,
    Softmax,
    Train,
)
from lm_jax.data.batches import Batch
from lm_jax.data.tasks import task_of
from lm_jax.models import transition
from lm_jax.models.base import NO_HOOK

KEY = jax.random.key(3)
BATCH = tiny.batch()
RAGGED = BATCH._replace(mask=jnp.arange(tiny.T)[:, None] < jnp.array([6, 3, 0])[None, :])
GOING_ON = BATCH._replace(start=jnp.array([False, True, False]))


def part(batch, steps, lanes):
    """The first steps of the first lanes."""
    x, y, mask = (a[:steps, :lanes] for a in (batch.x, batch.y, batch.mask))
    return Batch(x, y, mask, batch.start[:lanes])


MODELS = {
    "elman": {"cell": "elman"},
    "lstm": {"cell": "lstm", "cell__peepholes": True},
    "gru": {"cell": "gru"},
    "two layers": {"layers": 2, "residual": True},
}


def made(**fields):
    model = tiny.rnn(**{"embedding_size": 3, "hidden_size": 4, **fields})
    return model, tiny.moved(model.init(jax.random.key(0)))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("elman", "gru")]


@pytest.fixture(scope="module", params=["lstm", "two layers", *SLOW])
def case(request):
    """A model, its parameters, and its estimators by name, compiled."""
    model, params = made(**MODELS[request.param])
    estimators = {"rtrl": g.rtrl(model), "snap1": g.snap1(model), "full": g.full_bptt(model)}
    compiled = {name: jax.jit(estimator) for name, estimator in estimators.items()}
    return model, params, compiled


def some_carry(model):
    return jax.tree.map(lambda a: a + 0.1, model.init_carry(tiny.B))


@pytest.mark.quick("lstm")
def test_rtrl_is_full_bptt_of_a_chunk(case):
    model, params, compiled = case
    for batch in (BATCH, RAGGED, GOING_ON):
        loss, carry, grads, _ = compiled["rtrl"](params, some_carry(model), batch)
        expected = compiled["full"](params, some_carry(model), batch)
        tiny.assert_trees_close((loss, carry.carry, grads), expected[:3])


def test_rtrl_is_full_bptt_of_a_tied_readout_with_what_training_adds_at_each_step():
    readout = Softmax(tied=True, label_smoothing=0.2)
    model, params = made(embedding_size=4, readout=readout, activation_penalty=0.5)
    noisy, carry = model.for_training(KEY), some_carry(model)
    loss, _, grads, _ = jax.jit(g.rtrl(noisy))(params, carry, RAGGED)
    expected_loss, _, expected, _ = jax.jit(g.full_bptt(noisy))(params, carry, RAGGED)
    tiny.assert_trees_close((loss, grads), (expected_loss, expected))


def own(carry, step):
    """A model of a cell of one's own."""
    cell = models.Transition(lambda key: {"a": jnp.ones(3)}, carry, step, lambda carry: carry[0])
    layers = (transition.TransitionLayer(cell, tiny.V),)
    embedding, readout = models.Embedding(tiny.V, None), models.SoftmaxReadout(tiny.V)
    return models.RNNModel(embedding, readout, layers=layers, hidden_size=3)


def test_rtrl_is_full_bptt_of_a_cell_of_one_s_own():
    def step(params, carry, x):
        h, trace = carry
        return jnp.tanh(params["a"] * h + trace + x[:3]), 0.9 * trace + params["a"] * h[::-1]

    model = own((jnp.zeros(3), jnp.zeros(3)), step)
    params = tiny.moved(model.init(KEY))
    loss, _, grads, _ = jax.jit(g.rtrl(model))(params, some_carry(model), BATCH)
    expected_loss, _, expected, _ = jax.jit(g.full_bptt(model))(params, some_carry(model), BATCH)
    tiny.assert_trees_close((loss, grads), (expected_loss, expected))


def test_a_state_without_a_derivative_is_refused():
    model = own((jnp.zeros(3), jnp.zeros((), jnp.int32)), lambda params, carry, x: carry)
    for estimator in (g.rtrl, lambda model: g.uoro(model, key=KEY)):
        with pytest.raises(ValueError, match=r"carry\[0\]\[1\] is of type int32"):
            estimator(model)
    with pytest.raises(ValueError, match="needs built-in cells"):
        g.snap1(model)


@pytest.mark.quick("lstm")
def test_the_influence_goes_on_from_batch_to_batch(case):
    """The second chunk's gradient is that of BPTT over both, the first one's losses left out."""
    model, params, compiled = case
    first, second = BATCH, tiny.batch(5, start=False)
    _, carry, _, _ = compiled["rtrl"](params, g.rtrl(model).init_carry(tiny.B), first)
    loss, _, grads, _ = compiled["rtrl"](params, carry, second)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    both = both._replace(mask=both.mask.at[: tiny.T].set(False), start=first.start)
    expected_loss, _, expected, _ = compiled["full"](params, model.init_carry(tiny.B), both)
    tiny.assert_trees_close((loss, grads), (expected_loss, expected))
    # Without the influence it is the gradient of the second chunk alone, which is another one.
    _, _, short, _ = compiled["rtrl"](params, carry.carry, second)
    tiny.assert_trees_close(short, compiled["full"](params, carry.carry, second)[2])
    assert not np.allclose(short["layers"][0]["W_hh"], grads["layers"][0]["W_hh"], rtol=1e-3)


@pytest.mark.parametrize("name", ["rtrl", "snap1", "uoro"])
def test_a_lane_that_starts_again_is_influenced_by_nothing(name):
    model, params = made()
    estimator = {"rtrl": g.rtrl, "snap1": g.snap1}.get(name, lambda m: g.uoro(m, key=KEY))(model)
    estimate = jax.jit(estimator)
    _, carry, _, _ = estimate(params, estimator.init_carry(tiny.B), BATCH)
    batch = GOING_ON._replace(mask=BATCH.mask.at[:, 0].set(False).at[:, 2].set(False))
    fresh = estimator.init_carry(tiny.B)
    if name == "uoro":
        fresh = fresh._replace(draws=carry.draws)
    _, _, grads, _ = estimate(params, carry, batch)
    tiny.assert_trees_equal(grads, estimate(params, fresh, batch)[2])
    _, _, other, _ = estimate(params, carry, batch._replace(start=batch.start & False))
    assert not np.allclose(other["layers"][0]["W_hh"], grads["layers"][0]["W_hh"], rtol=1e-3)


@pytest.mark.quick("lstm")
def test_the_first_step_of_snap1_is_rtrl(case):
    model, params, compiled = case
    first = part(BATCH, 1, tiny.B)._replace(start=BATCH.start & False)
    loss, carry, grads, _ = compiled["snap1"](params, some_carry(model), first)
    expected = compiled["full"](params, some_carry(model), first)
    tiny.assert_trees_close((loss, carry.carry, grads), expected[:3])


def diagonal(params):
    """The parameters, each block of W_hh with its diagonal alone."""
    layers = []
    for own in params["layers"]:
        W = own["W_hh"]
        eye = np.tile(np.eye(len(W)), W.shape[1] // len(W))
        layers.append({**own, "W_hh": W * eye})
    return {**params, "layers": layers}


def in_one_step(layer):
    """The parts of an LSTM layer's gradient that SnAp-1 keeps whole; of another, all of it.

    Its output gate reaches c in two steps, by way of h, also where no unit hears another.
    """
    if layer["W_hh"].shape != (4, 16):
        return layer
    kept = {name: leaf[..., :12] for name, leaf in layer.items() if name != "p"}
    return {**kept, "p": layer["p"][:2]} if "p" in layer else kept


@pytest.mark.quick("lstm")
@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_snap1_is_exact_where_no_unit_hears_another(cell):
    model, params = made(
        cell=cell, embedding_size=None, **({"cell__peepholes": True} if cell == "lstm" else {})
    )
    params = diagonal(params)
    snap, exact = jax.jit(g.snap1(model)), jax.jit(g.rtrl(model))
    carries = g.snap1(model).init_carry(tiny.B), g.rtrl(model).init_carry(tiny.B)
    for batch in (RAGGED, GOING_ON):
        loss, first, grads, _ = snap(params, carries[0], batch)
        expected_loss, second, expected, _ = exact(params, carries[1], batch)
        [layer], [expected_layer] = grads.pop("layers"), expected.pop("layers")
        tiny.assert_trees_close((loss, grads), (expected_loss, expected))
        tiny.assert_trees_close(in_one_step(layer), in_one_step(expected_layer))
        if cell == "lstm":
            assert not np.allclose(layer["W_hh"], expected_layer["W_hh"], rtol=1e-3)
        carries = first, second


def test_snap1_of_the_top_layer_is_exact_where_no_unit_hears_another(case):
    """And so it is in a stack, where what the layers below do to it is not counted."""
    model, params, compiled = case
    _, _, grads, _ = compiled["snap1"](diagonal(params), model.init_carry(tiny.B), BATCH)
    _, _, full, _ = compiled["full"](diagonal(params), model.init_carry(tiny.B), BATCH)
    tiny.assert_trees_close(
        (in_one_step(grads["layers"][-1]), grads["readout"]),
        (in_one_step(full["layers"][-1]), full["readout"]),
    )
    if len(full["layers"]) > 1:
        assert not np.allclose(grads["layers"][0]["W_hh"], full["layers"][0]["W_hh"], rtol=1e-3)


SEPARATE = {
    "elman": {"cell": "elman", "cell__activation": "relu"},
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
    "peepholes": {"cell": "lstm", "cell__peepholes": True},
    "mingru": {"cell": "mingru"},
    "minlstm": {"cell": "minlstm"},
    "lru": {"cell": "lru"},
    "rglru": {"cell": "rglru"},
    "sru": {"cell": "sru"},
    "slstm": {"cell": "slstm"},
}


def in_numbers(layer):
    """A layer's step on a vector of one lane, (params, s, read) -> s; s -> h; and the first s."""
    first, unravel = ravel_pytree(layer.init_carry(1))

    def step(own, s, read):
        after, _ = layer.run(own, unravel(s), read[None, None], NO_HOOK)
        return ravel_pytree(after)[0]

    return step, lambda s: layer.output(unravel(s))[0], first


def one_step_pattern(step, own, s, halves):
    """The entries of ∂s_t/∂θ that are not zero everywhere, from a few points; a complex number,
    which is kept in two halves, is one."""
    draw = np.random.default_rng(0)
    immediate = jax.jit(jax.jacfwd(step))
    found = jax.tree.map(lambda leaf: np.zeros((len(s), *leaf.shape), bool), own)
    for _ in range(16):
        drawn = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape), (own, s, own["W_xh"][:, 0]))
        found = jax.tree.map(lambda some, now: some | (now != 0), found, immediate(*drawn))
    if halves:
        found = jax.tree.map(lambda some: some | jnp.roll(some, len(s) // 2, axis=0), found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [*((name, 2) for name in SEPARATE), ("lstm", 1)])
def test_snap1_is_rtrl_that_keeps_what_is_there_after_one_step(name, layers):
    """Against a dense influence of each layer on itself, of which all but the pattern of one step
    is dropped after every step (Menick et al., 2021)."""
    model, params = made(**SEPARATE[name], layers=layers, residual=layers > 1)
    owns = params["layers"]
    steps, outputs, states = zip(*map(in_numbers, model.layers), strict=True)
    patterns = [
        one_step_pattern(*at, name == "lru") for at in zip(steps, owns, states, strict=True)
    ]

    def nats(shifts, states, x, y):
        """Those of a step, each layer's state being shifted once it is made."""
        h, after, read = model.vectors(params, x[None, None])[0, 0], [], []
        for place, at in enumerate(zip(steps, outputs, owns, states, shifts, strict=True)):
            step, output, own, s, shift = at
            read.append(h)
            after.append(step(own, s, h) + shift)
            h = h + output(after[-1]) if place else output(after[-1])
        return model.nats(params, h[None], y[None])[0], (after, read)

    def influenced(step, own, s, read, influence, pattern):
        now, J = jax.jacfwd(step, argnums=(0, 1))(own, s, read)
        dense = jax.tree.map(lambda P, now: jnp.tensordot(J, P, 1) + now, influence, now)
        return jax.tree.map(jnp.multiply, pattern, dense)

    @jax.jit
    def read_token(influences, states, x, y):
        still = jax.tree.map(jnp.zeros_like, states)
        deltas, (after, read) = jax.grad(nats, has_aux=True)(still, states, x, y)
        at = zip(steps, owns, states, read, influences, patterns, strict=True)
        influences = [influenced(*of_layer) for of_layer in at]
        grads = [
            jax.tree.map(lambda P, delta=delta: jnp.tensordot(delta, P, 1), influence)
            for delta, influence in zip(deltas, influences, strict=True)
        ]
        return influences, tuple(after), grads

    influences = jax.tree.map(lambda some: jnp.zeros(some.shape), patterns)
    total = jax.tree.map(jnp.zeros_like, owns)
    for x, y in zip(BATCH.x[:, 0], BATCH.y[:, 0], strict=True):
        influences, states, more = read_token(influences, states, x, y)
        total = jax.tree.map(lambda a, b: a + b / tiny.T, total, more)
    one = part(BATCH, tiny.T, 1)
    _, _, grads, _ = jax.jit(g.snap1(model))(params, model.init_carry(1), one)
    tiny.assert_trees_close(grads["layers"], total)


@pytest.mark.quick("None-lru")
@pytest.mark.parametrize("cell", ["mingru", "minlstm", "lru", "rglru"])
@pytest.mark.parametrize("embedding_size", [None, 3])
def test_snap1_of_a_layer_that_is_linear_in_its_state_is_exact(cell, embedding_size):
    """It is RTRL: BPTT over all the text so far, though it holds no n × n."""
    model, params = made(cell=cell, embedding_size=embedding_size)
    estimator = g.snap1(model)
    snap, full = jax.jit(estimator), jax.jit(g.full_bptt(model))

    def see(found, expected):
        (loss, _, grads, _), (expected_loss, _, expected_grads, _) = found, expected
        if embedding_size is not None:  # below the layers each step teaches for itself alone
            del grads["embedding"], expected_grads["embedding"]
        tiny.assert_trees_close((loss, grads), (expected_loss, expected_grads))

    first, second = BATCH, tiny.batch(5, start=False)
    found = snap(params, estimator.init_carry(tiny.B), first)
    fresh = model.init_carry(tiny.B)
    see(found, full(params, fresh, first))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    both = both._replace(mask=both.mask.at[: tiny.T].set(False), start=first.start)
    see(snap(params, found[1], second), full(params, fresh, both))


@pytest.mark.parametrize(
    ("name", "m"),
    [("elman", 1), ("lstm", 2), ("mingru", 1), ("lru", 2), ("sru", 2), ("slstm", 4)],
)
def test_what_snap1_remembers_is_m_numbers_of_each_parameter(name, m):
    model, params = made(**SEPARATE[name], layers=2)
    influence = g.snap1(model).init_carry(tiny.B).influence
    assert optax.tree.size(influence) == tiny.B * m * optax.tree.size(params["layers"])


SMALL = {"hidden_size": 2, "embedding_size": 2, "layers": 2}
SHORT = part(BATCH, 3, 2)


def see_unbiased(drawn, exact):
    """Every entry of the mean is within 4 standard errors; where nothing is drawn, it is exact."""

    def see(draws, expected):
        error = np.std(draws, axis=0) / np.sqrt(len(draws))
        assert np.all(np.abs(np.mean(draws, axis=0) - expected) <= 4 * error + 1e-12)

    jax.tree.map(see, drawn, exact)
    spread = np.std(drawn["layers"][0]["W_hh"], axis=0)
    assert np.all(spread > 1e-4)


@pytest.mark.slow
def test_the_mean_of_uoro_is_rtrl_over_two_batches():
    model, params = made(**SMALL)
    second = SHORT._replace(x=SHORT.y, y=SHORT.x, start=jnp.array([False, True]))

    def over_both(estimator):
        _, carry, _, _ = estimator(params, estimator.init_carry(2), SHORT)
        return estimator(params, carry, second)[2]

    keys = jax.random.split(KEY, 4000)
    drawn = jax.jit(jax.vmap(lambda key: over_both(g.uoro(model, key=key))))(keys)
    exact = jax.jit(lambda: over_both(g.rtrl(model)))()
    see_unbiased(drawn, exact)
    np.testing.assert_allclose(
        drawn["readout"]["W_hy"],
        np.broadcast_to(exact["readout"]["W_hy"], drawn["readout"]["W_hy"].shape),
        rtol=1e-12,
    )


def test_uoro_is_exact_where_the_influence_is_of_rank_one():
    """One number of state, one step: the influence is one row."""
    model, params = made(hidden_size=1)
    at = params, model.init_carry(tiny.B), part(BATCH, 1, tiny.B)
    found = jax.jit(g.uoro(model, key=KEY))(*at)[2]
    exact = jax.jit(g.full_bptt(model))(*at)[2]
    tiny.assert_trees_close(found, exact, 1e-6)  # epsilon, which cancels in the product


@pytest.mark.slow
def test_the_mean_of_randomised_truncation_is_full_bptt():
    model, params = made(**SMALL)
    carry = model.init_carry(2)
    keys = jax.random.split(KEY, 4000)

    def estimate(key):
        return g.randomised_bptt(model, rate=0.4, key=key)(params, carry, SHORT)[2]

    drawn = jax.jit(jax.vmap(estimate))(keys)
    see_unbiased(drawn, jax.jit(g.full_bptt(model))(params, carry, SHORT)[2])


def test_randomised_truncation_lies_between_full_bptt_and_one_step():
    model, params = made(**SMALL)
    carry = model.init_carry(tiny.B)
    full = jax.jit(g.full_bptt(model))(params, carry, BATCH)
    cut = jax.jit(lambda rate: g.randomised_bptt(model, rate=rate, key=KEY)(params, carry, BATCH))
    loss, after, grads, _ = cut(0.0)
    tiny.assert_trees_close((loss, after.carry, grads), full[:3])
    # Where every edge is cut, each loss teaches its own step.
    loss, _, grads, _ = cut(1 - 1e-15)
    short_loss, _, short, _ = jax.jit(g.truncated_bptt(model, k1=1, k2=1))(params, carry, BATCH)
    tiny.assert_trees_close((loss, grads), (short_loss, short))


@pytest.mark.quick("artbp")
@pytest.mark.parametrize("name", ["uoro", "artbp"])
def test_draws_depend_on_the_carry_alone(name):
    model, params = made(**SMALL)
    if name == "uoro":
        estimator, draws = g.uoro(model, key=KEY), 2 * tiny.T
    else:
        estimator, draws = g.randomised_bptt(model, rate=0.5, key=KEY), 2
    estimate = jax.jit(estimator)
    start = estimator.init_carry(tiny.B)
    _, second, first_grads, _ = estimate(params, start, BATCH)
    tiny.assert_trees_equal(estimate(params, start, BATCH), estimate(params, start, BATCH))
    # A carry of another structure is another program, but for the last bits the same.
    tiny.assert_trees_close(estimate(params, model.init_carry(tiny.B), BATCH)[2], first_grads)
    # The text starts again, the draws do not.
    _, third, second_grads, _ = estimate(params, second, BATCH)
    W, V = (grads["layers"][0]["W_hh"] for grads in (first_grads, second_grads))
    assert not np.allclose(W, V, rtol=1e-3)
    assert (third.draws, third.draws.dtype) == (draws, jnp.int32)
    again = estimate(params, estimator.redraw(third, 0), BATCH)[2]
    tiny.assert_trees_equal(again, first_grads)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"model=rnn"):
        g.rtrl(tiny.window())
    with pytest.raises(ValueError, match=r"model=rnn"):
        g.snap1(tiny.window())
    for fields in (
        {"cell": "lstm", "cell__layer_norm": True},
        {"cell": "gru", "cell__reset": "before"},
    ):
        with pytest.raises(ValueError, match="needs built-in cells"):
            g.snap1(tiny.rnn(**fields))
    with pytest.raises(ValueError, match=r"rate=1\.0 must be from 0 to below 1"):
        g.randomised_bptt(tiny.rnn(), rate=1.0, key=KEY)


@pytest.mark.slow
def test_a_trajectory_that_is_not_finite_has_no_finite_gradient():
    model, params = made()
    broken = jax.tree.map(lambda a: a.at[0].set(jnp.nan), model.init_carry(tiny.B))
    batch = BATCH._replace(start=BATCH.start & False)
    for estimator in (g.rtrl(model), g.snap1(model), g.uoro(model, key=KEY)):
        loss, _, grads, _ = jax.jit(estimator)(params, broken, batch)
        assert np.all(np.isnan([loss, *grads["layers"][0]["W_hh"].ravel()]))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["rtrl", "snap1", "uoro", "artbp"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(gradient, tmp_path):
    rate = {"gradient__cut_rate": 0.3} if gradient == "artbp" else {}
    settings = {"gradient": gradient, "keep_best": False, **rate}

    def train(steps, name):
        config = tiny.config(train={**settings, "steps": steps, "validate_every": 100})
        return lm_jax.train(config, tmp_path / name, text=tiny.TEXT)

    whole = train(6, "whole")
    train(3, "stopped")
    again = train(6, "stopped")
    tiny.assert_trees_equal(again.params, whole.params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(whole.params))


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ({}, {"gradient": "artbp"}, "train.gradient=artbp needs train.gradient.cut_rate"),
        (
            {"dropout": RecurrentDropout(inputs=0.1)},
            {"gradient": "uoro"},
            "model.dropout.inputs=0.1 does not go with train.gradient=uoro",
        ),
        ({"change_penalty": 0.1}, {"gradient": "rtrl"}, "model.change_penalty=0.1 does not go"),
        ({"readout": SampledSoftmax()}, {"gradient": "rtrl"}, "model.readout=sampled"),
        (
            {"cell": "gru", "cell__reset": "before"},
            {"gradient": "snap1"},
            "model.cell.reset=before does not go with train.gradient=snap1",
        ),
        (
            {"cell": "lstm", "cell__layer_norm": True},
            {"gradient": "snap1"},
            "model.cell.layer_norm=True does not go with train.gradient=snap1",
        ),
        (
            {"cell": "mine.py:cell"},
            {"gradient": "snap1"},
            "model.cell=mine.py:cell does not go with train.gradient=snap1",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(model, train, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(model=tiny.changed(RNN(), **model), train=tiny.changed(Train(), **train))


@pytest.mark.slow
def test_randomised_truncation_draws_for_each_step_and_lane_of_real_inputs_too():
    config = Config(
        data=Data(source=Adding(), length=6, batch_size=3),
        model=RNN(embedding_size=None, hidden_size=3),
        train=Train(gradient=ARTBP(cut_rate=0.0), steps=1),
    )
    made = models.make(config.model, 2, regression=True)
    batch = task_of(config.data).batch(jax.random.key(0), 0)
    params, carry = made.init(jax.random.key(1)), made.init_carry(3)
    found = g.randomised_bptt(made, rate=0.0, key=jax.random.key(2))(params, carry, batch)
    tiny.assert_trees_close(found[2], g.full_bptt(made)(params, carry, batch)[2])
