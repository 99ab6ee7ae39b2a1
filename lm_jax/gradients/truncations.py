"""The error of truncated backpropagation at every length, from a single gradient split by lag.

Let g_l be the gradient at lag l (`lm_jax.gradients.gradient_by_lag`). The gradient truncated to k2
steps is the prefix sum G_k2 = Σ_{l < k2} g_l, and the missing part of the full gradient G is the
sum of the other lags. A single split therefore compares all BPTT lengths k2 at once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Params
from lm_jax.settings import UserError
from lm_jax.trees import blocks, cosine, norm


class Truncations(NamedTuple):
    """Truncated gradients compared with the full gradient; entry i of each array is k2 = i + 1."""

    norm: Float[Array, " L"]
    """‖G_k2‖."""
    cosine: Float[Array, " L"]
    """Cosine of the angle between G_k2 and G; NaN if either is 0."""
    relative_error: Float[Array, " L"]
    """‖G_k2 - G‖ / ‖G‖; 0 at the last k2, NaN if G is 0."""


def truncations(by_lag: Params) -> Truncations:
    """Compare the gradients of all truncation lengths with the full gradient.

    The norms and angles are over all leaves together. The full gradient is taken as the sum of all
    lags in `by_lag`; the sum is complete if the lags go to T - 1.

    Args:
      by_lag: the result of `gradient_by_lag`: leaves [L, ...], L = max_lag + 1.

    Returns:
      the comparison for k2 = 1 … L.

    Raises:
      UserError: `by_lag` has no leaf, because the transition has no parameters.
    """
    lags = jax.tree.leaves(by_lag)
    if not lags:
        raise UserError("the gradient by lag holds no array: the transition has no parameters")
    full = [jnp.sum(leaf, axis=0) for leaf in lags]

    def longer(sums: list[Array], lag: list[Array]) -> tuple[list[Array], tuple[Array, Array]]:
        sums = [a + b for a, b in zip(sums, lag, strict=True)]
        return sums, (norm(sums), cosine(sums, full))

    def rest(sums: list[Array], lag: list[Array]) -> tuple[list[Array], Array]:
        return [a + b for a, b in zip(sums, lag, strict=True)], norm(sums)

    zero = [jnp.zeros_like(leaf) for leaf in full]
    _, (norms, cosines) = jax.lax.scan(longer, zero, lags)
    # Sum the missing lags directly: a difference of two long sums would lose digits.
    _, missing = jax.lax.scan(rest, zero, lags, reverse=True)
    return Truncations(norms, cosines, missing / norm(full))


def truncations_by_block(by_lag: Params, *, depth: int | None = 1) -> dict[str, Truncations]:
    """`truncations` for each block of the parameters separately.

    Args:
      by_lag: as for `truncations`.
      depth: level of the tree that defines the blocks, see `lm_jax.trees.blocks`: 1, the top level;
        None, every leaf.

    Returns:
      name of the block -> truncations of the block.
    """
    leaves: list[Any] = jax.tree.leaves(by_lag)
    return {
        name: truncations([leaves[number] for number in numbers])
        for name, numbers in blocks(by_lag, depth).items()
    }
