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
    """The gradient with at most a norm of `threshold`, and whether it was changed.

    It is right up to the largest float; a norm beyond has no length to cut, and the gradient
    becomes NaN.
    """
    # `optax.clip_by_global_norm` divides, so that a clipped gradient stands in memory beside the
    # gradient; a factor is taken up into what reads it.
    return limit_norm(grads, threshold)


def by_value(grads: Params, threshold: Threshold) -> tuple[Params, Bool[Array, ""]]:
    """The gradient with no entry beyond ±`threshold`, and whether it was changed."""
    clipped, _ = optax.clip(threshold).update(grads, optax.EmptyState())
    return clipped, largest(grads) > threshold


def largest(grads: Params) -> Float[Array, ""]:
    """The largest |g_i|."""
    # Without |g|, which would stand in memory beside g.
    return jnp.maximum(optax.tree.max(grads), jnp.negative(optax.tree.min(grads)))
