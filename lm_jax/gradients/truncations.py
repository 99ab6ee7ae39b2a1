"""What every length of truncated backpropagation would lose, from one gradient split by lag.

With g_l the gradient at lag l (`lm_jax.gradients.gradient_by_lag`), the gradient truncated to k2
steps is the prefix sum G_k2 = Σ_{l < k2} g_l, and what it lacks of the full gradient G is the sum
of the other lags. So one split answers for all k2 at once, and "which bptt length?" with it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Params
from lm_jax.settings import UserError
from lm_jax.trees import blocks, cosine, norm


class Truncations(NamedTuple):
    """Truncated gradients against the full one; entry i of each array is k2 = i + 1."""

    norm: Float[Array, " L"]
    """‖G_k2‖."""
    cosine: Float[Array, " L"]
    """Between G_k2 and G; NaN where one of them is 0."""
    relative_error: Float[Array, " L"]
    """‖G_k2 - G‖ / ‖G‖; 0 at the last k2, NaN where G is 0."""


def truncations(by_lag: Params) -> Truncations:
    """The gradients of all truncation lengths against the full gradient, over all leaves together.

    The full gradient is the sum of all lags that are given; that is all there is where they go to
    T - 1.

    Args:
      by_lag: what `gradient_by_lag` gives: leaves [L, ...], L = max_lag + 1.

    Returns:
      for k2 = 1 … L.

    Raises:
      UserError: there is no leaf, for the transition has no parameters.
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
    # What is missing is summed by itself: a difference of two long sums would lose it.
    _, missing = jax.lax.scan(rest, zero, lags, reverse=True)
    return Truncations(norms, cosines, missing / norm(full))


def truncations_by_block(by_lag: Params, *, depth: int | None = 1) -> dict[str, Truncations]:
    """`truncations` of each block of the parameters by itself.

    Args:
      by_lag: as for `truncations`.
      depth: what a block is, see `lm_jax.trees.blocks`: 1, the tree's top level; None,
        every leaf.

    Returns:
      name of the block -> its truncations.
    """
    leaves: list[Any] = jax.tree.leaves(by_lag)
    return {
        name: truncations([leaves[number] for number in numbers])
        for name, numbers in blocks(by_lag, depth).items()
    }
