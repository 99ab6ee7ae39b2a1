"""Norms, angles, blocks and names of trees of arrays; a tree counts as a single long vector.

lm_jax studies gradients that vanish or explode, and a plain Euclidean norm squares the numbers: in
float32 a gradient of 1e-23 would have norm 0, and a gradient of 1e20 norm ∞. The numbers are
therefore first divided by a power of two near the largest,

    ‖a‖ = 2^e ‖a / 2^e‖,    2^(e-1) ≤ max |a_i| < 2^e,

without loss of digits.

XLA may store intermediate results of a leaf as arrays: a product for a norm and an optimizer,
squares for a norm and Adam. For an embedding of a million words, an intermediate array is as large
as the gradient itself. A large leaf is therefore processed in a loop over pieces of the leaf, and
intermediate arrays are only as large as a piece.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

Tree = Any

LARGE = 2**24  # numbers, 64 MiB in float32; a larger leaf is processed piece by piece
PIECE = 2**22  # numbers of a piece, about


def norm(
    tree: Tree, kept: int = 0, change: Callable[[Array], Array] = lambda leaf: leaf
) -> Float[Array, "*kept"]:
    """Euclidean norm over all leaves of a tree, without underflow or overflow of the squares.

    The derivative has no such protection: differentiate only if the squares of the numbers are
    floats.

    Args:
      tree: arrays with equal first axes; an empty tree has norm 0. Leaves of dtype float0, JAX's
        gradient of integers, are ignored.
      kept: number of leading axes to keep; every entry of these axes has its own norm.
      change: elementwise function applied to each leaf first, without storing the result.

    Returns:
      [*kept], float32 for half precision; NaN if a number is NaN, infinite if the norm exceeds the
      largest float.
    """
    size, scale = _size_and_scale(tree, kept, change)
    return scale * size


def scaled(leaf: Float[Array, "*shape"], *factors: Float[Array, ""]) -> Float[Array, "*shape"]:
    """Multiply a leaf by each factor in turn.

    A large leaf is multiplied in place, in its own memory, if nothing else reads the leaf.

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
    """Scale a tree down to at most a given norm: a min(1, c / ‖a‖).

    Args:
      tree, kept: as for `norm`; each entry of the kept axes is scaled by itself.
      threshold: c; infinity changes nothing.

    Returns:
      the tree, and [*kept], True if the norm was above the threshold. If the norm is NaN, or
      infinite with a finite threshold, the tree becomes NaN.
    """
    size, scale = _size_and_scale(tree, kept)
    length = scale * size
    fits = length <= threshold
    # Two factors, because c / ‖a‖ may be too small for a float although its product with a is not.
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
    """Inner product over all leaves; half precision is summed in float32."""

    def product(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, dtype=_single_at_least(x))

    products: list[Array] = jax.tree.leaves(jax.tree.map(product, a, b))
    return sum(products[1:], products[0])


def normalise(a: Tree) -> Tree:
    """Scale a tree to length 1; NaN if the tree is zero or not finite."""
    size, scale = _size_and_scale(a, 0)
    return jax.tree.map(lambda leaf: leaf / scale / size, a)


def cosine(a: Tree, b: Tree) -> Float[Array, ""]:
    """Cosine of the angle between two trees; NaN if a tree is zero or not finite."""
    return jnp.clip(dot(normalise(a), normalise(b)), -1, 1)


def angle(a: Tree, b: Tree) -> Float[Array, ""]:
    """Angle between two trees in degrees, 0 to 180; NaN if a tree is zero or not finite.

    2 atan2(‖a/‖a‖ - b/‖b‖‖, ‖a/‖a‖ + b/‖b‖‖) is accurate at small angles; the arc cosine is not,
    because the cosine is flat there.
    """
    a, b = normalise(a), normalise(b)
    apart, along = (norm(jax.tree.map(f, a, b)) for f in (jnp.subtract, jnp.add))
    return jnp.degrees(2 * jnp.arctan2(apart, along))


def has_gradient(leaf: Any) -> bool:
    """Return False for float0, JAX's type for the gradient of integers; such leaves are ignored."""
    return leaf.dtype != jax.dtypes.float0


def path_name(path: Sequence[Any]) -> str:
    """The dotted name of a leaf, such as `layers.0.W_hh`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def by_name(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by their dotted names."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def matching(name: str, patterns: Iterable[str]) -> bool:
    """True if a name matches one of the patterns, such as `layers.*`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def blocks(tree: Tree, depth: int | None = 1) -> dict[str, list[int]]:
    """Group the leaves of a tree into named blocks.

    Args:
      tree: any tree.
      depth: length of the path prefix that names a block. 1: the tree's top level; None: every leaf
        is a block, with a name such as `layers.0.W_hh`. A tree of a single array has a single block
        with an empty name.

    Returns:
      name -> indices of the leaves, in the order of `jax.tree.leaves`.
    """
    found: dict[str, list[int]] = {}
    for number, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        name = path_name(path[:depth])
        found.setdefault(name, []).append(number)
    return found


def _size_and_scale(
    tree: Tree, kept: int, change: Callable[[Array], Array] = lambda leaf: leaf
) -> tuple[Float[Array, "*kept"], Float[Array, "*kept"]]:
    """Return the norm of the scaled numbers, and the power of two; the norm is their product."""
    leaves = jax.tree.leaves(tree)
    there = [jnp.asarray(leaf) for leaf in leaves if has_gradient(leaf)]
    parts = [_squares_and_scale(leaf, kept, change) for leaf in there]
    if not parts:
        zero = jnp.zeros(leaves[0].shape[:kept] if leaves else ())
        return zero, zero + 1
    # A scale for each leaf: with a common scale, every leaf would stay in memory until the last.
    scale = functools.reduce(jnp.maximum, [of_leaf for _, of_leaf in parts])
    squares = [squares * jnp.square(of_leaf / scale) for squares, of_leaf in parts]
    return jnp.sqrt(sum(squares[1:], squares[0])), scale


def _squares_and_scale(
    leaf: Array, kept: int, change: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Return the sum of the squares of a leaf's scaled numbers, and the power of two."""
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
    inverse = 1 / jnp.expand_dims(scale, axes)  # XLA would store a quotient, as large as the leaf
    # The minimum changes nothing, but keeps XLA from rewriting (a c)² as a² c² if both are known at
    # compile time; either a² or c² would be 0 or ∞.
    part = jnp.minimum(jnp.abs(leaf * inverse), limits.max)
    return jnp.sum(jnp.square(part), axis=axes, dtype=_single_at_least(leaf)), scale


def _single_at_least(leaf: Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _pieces(leaf: Array) -> int:
    """Number of pieces of a large leaf; a piece is a range of rows."""
    return min(leaf.shape[0], -(-leaf.size // PIECE))


def _piece(leaf: Array, number: Array) -> tuple[Array, Array, Array]:
    """Return the first row of a piece, its rows, and a mask of the rows not in an earlier piece.

    The last piece is shifted back to end at the leaf's last row.
    """
    rows = -(-leaf.shape[0] // _pieces(leaf))
    start = jnp.minimum(number * rows, leaf.shape[0] - rows)
    fresh = start + jnp.arange(rows) >= number * rows
    piece = jax.lax.dynamic_slice_in_dim(leaf, start, rows)
    return start, piece, jnp.expand_dims(fresh, tuple(range(1, leaf.ndim)))
