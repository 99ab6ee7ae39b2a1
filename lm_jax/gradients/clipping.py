"""Clipping the whole gradient, by norm or by value.

    by norm    g ← g min(1, c / ‖g‖)               (Pascanu et al., 2013, algorithm 1)
    by value   g_i ← max(-c, min(c, g_i))

The third place to clip is within BPTT, `lm_jax.gradients.bptt.clip_cotangent`.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from lm_jax.models.base import Params
from lm_jax.trees import limit_norm

Threshold = float | Float[Array, ""]


def by_norm(grads: Params, threshold: Threshold) -> tuple[Params, Bool[Array, ""]]:
    """Limit the norm of a gradient to `threshold`.

    Returns:
      the gradient, and True if the norm was above the threshold. A gradient whose norm is beyond
      the largest float becomes NaN.
    """
    # `optax.clip_by_global_norm` divides, and XLA holds the quotient in memory beside the gradient.
    # A factor is fused into the code that reads the gradient.
    return limit_norm(grads, threshold)


def by_value(grads: Params, threshold: Threshold) -> tuple[Params, Bool[Array, ""]]:
    """Limit every entry of a gradient to ±`threshold`.

    Returns:
      the gradient, and True if an entry was beyond the threshold.
    """
    clipped, _ = optax.clip(threshold).update(grads, optax.EmptyState())
    return clipped, largest(grads) > threshold


def largest(grads: Params) -> Float[Array, ""]:
    """The largest |g_i|."""
    # max |g| would hold |g| in memory beside g.
    return jnp.maximum(optax.tree.max(grads), jnp.negative(optax.tree.min(grads)))
