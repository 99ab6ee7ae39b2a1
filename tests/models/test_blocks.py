"""Blocks around recurrences: against their formulas, written once more in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from formulas import H, diagonal, elman, mingru

from lm_jax import gradients as g
from lm_jax import models
from lm_jax.config import Config, Elman, MLPBlock, RecurrentDropout, SnAp1, Train
from lm_jax.models.base import NO_HOOK, EdgeHook
from lm_jax.models.layers import CellLayer
from lm_jax.settings import UserError
from lm_jax.training.loop import warn_of_linear_layers

X = tiny.batch().x


def gelu(z):
    return z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def norm(p, z):
    if "b" not in p:
        return z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-5) * p["g"]
    z = z - z.mean(-1, keepdims=True)
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]


def glu_block(p, x, formula):
    """y of all steps, [T, B, H], from x [T, B, H]."""
    state, ys = np.zeros(x.shape[1:]), []
    for x_t in x:
        u = norm(p["norm"], x_t)
        state = formula(p["recurrence"], state, u, np)
        hidden = gelu(state @ p["C"] + p["D"] * u)
        a, b = hidden @ p["W"][:, :H] + p["b"][:H], hidden @ p["W"][:, H:] + p["b"][H:]
        ys.append(x_t + a / (1 + np.exp(-b)))
    return np.stack(ys)


def mlp_block(p, x, formula):
    state, ys = np.zeros(x.shape[1:]), []
    for t in range(len(x)):
        u = norm(p["norm"], x[t])
        if "w" in p:
            k = len(p["w"])
            back = range(min(k, t + 1))  # i steps back has the weights k - 1 - i
            u = sum(p["w"][k - 1 - i] * norm(p["norm"], x[t - i]) for i in back) + p["b_w"]
        state = formula(p["recurrence"], state, u, np)
        v = x[t] + state @ p["W_o"]
        ys.append(v + gelu(norm(p["norm_2"], v) @ p["W_1"] + p["b_1"]) @ p["W_2"] + p["b_2"])
    return np.stack(ys)


BLOCKS = {
    "glu": ({"cell": "lru", "block": "glu"}, glu_block, diagonal),
    "mlp": (
        {"cell": "mingru", "block": "mlp", "block__expansion": 2, "block__convolution": 3},
        mlp_block,
        mingru,
    ),
    "mlp, layer norm": (
        {"cell": "elman", "block": "mlp", "block__norm": "layer", "block__convolution": None},
        mlp_block,
        elman,
    ),
}


@pytest.mark.quick("glu", "mlp")
@pytest.mark.parametrize("name", BLOCKS)
def test_a_stack_of_blocks_is_its_formula_in_numpy_however_it_is_read(name):
    """At once, step by step, in chunks; and the readout's input is a function of the carry."""
    fields, formula, cell = BLOCKS[name]
    model = tiny.rnn(**fields, hidden_size=H, layers=2)
    params = tiny.moved(model.init(jax.random.key(0)))

    @jax.jit
    def read(params):
        start = model.init_carry(tiny.B)
        middle, first = model.hidden(params, start, X[:2])
        last, second = model.hidden(params, middle, X[2:])
        chunks = last, jnp.concatenate([first, second])
        return model.hidden(params, start, X), model.hidden(params, start, X, NO_HOOK), chunks

    at_once, steps, chunks = read(params)
    p = jax.tree.map(np.asarray, params)
    x = p["embedding"]["C"][np.asarray(X)] @ p["layers"][0]["W_in"]
    for own in p["layers"]:
        x = formula(own, x, cell)
    np.testing.assert_allclose(at_once[1], x, 1e-12, 1e-12)
    tiny.assert_trees_close(steps, at_once)
    tiny.assert_trees_close(chunks, at_once)
    np.testing.assert_array_equal(model.output(at_once[0]), at_once[1][-1])


@pytest.mark.parametrize("block", ["glu", "mlp"])
def test_a_block_reads_sequences_of_a_length_known_only_later(block):
    """Exported functions are for any T and B."""
    model = tiny.rnn(cell="mingru", block=block)
    T, B = jax.export.symbolic_shape("T, B")
    carry = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((B, *leaf.shape[1:]), leaf.dtype),
        jax.eval_shape(lambda: model.init_carry(1)),
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((T, B), jnp.int32)
    last, h = jax.eval_shape(lambda *read: model.hidden(*read, NO_HOOK), params, carry, x)
    assert h.shape == (T, B, 5)
    assert jax.tree.map(jnp.shape, last) == jax.tree.map(jnp.shape, carry)


def test_layers_of_lrus_are_one_linear_map_and_blocks_of_them_are_not():
    """Superposition, f(a + b) = f(a) + f(b), from a carry of zeros."""
    cells = [models.LRUCell(H)] * 3
    plain = [CellLayer(cell, H) for cell in cells]
    blocks = [models.GLUBlockLayer(layer, H, H) for layer in plain]

    def apart(layers):
        params = [layer.init(jax.random.key(n)) for n, layer in enumerate(layers)]

        def f(x):
            for layer, own in zip(layers, params, strict=True):
                _, x = layer.run(own, layer.init_carry(6), x)
            return x

        a, b = jax.random.normal(jax.random.key(5), (2, 4, 2, H))
        whole, first, second = jnp.split(jax.jit(f)(jnp.concatenate([a + b, a, b], 1)), 3, 1)
        return float(jnp.max(jnp.abs(whole - first - second)))

    assert apart(plain) < 1e-12
    assert apart(blocks) > 0.1


