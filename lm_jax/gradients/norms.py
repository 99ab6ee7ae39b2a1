"""Norms of trees whose numbers may be very small or very large, and the blocks of a parameter tree.

A gradient that vanishes or explodes is what the tools of this directory are for, and a plain
Euclidean norm squares it: in float32 a gradient of 1e-23 would have norm 0, and one of 1e20 norm ∞.
So the largest number is divided out first.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Params


def norm(tree: Any, kept: int = 0) -> Float[Array, "*kept"]:
    """The Euclidean norm over all leaves of a tree together, whatever their scale.

    Args:
      tree: arrays that share their first axes.
      kept: how many of these each have a norm of their own.

    Returns:
      [*kept]; NaN where a number is NaN, infinite where one is infinite.
    """
    leaves = [leaf.reshape(*leaf.shape[:kept], -1) for leaf in jax.tree.leaves(tree)]
    largest = jnp.max(
        jnp.stack([jnp.max(jnp.abs(leaf), axis=-1, initial=0) for leaf in leaves]), axis=0
    )
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = [jnp.sum(jnp.square(leaf / scale[..., None]), axis=-1) for leaf in leaves]
    return scale * jnp.sqrt(sum(squares[1:], squares[0]))


def blocks(params: Params, depth: int | None = 1) -> dict[str, list[int]]:
    """Which leaves of a tree belong together, by name.

    Args:
      params: any tree.
      depth: how many steps of a leaf's path name its block: 1, the tree's top level; None, every
        leaf is a block, with a name such as `layers.0.W_hh`. A tree that is one array has one
        block, with no name.

    Returns:
      name -> numbers of the leaves, in the order of `jax.tree.leaves`.
    """
    found: dict[str, list[int]] = {}
    for number, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        name = jax.tree_util.keystr(path[:depth], simple=True, separator=".")
        found.setdefault(name, []).append(number)
    return found
