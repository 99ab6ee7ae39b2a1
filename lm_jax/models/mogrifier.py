"""The Mogrifier: before each step, input and state gate each other in turn (Melis et al., 2020).

    x^i = 2 σ(h^{i-1} Q_i + b_i) ∘ x^{i-2}    for odd i,     x^{-1} = x_t
    h^i = 2 σ(x^{i-1} R_i + b_i) ∘ h^{i-2}    for even i,    h^0 = h_{t-1}

with i = 1 … r. The cell then reads the last x^i and the last h^i in place of x_t and h_{t-1}. Each
Q_i [H, M] and R_i [M, H] is a matrix of its own, or the product of two matrices with k columns and
k rows. Melis et al. write no b_i; their code has it.

What a step reads of x_t depends on h_{t-1}, so that x W_xh is not one product of all steps: the
layer runs step by step, and JAX differentiates the scan.

Letters: r rounds, k the rank, M numbers of x_t.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Carry, EdgeHook, Params, affine, scaled_normal
from lm_jax.models.cells import GatedCell
from lm_jax.models.held import mixed
from lm_jax.models.layers import CellLayer, Layer, apply_hook_and_tap
from lm_jax.models.matmul import matmul


@dataclasses.dataclass(frozen=True)
class MogrifierLayer(Layer):
    """A recurrent layer whose inputs and states gate each other before each step.

    Besides the parameters of the layer alone, "rounds" holds those of each round.
    """

    layer: CellLayer
    """The LSTM and its parameters. Its inputs are vectors, never token numbers."""
    inputs: int
    """M."""
    _: dataclasses.KW_ONLY
    rounds: int
    """r."""
    rank: int | None = None
    """k; None: Q_i and R_i are matrices of their own."""

    @property
    def cell(self) -> GatedCell:
        """The cell of a step."""
        assert isinstance(self.layer.cell, GatedCell)
        return self.layer.cell

    def init(self, key: Array) -> Params:
        own, *keys = jax.random.split(key, 1 + self.rounds)
        M, H = self.inputs, self.cell.hidden_size
        pairs = [(M, H) if i % 2 else (H, M) for i in range(self.rounds)]
        rounds = [self._init_round(k, *pair) for k, pair in zip(keys, pairs, strict=True)]
        return {**self.layer.init(own), "rounds": rounds}

    def _init_round(self, key: Array, seen: int, gated: int) -> Params:
        b = jnp.zeros(gated)
        if self.rank is None:
            return {"W": scaled_normal(key, seen, gated), "b": b}
        first, second = jax.random.split(key)
        left = scaled_normal(first, seen, self.rank)
        return {"left": left, "right": scaled_normal(second, self.rank, gated), "b": b}

    def init_carry(self, batch_size: int) -> Carry:
        return self.layer.init_carry(batch_size)

    def run(
        self,
        params: Params,
        carry: Carry,
        x: Float[Array, "T B M"],
        hook: EdgeHook | None = None,
        tap: Float[Array, "T B"] | None = None,
        kept: Float[Array, "T B K"] | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        cell, precision = self.cell, self.cell.precision

        def step(carry: Carry, at_t: tuple) -> tuple[Carry, Array]:
            x_t, kept_t, *edge = at_t
            x_t, h = self.mogrify(params["rounds"], x_t, cell.output(carry))
            z_x = cell.prepare(params, matmul(x_t, params["W_xh"], precision))
            after = cell.gate(params, carry, matmul(h, params["W_hh"], precision), z_x)
            after = after if kept_t is None else mixed(kept_t, carry, after)
            return apply_hook_and_tap(after, cell.output, hook, *edge)

        return jax.lax.scan(step, carry, (x, kept, hook and hook.at, tap))

    def mogrify(
        self, rounds: list[Params], x: Float[Array, "B M"], h: Float[Array, "B H"]
    ) -> tuple[Float[Array, "B M"], Float[Array, "B H"]]:
        """The x and h that the cell reads, from x_t and h_{t-1}."""
        for number, own in enumerate(rounds):
            if number % 2:
                h = self._gate(own, x) * h
            else:
                x = self._gate(own, h) * x
        return x, h

    def _gate(self, own: Params, seen: Array) -> Array:
        W, precision = own.get("W"), self.cell.precision
        if W is None:
            seen, W = matmul(seen, own["left"], precision), own["right"]
        return 2 * jax.nn.sigmoid(affine(seen, W, own["b"], precision))

    def output(self, carry: Any) -> Float[Array, "*T B H"]:
        return self.cell.output(carry)
