"""Recurrences linear in the state, h_t = a_t ∘ h_{t-1} + b_t, run in parallel over time.

Neither a_t nor b_t depends on h. A step is therefore an affine map, and two consecutive steps
compose to a single affine map: (a, b) then (a', b') is (a a', a' b + b'). The composition is
associative, and a scan of depth log T (Blelloch, 1990) computes all T states of a chunk. The cells
run step by step if a gradient estimator acts on every step (`hook`), or if tokens are read one
at a time.

Letters: H units; N complex units; B sequences of a batch.
"""

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from lm_jax.models.base import Params, scale
from lm_jax.models.cells import Cell
from lm_jax.settings import UserError

RG_LRU_EXPONENT = 8.0
"""c of the RG-LRU."""


@dataclasses.dataclass(frozen=True)
class LinearCell(Cell):
    """The cell h_t = a_t ∘ h_{t-1} + b_t."""

    @abc.abstractmethod
    def terms(self, params: Params, z_x: Float[Array, "*T B G"]) -> tuple[Array, Array]:
        """a and b: b[..., B, H], and a[..., B, H], or [..., 1, H] if a is the same for all
        sequences."""

    def state(self, carry: Float[Array, "*T B H"]) -> Array:
        """h in the form that `terms` multiplies."""
        return carry

    def carry_of(self, state: Array) -> Float[Array, "*T B H"]:
        """The inverse of `state`."""
        return state

    def step(self, params: Params, carry: Array, z_x: Array) -> Array:
        a, b = self.terms(params, z_x)
        return self.carry_of(a * self.state(carry) + b)

    def scan(
        self, params: Params, carry: Float[Array, "B H"], z_x: Float[Array, "T B G"]
    ) -> tuple[Float[Array, "B H"], Float[Array, "T B H"]]:
        """The carry after all steps, and the hidden states; in parallel over time."""
        a, b = self.terms(params, z_x)
        # Take the first step here: the rest is then a scan from a zero state.
        b = b.at[0].add(a[0] * self.state(carry), unique_indices=True)
        _, h = jax.lax.associative_scan(_after_one_another, (a, b))
        h = self.carry_of(h)
        return h[-1], h


@dataclasses.dataclass(frozen=True)
class MinGRUCell(LinearCell):
    """The minGRU, h_t = (1 - z_t) h_{t-1} + z_t h̃_t with z = σ(W_z x + b_z), h̃ = W_h x + b_h.

    Feng et al. (2024); z_x holds z and h̃ in this order.
    """

    gates: ClassVar[int] = 2

    def init(self, key: Array) -> Params:
        return {"b_h": jnp.zeros(self.width)}

    def terms(self, params: Params, z_x: Array) -> tuple[Array, Array]:
        z, new = jnp.split(z_x, 2, axis=-1)
        # σ(-z) is 1 - σ(z) without cancellation.
        return jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * new


@dataclasses.dataclass(frozen=True)
class MinLSTMCell(LinearCell):
    """The minLSTM, h_t = f'_t h_{t-1} + i'_t h̃_t with f' = f / (f + i), i' = i / (f + i).

    f = σ(W_f x + b_f), i = σ(W_i x + b_i), h̃ = W_h x + b_h, in this order in z_x (Feng et al.,
    2024). A state is a weighted mean and does not grow with the length of the text.
    """

    gates: ClassVar[int] = 3

    def init(self, key: Array) -> Params:
        return {"b_h": jnp.zeros(self.width)}

    def terms(self, params: Params, z_x: Array) -> tuple[Array, Array]:
        f, i, new = jnp.split(z_x, 3, axis=-1)
        # f' = f / (f + i) = σ(ln f - ln i), which holds even if both underflow.
        odds = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
        return jax.nn.sigmoid(odds), jax.nn.sigmoid(-odds) * new


