"""The kernels of a whole sequence: the recurrence step by step, run as JAX operations on a CPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
import tiny

from lm_jax.models import cells, kernels, recurrence, xlstm

H, B, T = 5, 3, 4
CELLS = {
    "elman": cells.ElmanCell(H, "relu"),
    "lstm": cells.LSTMCell(H, peepholes=True),
    "gru": cells.GRUCell(H),
    "slstm": xlstm.SLSTMCell(H),
}
fused = functools.partial(recurrence.fused, interpret=True)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two blocks, the last with an idle sequence; two tiles of units, the last with idle units."""
    monkeypatch.setattr(kernels, "LANES", 2)
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


def assert_same(first, second, *given):
    """Two passes have the same value, and the same gradients with respect to all arguments."""
    weights = jax.random.normal(jax.random.key(4), (T, B, H))
    places = tuple(range(1, len(given) + 1))
    found = [
        jax.jit(jax.value_and_grad(functools.partial(value, run), places))
        for run in (first, second)
    ]
    tiny.assert_trees_close(*(each(weights, *given) for each in found))


@pytest.mark.parametrize("name", CELLS)
def test_the_kernels_are_the_recurrence_and_its_gradient(name):
    cell = CELLS[name]
    given = *case(cell), jnp.zeros((T, B))
    assert_same(
        functools.partial(fused, cell), functools.partial(recurrence.explicit, cell), *given
    )
