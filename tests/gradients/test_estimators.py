"""Every estimator and all that takes a batch: real inputs, 64-bit tokens, dropout, two layers.

Each reads two batches of one text, of which one lane begins anew at the second, in one scan, so
that its carry must keep its shapes and types. What the second batch's gradient should be is
autodiff's of one step after another, in which the parameters move at some steps and are constants
at the others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax import models
from lm_jax.config import Convolution
from lm_jax.data.batches import Batch
from lm_jax.generation.scheduled_sampling import sample_inputs
from lm_jax.models import restart, transition
from lm_jax.models.base import NO_HOOK
from lm_jax.models.readout import RegressionReadout
from lm_jax.settings import UserError
from lm_jax.trees import norm

T, B, V, H = 4, 2, 5, 2
KEY = jax.random.key(3)
WEIGHT = 0.5  # of the remedies


def made(readout, *, real, locked=False):
    """A model of tokens, or of V real numbers at each step."""
    embedding = models.Embedding(V, 3)
    layers = tuple(models.CellLayer(models.ElmanCell(H), below) for below in (embedding, H))
    noise = models.DropoutMasks(locked=locked, inputs=0.3, between=0.3, outputs=0.3, recurrent=0.3)
    return models.RNNModel(
        embedding, readout, layers=layers, hidden_size=H, real_inputs=real, dropout=noise
    )


MODELS = {
    "tokens": made(models.SoftmaxReadout(V), real=False),
    "one-hot": made(models.SoftmaxReadout(V), real=True),
    "numbers": made(RegressionReadout(), real=True),
}
PARAMS = {kind: tiny.moved(model.init(KEY)) for kind, model in MODELS.items()}


def text(kind):
    """Two batches, leaves [2, T, B, ...]; the second goes on in lane 0 and begins in lane 1."""
    draw = np.random.default_rng(4)
    x, y = draw.integers(0, V, (2, 2, T, B))
    if kind == "one-hot":
        x = np.eye(V)[x]
    if kind == "numbers":
        x, y = draw.normal(size=(2, T, B, V)), draw.normal(size=(2, T, B))
    mask = np.ones((2, T, B), bool)
    mask[1, 1, 0] = mask[1, 3, 1] = False
    start = np.array([[True, True], [False, True]])
    return Batch(*map(jnp.asarray, (x, y, mask, start)))


TEXTS = {kind: text(kind) for kind in MODELS}


def test_the_inputs_are_what_they_are_called():
    assert TEXTS["tokens"].x.dtype == TEXTS["tokens"].y.dtype == jnp.int64
    assert TEXTS["one-hot"].x.dtype == TEXTS["numbers"].y.dtype == jnp.float64


# --- estimators -----------------------------------------------------------------------------------

TRUNCATED = {"k2 < k1": (4, 3), "k2 = k1": (2, 2), "k2 > k1": (2, 5), "k2 > T": (4, 11)}


def with_dropout(model):
    """The estimators that may be given a model with dropout, each with how it is made."""
    noisy = model.for_training(KEY)
    # Masks of each step's own; without a place all T steps would be drawn at once.
    at_start = noisy.at_step(0)
    return {
        "full": g.full_bptt(at_start),
        "explicit": g.explicit_bptt(at_start),
        "artbp": g.randomised_bptt(at_start, rate=0.0, key=KEY),
        **{name: g.truncated_bptt(noisy, k1=k1, k2=k2) for name, (k1, k2) in TRUNCATED.items()},
    }


def without_dropout(model):
    return {
        "recomputed": g.explicit_bptt(model, recompute=True),
        "rtrl": g.rtrl(model),
    }


def inexact(model):
    """Those whose gradient is another; of these a draw, or a penalty, must be the same."""
    return {
        "artbp": g.randomised_bptt(model.for_training(KEY), rate=0.4, key=KEY),
        "snap1": g.snap1(model),
        "uoro": g.uoro(model, key=KEY),
        "omega": g.with_omega(g.truncated_bptt(model, k1=2, k2=5), model, WEIGHT),
        "flossing": g.with_flossing(g.explicit_bptt(model), model, WEIGHT, 1),
    }


@functools.cache
def read(kind, choose):
    """{estimator: (loss, grads) of the second batch}, all in one program."""
    model = MODELS[kind]

    @jax.jit
    def program(params, text):
        found = {}
        for name, estimator in choose(model).items():

            def update(carry, batch, estimator=estimator):
                loss, carry, grads, _ = estimator(params, carry, batch)
                return carry, (loss, grads)

            _, found[name] = jax.lax.scan(update, estimator.init_carry(B), text)
        return jax.tree.map(lambda leaf: leaf[1], found)

    return program(PARAMS[kind], TEXTS[kind])


@functools.cache
def reference(kind, noisy):
    """(places[2T], moving[2T], counted[2T]) -> (loss, grads), one step after another.

    `places` are those of the dropout masks; the parameters below the readout move at the steps
    `moving`; the losses of the steps `counted` are summed, over the second batch's targets.
    """
    model = MODELS[kind].for_training(KEY) if noisy else MODELS[kind]
    x, y, mask, start = TEXTS[kind]
    x, y, mask = (leaf.reshape(2 * T, *leaf.shape[2:]) for leaf in (x, y, mask))
    starts = jnp.zeros((2 * T, B), bool).at[jnp.array([0, T])].set(start)

    def nats(params, places, moving, counted):
        def step(carry, at_t):
            x, y, mask, start, place, moves, counts = at_t
            there = model.at_step(place)
            still = jax.lax.stop_gradient(params)
            seen = jax.tree.map(lambda a, b: jnp.where(moves, a, b), params, still)
            carry, h = there.hidden(seen, restart(model, carry, start), x[None], NO_HOOK)
            loss = there.loss(params, h, y[None], mask[None])
            return carry, jnp.where(counts, loss, 0)

        over = x, y, mask, starts, places, moving, counted
        _, losses = jax.lax.scan(step, model.init_carry(B), over)
        return jnp.sum(losses) / jnp.sum(mask[T:])

    value_and_grad = jax.jit(jax.value_and_grad(nats))
    return functools.partial(value_and_grad, PARAMS[kind])


STEPS, SECOND = np.arange(2 * T), np.arange(2 * T) >= T


def added(a, b):
    return jax.tree.map(jnp.add, a, b)


def truncated(kind, k1, k2):
    """The sum over the second batch's blocks, each reaching k2 steps back from its end."""
    remembered = -(-k2 // k1) - 1
    places = STEPS % T if not remembered else STEPS - T + remembered * k1
    parts = []
    for end in range(T + k1, 2 * T + 1, k1):
        moving = (STEPS >= end - k2) & (STEPS < end)
        counted = (STEPS >= end - k1) & (STEPS < end)
        parts.append(reference(kind, True)(places, moving, counted))
    return functools.reduce(added, parts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "numbers"])
