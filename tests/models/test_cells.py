"""Recurrent cells against their papers' formulas, written once more, and against Flax's cells."""

import functools

import flax.linen as nn
import formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from formulas import H

from lm_jax import models
from lm_jax.models import cells, linear_recurrences, sru, xlstm
from lm_jax.models.base import NO_HOOK
from lm_jax.models.layers import CellLayer, Layer, unroll
from lm_jax.models.mogrifier import MogrifierLayer
from lm_jax.settings import UserError

T, B, E = 4, 3, 4
X = jax.random.normal(jax.random.key(5), (T, B, E))


CELLS = {
    "elman": (cells.ElmanCell(H), formulas.elman),
    "lstm": (cells.LSTMCell(H), formulas.lstm),
    "peepholes": (cells.LSTMCell(H, peepholes=True), formulas.lstm),
    "layer norm": (cells.LSTMCell(H, layer_norm=True), formulas.lstm),
    "both": (cells.LSTMCell(H, peepholes=True, layer_norm=True), formulas.lstm),
    "mogrifier": (MogrifierLayer(CellLayer(cells.LSTMCell(H), E), E, rounds=2), formulas.mogrifier),
    "mogrifier, low rank": (
        MogrifierLayer(CellLayer(cells.LSTMCell(H), E), E, rounds=5, rank=2),
        formulas.mogrifier,
    ),
    "gru": (cells.GRUCell(H), formulas.gru),
    "gru, reset before": (
        cells.ResetBeforeGRUCell(H),
        functools.partial(formulas.gru, before=True),
    ),
    "mingru": (linear_recurrences.MinGRUCell(H), formulas.mingru),
    "minlstm": (linear_recurrences.MinLSTMCell(H), formulas.minlstm),
    "diagonal": (linear_recurrences.LRUCell(H), formulas.diagonal),
    "rglru": (linear_recurrences.RGLRUCell(H), formulas.rglru),
    "sru": (sru.SRUCell(H), formulas.of_sru),
    "slstm": (xlstm.SLSTMCell(H), formulas.slstm),
    "mlstm": (xlstm.MLSTMCell(H, heads=2), formulas.mlstm),
}
every_cell = pytest.mark.parametrize("name", CELLS)


def prepared(cell):
    """A layer with params and a carry that hide nothing by being zero."""
    made: Layer = cell if isinstance(cell, MogrifierLayer) else CellLayer(cell, E)
    params = tiny.moved(made.init(jax.random.key(0)))
    return made, params, tiny.moved(made.init_carry(B), seed=2)


def with_gradient(read, *arguments):
    """h_1 … h_T, the last carry, and the gradient of a sum over both that weighs each number."""

    def loss(*arguments):
        carry, h = read(*arguments)
        said = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves((carry, h))])
        return jnp.vdot(said, np.cos(np.arange(said.size))), (carry, h)

    grads, said = jax.grad(loss, argnums=tuple(range(len(arguments))), has_aux=True)(*arguments)
    return said, grads


def h_of(carry):
    return getattr(carry, "h", carry)


def by_formula(formula, params, carry, x):
    def step(carry, x_t):
        carry = formula(params, carry, x_t, jnp)
        return carry, h_of(carry)

    return jax.lax.scan(step, carry, x)


@functools.cache
def results(name):
    """What a cell says, and its gradients, by several routes; compiled at once."""
    cell, formula = CELLS[name]
    made, params, carry = prepared(cell)

    routes = {
        "layer": lambda *given: made.run(*given, None),
        "formula": lambda *given: by_formula(formula, *given),
    }
    if isinstance(cell, linear_recurrences.LinearCell):
        routes["steps"] = lambda *given: made.run(*given, NO_HOOK)

    @jax.jit
    def every(params, carry, x):
        found = {k: with_gradient(read, params, carry, x) for k, read in routes.items()}
        middle, first = made.run(params, carry, x[:2], None)
        last, second = made.run(params, middle, x[2:], None)
        return {**found, "chunks": (last, jnp.concatenate([first, second]))}

    return every(params, carry, X)


