"""The horizon: the number of steps back that hold a share of the gradient.

The horizon reduces a split of the gradient over time to one number of steps; a horizon of 1 is the
present step alone. By truncation, the horizon is the shortest k2 that is good enough: the answer to
"which bptt length?". By credit, the horizon is how far back a loss looks, regardless of the signs
with which gradients add up.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.gradients.truncations import Truncations
from lm_jax.settings import UserError


def horizon(split: Truncations | Float[Array, " L"], share: float) -> Float[Array, ""]:
    """Number of steps back that hold a share of a gradient.

    For `truncations`: the smallest k2 from which on the relative error is at most 1 - share.
    Gradients of different lags may cancel: the error may fall below 1 - share, rise again and fall
    for good. Only the last fall counts. The full gradient is the sum of the lags given, and all L
    lags together always reach the share: a horizon near L says that the split was too short to
    tell.

    For norms by lag (‖g_l‖ of `gradient_by_lag`, or a mean of credits): the smallest number of
    lags, from 0 on, whose norms sum to the share of the total.

    Args:
      split: `truncations(gradient_by_lag(…))`, or a norm for each lag.
      share: between 0 and 1; 0.9 for nine tenths.

    Returns:
      steps, 1 … L. NaN if the share is never reached: a number is NaN or infinite, or all are 0.

    Raises:
      UserError: the share is not between 0 and 1.
    """
    _check(share)
    if isinstance(split, Truncations):
        # NaN is above every bound.
        above = ~(split.relative_error <= 1 - share)
        settled = jnp.cumsum(above[::-1])[::-1] == 0
        return jnp.where(settled[-1], 1.0 + jnp.sum(~settled), jnp.nan)
    return _reach(split, share)


def credit_horizon(credit: Float[Array, "T T"], share: float) -> Float[Array, ""]:
    """Number of steps back that hold a share of the credit, averaged over a sentence's targets.

    The horizon of a row t is the smallest number of lags, from 0 on, whose credits ‖∂J_t/∂carry_k‖,
    k = t, t - 1, …, sum to the share of the row's sum. A row's horizon is at most t + 1: short
    sentences have short horizons.

    Args:
      credit: a credit map (`lm_jax.gradients.credit_map`).
      share: between 0 and 1.

    Returns:
      steps. Rows of zeros (a loss that depends on no carry, a masked target) have no horizon and
      are left out. NaN if all rows are left out, or if a row holds a NaN or ∞.

    Raises:
      UserError: the share is not between 0 and 1.
    """
    _check(share)
    steps = credit.shape[0]
    t, lag = jnp.arange(steps)[:, None], jnp.arange(steps)[None, :]
    k = t - lag
    by_lag = credit[jnp.broadcast_to(t, k.shape), jnp.maximum(k, 0)]
    by_lag = jnp.where(k >= 0, by_lag, 0)
    rows = jnp.any(by_lag != 0, axis=1)  # NaN is not 0
    return jnp.sum(jnp.where(rows, _reach(by_lag, share), 0)) / jnp.sum(rows)


def _reach(norms: Float[Array, "*rows L"], share: float) -> Float[Array, "*rows"]:
    """Smallest number of entries along the last axis that sum to the share of the total, or NaN."""
    largest = jnp.max(norms, axis=-1, keepdims=True)
    so_far = jnp.cumsum(norms / largest, axis=-1)  # a sum of large norms would be infinite
    short = so_far < share * so_far[..., -1:]
    return jnp.where(jnp.isnan(so_far[..., -1]), jnp.nan, 1.0 + jnp.sum(short, axis=-1))


def _check(share: float) -> None:
    if not 0 < share < 1:
        raise UserError(f"share={share} is not between 0 and 1")
