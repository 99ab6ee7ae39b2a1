"""Norms of ∂s_T/∂s_{T-l}: how much of a gradient, or of an earlier input, survives l steps.

The functions take a transition step(params, carry, x) -> carry of one example, whose carry s has n
numbers. P_l is the product of the last l step Jacobians (see `lm_jax.gradients.jacobians`). The
functions compute the spectral norm ‖P_l‖₂ at one place or averaged over many, the Frobenius norm
from random probes, and the predictions of four simple formulas. Pascanu et al. (2013) bound ‖P_l‖₂
by (σ_max γ)^l, with γ the largest slope of the activation.

Each function is traced anew at every call; wrap a function in `jax.jit` if you call it often.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.gradients.jacobians import (
    FlatStep,
    flatten,
    last_window,
    pulled_back,
    trajectory,
    wide,
)
from lm_jax.gradients.lanczos import largest_singular_values
from lm_jax.gradients.lyapunov import lyapunov_spectrum
from lm_jax.gradients.spectra import block_norms, block_radii, largest_singular_value
from lm_jax.gradients.validation import Step, check_max_lag, check_transition, exact_products
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError

EXACT_UP_TO = 384
"""Largest carry, in numbers, whose products are computed explicitly by default."""
ITERATIONS = 64
TOLERANCE = 1e-5
"""Largest residual, relative to σ; the error of σ is about residual² / gap to the next σ."""
SLOPES = {"tanh": 1.0, "sigmoid": 0.25, "relu": 1.0}
"""γ, the largest derivative of each activation."""


class LagNorms(NamedTuple):
    """Spectral norms found by iteration, and their residuals."""

    norms: Float[Array, " lags"]
    """At most the true norms, up to rounding; below the true norms before convergence."""
    residuals: Float[Array, " lags"]
    """Some singular value is within residual × norm of the norm; small after convergence."""


class ProbedNorms(NamedTuple):
    """Frobenius norms estimated from random probes."""

    norms: Float[Array, " lags"]
    """Root of the mean square over the probes; the mean square is unbiased."""
    standard_errors: Float[Array, " lags"]
    """To first order: the standard error of the mean square, divided by twice the norm."""


class PredictedLagNorms(NamedTuple):
    """Predictions of the lag norms, each [max_lag + 1] and 1 at lag 0."""

    step_norms: Float[Array, " lags"]
    """Π σ_max(J_t) over the last l steps: an upper bound, reached if the directions align."""
    radius: Float[Array, " lags"] | None
    """ρ(W_hh)^l: the rate of a linear network for large l; None without W_hh."""
    slope_norm: Float[Array, " lags"] | None
    """(σ_max(W_hh) γ)^l: an upper bound for any data; None without W_hh."""
    exponent: Float[Array, " lags"]
    """exp(λ₁ l), with λ₁ the largest Lyapunov exponent over all of xs."""


@exact_products
def lag_norms(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    max_lag: int,
    *,
    method: str | None = None,
) -> Float[Array, " lags"]:
    """Spectral norms ‖∂carry_T/∂carry_{T-l}‖₂ for l = 0 … max_lag.

    Args:
      step: (params, carry, x) -> carry, for one example.
      params: a tree of floating-point arrays.
      carry: before the first step; a tree of floating-point arrays, n numbers in all.
      xs: a tree of arrays [T, ...]; its end is the T of the formula.
      max_lag: the largest l.
      method: exact: compute each product, n × n numbers at a time; matrix-free: the norms of
        `lanczos_lag_norms` with its default settings; None: exact for a carry of up to 384 numbers,
        else matrix-free. A matrix-free norm that has not converged is too small; the residuals of
        `lanczos_lag_norms` show the convergence.

    Returns:
      [max_lag + 1], 1 at lag 0; NaN from the first lag on whose product contains a NaN.

    Raises:
      UserError: max_lag is longer than T, T = 0, the method is unknown, a type is not
        floating-point, or the step changes the carry's structure, shapes or types.
    """
    return _norms(*last_window(step, params, carry, xs, max_lag), method)


@exact_products
def lanczos_lag_norms(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    max_lag: int,
    *,
    key: Array | None = None,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> LagNorms:
    """Lag norms from Jacobian-vector products alone, with residuals (Golub & Kahan, 1965).

    Args:
      step, params, carry, xs, max_lag: as for `lag_norms`.
      key: for the random start vectors; None: key 0.
      iterations: largest number of iterations; each takes max_lag steps forwards and backwards.
      tolerance: the iteration stops once all residuals are at most the tolerance, or at the level
        of rounding errors.

    Raises:
      UserError: iterations is less than 1; and as `lag_norms`.
    """
    if iterations < 1:
        raise UserError(f"iterations={iterations} must be 1 or more")
    window = last_window(step, params, carry, xs, max_lag)
    key = jax.random.key(0) if key is None else key
    return LagNorms(
        *largest_singular_values(*window, key=key, iterations=iterations, tolerance=tolerance)
    )


@exact_products
def mean_lag_norms(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    max_lag: int,
    *,
    every: int = 1,
    method: str | None = None,
) -> Float[Array, " lags"]:
    """Lag norms averaged over the ends T' = max_lag, max_lag + every, … ≤ T of a long sequence.

    For a batch, apply `jax.vmap` over carry and xs and take the mean.

    Args:
      step, params, carry, xs, max_lag, method: as for `lag_norms`.
      every: number of steps between two ends.

    Returns:
      [max_lag + 1], the arithmetic mean; NaN at a lag if the norm at any end is NaN.

    Raises:
      UserError: every is less than 1; and as `lag_norms`.
    """
    steps = check_transition(step, params, carry, xs)
    check_max_lag(max_lag, steps)
    if every < 1:
        raise UserError(f"every={every} must be 1 or more")
    flat, start = flatten(step, params, carry)
    return jnp.mean(_norms_at_ends(flat, start, xs, max_lag, every, method), axis=0)


@exact_products
def frobenius_lag_norms(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    max_lag: int,
    *,
    key: Array,
    probes: int,
) -> ProbedNorms:
    """Frobenius norms ‖∂carry_T/∂carry_{T-l}‖_F for l = 0 … max_lag, from random signs.

    For a row v of random signs ±1, E ‖v P‖² = tr(P Pᵀ) = ‖P‖_F² (Hutchinson, 1990). If P Pᵀ is
    diagonal, ‖v P‖² has no error. All lags come from the same random rows, so their errors are
    correlated.

    Args:
      step, params, carry, xs, max_lag: as for `lag_norms`.
      key: for the signs.
      probes: number of rows, 2 or more.

    Raises:
      UserError: probes is less than 2 (no standard error); and as `lag_norms`.
    """
    if probes < 2:
        raise UserError(f"probes={probes} must be 2 or more, to have a standard error")
    flat, start, window = last_window(step, params, carry, xs, max_lag)
    rows = jax.random.rademacher(key, (probes, start.size), wide(start).dtype)

    def measure(rows: Array, exponent: Array) -> Array:
        squares = jnp.sum(rows**2, axis=1)
        norm = jnp.sqrt(jnp.mean(squares))
        error = jnp.std(squares, ddof=1) / jnp.sqrt(float(probes))
        error = error / jnp.where(norm > 0, 2 * norm, 1)
        return jnp.ldexp(jnp.stack([norm, error]), exponent)

    return ProbedNorms(*pulled_back(flat, start, window, rows, measure).T)


def predicted_lag_norms(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    max_lag: int,
    *,
    W_hh: Array | None = None,
    slope: float = 1.0,
    method: str | None = None,
) -> PredictedLagNorms:
    """Predictions of the lag norms by simple formulas, to compare with the measured norms.

    Args:
      step, params, carry, xs, max_lag, method: as for `lag_norms`.
      W_hh: [H, H], the recurrent weights of an ungated network; None: no prediction from W_hh.
      slope: γ, the largest derivative of the network's activation, see `SLOPES`.

    Raises:
      UserError: W_hh is not square; and as `lag_norms`.
    """
    flat, start, window = last_window(step, params, carry, xs, max_lag)
    lags = jnp.arange(max_lag + 1, dtype=wide(start).dtype)
    each = jnp.ones((0,), lags.dtype)
    if max_lag:
        each = _norms_at_ends(flat, start, window, 1, 1, method)[:, 1]
    radius = slope_norm = None
    if W_hh is not None:
        if W_hh.ndim != 2 or W_hh.shape[0] != W_hh.shape[1]:
            raise UserError(f"W_hh of shape {list(W_hh.shape)} is not square")
        radius = block_radii(W_hh)[0] ** lags
        slope_norm = (block_norms(W_hh)[0] * slope) ** lags
    largest = lyapunov_spectrum(step, params, carry, xs, 1)[0]
    return PredictedLagNorms(
        step_norms=jnp.exp(jnp.append(0.0 * lags[:1], jnp.cumsum(jnp.log(each[::-1])))),
        radius=radius,
        slope_norm=slope_norm,
        # λ₁ may be -∞, and 0 · -∞ is NaN.
        exponent=jnp.where(lags > 0, jnp.exp(largest * jnp.maximum(lags, 1)), 1),
    )


def _norms(flat: FlatStep, start: Array, xs: Any, method: str | None) -> Array:
    """Lag norms over a window of exactly max_lag steps."""
    if method not in (None, "exact", "matrix-free"):
        raise UserError(f"method={method!r} must be 'exact', 'matrix-free' or None")
    if method == "matrix-free" or (method is None and start.size > EXACT_UP_TO):
        key = jax.random.key(0)
        return largest_singular_values(
            flat, start, xs, key=key, iterations=ITERATIONS, tolerance=TOLERANCE
        )[0]

    def spectral(rows: Array, exponent: Array) -> Array:
        return jnp.ldexp(largest_singular_value(rows), exponent)

    identity = jnp.eye(start.size, dtype=wide(start).dtype)
    return pulled_back(flat, start, xs, identity, spectral)


def _norms_at_ends(
    flat: FlatStep, start: Array, xs: Any, max_lag: int, every: int, method: str | None
) -> Float[Array, "ends lags"]:
    """Lag norms of every window of max_lag steps, a few windows at a time to save memory."""
    before, _ = trajectory(flat, start, xs)
    firsts = jnp.arange(0, before.shape[0] - max_lag + 1, every)

    def at(first: Array) -> Array:
        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), first, max_lag)

        return _norms(flat, before[first], jax.tree.map(cut, xs), method)

    together = max(1, 2**20 // start.size**2)
    return jax.lax.map(at, firsts, batch_size=min(together, firsts.size))
