"""Norms, angles and blocks of trees of arrays, a tree being one long vector.

A gradient that vanishes or explodes is what lm_jax is about, and a plain Euclidean norm squares it:
in float32 a gradient of 1e-23 would have norm 0, and one of 1e20 norm ∞. So the numbers are first
divided by a power of two near the largest of them,

    ‖a‖ = 2^e ‖a / 2^e‖,    2^(e-1) ≤ max |a_i| < 2^e,

which costs no digit.

XLA may keep as an array of its own whatever is made of a leaf on the way: a product that a norm and
an optimizer read, squares that a norm and Adam read. Of a table of a million words that is as much
again as the gradient. So a large leaf is worked on in a loop over its pieces, where what is made on
the way is as large as a piece.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

Tree = Any

LARGE = 2**24  # numbers, 64 MiB in float32: a leaf with more of them is worked on piece by piece
PIECE = 2**22  # numbers of a piece, about


def norm(
    tree: Tree, kept: int = 0, change: Callable[[Array], Array] = lambda leaf: leaf
) -> Float[Array, "*kept"]:
    """Euclidean norm over all leaves of a tree together, whatever their scale.

    Its derivative is not scaled: differentiate it only where the squares of the numbers are floats.

    Args:
      tree: arrays that share their first axes; an empty tree has norm 0. Leaves of dtype float0,
        which JAX gives for the gradient of integers, count nothing.
      kept: number of leading axes whose entries each have a norm of their own.
      change: what is done to each leaf first, number by number, without holding the result.

    Returns:
      [*kept], float32 for half precision; NaN where a number is NaN, infinite where the norm is
      beyond the largest float.
    """
    size, scale = _size_and_scale(tree, kept, change)
    return scale * size


def scaled(leaf: Float[Array, "*shape"], *factors: Float[Array, ""]) -> Float[Array, "*shape"]:
    """The leaf times each factor in turn; a large leaf in its own memory, if nothing else reads it.

    Args:
      leaf: any array.
      factors: numbers.
    """
    if leaf.size <= LARGE:
        return functools.reduce(jnp.multiply, factors, leaf).astype(leaf.dtype)

    def scale(number: Array, leaf: Array) -> Array:
        start, piece, fresh = _piece(leaf, number)
        changed = functools.reduce(jnp.multiply, factors, piece).astype(leaf.dtype)
        piece = jnp.where(fresh, changed, piece)
        return jax.lax.dynamic_update_slice_in_dim(leaf, piece, start, 0)

    return jax.lax.fori_loop(0, _pieces(leaf), scale, leaf)


def limit_norm(
    tree: Tree, threshold: ArrayLike, kept: int = 0
) -> tuple[Tree, Bool[Array, "*kept"]]:
    """Scale a tree down to at most a norm: a min(1, c / ‖a‖).

    Args:
      tree, kept: as for `norm`; each entry of the kept axes is scaled by itself.
      threshold: c; infinity changes nothing.

    Returns:
      the tree, and whether its norm was above the threshold, [*kept]. A tree whose norm is NaN or
      beyond the largest float has no length to go by, and becomes NaN.
    """
    size, scale = _size_and_scale(tree, kept)
    length = scale * size
    fits = length <= threshold
    # Two factors, for c / ‖a‖ may be too small for a float where its product with a is not.
    first = jnp.where(fits, 1, 1 / scale)
    second = jnp.where(fits, 1, jnp.where(jnp.isfinite(length), threshold / size, jnp.nan))

    def limited(leaf: Any) -> Any:
        if not has_gradient(leaf):
            return leaf
        if kept == 0:
            return scaled(leaf, first, second)
        axes = tuple(range(kept, leaf.ndim))
        leaf_now = leaf * jnp.expand_dims(first, axes) * jnp.expand_dims(second, axes)
        return leaf_now.astype(leaf.dtype)

    return jax.tree.map(limited, tree), length > threshold


def dot(a: Tree, b: Tree) -> Float[Array, ""]:
    """Inner product over all leaves, of half precision in float32."""

    def product(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, dtype=_single_at_least(x))

    products: list[Array] = jax.tree.leaves(jax.tree.map(product, a, b))
    return sum(products[1:], products[0])


def normalise(a: Tree) -> Tree:
    """Scale a tree to length 1; NaN where it is zero or not finite."""
    size, scale = _size_and_scale(a, 0)
    return jax.tree.map(lambda leaf: leaf / scale / size, a)


def cosine(a: Tree, b: Tree) -> Float[Array, ""]:
    """Cosine of the angle between two trees; NaN where one is zero or not finite."""
    return jnp.clip(dot(normalise(a), normalise(b)), -1, 1)


def angle(a: Tree, b: Tree) -> Float[Array, ""]:
    """Angle between two trees in degrees, 0 to 180; NaN where one is zero or not finite.

    2 atan2(‖a/‖a‖ - b/‖b‖‖, ‖a/‖a‖ + b/‖b‖‖), which keeps its digits at small angles, where the
    cosine is flat.
    """
    a, b = normalise(a), normalise(b)
    apart, along = (norm(jax.tree.map(f, a, b)) for f in (jnp.subtract, jnp.add))
    return jnp.degrees(2 * jnp.arctan2(apart, along))


def has_gradient(leaf: Any) -> bool:
    """False for float0, JAX's type for the gradient of integers, which takes part in nothing."""
    return leaf.dtype != jax.dtypes.float0