@pytest.mark.quick("elman", "both", "gru", "mingru", "diagonal", "rglru", "mlstm")
@every_cell
def test_a_cell_is_its_paper_s_formula_in_numpy(name):
    cell, formula = CELLS[name]
    _, params, carry = prepared(cell)
    params, carry, x = jax.tree.map(np.asarray, (params, carry, X))
    states = []
    for x_t in x:
        carry = formula(params, carry, x_t, np)
        states.append(h_of(carry))
    tiny.assert_trees_close(results(name)["layer"][0], (carry, np.stack(states)))


@every_cell
def test_its_gradient_is_that_of_the_formula(name):
    tiny.assert_trees_close(results(name)["layer"][1], results(name)["formula"][1])


@pytest.mark.parametrize("name", ["mingru", "minlstm", "diagonal", "rglru"])
def test_all_steps_at_once_are_the_steps_one_by_one(name):
    """A cell that reads a chunk in parallel says and learns what it does step by step."""
    tiny.assert_trees_close(results(name)["layer"], results(name)["steps"])


@every_cell
def test_reading_in_chunks_is_reading_at_once(name):
    tiny.assert_trees_close(results(name)["layer"][0], results(name)["chunks"])


def simple_params(p):
    return {"i": {"kernel": p["W_xh"], "bias": p["b_h"]}, "h": {"kernel": p["W_hh"]}}


def lstm_params(p):
    W, U, b = (formulas.columns(p[name], 4) for name in ("W_xh", "W_hh", "b_h"))
    inputs = {f"i{gate}": {"kernel": W[k]} for k, gate in enumerate("ifgo")}
    return inputs | {f"h{gate}": {"kernel": U[k], "bias": b[k]} for k, gate in enumerate("ifgo")}


def gru_params(p):
    W, U, b = (formulas.columns(p[name], 3) for name in ("W_xh", "W_hh", "b_h"))
    inputs = {f"i{gate}": {"kernel": W[k], "bias": b[k]} for k, gate in enumerate("rzn")}
    states = {f"h{gate}": {"kernel": U[k]} for k, gate in enumerate("rzn")}
    return inputs | states | {"hn": {"kernel": U[2], "bias": p["b_hn"]}}


PEERS = {
    "SimpleCell": (nn.SimpleCell, "elman", simple_params),
    "LSTMCell": (nn.LSTMCell, "lstm", lstm_params),
    "OptimizedLSTMCell": (nn.OptimizedLSTMCell, "lstm", lstm_params),
    "GRUCell": (nn.GRUCell, "gru", gru_params),
}


@pytest.mark.parametrize("peer", PEERS)
def test_a_cell_is_that_of_flax_and_so_is_its_gradient(peer):
    kind, name, translated = PEERS[peer]
    _, params, carry = prepared(CELLS[name][0])
    theirs = kind(features=H, param_dtype=jnp.float64)

    def read(params, carry, x):
        state = (carry.c, carry.h) if name == "lstm" else carry
        own = {"params": translated(params)}
        state, h = jax.lax.scan(lambda state, x_t: theirs.apply(own, state, x_t), state, x)
        return cells.LSTMState(state[1], state[0]) if name == "lstm" else state, h

    found = jax.jit(lambda *given: with_gradient(read, *given))(params, carry, X)
    tiny.assert_trees_close(found, results(name)["layer"])


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_elman_takes_other_activations(activation):
    cell = cells.ElmanCell(H, activation)
    z_x, W_hh = jax.random.normal(jax.random.key(1), (T, B, H)), jnp.eye(H)[::-1]
    _, h = unroll(cell, {"W_hh": W_hh}, jnp.ones((B, H)), z_x)
    state = np.ones((B, H))
    for t in range(T):
        z = np.asarray(z_x[t]) + state[:, ::-1]
        state = 1 / (1 + np.exp(-z)) if activation == "sigmoid" else np.maximum(z, 0)
        np.testing.assert_allclose(h[t], state, rtol=1e-12, atol=1e-12)


