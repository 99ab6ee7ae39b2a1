"""The convolutional model: its formula in NumPy, what it sees, and the window model within it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import lm_jax
from lm_jax import models
from lm_jax.config import Convolution, Dropout
from lm_jax.models.convolution import running_maximum
from lm_jax.settings import UserError

E, H = 4, 5


def make(**fields):
    own = {"width": 3, "embedding_size": E, "hidden_size": H}
    return models.make(Convolution(**{**own, **fields}), tiny.V)


def hidden(model, params, carry, x):
    """Compiled whole: op by op it takes far longer."""
    return jax.jit(model.hidden)(params, carry, x)


def params_of(model):
    return tiny.moved(model.init(jax.random.key(0)))


MODELS = {
    "one layer": make(),
    "dilated": make(layers=3, width=2, dilation=2, residual=True, activation="relu"),
    "gated, pooled": make(layers=2, activation="glu", pooling=4),
    "one-hot": make(embedding_size=None, pooling=3, activation="sigmoid"),
    "width 1": make(width=1, layers=2, pooling=1),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


@every_model
def test_reading_in_chunks_is_reading_at_once(model):
    params, x = params_of(model), tiny.batch().x
    start = model.init_carry(tiny.B)
    assert all(leaf.shape[0] == tiny.B for leaf in jax.tree.leaves(start))
    whole_carry, whole = hidden(model, params, start, x)
    carry, parts = start, []
    for part in (x[:1], x[1:2], x[2:]):  # shorter than the carry, and longer
        carry, h = hidden(model, params, carry, part)
        parts.append(h)
    tiny.assert_trees_close(jnp.concatenate(parts), whole)
    tiny.assert_trees_close(carry, whole_carry)


def numpy_hidden(params, x, *, dilation, f, residual, pooling):
    """Time step by time step and place by place, from the formula; [T, B, H]."""
    C = np.asarray(params["embedding"]["C"])
    steps, lanes = x.shape
    below = {(t, lane): C[x[t, lane]] for t in range(steps) for lane in range(lanes)}
    for number, own in enumerate(params["layers"]):
        W, b = np.asarray(own["W"]), np.asarray(own["b"])
        above = {}
        for (t, lane), seen in below.items():
            z = b.copy()
            for back in range(len(W)):
                z += below.get((t - back * dilation**number, lane), 0 * seen) @ W[-1 - back]
            above[t, lane] = f(z) + (seen if residual and number else 0)
        below = above
    top = np.array([[below[t, lane] for lane in range(lanes)] for t in range(steps)])
    return np.array([top[max(0, t - pooling + 1) : t + 1].max(0) for t in range(steps)])


def gated(z):
    return z[: len(z) // 2] / (1 + np.exp(-z[len(z) // 2 :]))


@pytest.mark.parametrize(
    ("activation", "f", "residual", "pooling"),
    [
        ("tanh", np.tanh, False, None),
        ("glu", gated, True, 3),
        ("relu", lambda z: np.maximum(z, 0), True, None),
    ],
    ids=["tanh", "glu", "relu"],
)
def test_a_convolution_is_the_formula_in_numpy(activation, f, residual, pooling):
    model = make(
        layers=3, width=2, dilation=3, activation=activation, residual=residual, pooling=pooling
    )
    params, x = params_of(model), tiny.batch(length=15).x
    _, h = hidden(model, params, model.init_carry(tiny.B), x)
    expected = numpy_hidden(
        params, np.asarray(x), dilation=3, f=f, residual=residual, pooling=pooling or 1
    )
    np.testing.assert_allclose(h, expected, 1e-12, 1e-12)


@pytest.mark.parametrize(
    ("activation", "embedding_size"), [("tanh", E), ("relu", None)], ids=["learned", "one-hot"]
)
def test_one_layer_is_the_window_model_of_one_order_more(activation, embedding_size):
    """Values and gradients, to the last bit, in the middle of a text and at its start."""
    shared = {"activation": activation, "embedding_size": embedding_size}
    model, window = make(**shared), tiny.window(order=4, hidden_size=H, **shared)
    params, batch = params_of(model), tiny.batch()
    tokens = jnp.array([[-1, -1], [-1, 3], [5, 0]], jnp.int32)  # B, places
    carry = model.init_carry(tiny.B)
    tiny.assert_trees_equal(carry.tokens, window.init_carry(tiny.B))

    def as_window(params):
        (own,) = params["layers"]
        rest = {name: params[name] for name in ("embedding", "readout")}
        return {**rest, **own, "layers": []}

    def value(model, carry, params):
        carry, h = model.hidden(params, carry, batch.x)
        return model.loss(params, h, batch.y, batch.mask), (carry, h)

    def value_and_grad(model, carry, params):
        return jax.jit(
            jax.value_and_grad(lambda params: value(model, carry, params), has_aux=True)
        )(params)

    given = carry._replace(tokens=tokens)
    (loss, (after, h)), grads = value_and_grad(model, given, params)
    (same_loss, (same_after, same_h)), same_grads = value_and_grad(
        window, tokens, as_window(params)
    )
    tiny.assert_trees_equal((loss, after.tokens, h), (same_loss, same_after, same_h))
    tiny.assert_trees_equal(as_window(grads), same_grads)


@pytest.mark.parametrize(
    ("width", "layers", "dilation", "pooling"),
    [(3, 1, 1, None), (3, 2, 1, 4), (2, 3, 3, None), (2, 2, 3, 3), (1, 2, 1, 2)],
)
def test_the_receptive_field_is_the_formula_and_all_of_it_is_in_the_past(
    width, layers, dilation, pooling
):
    """Which inputs move which outputs: through the Jacobian of h with respect to the table.

    Every step reads a token of its own, so row t of the table is the input at t.
    """
    field = 1 + (width - 1) * sum(dilation**above for above in range(layers))
    field += 0 if pooling is None else pooling - 1
    steps = field + 3
    config = Convolution(
        width=width,
        layers=layers,
        dilation=dilation,
        pooling=pooling,
        embedding_size=2,
        hidden_size=40,  # so many that a maximum stands at every place of the pooling
    )
    model = models.make(config, steps)
    params = model.init(jax.random.key(3))

    def outputs(C):
        carry = model.init_carry(1)
        x = jnp.arange(steps, dtype=jnp.int32)[:, None]
        return model.hidden({**params, "embedding": {"C": C}}, carry, x)[1][:, 0]

    jacobian = jax.jit(jax.jacobian(outputs))(params["embedding"]["C"])  # [T, H, T, E]
    moved = np.any(np.asarray(jacobian) != 0, axis=(1, 3))
    age = np.arange(steps)[:, None] - np.arange(steps)[None, :]
    within = (age >= 0) & (age < field)
    assert not np.any(moved & ~within)  # not from later inputs, nor from older ones
    assert np.all(np.diagonal(moved))
    assert np.all(np.diagonal(moved, -(field - 1)))


def test_dilated_layers_leave_the_steps_between_out():
    """k = 2, two layers, dilation 3: one output sees the inputs of age 0, 1, 3 and 4."""
    model = make(width=2, layers=2, dilation=3)
    params, x = params_of(model), tiny.batch().x
    _, h = hidden(model, params, model.init_carry(tiny.B), x)
    for age in range(tiny.T):
        t = tiny.T - 1 - age
        other = x.at[t].set((x[t] + 1) % tiny.V)
        _, other = hidden(model, params, model.init_carry(tiny.B), other)
        assert bool(jnp.any(other[-1] != h[-1])) == (age in (0, 1, 3, 4))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 11])
def test_the_running_maximum_is_the_maximum_of_every_run(steps):
    h = np.random.default_rng(steps).normal(size=(11, 2, 3))
    brute = [h[t : t + steps].max(0) for t in range(11 - steps + 1)]
    np.testing.assert_array_equal(running_maximum(jnp.asarray(h), steps), brute)


def test_pre_activations_start_at_the_gain_s_variance():
    params = make(width=4, layers=2, hidden_size=100, embedding_size=50, gain=0.5).init(
        jax.random.key(1)
    )
    for own, inputs in zip(params["layers"], (4 * 50, 4 * 100), strict=True):
        assert float(jnp.std(own["W"]) * jnp.sqrt(inputs)) == pytest.approx(0.5, rel=0.02)


def test_the_parameters_are_as_many_as_the_formula_says(key):
    rest = tiny.V * E + (H + 1) * tiny.V
    layers = (3 * E + 1) * H + (3 * H + 1) * H
    for activation, times in (("tanh", 1), ("glu", 2)):
        params = make(layers=2, activation=activation).init(key)
        assert optax.tree.size(params) == rest + times * layers


def test_carried_activations_are_constants_and_carried_tokens_are_not():
    """Where layer 1 reads the present step only, layer 2 has the step before from the carry: h
    changes with it, and no gradient reaches the table through it. A carried token is read anew."""
    x = jnp.array([[0], [1]], jnp.int32)
    model = make(width=2, layers=2)
    params = params_of(model)

    def rows(params, carry):
        grads = jax.jit(jax.grad(lambda p: jnp.sum(model.hidden(p, carry, x[1:])[1])))(params)
        return set(np.flatnonzero(np.any(np.asarray(grads["embedding"]["C"]) != 0, axis=1)))

    carry, _ = hidden(model, params, model.init_carry(1), x[:1])
    assert rows(params, carry) == {0, 1}
    params["layers"][0]["W"] = params["layers"][0]["W"].at[0].set(0)
    carry, _ = hidden(model, params, model.init_carry(1), x[:1])
    assert rows(params, carry) == {1}
    _, h = hidden(model, params, carry, x[1:])
    _, forgotten = hidden(model, params, carry._replace(inputs=(0 * carry.inputs[0],)), x[1:])
    assert np.any(h != forgotten)


@pytest.mark.parametrize("place", ["inputs", "embedding", "between", "outputs"])
def test_noise_has_its_places(place):
    """It moves h, or what the readout sees of it, in training and never otherwise."""
    chance = {place: 0.5}
    plain, model = make(layers=2), make(layers=2, dropout=Dropout(**chance))
    params, batch = params_of(model), tiny.batch()

    def h_and_loss(model):
        def both(params):
            _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
            return h, model.loss(params, h, batch.y, batch.mask)

        return jax.jit(both)(params)

    h, loss = h_and_loss(plain)
    tiny.assert_trees_equal(h_and_loss(model), (h, loss))
    noisy_h, noisy_loss = h_and_loss(model.for_training(jax.random.key(5)))
    assert bool(jnp.all(noisy_h == h)) == (place == "outputs")
    assert noisy_loss != loss


@pytest.mark.slow
def test_a_run_trains_stops_and_goes_on(tmp_path):
    """With empty arrays in the carry, which are not saved, and outputs of the past, which are."""
    model = Convolution(embedding_size=4, hidden_size=5, layers=2, width=1, pooling=3)
    whole = lm_jax.train(tiny.config(model=model), tmp_path / "whole", text=tiny.TEXT)
    part = tiny.config(model=model, train={"steps": 7})
    lm_jax.train(part, tmp_path / "parts", text=tiny.TEXT)
    parts = lm_jax.train(tiny.config(model=model), tmp_path / "parts", text=tiny.TEXT)
    tiny.assert_trees_equal(parts.params, whole.params)
    assert parts.step == 20


def test_what_is_not_read_is_refused():
    with pytest.raises(UserError, match=r"model\.dilation needs model\.layers of 2 or more"):
        Convolution(dilation=2)
    with pytest.raises(UserError, match=r"model\.dilation needs model\.width of 2 or more"):
        Convolution(dilation=2, layers=2, width=1)
    with pytest.raises(UserError, match=r"model\.residual needs model\.layers of 2 or more"):
        Convolution(residual=True)
