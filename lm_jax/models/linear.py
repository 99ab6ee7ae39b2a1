"""Recurrences that are linear in the state, h_t = a_t ∘ h_{t-1} + b_t, and so parallel over time.

Neither a_t nor b_t depends on h, so a step is an affine map, and two steps after one another are
one: (a, b) then (a', b') is (a a', a' b + b'). That is associative, so all T states of a chunk are
a scan of depth log T (Blelloch, 1990) instead of T steps. Where a gradient estimator acts on every
step (`between`), and where one token is read at a time, the steps are made one by one.

Letters: H units; N complex ones; B lanes.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from lm_jax.models.base import Params
from lm_jax.models.cells import Cell, add_bias
from lm_jax.settings import UserError


def mingru(hidden_size: int) -> Cell:
    """h_t = (1 - z_t) h_{t-1} + z_t h̃_t with z = σ(W_z x + b_z), h̃ = W_h x + b_h.

    Feng et al. (2024), algorithm 1; z and h̃ stand in z_x in this order.

    Args:
      hidden_size: H.
    """

    def terms(params: Params, z_x: Array) -> tuple[Array, Array]:
        z, new = jnp.split(z_x, 2, axis=-1)
        # σ(-z) is 1 - σ(z), without the loss of digits.
        return jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * new

    return _biased(hidden_size, 2, terms)


def minlstm(hidden_size: int) -> Cell:
    """h_t = f'_t h_{t-1} + i'_t h̃_t, where f' and i' are f and i divided by f + i.

    f = σ(W_f x + b_f), i = σ(W_i x + b_i), h̃ = W_h x + b_h, in this order in z_x: Feng et al.
    (2024), algorithm 3, where a state is a mean and so does not grow with the length of the text.

    Args:
      hidden_size: H.
    """

    def terms(params: Params, z_x: Array) -> tuple[Array, Array]:
        f, i, new = jnp.split(z_x, 3, axis=-1)
        # f' = f / (f + i) = σ(ln f - ln i), which is right where both are too small to be divided.
        odds = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
        return jax.nn.sigmoid(odds), jax.nn.sigmoid(-odds) * new

    return _biased(hidden_size, 3, terms)


def diagonal(
    hidden_size: int, *, r_min: float = 0.0, r_max: float = 1.0, max_phase: float = 2 * math.pi
) -> Cell:
    """The linear recurrent unit of Orvieto et al. (2023): s_t = λ ∘ s_{t-1} + γ ∘ (B x_t), complex.

    λ = exp(-exp(ν) + i exp(θ)), so |λ| < 1 whatever the parameters. It begins uniform on the ring
    r_min ≤ |λ| ≤ r_max with phases in [0, max_phase] (their section 3.2), and γ, kept as its
    logarithm, at √(1 - |λ|²), which keeps the variance of white inputs.

    The carry is real, the N = H / 2 real parts and then the imaginary ones, and it is the output:
    their C is the next product, of the layer above or the readout. W_xh holds B likewise.

    Args:
      hidden_size: H, even.
      r_min, r_max: of |λ| at the beginning, 0 ≤ r_min < r_max ≤ 1.
      max_phase: of λ at the beginning, radians.

    Raises:
      UserError: H is odd.
    """
    if hidden_size % 2:
        raise UserError(
            f"model.hidden_size={hidden_size} must be even with model.cell=diagonal, "
            "whose units are real and imaginary parts"
        )
    N = hidden_size // 2

    def init(key: Array) -> Params:
        size, phase = (jax.random.uniform(k, (N,), float) for k in jax.random.split(key))
        # Off 0 and, for |λ|, off 1, whose logarithms here are no numbers to learn from.
        near = jnp.finfo(size.dtype)
        square = jnp.clip(size * (r_max**2 - r_min**2) + r_min**2, near.tiny, 1 - near.epsneg)
        decay = -jnp.log(square) / 2  # -ln |λ|, where |λ|² is uniform
        return {
            "nu": jnp.log(decay),
            "theta": jnp.log(jnp.maximum(max_phase * phase, near.tiny)),
            "gamma": jnp.log(-jnp.expm1(-2 * decay)) / 2,
        }

    def terms(params: Params, z_x: Array) -> tuple[Array, Array]:
        lam = jnp.exp(jax.lax.complex(-jnp.exp(params["nu"]), jnp.exp(params["theta"])))
        return jnp.broadcast_to(lam, (*z_x.shape[:-2], 1, N)), as_complex(z_x)

    def prepare(params: Params, z: Array) -> Array:
        gamma = jnp.exp(params["gamma"])
        return z * jnp.broadcast_to(jnp.concatenate([gamma, gamma]), z.shape)

    cell = _linear(hidden_size, hidden_size, init, prepare, terms, as_complex, as_real)
    return cell._replace(units=N)


def as_complex(halves: Float[Array, "*shape H"]) -> Complex[Array, "*shape N"]:
    """The complex numbers whose real and imaginary parts are the two halves."""
    return jax.lax.complex(*jnp.split(halves, 2, axis=-1))


def as_real(s: Complex[Array, "*shape N"]) -> Float[Array, "*shape H"]:
    """The real parts, then the imaginary ones."""
    return jnp.concatenate([s.real, s.imag], axis=-1)


Terms = Callable[[Params, Array], tuple[Array, Array]]
"""(params, z_x[..., B, width]) -> a[..., B, H], or [..., 1, H] for all lanes, and b[..., B, H]."""


def _biased(hidden_size: int, gates: int, terms: Terms) -> Cell:
    width = gates * hidden_size
    init = lambda key: {"b_h": jnp.zeros(width)}  # noqa: E731
    return _linear(hidden_size, width, init, add_bias, terms)


def _linear(
    hidden_size: int,
    width: int,
    init: Callable[[Array], Params],
    prepare: Callable[[Params, Array], Array],
    terms: Terms,
    state: Callable[[Array], Array] = lambda carry: carry,
    carry_of: Callable[[Array], Array] = lambda state: state,
) -> Cell:
    """The cell of h_t = a_t h_{t-1} + b_t, where h = state(carry) and carry = carry_of(h)."""

    def step(params: Params, carry: Array, z_x: Array) -> Array:
        a, b = terms(params, z_x)
        return carry_of(a * state(carry) + b)

    def scan(params: Params, carry: Array, z_x: Array) -> tuple[Array, Array]:
        a, b = terms(params, z_x)
        # The first step is taken, so that what is left starts from nothing.
        b = b.at[0].add(a[0] * state(carry))
        _, h = jax.lax.associative_scan(_after_one_another, (a, b))
        h = carry_of(h)
        return h[-1], h

    return Cell(
        width=width,
        init=init,
        init_carry=lambda batch_size: jnp.zeros((batch_size, hidden_size)),
        prepare=prepare,
        step=step,
        output=lambda carry: carry,
        scan=scan,
        units=hidden_size,
    )


def _after_one_another(
    first: tuple[Array, Array], then: tuple[Array, Array]
) -> tuple[Array, Array]:
    (a, b), (later_a, later_b) = first, then
    return a * later_a, later_a * b + later_b