def test_the_forget_gate_begins_open_as_asked(key):
    bias = cells.LSTMCell(H, forget_bias=2.5).init(key)["b_h"].reshape(4, H)
    np.testing.assert_array_equal(bias, np.outer([0, 2.5, 0, 0], np.ones(H)))


def test_layer_norm_does_not_see_the_scale_of_the_products():
    """Ba et al. (2016), section 5: the same output for a rescaled weight matrix, but for 1e-5."""
    made, params, carry = prepared(CELLS["layer norm"][0])
    larger = {**params, "W_xh": 1e4 * params["W_xh"], "W_hh": 1e4 * params["W_hh"]}
    largest = {**params, "W_xh": 1e6 * params["W_xh"], "W_hh": 1e6 * params["W_hh"]}
    (_, h), (_, same) = made.run(larger, carry, X, None), made.run(largest, carry, X, None)
    np.testing.assert_allclose(h, same, rtol=1e-7)


def test_minlstm_is_a_mean_where_both_gates_are_shut():
    """f = i = exp(-800), 0 in float64: the state is still half the old and half the new one."""
    cell = linear_recurrences.MinLSTMCell(1)
    z_x = jnp.array([[[-800.0, -800.0, 3.0]]])
    for between in (None, NO_HOOK):
        carry, _ = unroll(cell, {}, jnp.array([[1.0]]), z_x, between)
        np.testing.assert_allclose(carry, 2.0, rtol=1e-12)


def test_the_diagonal_recurrence_begins_uniform_on_the_ring(key):
    """|λ|² is uniform between the squared radii, the phase up to its maximum; γ² = 1 - |λ|²."""
    cell = linear_recurrences.LRUCell(4000, r_min=0.5, r_max=0.9, max_phase=1.0)
    params = jax.tree.map(np.asarray, cell.init(key))
    size, phase = np.exp(-np.exp(params["nu"])), np.exp(params["theta"])
    for numbers, low, high in ((size**2, 0.25, 0.81), (phase, 0, 1)):
        # Kolmogorov's distance of 2000 draws is above 0.05 with a chance of 1 in 10000.
        steps = (np.sort(numbers) - low) / (high - low) - np.arange(2000) / 2000
        assert np.max(np.abs(steps)) < 0.05
    np.testing.assert_allclose(np.exp(2 * params["gamma"]), 1 - size**2, rtol=1e-12)


def test_the_rg_lru_begins_with_slow_units_and_no_nan_where_the_gate_is_shut(key):
    """a^c is uniform between 0.9 and 0.999; at r = 0 the state is kept, and the gradient finite."""
    params = linear_recurrences.RGLRUCell(2000).init(key)
    a_c = np.sort(1 / (1 + np.exp(-np.asarray(params["Lambda"]))) ** 8)
    assert np.max(np.abs((a_c - 0.9) / 0.099 - np.arange(2000) / 2000)) < 0.05
    cell, z_x = linear_recurrences.RGLRUCell(1), jnp.array([[-1e4, 0.0, 3.0]])
    own, h = {"Lambda": jnp.zeros(1)}, jnp.array([[0.5]])
    np.testing.assert_allclose(cell.step(own, h, z_x), 0.5, rtol=1e-12)
    grad = jax.grad(lambda z: jnp.sum(cell.step(own, h, z)))(z_x)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_the_exponential_gates_of_the_xlstm_do_not_overflow(size):
    """Of one very large input gate the read value is the new one: tanh(z) σ(o), here z = o = 0.3;
    a very small one changes nothing."""
    z = jnp.full((1, 4), 0.3).at[0, 0].set(size)
    before = xlstm.SLSTMState(*(jnp.full((1, 1), value) for value in (0.1, 0.2, 0.5, 2.0)))
    after = xlstm.SLSTMCell(1).gate({}, before, jnp.zeros((1, 4)), z)
    inside = np.tanh(0.3) if size > 0 else 0.2 / 0.5
    np.testing.assert_allclose(after.h, inside / (1 + np.exp(-0.3)), rtol=1e-12)