def test_with_dropout_and_two_layers_backpropagation_is_autodiff_of_one_step_after_another(kind):
    found = read(kind, with_dropout)
    whole = reference(kind, True)(STEPS % T, SECOND, SECOND)
    for name in ("full", "explicit", "artbp"):
        tiny.assert_trees_close(found[name], whole)
    for name, (k1, k2) in TRUNCATED.items():
        tiny.assert_trees_close(found[name], truncated(kind, k1, k2))
    # Each of them is a gradient of its own, and none is blind to what is tried here.
    sizes = [float(jnp.sum(found[name][1]["layers"][0]["W_hh"] ** 2)) for name in TRUNCATED]
    assert len({round(size, 9) for size in sizes}) == len(sizes)


@pytest.mark.quick("tokens")
@pytest.mark.parametrize("kind", ["tokens", "numbers"])
def test_without_dropout_segments_and_rtrl_are_autodiff_of_one_step_after_another(kind):
    found, steps = read(kind, without_dropout), reference(kind, False)
    tiny.assert_trees_close(found["recomputed"], steps(STEPS, SECOND, SECOND))
    tiny.assert_trees_close(found["rtrl"], steps(STEPS, STEPS >= 0, SECOND))


@pytest.mark.slow
def test_one_hot_vectors_are_the_tokens_they_stand_for():
    """To every estimator that draws, approximates or adds a penalty, as well."""
    tokens, one_hot = read("tokens", inexact), read("one-hot", inexact)
    tiny.assert_trees_close(one_hot, tokens)
    loss, grads = reference("tokens", False)(STEPS, SECOND, SECOND)
    for name in ("snap1", "uoro"):  # what they approximate comes through the state
        tiny.assert_trees_close(tokens[name][0], loss)
        tiny.assert_trees_close(tokens[name][1]["readout"], grads["readout"])
        assert not np.allclose(tokens[name][1]["embedding"]["C"], grads["embedding"]["C"], 1e-3)


