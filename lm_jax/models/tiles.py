"""Functions of one hidden unit, applied to tiles of units.

A kernel works on tiles: arrays [b, n] of some sequences and some units. A gate (`GatedCell.gate`)
reads arrays [B, g N] and splits them by gate, which a Triton kernel cannot do. The units of a gate
do not interact (`Cell.units`). `on_tiles` therefore traces the gate of one unit and one sequence,
and puts a tile in the place of each number of the trace. Splitting and joining move entries of
NumPy arrays of tiles while the kernel is traced; every other operation acts on whole tiles.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array

Tiles = np.ndarray
"""An array of objects; each is a tile, or a number that stands for a tile of equal numbers."""


def on_tiles(function: Callable, *given: Any, dtype: Any) -> Any:
    """Apply a function of numbers to tiles.

    Args:
      function: takes and returns trees of arrays. Its operations are elementwise, or move entries.
      given: for each argument a tree of `Tiles`, in the shapes that the function takes.
      dtype: of the numbers.

    Returns:
      the function's result, with `Tiles` for arrays.

    Raises:
      ValueError: the function has an operation of another kind.
    """
    shapes = jax.tree.map(lambda tiles: jax.ShapeDtypeStruct(tiles.shape, dtype), given)
    traced, result = jax.make_jaxpr(function, return_shape=True)(*shapes)
    found = _eval_jaxpr(traced, jax.tree.leaves(given))
    return jax.tree.unflatten(jax.tree.structure(result), found)


def _eval_jaxpr(closed: ClosedJaxpr, given: list[Tiles]) -> list[Tiles]:
    jaxpr = closed.jaxpr
    known: dict[Any, Tiles] = dict(zip(jaxpr.constvars, map(_as_tiles, closed.consts), strict=True))
    known |= zip(jaxpr.invars, given, strict=True)

    def read(atom: Any) -> Tiles:
        return _as_tiles(atom.val) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        found = _eval_equation(equation, [read(atom) for atom in equation.invars])
        known |= zip(equation.outvars, found, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def tiles_of(shape: tuple[int, ...], of: Callable[..., Any]) -> Tiles:
    """Tiles in a shape, each a function of its place."""
    tiles = np.empty(shape, object)
    for place in np.ndindex(shape):
        tiles[place] = of(*place)
    return tiles


def _as_tiles(constant: Any) -> Tiles:
    numbers = np.asarray(constant)
    return tiles_of(numbers.shape, lambda *place: numbers[place])


def _eval_equation(equation: Any, given: list[Tiles]) -> list[Tiles]:
    name, params = equation.primitive.name, equation.params
    for inner in (params.get("jaxpr"), params.get("call_jaxpr")):
        if inner is not None and name != "scan":
            closed = ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner
            return _eval_jaxpr(closed, given)
    shape = equation.outvars[0].aval.shape
    if name in ("squeeze", "reshape"):
        return [given[0].reshape(shape)]
    if name == "broadcast_in_dim":
        sizes = [1] * len(shape)
        for size, axis in zip(given[0].shape, params["broadcast_dimensions"], strict=True):
            sizes[axis] = size
        return [np.broadcast_to(given[0].reshape(sizes), shape)]
    if name == "slice" and params["strides"] is None:
        bounds = zip(params["start_indices"], params["limit_indices"], strict=True)
        return [given[0][tuple(slice(*each) for each in bounds)]]
    if name == "split":
        return np.split(given[0], np.cumsum(params["sizes"])[:-1], params["axis"])
    if name == "concatenate":
        return [np.concatenate(given, params["dimension"])]
    if name == "pad":
        low, high, _ = zip(*params["padding_config"], strict=True)
        whole = tiles_of(shape, lambda *_: given[1].item())
        whole[tuple(map(slice, low, np.subtract(shape, high)))] = given[0]
        return [whole]
    if any(tiles.shape not in ((), shape) for tiles in given):
        raise ValueError(f"no tiles for the operation {name}")
    same = [np.broadcast_to(tiles, shape) for tiles in given]

    def apply(*place: int) -> Array:
        values = [tiles[place] for tiles in same]
        size = np.broadcast_shapes(*map(np.shape, values))
        return equation.primitive.bind(*(jnp.broadcast_to(v, size) for v in values), **params)

    return [tiles_of(shape, apply)]
