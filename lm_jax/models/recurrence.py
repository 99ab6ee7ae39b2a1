"""One recurrent layer over time.

    z_x[t] = x_t W_xh + b_h              all t in one product, before the scan
    carry_t = step(carry_{t-1}, z_x[t])
    h_t = output(carry_t)

A `Layer` is what a recurrent model is stacked from. Those of the cells of `lm_jax.models.cells` are
made by `layer`; those of any other transition by `lm_jax.models.own`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from lm_jax.models.base import Between, Carry, Params
from lm_jax.models.cells import Cell
from lm_jax.models.embedding import times


class Layer(NamedTuple):
    """A recurrent layer of a model."""

    init: Callable[[Array], Params]
    """key -> params."""
    init_carry: Callable[[int], Carry]
    """batch_size -> carry; leaves [B, ...]."""
    run: Callable[[Params, Carry, Array, Between | None], tuple[Carry, Array]]
    """(params, carry, x[T, B, E], between) -> (carry, h[T, B, H]); x may be token numbers [T, B],
    which stand for one-hot vectors. `between` as in `LanguageModel.hidden`."""


def layer(cell: Cell, init_W_xh: Callable[[Array, int], Array]) -> Layer:
    """A layer of one cell.

    Args:
      cell: the cell.
      init_W_xh: (key, width) -> W_xh [inputs, width].
    """

    def init(key: Array) -> Params:
        own, first = jax.random.split(key)
        return {"W_xh": init_W_xh(first, cell.width), **cell.init(own)}

    def run(
        params: Params, carry: Carry, x: Array, between: Between | None
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        return unroll(cell, params, carry, cell.prepare(params, times(x, params["W_xh"])), between)

    return Layer(init, cell.init_carry, run)


def unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    z_x: Float[Array, "T B G"],
    between: Between | None = None,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Runs a cell through time.

    Args:
      cell: the cell.
      params: the cell's own.
      carry: the cell's carry before the first step.
      z_x: the input's part of the pre-activations, bias included.
      between: applied to the carry after each step (see `LanguageModel.hidden`).

    Returns:
      the carry after the last step, and h_1 … h_T.
    """
    if between is None and cell.scan is not None:
        return cell.scan(params, carry, z_x)

    def step(carry: Carry, z_x_t: Array) -> tuple[Carry, Array]:
        carry = cell.step(params, carry, z_x_t)
        if between is not None:
            carry = between(carry)
        return carry, cell.output(carry)

    return jax.lax.scan(step, carry, z_x)
