"""The cells of the xLSTM: exponential input gates, kept finite by a stabiliser (Beck et al., 2024).

Both cells add i v to a memory that f scales down, and divide what they read by a normaliser n, the
sum of the same i, scaled down by the same f. The input gate is exp(i), and the forget gate σ(f).
exp(i) can be arbitrarily large, so memory and normaliser are kept divided by e^m, with

    m_t = max(ln f + m_{t-1}, i),   i' = exp(i - m_t) ≤ 1,   f' = exp(ln f + m_{t-1} - m_t) ≤ 1

The quotient of the two does not depend on m; the gradient goes through m as through any other part
of the carry, and δ is that of the scaled numbers.

The cells of Beck et al. stand in blocks of layers; `lm_jax.models.blocks` has blocks for any cell.

Letters: B sequences, H units, M heads of D = H / M units.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Params
from lm_jax.models.cells import Cell, GatedCell
from lm_jax.settings import UserError

FORGET_BIAS = 3.0, 6.0
"""Smallest and largest initial bias of f, spaced evenly over the units or heads; as in the authors'
code of the mLSTM."""


class SLSTMState(NamedTuple):
    """The carry of an sLSTM."""

    h: Float[Array, "B H"]
    c: Float[Array, "B H"]
    n: Float[Array, "B H"]
    m: Float[Array, "B H"]


@dataclasses.dataclass(frozen=True)
class SLSTMCell(GatedCell):
    """The sLSTM, with a scalar memory for each unit (Beck et al., 2024).

    z = tanh(z_x + z_h),  o = σ(z_x + z_h),  and i', f', m as in the module head
    c_t = f' c_{t-1} + i' z,   n_t = f' n_{t-1} + i',   h_t = o c_t / n_t

    Gates i, f, z, o in this order. W_hh is dense: the sLSTM of a single head.
    """

    gates: ClassVar[int] = 4

    def init_own(self, key: Array) -> Params:
        del key
        H = self.hidden_size
        b_h = jnp.zeros((4, H)).at[1].set(jnp.linspace(*FORGET_BIAS, H))
        return {"b_h": b_h.reshape(-1)}

    def init_carry(self, batch_size: int) -> SLSTMState:
        # Four arrays, because JAX cannot donate an array that appears twice.
        return SLSTMState(*(jnp.zeros((batch_size, self.hidden_size)) for _ in range(4)))

    def gate(self, params: Params, carry: SLSTMState, z_h: Array, z_x: Array) -> SLSTMState:
        i, f, z, o = jnp.split(z_x + z_h, 4, axis=-1)
        i, f, m = _stabilised(i, f, carry.m)
        c = f * carry.c + i * jnp.tanh(z)
        n = f * carry.n + i
        return SLSTMState(jax.nn.sigmoid(o) * c / n, c, n, m)

    def output(self, carry: SLSTMState) -> Array:
        return carry.h


class MLSTMState(NamedTuple):
    """The carry of an mLSTM; no later step reads h."""

    h: Float[Array, "B H"]
    C: Float[Array, "B M D D"]
    n: Float[Array, "B M D"]
    m: Float[Array, "B M"]


@dataclasses.dataclass(frozen=True)
class MLSTMCell(Cell):
    """The mLSTM, with a matrix memory for each head (Beck et al., 2024).

    C_t = f' C_{t-1} + i' v kᵀ,   n_t = f' n_{t-1} + i' k,
    h_t = o ∘ C_t q / max(|nᵀ q|, e^{-m})

    q, k / √D, v, o, i and f are affine in x, in this order in z_x; o is under σ, and i and f are
    numbers of a head. Nothing reads h_{t-1}. `precision` does not round the memory.

    Raises:
      UserError: the heads do not divide the units.
    """

    _: dataclasses.KW_ONLY
    heads: int = 4
    """M."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise UserError(
                f"model.hidden_size={self.hidden_size} must be a multiple of "
                f"model.cell.heads={self.heads}"
            )

    @property
    def width(self) -> int:
        return 4 * self.hidden_size + 2 * self.heads

    @property
    def units(self) -> None:
        return None

    def init(self, key: Array) -> Params:
        del key
        forget = jnp.linspace(*FORGET_BIAS, self.heads)
        return {"b_h": jnp.zeros(self.width).at[-self.heads :].set(forget)}

    def init_carry(self, batch_size: int) -> MLSTMState:
        B, M, D = batch_size, self.heads, self.hidden_size // self.heads
        return MLSTMState(*map(jnp.zeros, ((B, M * D), (B, M, D, D), (B, M, D), (B, M))))

    def step(self, params: Params, carry: MLSTMState, z_x: Array) -> MLSTMState:
        H, M = self.hidden_size, self.heads
        *heads, o, i, f = jnp.split(z_x, [H, 2 * H, 3 * H, 4 * H, 4 * H + M], axis=-1)
        q, k, v = (part.reshape(-1, M, H // M) for part in heads)
        k = k / math.sqrt(H // M)
        i, f, m = _stabilised(i, f, carry.m)
        i, f = i[..., None], f[..., None]
        C = f[..., None] * carry.C + (i * v)[..., :, None] * k[..., None, :]
        n = f * carry.n + i * k
        read = jnp.sum(C * q[..., None, :], axis=-1)
        total = jnp.maximum(jnp.abs(jnp.sum(n * q, axis=-1)), jnp.exp(-m))
        h = jax.nn.sigmoid(o) * (read / total[..., None]).reshape(-1, H)
        return MLSTMState(h, C, n, m)

    def output(self, carry: MLSTMState) -> Float[Array, "*T B H"]:
        return carry.h


def _stabilised(i: Array, f: Array, m: Array) -> tuple[Array, Array, Array]:
    """i', f' and the new m, from pre-activations and the old m."""
    kept = jax.nn.log_sigmoid(f) + m
    m = jnp.maximum(kept, i)
    return jnp.exp(i - m), jnp.exp(kept - m), m
