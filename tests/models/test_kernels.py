"""The kernels of a whole sequence: the recurrence step by step, run as JAX operations on a CPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
import tiny

from benchmarks.programs import Program
from lm_jax.config import GRU, RNN
from lm_jax.config.model import unrounded
from lm_jax.models import RNNModel, cells, held, kernels, layers, recurrence, xlstm
from lm_jax.models.base import NO_HOOK
from lm_jax.models.make import make

H, B, T = 5, 3, 4
CELLS = {
    "elman": cells.ElmanCell(H, "relu"),
    "lstm": cells.LSTMCell(H, peepholes=True),
    "gru": cells.GRUCell(H),
    "slstm": xlstm.SLSTMCell(H),
}
in_one_kernel = functools.partial(recurrence.in_one_kernel, interpret=True)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two blocks, the last with an idle sequence; two tiles of units, the last with idle units."""
    monkeypatch.setattr(kernels, "SEQUENCES", 2)
    monkeypatch.setattr(kernels, "tile", lambda units: 4)


def case(cell):
    key = jax.random.key(3)
    params = tiny.moved(cell.init(key))
    own = {name: leaf for name, leaf in params.items() if name != "b_h"}
    carry = tiny.moved(cell.init_carry(B), seed=2)
    return own, carry, jax.random.normal(key, (T, B, cell.width))


def value(run, weights, *given):
    last, h = run(*given)
    return jnp.sum(weights * h) + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(last))


def assert_same(cell, *given):
    """Kernels and recurrence have the same value, and the same gradients of all arguments."""
    weights = jax.random.normal(jax.random.key(4), (T, B, H))
    places = tuple(range(1, len(given) + 1))
    found = []
    for run in (in_one_kernel, recurrence.explicit):
        of = functools.partial(value, functools.partial(run, cell))
        found.append(jax.jit(jax.value_and_grad(of, places))(weights, *given))
    tiny.assert_trees_close(*found)


@pytest.mark.quick("lstm", "gru")
@pytest.mark.parametrize("name", CELLS)
def test_the_kernels_are_the_recurrence_and_its_gradient(name):
    """With the norm of δ, idle sequences and idle units."""
    assert_same(CELLS[name], *case(CELLS[name]), jnp.zeros((T, B)))


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2 * H])
def test_a_step_may_keep_a_share_of_the_carry(columns):
    cell = CELLS["lstm"]
    params, carry, z_x = case(cell)
    kept = jax.random.uniform(jax.random.key(6), (T, B, columns))
    cell, z_x = held.keeping(cell, z_x, kept)
    assert_same(cell, params, carry, z_x, None)


@pytest.mark.slow
def test_the_lanes_of_a_sweep_have_their_own_weights():
    cell = CELLS["gru"]
    given = (*case(cell), None)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), given)
    mapped = jax.jit(jax.vmap(functools.partial(in_one_kernel, cell)))(*two)
    for lane in range(2):
        alone = recurrence.explicit(cell, *jax.tree.map(lambda leaf, n=lane: leaf[n], two))
        tiny.assert_trees_close(jax.tree.map(lambda leaf, n=lane: leaf[n], mapped), alone)


def test_a_gate_whose_units_interact_has_no_tiles():
    cell = cells.LSTMCell(H, layer_norm=True)
    with pytest.raises(ValueError, match="no tiles for the operation reduce_sum"):
        jax.eval_shape(functools.partial(in_one_kernel, cell), *case(cell))


def kernels_of(run, dtype, platform):
    """The number of kernels in the gradient of a pass, lowered for a platform."""
    cell = CELLS["gru"]
    given = jax.tree.map(lambda leaf: leaf.astype(dtype), case(cell))
    weights = jnp.ones((T, B, H), dtype)
    gradient = jax.grad(functools.partial(value, functools.partial(run, cell)), 1)
    program = Program(jax.jit(gradient), (weights, *given))
    return program.lower(platform)[0].as_text().count("triton")


@pytest.mark.parametrize(
    ("dtype", "platform", "count"),
    [("float32", "cuda", 2), ("float32", "tpu", 0), ("float32", "cpu", 0), ("float64", "cuda", 0)],
)
def test_a_program_for_an_nvidia_gpu_has_a_kernel_each_way(dtype, platform, count, monkeypatch):
    run = functools.partial(recurrence.explicit, in_kernels=True)
    monkeypatch.undo()  # a kernel takes tiles of 16 at least
    assert kernels_of(run, dtype, platform) == count


def test_a_hook_takes_the_scan(monkeypatch):
    monkeypatch.undo()
    run = functools.partial(layers.unroll, hook=NO_HOOK, in_kernels=True)
    assert kernels_of(run, "float32", "cuda") == 0


def test_training_takes_the_kernels_and_scores_take_the_scan():
    trained = RNN(cell=GRU(), hidden_size=H, recurrence="pallas")
    for settings, in_kernels in ((trained, True), (unrounded(trained), False)):
        model = make(settings, 7)
        assert isinstance(model, RNNModel)
        assert model.layers == (layers.CellLayer(cells.GRUCell(H), model.embedding, in_kernels),)