def blocks(tree: Tree, depth: int | None = 1) -> dict[str, list[int]]:
    """Leaves of a tree that belong together, by name.

    Args:
      tree: any tree.
      depth: number of steps of a leaf's path that name its block: 1, the tree's top level; None,
        every leaf is a block, with a name such as `layers.0.W_hh`. A tree that is one array has one
        block, with no name.

    Returns:
      name -> numbers of the leaves, in the order of `jax.tree.leaves`.
    """
    found: dict[str, list[int]] = {}
    for number, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        name = jax.tree_util.keystr(path[:depth], simple=True, separator=".")
        found.setdefault(name, []).append(number)
    return found


def _size_and_scale(
    tree: Tree, kept: int, change: Callable[[Array], Array] = lambda leaf: leaf
) -> tuple[Float[Array, "*kept"], Float[Array, "*kept"]]:
    """The norm as a product: of the norm of the scaled numbers, and of the power of two."""
    leaves = jax.tree.leaves(tree)
    there = [jnp.asarray(leaf) for leaf in leaves if has_gradient(leaf)]
    parts = [_squares_and_scale(leaf, kept, change) for leaf in there]
    if not parts:
        zero = jnp.zeros(leaves[0].shape[:kept] if leaves else ())
        return zero, zero + 1
    # Leaf by leaf, so that none of them must stand in memory until the last has been seen.
    scale = functools.reduce(jnp.maximum, [of_leaf for _, of_leaf in parts])
    squares = [squares * jnp.square(of_leaf / scale) for squares, of_leaf in parts]
    return jnp.sqrt(sum(squares[1:], squares[0])), scale


def _squares_and_scale(
    leaf: Array, kept: int, change: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """The sum of the squares of a leaf's scaled numbers, and the power of two."""
    if kept or leaf.size <= LARGE:
        return _squares_at_once(change(leaf), kept)

    def of_piece(number: Array) -> tuple[Array, Array]:
        _, piece, fresh = _piece(leaf, number)
        return _squares_at_once(jnp.where(fresh, change(piece), 0), 0)

    squares, scales = jax.lax.map(of_piece, jnp.arange(_pieces(leaf)))
    scale = jnp.max(scales)
    return jnp.sum(squares * jnp.square(scales / scale)), scale


def _squares_at_once(leaf: Array, kept: int) -> tuple[Array, Array]:
    axes = tuple(range(kept, leaf.ndim))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(leaf), axis=axes, initial=0))
    # Neither the power nor its inverse may be too small for a float.
    limits = jnp.finfo(leaf.dtype)
    low, high = limits.minexp + 2, limits.maxexp - 2
    exponent = jnp.where(largest > 0, jnp.clip(jnp.frexp(largest)[1], low, high), low)
    scale = jnp.ldexp(jnp.ones_like(largest), jnp.where(jnp.isinf(largest), high, exponent))
    inverse = 1 / jnp.expand_dims(scale, axes)  # XLA would keep a quotient, as large as the leaf
    # The minimum changes nothing. Without it XLA makes a² c² of (a c)² if it knows both when it
    # compiles, and one of these squares is 0 or ∞.
    part = jnp.minimum(jnp.abs(leaf * inverse), limits.max)
    return jnp.sum(jnp.square(part), axis=axes, dtype=_single_at_least(leaf)), scale


def _single_at_least(leaf: Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _pieces(leaf: Array) -> int:
    """The number of pieces of a large leaf, which are some of its rows."""
    return min(leaf.shape[0], -(-leaf.size // PIECE))


def _piece(leaf: Array, number: Array) -> tuple[Array, Array, Array]:
    """The first row of a piece, its rows, and which of these are in no piece before it.

    The last piece is shifted back to end where the leaf does.
    """
    rows = -(-leaf.shape[0] // _pieces(leaf))
    start = jnp.minimum(number * rows, leaf.shape[0] - rows)
    fresh = start + jnp.arange(rows) >= number * rows
    piece = jax.lax.dynamic_slice_in_dim(leaf, start, rows)
    return start, piece, jnp.expand_dims(fresh, tuple(range(1, leaf.ndim)))
