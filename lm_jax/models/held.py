"""Cells that keep a share of their carry at each step.

The carry after a step is m ∘ old + (1 - m) ∘ new. m is 1 at the steps after the end of a chunk of
random length (`data.jitter`), which must not move the carry, and with zoneout m is drawn for each
unit (Krueger et al., 2017). m is held in further columns of z_x: the cell remains a function of the
carry and the pre-activations, and a gated cell keeps its backward pass.

Letters: K columns of m, one for all numbers of the carry, or one for each.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Carry, Params
from lm_jax.models.cells import Cell, GatedCell


@dataclasses.dataclass(frozen=True)
class KeepingCell(Cell):
    """A cell that keeps the share m of its carry, m in the last columns of z_x."""

    _: dataclasses.KW_ONLY
    cell: Cell

    def init(self, key: Array) -> Params:
        return self.cell.init(key)

    def step(self, params: Params, carry: Carry, z_x: Float[Array, "B columns"]) -> Carry:
        z_x, m = jnp.split(z_x, [self.cell.width], axis=-1)
        return mixed(m, carry, self.cell.step(params, carry, z_x))

    def output(self, carry: Carry) -> Array:
        return self.cell.output(carry)


@dataclasses.dataclass(frozen=True)
class KeepingGate(GatedCell):
    """A gated cell that keeps the share m of its carry, m in the last columns of z_x."""

    _: dataclasses.KW_ONLY
    cell: GatedCell

    @property
    def units(self) -> int | None:
        return None

    def resized(self, units: int) -> "KeepingGate":
        return dataclasses.replace(self, hidden_size=units, cell=self.cell.resized(units))

    def by_unit(self, z_x: Float[Array, "T B columns"], carry: Carry) -> Float[Array, "T B C"]:
        """z_x with a column of m for each number of the carry."""
        z_x, m = jnp.split(z_x, [self.cell.width], axis=-1)
        numbers = sum(leaf.shape[-1] for leaf in jax.tree.leaves(carry))
        return jnp.concatenate([z_x, jnp.broadcast_to(m, (*m.shape[:2], numbers))], axis=-1)

    def gate(
        self, params: Params, carry: Carry, z_h: Array, z_x: Float[Array, "B columns"]
    ) -> Carry:
        z_x, m = jnp.split(z_x, [self.cell.width], axis=-1)
        return mixed(m, carry, self.cell.gate(params, carry, z_h, z_x))

    def output(self, carry: Carry) -> Array:
        return self.cell.output(carry)


def keeping(
    cell: Cell, z_x: Float[Array, "T B G"], m: Float[Array, "T B K"]
) -> tuple[Cell, Float[Array, "T B columns"]]:
    """A cell and z_x that keep the share m of the carry at each step."""
    z_x = jnp.concatenate([z_x, m.astype(z_x.dtype)], axis=-1)
    if isinstance(cell, GatedCell):
        return KeepingGate(cell.hidden_size, precision=cell.precision, cell=cell), z_x
    return KeepingCell(cell.hidden_size, precision=cell.precision, cell=cell), z_x


def mixed(m: Float[Array, "B K"], old: Carry, new: Carry) -> Carry:
    """m ∘ old + (1 - m) ∘ new; the columns of m are in the order of the carry's leaves."""
    before, tree = jax.tree.flatten(old)
    parts = [m] * len(before)
    if m.shape[-1] > 1:
        ends = [sum(leaf.shape[-1] for leaf in before[:n]) for n in range(1, len(before))]
        parts = jnp.split(m, ends, axis=-1)
    triples = zip(parts, before, jax.tree.leaves(new), strict=True)
    return jax.tree.unflatten(tree, [_between(*triple) for triple in triples])


def _between(share: Array, old: Array, new: Array) -> Array:
    share = share.reshape(share.shape + (1,) * (new.ndim - share.ndim))
    return share * old + (1 - share) * new
