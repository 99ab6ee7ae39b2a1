"""Spectral norms of products of Jacobians at all lags, without an n × n matrix.

P_l v costs l Jacobian-vector products, and P_lᵀ u costs l vector-Jacobian products. A sweep over
time handles all lags at once, with a vector for each lag; the vector of lag l takes part in the
last l steps. From forward and backward sweeps, Golub & Kahan (1965) build a bidiagonal matrix B for
each lag,

    α_k u_k = P v_k - β_{k-1} u_{k-1},        β_k v_{k+1} = Pᵀ u_k - α_k v_k.

The largest singular value σ of B grows to the largest singular value of P. Let p be the last
component of B's left singular vector. Then P v = σ u and ‖Pᵀ u - σ v‖ = β_k |p|: a singular value
of P lies within this *residual* of σ, and σ is never above ‖P‖₂. Old vectors are not kept, so
rounding makes copies of converged values appear; the largest value is not affected (Paige, 1980,
for the symmetric case).

Vectors are divided by a power of two at every step, and the power is kept beside them: nothing
overflows, and no digit is lost.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.gradients.jacobians import FlatStep, pull, scaled, trajectory, wide
from lm_jax.gradients.validation import exact_products

BETWEEN_LOOKS = 8
"""Iterations between two looks at B; the eigenvalues of B cost as much as several iterations."""


@exact_products
def largest_singular_values(
    flat: FlatStep,
    start: Float[Array, " n"],
    xs: Any,
    *,
    key: Array,
    iterations: int,
    tolerance: float,
) -> tuple[Float[Array, " lags"], Float[Array, " lags"]]:
    """σ_max of P_l for l = 0 … T, by Golub-Kahan bidiagonalisation of all lags together.

    The memory is a few times T × n numbers, plus T × iterations² numbers. The iteration stops once
    the residuals of all lags are small enough.

    Args:
      flat: the transition of the raveled carry.
      start: the carry before the first step.
      xs: a tree of arrays [T, ...].
      key: for the random start vectors.
      iterations: largest number of pairs of sweeps, forwards and backwards.
      tolerance: largest residual / σ that is small enough; 8 ε l is always small enough, with ε the
        precision of the type.

    Returns:
      (σ, residual / σ) at every lag; both NaN if the product contains a NaN.
    """
    before, sound = trajectory(flat, start, xs)
    lags, n = before.shape
    at = before, xs, jnp.arange(lags)
    eps = n * jnp.finfo(wide(start).dtype).eps
    v = jax.random.normal(key, (lags, n), wide(start).dtype)
    v = v / jnp.linalg.norm(v, axis=1, keepdims=True)
    # Rounding errors of l steps limit the residual that can be reached.
    enough = jnp.maximum(tolerance, 8 * jnp.finfo(v.dtype).eps * jnp.arange(1, lags + 1))
    enough = enough.astype(v.dtype)

    def joined(t: Array, new: Array, old: Array, exponents: Array) -> tuple[Array, Array]:
        """The new vectors, scaled, at lags that reach back to step t, else the old vectors."""
        new, more = jax.vmap(scaled)(new.astype(old.dtype))
        reaches = jnp.arange(1, lags + 1) >= lags - t
        return jnp.where(reaches[:, None], new, old), exponents + jnp.where(reaches, more, 0)

    def forth(vectors: Array) -> tuple[Array, Array]:
        def push(carry: tuple, at_t: tuple) -> tuple[tuple, None]:
            s, x, t = at_t
            _, jvp = jax.linearize(lambda s: flat(s, x), s)
            return joined(t, jax.vmap(jvp)(carry[0].astype(s.dtype)), *carry), None

        return jax.lax.scan(push, (vectors, jnp.zeros(lags, jnp.int32)), at)[0]

    def back(vectors: Array) -> tuple[Array, Array]:
        def pulled(carry: tuple, at_t: tuple) -> tuple[tuple, None]:
            s, x, t = at_t
            return joined(t, pull(flat, s, x, carry[0]), *carry), None

        return jax.lax.scan(pulled, (vectors, jnp.zeros(lags, jnp.int32)), at, reverse=True)[0]

    def iterate(k: Array, state: tuple) -> tuple:
        u, v, beta, B, scale = state
        image, exponent = forth(v)
        # All of B is in units of the first image.
        scale = jnp.where(k == 0, exponent, scale)
        u, alpha = _unit(_times_power(image, exponent - scale) - beta[:, None] * u)
        image, exponent = back(u)
        v, beta = _unit(_times_power(image, exponent - scale) - alpha[:, None] * v)
        B = B.at[:, k, k].set(alpha)
        # A remainder this small is rounding error, not a direction to continue in.
        beta = jnp.where(beta <= eps * jnp.max(B, (1, 2)), 0, beta)
        v = jnp.where(beta[:, None] > 0, v, 0)
        # The index is out of bounds after the last iteration; the entry is then dropped.
        return u, v, beta, B.at[:, k, k + 1].set(beta, mode="drop"), scale

    def look(state: tuple) -> tuple:
        """Run some iterations, then compute σ and the residuals from B."""
        k, inner, found, left = state
        end = jnp.minimum(k + BETWEEN_LOOKS, iterations)
        inner = jax.lax.fori_loop(k, end, iterate, inner)
        _, _, beta, B, _ = inner
        # Drop the newest β: its column is not part of B yet.
        B = jnp.where(jnp.arange(iterations)[None, None, :] < end, B, 0)
        lost = jnp.any(jnp.isnan(B), (1, 2))
        known = jnp.where(lost[:, None, None], 0, B)
        values, vectors = jnp.linalg.eigh(jnp.matmul(known, known.mT, precision="highest"))
        sigma = jnp.where(lost, jnp.nan, jnp.sqrt(jnp.maximum(values[:, -1], 0)))
        residual = beta * jnp.abs(vectors[:, end - 1, -1]) / jnp.where(sigma > 0, sigma, 1)
        # Keep a converged value: v is near 0 then, and more iterations add rounding errors.
        sigma = jnp.where(left <= enough, found, sigma)
        residual = jnp.where(left <= enough, left, residual)
        return end, inner, sigma, residual

    def more(state: tuple) -> Array:
        return (state[0] < iterations) & jnp.any(state[-1] > enough)

    zero = jnp.zeros((lags,), v.dtype)
    B = jnp.zeros((lags, iterations, iterations), v.dtype)
    inner = jnp.zeros_like(v), v, zero, B, jnp.zeros((lags,), jnp.int32)
    first = jnp.asarray(0), inner, zero, zero + jnp.inf
    _, (*_, scale), sigma, residual = jax.lax.while_loop(more, look, first)
    # The product at lag l contains the last l steps.
    fine = jnp.cumprod(sound[::-1]) > 0
    norms = jnp.where(fine, jnp.ldexp(sigma, scale), jnp.nan)
    residual = jnp.where(fine, residual, jnp.nan)
    return jnp.append(jnp.ones(1, v.dtype), norms), jnp.append(jnp.zeros(1, v.dtype), residual)


def _unit(vectors: Array) -> tuple[Array, Array]:
    """Vectors scaled to length 1, and their lengths; a zero vector stays zero."""
    length = jnp.linalg.norm(vectors, axis=1)
    return vectors / jnp.where(length == 0, 1, length)[:, None], length


def _times_power(vectors: Array, exponents: Array) -> Array:
    return jnp.ldexp(vectors, jnp.broadcast_to(exponents[:, None], vectors.shape))
