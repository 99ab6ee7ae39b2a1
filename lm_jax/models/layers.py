"""Recurrent layers: a cell or another transition over time.

A recurrent model is a stack of `Layer`s. A `CellLayer` runs a cell of `lm_jax.models.cells`, and a
`lm_jax.models.transition.TransitionLayer` any other transition. All z_x = x W_xh + b_h of a layer
are one product, before the first step. `unroll` then chooses. Without a hook, a gated cell runs
`lm_jax.models.recurrence.explicit`; without a hook and a tap, a cell with a linear state update
runs its parallel scan; in all other cases the steps are a plain scan.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Carry, EdgeHook, Params, scaled_normal
from lm_jax.models.cells import Cell, GatedCell
from lm_jax.models.embedding import Embedding, times
from lm_jax.models.held import keeping
from lm_jax.models.linear_recurrences import LinearCell
from lm_jax.models.recurrence import explicit
from lm_jax.trees import norm


class Layer(abc.ABC):
    """A recurrent layer of a model."""

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Initial parameters."""

    @abc.abstractmethod
    def init_carry(self, batch_size: int) -> Carry:
        """The carry before the first step; leaves [B, ...]."""

    @abc.abstractmethod
    def run(
        self,
        params: Params,
        carry: Carry,
        x: Float[Array, "T B E"] | Int[Array, "T B"],
        hook: EdgeHook | None = None,
        tap: Float[Array, "T B"] | None = None,
        kept: Float[Array, "T B K"] | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        """Run over time; x may be numbers of tokens [T, B], in place of one-hot vectors.

        `hook` as in `LanguageModel.hidden`; `tap` is this layer's slice of the model's tap; `kept`
        is the share of the carry that stays as it is at each step (`lm_jax.models.held`).
        """

    @abc.abstractmethod
    def output(self, carry: Carry) -> Float[Array, "*T B H"]:
        """The hidden state in a carry."""


@dataclasses.dataclass(frozen=True)
class CellLayer(Layer):
    """A recurrent layer made from a cell."""

    cell: Cell
    inputs: Embedding | int
    """The embedding below the layer, or the number of outputs of the layer below."""
    in_kernels: bool = False
    """If True, a program for an NVIDIA GPU runs all time steps in one kernel each way."""

    def init(self, key: Array) -> Params:
        own, first = jax.random.split(key)
        width = self.cell.width
        if isinstance(self.inputs, Embedding):
            W_xh = self.inputs.init_projection(first, width)
        else:
            W_xh = scaled_normal(first, self.inputs, width)
        return {"W_xh": W_xh, **self.cell.init(own)}

    def init_carry(self, batch_size: int) -> Carry:
        return self.cell.init_carry(batch_size)

    def run(
        self,
        params: Params,
        carry: Carry,
        x: Array,
        hook: EdgeHook | None = None,
        tap: Array | None = None,
        kept: Array | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        cell = self.cell
        z_x = cell.prepare(params, times(x, params["W_xh"], cell.precision))
        return unroll(cell, params, carry, z_x, hook, tap, kept, self.in_kernels)

    def output(self, carry: Carry) -> Float[Array, "*T B H"]:
        return self.cell.output(carry)


def unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    z_x: Float[Array, "T B G"],
    hook: EdgeHook | None = None,
    tap: Float[Array, "T B"] | None = None,
    kept: Float[Array, "T B K"] | None = None,
    in_kernels: bool = False,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Run a cell through time.

    Args:
      cell: the cell.
      params: parameters of the cell.
      carry: the cell's carry before the first step.
      z_x: the input's part of the pre-activations, including the bias.
      hook: applied to the carry after each step (see `LanguageModel.hidden`).
      tap: the gradient of `tap` is ‖δ_t‖ of each sequence (see `LanguageModel.hidden`).
      kept: share of the carry that stays as it is at each step (`lm_jax.models.held`); None: 0.
      in_kernels: as for `explicit`; ignored if there is a hook.

    Returns:
      the carry after the last step, and h_1 … h_T.
    """
    if kept is not None:
        cell, z_x = keeping(cell, z_x, kept)
    if hook is None and tap is None and isinstance(cell, LinearCell):
        return cell.scan(params, carry, z_x)
    if hook is None and isinstance(cell, GatedCell):
        return explicit(cell, params, carry, z_x, tap, in_kernels)

    def step(carry: Carry, at_t: tuple) -> tuple[Carry, Array]:
        z_x_t, *edge = at_t
        return apply_hook_and_tap(cell.step(params, carry, z_x_t), cell.output, hook, *edge)

    return jax.lax.scan(step, carry, (z_x, hook and hook.at, tap))


def apply_hook_and_tap(
    carry: Carry,
    output: Callable[[Carry], Array],
    hook: EdgeHook | None,
    at_t: Any,
    tap_t: Float[Array, " B"] | None,
) -> tuple[Carry, Array]:
    """Apply `hook` and the tap to the carry after a step; return the carry and the output h.

    In the backward pass the tap sees δ_t before a `hook` with `recurrent_only` False acts on δ_t.
    """
    if hook is not None and not hook.recurrent_only:
        carry = hook.act(carry, at_t)
    if tap_t is not None:
        carry = _tapped(carry, tap_t)
    h = output(carry)
    if hook is not None and hook.recurrent_only:
        carry = hook.act(carry, at_t)
    return carry, h


@jax.custom_vjp
def _tapped(carry: Carry, tap: Float[Array, " B"]) -> Carry:
    del tap
    return carry


_tapped.defvjp(lambda carry, tap: (carry, None), lambda _, delta: (delta, norm(delta, kept=1)))