@pytest.mark.slow
def test_a_batch_may_be_a_single_step_of_a_single_lane():
    model, params = MODELS["numbers"], PARAMS["numbers"]
    x, y, mask = (leaf[0, :1, :1] for leaf in TEXTS["numbers"][:3])
    batch = Batch(x, y, mask, jnp.ones(1, bool))
    far = g.truncated_bptt(model, k1=1, k2=3)
    exact = {
        "rtrl": g.rtrl(model),
        "k2 > k1": far,
        "recomputed": g.full_bptt(model, recompute=True),
    }

    @jax.jit
    def read(params):
        estimators = {"explicit": g.explicit_bptt(model), **exact}
        return {
            name: made(params, made.init_carry(1), batch)[2] for name, made in estimators.items()
        }

    found = read(params)
    for name in exact:
        tiny.assert_trees_close(found[name], found["explicit"])


def recurrence(step, params):
    """A layer of a cell of one's own."""
    return transition.TransitionLayer(models.Transition(lambda key: params, jnp.ones(V), step), V)


def linear_layer(cell):
    return models.CellLayer(cell, models.Embedding(V, None))


@pytest.mark.quick("linear")
@pytest.mark.parametrize(
    ("layer", "hidden_size"),
    [
        (recurrence(lambda p, h, x: 0.9 * h + x, {}), V),
        (recurrence(lambda p, h, x: p["a"] * h + x, {"a": jnp.full(V, 0.9)}), V),
        (recurrence(lambda p, h, x: p["a"], {"a": jnp.full(V, 0.9)}), V),
        (linear_layer(models.LRUCell(2)), 2),
        (linear_layer(models.MinGRUCell(2)), 2),
        (linear_layer(models.MinLSTMCell(2)), 2),
    ],
    ids=["linear without parameters", "linear", "constant", "diagonal", "mingru", "minlstm"],
)
def test_the_simplest_recurrences_have_their_gradient_by_every_route(layer, hidden_size):
    readout = models.SoftmaxReadout(V)
    model = models.RNNModel(
        models.Embedding(V, None), readout, layers=(layer,), hidden_size=hidden_size
    )
    batch = jax.tree.map(lambda leaf: leaf[0], TEXTS["tokens"])
    params = tiny.moved(model.init(KEY))
    exact = {
        "explicit": g.explicit_bptt(model),
        "k2 > k1": g.truncated_bptt(model, k1=2, k2=5),
        "rtrl": g.rtrl(model),
        "uoro": g.uoro(model, key=KEY),
    }

    @jax.jit
    def read(params):
        estimators = {"full": g.full_bptt(model), **exact}
        return {
            name: made(params, made.init_carry(B), batch)[2] for name, made in estimators.items()
        }

    found = read(params)
    if params["layers"][0]:  # or there is nothing that the draws of UORO could spoil
        assert not np.any(np.isnan(norm(found.pop("uoro"))))
    for grads in found.values():
        tiny.assert_trees_close(grads, found["full"])


# --- what is refused ------------------------------------------------------------------------------


def test_what_takes_a_step_by_itself_refuses_dropout():
    model = MODELS["tokens"]
    noisy = model.for_training(KEY)
    for make in (
        g.rtrl,
        g.snap1,
        g.single_example,
        lambda model: g.uoro(model, key=KEY),
        lambda model: g.with_omega(g.full_bptt(model), model, WEIGHT),
        lambda model: g.with_flossing(g.full_bptt(model), model, WEIGHT, 1),
    ):
        make(model)
        with pytest.raises(UserError, match="the model has dropout"):
            make(noisy)