def test_an_mlstm_reads_back_the_value_of_a_key():
    """With the forget gate open and orthogonal keys: Beck et al. (2024), section 2.3."""
    cell, H = xlstm.MLSTMCell(4, heads=1), 4
    keys, values = np.eye(H)[[0, 2]], np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    q = np.eye(H)[[2, 0]] * np.sqrt(H)  # |nᵀ q| is 1
    z_x = np.concatenate([q, keys, values, np.full((2, H), 1e4), [[0, 1e4]] * 2], axis=1)
    _, h = unroll(cell, {}, cell.init_carry(1), jnp.asarray(z_x[:, None]))
    np.testing.assert_allclose(h[1, 0], values[0], rtol=1e-12)
    np.testing.assert_allclose(h[0, 0], 0, atol=1e-12)


def test_heads_that_do_not_divide_the_units_are_refused():
    for make in (
        lambda: xlstm.MLSTMCell(6),
        lambda: tiny.rnn(cell="mlstm", hidden_size=6),
    ):
        with pytest.raises(
            UserError, match=r"model.hidden_size=6 must be a multiple of model.cell.heads=4"
        ):
            make()


@pytest.mark.slow
def test_gamma_keeps_the_variance_of_white_inputs(key):
    cell = linear_recurrences.LRUCell(400, r_min=0.4, r_max=0.9)
    params = cell.init(key)
    z_x = cell.prepare(params, jax.random.normal(key, (60, 50, 400)))
    carry, _ = unroll(cell, params, cell.init_carry(50), z_x)
    assert float(jnp.std(carry)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("drawn", ["minval", "maxval"])
@pytest.mark.parametrize("ring", [(0.0, 1.0), (0.0, 0.5), (0.99, 1.0)])
def test_a_diagonal_recurrence_begins_finite_at_the_edges_of_what_is_drawn(
    key, monkeypatch, ring, drawn
):
    """In float32 an edge is met once in some millions of units; subnormal numbers count as 0."""

    def at_the_edge(key, shape, dtype=float, minval=0.0, maxval=1.0):
        edge = {"minval": minval, "maxval": np.nextafter(np.float32(maxval), np.float32(0))}
        return jnp.full(shape, edge[drawn], dtype)

    monkeypatch.setattr(jax.random, "uniform", at_the_edge)
    with jax.enable_x64(False):
        cell = linear_recurrences.LRUCell(4, r_min=ring[0], r_max=ring[1], max_phase=0.1)
        params = cell.init(key)
    for name, leaf in params.items():
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf)), name


def test_a_diagonal_recurrence_of_odd_size_is_refused():
    for make in (
        lambda: linear_recurrences.LRUCell(5),
        lambda: tiny.rnn(cell="lru", hidden_size=5),
    ):
        with pytest.raises(
            UserError, match=r"model.hidden_size=5 must be even with model.cell=lru"
        ):
            make()