def test_hooks_act_on_the_carry_of_the_recurrence():
    """A hook that cuts δ leaves no gradient of the recurrence, and that of the other layers."""
    model = tiny.rnn(cell="elman", block="mlp")
    params, batch = tiny.moved(model.init(jax.random.key(0))), tiny.batch()
    cut = EdgeHook(lambda carry, _: jax.lax.stop_gradient(carry))

    def loss(params):
        _, h = model.hidden(params, model.init_carry(tiny.B), batch.x, cut)
        return model.loss(params, h, batch.y, batch.mask)

    (own,) = jax.jit(jax.grad(loss))(params)["layers"]
    assert not any(map(np.any, jax.tree.leaves(own.pop("recurrence"))))
    assert all(map(np.any, jax.tree.leaves({k: own[k] for k in ("W_o", "W_1", "W_in")})))


@pytest.mark.slow
def test_the_norm_of_delta_is_that_of_the_plain_scan():
    model = tiny.rnn(cell="lru", hidden_size=H, block="glu", layers=2)
    params = tiny.moved(model.init(jax.random.key(0)))
    at = params, model.init_carry(tiny.B), tiny.batch()
    ways = g.full_bptt, g.explicit_bptt
    norms = [way(model, delta_norms=True)(*at)[3].delta_norms for way in ways]
    assert np.all(np.asarray(norms[0]) > 0)
    np.testing.assert_allclose(*norms, rtol=1e-12)


def test_a_block_reads_vectors_of_its_own_length_as_they_are():
    """The table of vectors is then the first map; one-hot vectors need a matrix."""
    shapes = {
        size: jax.eval_shape(tiny.rnn(embedding_size=size, block="glu").init, jax.random.key(0))
        for size in (5, None)
    }
    assert "W_in" not in shapes[5]["layers"][0]
    assert shapes[None]["layers"][0]["W_in"].shape == (tiny.V, 5)
    two = tiny.rnn(block="glu", layers=2, hidden_size=(5, 3))
    sizes = jax.eval_shape(two.init, jax.random.key(0))
    assert sizes["layers"][1]["W_in"].shape == (5, 3)
    H, k, wide = 5, 4, 4 * 5
    mlp = jax.eval_shape(tiny.rnn(embedding_size=5, block="mlp").init, jax.random.key(0))
    elman = 2 * H * H + H
    assert sum(leaf.size for leaf in jax.tree.leaves(mlp["layers"])) == (
        (k + 1) * H + elman + H * H + 2 * H + 2 * H * wide + wide + H
    )


def test_a_run_of_linear_layers_alone_says_so():
    linear = tiny.changed(tiny.config().model, cell="lru", hidden_size=6, layers=3)
    with pytest.warns(UserWarning, match="model.layers=3 of model.cell=lru are one linear map"):
        warn_of_linear_layers(linear)
    for other in ({"block": "glu"}, {"layers": 1}, {"cell": "mingru"}):  # a warning is an error
        warn_of_linear_layers(tiny.changed(linear, **other))


def test_a_cell_of_one_s_own_stands_in_a_block(tmp_path):
    (tmp_path / "own.py").write_text(
        "import jax, jax.numpy as jnp\n"
        "from lm_jax.models import Transition\n"
        "def mean(inputs, hidden_size):\n"
        "    step = lambda p, h, x: p['a'] * h + x\n"
        "    return Transition(lambda key: {'a': jnp.ones(inputs)}, jnp.zeros(inputs), step)\n"
    )
    model = tiny.rnn(cell=f"{tmp_path}/own.py:mean", block="glu")
    params = model.init(jax.random.key(0))
    _, h = model.hidden(params, model.init_carry(tiny.B), X)
    assert h.shape == (*X.shape, 5)
    assert params["layers"][0]["recurrence"]["a"].shape == (5,)


def test_settings_that_a_block_does_not_read_are_refused():
    with pytest.raises(UserError, match=r"model.residual=True does not go with model.block=glu"):
        tiny.rnn(block="glu", residual=True, layers=2)
    for name in ("recurrent", "zoneout"):
        dropout = RecurrentDropout(**{name: 0.5})
        with pytest.raises(UserError, match=f"model.dropout.{name}=0.5 does not go with model.b"):
            tiny.rnn(block="mlp", dropout=dropout)
    with pytest.raises(UserError, match=r"zoneout is read only with model.cell=elman or lstm or g"):
        tiny.rnn(cell="slstm", dropout=RecurrentDropout(zoneout=0.5))
    model = tiny.changed(tiny.config().model, cell=Elman(), block=MLPBlock())
    with pytest.raises(UserError, match=r"model.block=mlp does not go with train.gradient=snap1"):
        Config(model=model, train=Train(gradient=SnAp1()))
    with pytest.raises(UserError, match=r"and no model\.block"):
        g.snap1(tiny.rnn(block="glu"))