def test_recomputing_refuses_masks_of_each_step_s_own():
    for make in (g.full_bptt, g.explicit_bptt):
        make(MODELS["tokens"], recompute=True)
        make(
            made(models.SoftmaxReadout(V), real=False, locked=True).for_training(KEY),
            recompute=True,
        )
        with pytest.raises(UserError, match="locked=True"):
            make(MODELS["tokens"].for_training(KEY), recompute=True)


def test_a_history_refuses_what_the_model_does_not_read():
    for kind, other, said in (
        ("tokens", "numbers", r"float64\[4, 2, 5\].*int32\[2, 2, 2\]"),
        ("numbers", "tokens", r"int64\[4, 2\].*float64\[2, 2, 2, 5\]"),
    ):
        estimator = g.truncated_bptt(MODELS[kind], k1=2, k2=5)
        batch = jax.tree.map(lambda leaf: leaf[0], TEXTS[other])
        with pytest.raises(UserError, match=said):
            estimator(PARAMS[kind], estimator.init_carry(B), batch)
        with pytest.raises(UserError, match="init_carry"):
            estimator(PARAMS[kind], MODELS[kind].init_carry(B), batch)


# --- all else that takes a batch ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "numbers"])
def test_all_that_takes_a_batch_takes_it(kind):
    model, params, text = MODELS[kind], PARAMS[kind], TEXTS[kind]
    batches = [jax.tree.map(lambda leaf, n=n: leaf[n], text) for n in range(2)]
    losses, grads = [], []
    carry = model.init_carry(B)
    full = jax.jit(g.full_bptt(model).estimate)
    for batch in batches:
        loss, carry, grad, _ = full(params, carry, batch)
        losses.append(loss)
        grads.append(norm(grad))

    @jax.jit
    def tools(params, carry, batches):
        at = model, params, carry
        audit = g.clip_audit(*at, batches, norm=1e-3, value=1e-3, delta=1e-3, apply=g.sgd(0.1))
        thresholds = g.quantile_thresholds(*at, batches, share=0.0)
        own = g.exposure_cosines(*at, batches[0], batches[0])
        return audit, thresholds, own, g.batch_loss(model, carry, batches[0])(params)

    audit, thresholds, own, loss = tools(params, model.init_carry(B), batches)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10)
    close(audit.before, losses)
    close(audit.norm, grads)
    close(loss, losses[0])
    close(thresholds.norm, max(grads))
    close(own.cosine, 1)
    found = g.compare({"explicit": g.explicit_bptt(model)}, g.full_bptt(model), params, batches)
    close(found["explicit"].cosine, 1)
    assert all(check.agrees for check in g.verify(model, params, batches[0], directions=1))


@pytest.mark.parametrize(
    "model", [tiny.window(), models.make(Convolution(layers=2, hidden_size=3), tiny.V)]
)
def test_models_that_carry_tokens_read_them_in_64_bits(model):
    params = tiny.moved(model.init(KEY))
    estimator = g.full_bptt(model)

    @jax.jit
    def read(params, text):
        def update(carry, batch):
            loss, carry, grads, _ = estimator(params, carry, batch)
            return carry, (loss, grads)

        return jax.lax.scan(update, estimator.init_carry(tiny.B), text)

    batches = [tiny.batch(), tiny.batch(1, start=False)]
    text = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    wide = text._replace(x=text.x.astype(jnp.int64), y=text.y.astype(jnp.int64))
    tiny.assert_trees_equal(read(params, wide), read(params, text))


def test_a_model_s_own_tokens_have_the_text_s_type_and_replace_no_real_numbers():
    for kind in ("tokens", "numbers"):
        model, batch = MODELS[kind], jax.tree.map(lambda leaf: leaf[0], TEXTS[kind])
        at = model, PARAMS[kind], model.init_carry(B), batch, KEY, jnp.ones(())
        if kind == "tokens":
            own = sample_inputs(*at)
            assert own.x.dtype == jnp.int64
            assert np.any(own.x != batch.x)
        else:
            with pytest.raises(UserError, match="inputs are float64"):
                sample_inputs(*at)