ROTATION = np.array([[0, -1], [1, 0]])
MATRICES = {
    # The error is at most ln κ / 2^30 for eigenvectors of condition κ …
    "normal entries": (np.random.default_rng(0).normal(size=(20, 20)), 1e-8),
    "complex pair": (np.kron(np.diag([0.9, 0.2]), [[1, -2], [2, 1]]), 1e-8),
    "rotation": (ROTATION, 1e-8),
    "small": (1e-30 * ROTATION, 1e-8),
    "negative": (np.diag([0.5, -2.0, 1.0]), 1e-8),
    "triangular": (np.array([[0.5, 1e6], [0, 0.25]]), 1e-7),
    # … and about n ln m / m for a Jordan block of n + 1, m = 2^30.
    "defective": (np.eye(3) * 0.7 + np.eye(3, k=1), 1e-7),
    "nilpotent": (np.eye(4, k=1), 0),
    "zero": (np.zeros((3, 3)), 0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_spectral_radius_is_the_largest_eigenvalue_s_modulus(name):
    W, tolerance = MATRICES[name]
    exact = 0.7 if name == "defective" else np.max(np.abs(np.linalg.eigvals(W)))
    found = jax.jit(cells.spectral_radius)(jnp.asarray(W, float))
    np.testing.assert_allclose(found, exact, rtol=tolerance)
    single = jax.jit(cells.spectral_radius)(jnp.asarray(W, jnp.float32))
    if name != "small":  # whose square is 0 in float32
        np.testing.assert_allclose(single, exact, rtol=max(tolerance, 5e-6) if exact else 0)


def blocks(kind, gain, gates=4):
    cell = cells.LSTMCell(40, W_hh=cells.RecurrentInit(kind, gain))
    return jnp.split(cell.init(jax.random.key(3))["W_hh"], gates, axis=1)


def test_each_kind_of_recurrent_weights_is_what_it_says_in_every_gate():
    for W in blocks("orthogonal", 0.7):
        np.testing.assert_allclose(W @ W.T, 0.49 * np.eye(40), atol=1e-12)
    for W in blocks("identity", 0.7):
        np.testing.assert_array_equal(W, 0.7 * np.eye(40))
    for W in blocks("spectral", 0.7):
        np.testing.assert_allclose(np.max(np.abs(np.linalg.eigvals(W))), 0.7, rtol=1e-7)
    for W in blocks("normal", 0.7):
        assert float(jnp.std(W) * np.sqrt(40)) == pytest.approx(0.7, rel=0.05)
    for kind in ("orthogonal", "spectral", "normal"):
        first, *others = blocks(kind, 1.0)
        assert all(not np.allclose(first, other) for other in others)


@pytest.mark.quick("elman")
@pytest.mark.parametrize("cell", ["elman", "minlstm"])
def test_a_residual_layer_adds_what_it_reads(cell):
    plain, residual = (tiny.rnn(cell=cell, layers=3, residual=flag) for flag in (False, True))
    params, x = tiny.moved(plain.init(jax.random.key(0))), tiny.batch().x
    _, found = residual.hidden(params, residual.init_carry(tiny.B), x)
    one = tiny.rnn(cell=cell)
    h = params["embedding"]["C"][x]
    for place, own in enumerate(params["layers"]):
        # Each layer by itself, its input the table of a model of one layer.
        flat = h.reshape(-1, h.shape[-1])
        alone = {**params, "embedding": {"C": flat}, "layers": [own]}
        rows = jnp.arange(len(flat), dtype=jnp.int32).reshape(h.shape[:2])
        _, new = one.hidden(alone, one.init_carry(tiny.B), rows)
        h = h + new if place else new
    tiny.assert_trees_close(found, h)


@pytest.mark.quick("gru")
@pytest.mark.parametrize(
    "cell", ["lstm", "gru", "mingru", "minlstm", "lru", "rglru", "sru", "slstm", "mlstm"]
)
def test_a_name_makes_the_cell_of_that_name(cell, key):
    model = tiny.rnn(cell=cell, hidden_size=8, layers=2)
    made = {"lstm": models.LSTMCell, "gru": models.GRUCell, "lru": models.LRUCell}
    made |= {"mingru": models.MinGRUCell, "minlstm": models.MinLSTMCell}
    made |= {"rglru": models.RGLRUCell, "sru": models.SRUCell}
    made |= {"slstm": models.SLSTMCell, "mlstm": models.MLSTMCell}
    own = made[cell](8)
    params = model.init(key)
    for place, inputs in enumerate((4, 8)):
        there = jax.tree.map(jnp.shape, params["layers"][place])
        own_shapes = jax.tree.map(jnp.shape, jax.eval_shape(own.init, key))
        assert there == {"W_xh": (inputs, own.width), **own_shapes}
    _, h = model.hidden(params, model.init_carry(tiny.B), tiny.batch().x)
    assert h.shape == (tiny.T, tiny.B, 8)
