"""The simple recurrent unit: a recurrence without a product in each step (Lei et al., 2018)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Params, scale
from lm_jax.models.cells import Cell


class SRUState(NamedTuple):
    """The carry of an SRU; no later step reads h."""

    h: Float[Array, "B H"]
    c: Float[Array, "B H"]


@dataclasses.dataclass(frozen=True)
class SRUCell(Cell):
    """The simple recurrent unit of Lei et al. (2018).

    f = σ(W_f x + v_f ∘ c_{t-1} + b_f),  c_t = f ∘ c_{t-1} + (1 - f) ∘ (W x + b)
    r = σ(W_r x + v_r ∘ c_{t-1} + b_r),  h_t = r ∘ c_t + (1 - r) ∘ (W_x x + b_x)

    with W x, f, r and W_x x in this order in z_x. Lei et al. have x itself in place of W_x x + b_x,
    times a constant; W_x serves layers whose inputs and units differ in number. v is zero at first,
    so that both gates begin as functions of x alone.
    """

    gates: ClassVar[int] = 4

    def init(self, key: Array) -> Params:
        del key
        return {"b_h": jnp.zeros(self.width), "v": jnp.zeros((2, self.hidden_size))}

    def init_carry(self, batch_size: int) -> SRUState:
        # Two arrays, because JAX cannot donate an array that appears twice.
        return SRUState(*(jnp.zeros((batch_size, self.hidden_size)) for _ in range(2)))

    def step(self, params: Params, carry: SRUState, z_x: Array) -> SRUState:
        new, f, r, x = jnp.split(z_x, 4, axis=-1)
        v_f, v_r = params["v"]
        f = jax.nn.sigmoid(f + scale(carry.c, v_f))
        r = jax.nn.sigmoid(r + scale(carry.c, v_r))
        c = f * carry.c + (1 - f) * new
        return SRUState(r * c + (1 - r) * x, c)

    def output(self, carry: SRUState) -> Float[Array, "*T B H"]:
        return carry.h