@dataclasses.dataclass(frozen=True)
class LRUCell(LinearCell):
    """The linear recurrent unit of Orvieto et al. (2023): s_t = λ ∘ s_{t-1} + γ ∘ (B x_t), complex.

    λ = exp(-exp(ν) + i exp(θ)) has |λ| < 1 for all parameters. The initial λ is uniform on the ring
    r_min ≤ |λ| ≤ r_max with phases in [0, max_phase] (Orvieto et al., section 3.2). The initial γ
    is √(1 - |λ|²), which preserves the variance of white inputs; the parameter is ln γ.

    The carry is real, the N = H / 2 real parts before the imaginary parts, and the carry is the
    output: the C of Orvieto et al. is the next product, in the layer above or the readout. W_xh
    holds B in the same layout.

    Raises:
      UserError: H is odd.
    """

    _: dataclasses.KW_ONLY
    r_min: float = 0.0
    r_max: float = 1.0
    """Bounds of |λ| at initialisation, 0 ≤ r_min < r_max ≤ 1."""
    max_phase: float = 2 * math.pi
    """Largest phase of λ at initialisation, radians."""

    def __post_init__(self) -> None:
        if self.hidden_size % 2:
            raise UserError(
                f"model.hidden_size={self.hidden_size} must be even with model.cell=lru, "
                "whose units are real and imaginary parts"
            )

    @property
    def units(self) -> int:
        return self.hidden_size // 2

    def init(self, key: Array) -> Params:
        r_min, r_max = self.r_min, self.r_max
        size, phase = (jax.random.uniform(k, (self.units,), float) for k in jax.random.split(key))
        # Kept away from 0, and |λ| also from 1: the logarithms below must be finite.
        near = jnp.finfo(size.dtype)
        square = jnp.clip(size * (r_max**2 - r_min**2) + r_min**2, near.tiny, 1 - near.epsneg)
        decay = -jnp.log(square) / 2  # -ln |λ|, with |λ|² uniform
        return {
            "nu": jnp.log(decay),
            "theta": jnp.log(jnp.maximum(self.max_phase * phase, near.tiny)),
            "gamma": jnp.log(-jnp.expm1(-2 * decay)) / 2,
        }

    def prepare(self, params: Params, z: Array) -> Array:
        gamma = jnp.exp(params["gamma"])
        return z * jnp.broadcast_to(jnp.concatenate([gamma, gamma]), z.shape)

    def terms(self, params: Params, z_x: Array) -> tuple[Array, Array]:
        lam = jnp.exp(jax.lax.complex(-jnp.exp(params["nu"]), jnp.exp(params["theta"])))
        return jnp.broadcast_to(lam, (*z_x.shape[:-2], 1, self.units)), as_complex(z_x)

    def state(self, carry: Array) -> Array:
        return as_complex(carry)

    def carry_of(self, state: Array) -> Array:
        return as_real(state)


@dataclasses.dataclass(frozen=True)
class RGLRUCell(LinearCell):
    """The real-gated LRU of Griffin, h_t = a_t ∘ h_{t-1} + √(1 - a_t²) ∘ i_t ∘ x̃_t.

    r = σ(W_r x + b_r),  i = σ(W_i x + b_i),  x̃ = W_x x + b_x,  a_t = σ(Λ)^{c r_t},  c = 8

    (De et al., 2024, section 2.4), with r, i and x̃ in this order in z_x. Griffin's gates read
    x̃: W_r and W_i here stand for the products of Griffin's block-diagonal matrices and W_x.
    The initial a^c, with a = σ(Λ), is uniform in [0.9, 0.999].
    """

    gates: ClassVar[int] = 3

    def init(self, key: Array) -> Params:
        a_c = jax.random.uniform(key, (self.hidden_size,), float, 0.9, 0.999)
        # Λ = ln a - ln(1 - a), with ln a = ln(a^c) / c.
        log_a = jnp.log(a_c) / RG_LRU_EXPONENT
        return {"b_h": jnp.zeros(self.width), "Lambda": log_a - jnp.log(-jnp.expm1(log_a))}

    def terms(self, params: Params, z_x: Array) -> tuple[Array, Array]:
        r, i, x = jnp.split(z_x, 3, axis=-1)
        rate = RG_LRU_EXPONENT * jax.nn.log_sigmoid(params["Lambda"])
        log_a = scale(jax.nn.sigmoid(r), rate)
        # Kept away from 0, where the root has no derivative.
        rest = jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(z_x.dtype).tiny)
        return jnp.exp(log_a), jnp.sqrt(rest) * jax.nn.sigmoid(i) * x


def as_complex(halves: Float[Array, "*shape H"]) -> Complex[Array, "*shape N"]:
    """Join halves [..., H] to complex numbers [..., N]: real parts, then imaginary parts."""
    return jax.lax.complex(*jnp.split(halves, 2, axis=-1))


def as_real(s: Complex[Array, "*shape N"]) -> Float[Array, "*shape H"]:
    """Split complex numbers [..., N] into halves [..., H]: real parts, then imaginary parts."""
    return jnp.concatenate([s.real, s.imag], axis=-1)


def _after_one_another(
    first: tuple[Array, Array], then: tuple[Array, Array]
) -> tuple[Array, Array]:
    (a, b), (later_a, later_b) = first, then
    return a * later_a, later_a * b + later_b
