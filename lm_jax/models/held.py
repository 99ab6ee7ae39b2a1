"""Cells that keep their carry at steps without a token.

Chunks of random lengths (`data.jitter`) are read by one program, whose number of steps is that of
the longest. The steps after a chunk's end must not move the carry, which is the next chunk's. The
mark of such a step is a further column of z_x, so that the cell remains a function of carry and
pre-activations, and a gated cell keeps its backward pass.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lm_jax.models.base import Carry, Params
from lm_jax.models.cells import Cell, GatedCell


@dataclasses.dataclass(frozen=True)
class HeldCell(Cell):
    """A cell whose carry stays as it is where the last column of z_x is not 0."""

    _: dataclasses.KW_ONLY
    cell: Cell

    def init(self, key: Array) -> Params:
        return self.cell.init(key)

    def step(self, params: Params, carry: Carry, z_x: Float[Array, "B columns"]) -> Carry:
        return _held(z_x, carry, self.cell.step(params, carry, z_x[:, :-1]))

    def output(self, carry: Carry) -> Array:
        return self.cell.output(carry)


@dataclasses.dataclass(frozen=True)
class HeldGate(GatedCell):
    """A gated cell whose carry stays as it is where the last column of z_x is not 0."""

    _: dataclasses.KW_ONLY
    cell: GatedCell

    @property
    def units(self) -> int | None:
        return None

    def gate(
        self, params: Params, carry: Carry, z_h: Array, z_x: Float[Array, "B columns"]
    ) -> Carry:
        return _held(z_x, carry, self.cell.gate(params, carry, z_h, z_x[:, :-1]))

    def output(self, carry: Carry) -> Array:
        return self.cell.output(carry)


def held_cell(
    cell: Cell, z_x: Float[Array, "T B G"], held: Bool[Array, "T B"]
) -> tuple[Cell, Float[Array, "T B columns"]]:
    """A cell and z_x that keep the carry as it is where `held` is True."""
    z_x = jnp.concatenate([z_x, held[..., None].astype(z_x.dtype)], axis=-1)
    if isinstance(cell, GatedCell):
        return HeldGate(cell.hidden_size, precision=cell.precision, cell=cell), z_x
    return HeldCell(cell.hidden_size, precision=cell.precision, cell=cell), z_x


def _held(z_x: Array, old: Carry, new: Carry) -> Carry:
    return jax.tree.map(lambda a, b: jnp.where(z_x[:, -1:] != 0, a, b), old, new)
