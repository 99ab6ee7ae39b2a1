"""Recurrent cells, each an elementwise function of its pre-activations.

A cell gets z_h = h_{t-1} W_hh and z_x = x_t W_xh + b_h and makes the next carry out of them; the
two products are the recurrence's business (`lm_jax.models.recurrence`). That split is what lets all
z_x of a chunk be one product, and it keeps a cell to the lines that set it apart.

A cell here reads no parameters, so `gate(carry, z_h, z_x) -> carry` is all there is to
differentiate besides the products.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm_jax.models.base import Carry

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
}


class Cell(NamedTuple):
    """A gated recurrent cell of H units."""

    width: int
    """Columns of W_xh and W_hh, H for each gate."""
    init_carry: Callable[[int], Carry]
    """batch_size -> carry."""
    gate: Callable[[Carry, Array, Array], Carry]
    """(carry, z_h[B, width], z_x[B, width]) -> carry."""
    output: Callable[[Carry], Array]
    """carry -> h[B, H]: what the next step and the next layer see."""


def elman(hidden_size: int, activation: str) -> Cell:
    """h_t = f(z_x + z_h) (Elman, 1990).

    Args:
      hidden_size: H.
      activation: f, a name in `ACTIVATIONS`.
    """
    f = ACTIVATIONS[activation]
    return Cell(
        width=hidden_size,
        init_carry=lambda batch_size: jnp.zeros((batch_size, hidden_size)),
        gate=lambda _, z_h, z_x: f(z_x + z_h),
        output=lambda h: h,
    )
