"""Kernels that run all time steps of a gated cell in one launch, for NVIDIA GPUs (Pallas, Triton).

A thread block computes all steps of `SEQUENCES` sequences, so no thread block waits for another. At
each step it computes one tile of units after another: z_h, a sum of products with tiles of W_hh,
and then the cell's `gate` (`lm_jax.models.tiles`). A barrier ends each step, because the next step
reads h of all units. `backward` is the recursion for δ and ε in the head of
`lm_jax.models.recurrence`. Carries and ε go through global memory. W_hh is read at each step, from
a cache if it fits.

Letters: T time steps; B sequences, a multiple of `SEQUENCES`; N units, a multiple of `tile(N)`;
G columns of W_hh, and C of z_x, with entry g N + i for unit i.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from lm_jax.models.base import Carry, Params
from lm_jax.models.cells import GatedCell
from lm_jax.models.matmul import xla_precision
from lm_jax.models.tiles import Tiles, on_tiles, tiles_of

SEQUENCES = 16
"""Sequences of a block, the fewest rows of a product of tiles."""
WARPS = 8
"""Groups of 32 threads in a block."""


def tile(units: int) -> int:
    """Units of a tile: a power of two, as Triton needs, from 16 to 64."""
    return min(64, max(16, 1 << (units - 1).bit_length()))


def forward(
    cell: GatedCell,
    W: Float[Array, "N G"],
    own: Params,
    carry: Carry,
    z_x: Float[Array, "T B C"],
    *,
    interpret: bool = False,
) -> Carry:
    """The carries after each step, leaves [T, B, N].

    Args:
      cell: the cell.
      W: W_hh, from `round_weights`.
      own: the gate's own parameters.
      carry: before the first step, leaves [B, N].
      z_x: the other part of the pre-activations, as the gate reads it.
      interpret: if True, run as JAX operations, on any platform; for tests.
    """
    tiled, steps = _Tiled(cell, W, carry), z_x.shape[0]

    def kernel(W: Any, own: Any, first: Any, z_x: Any, after: Any) -> None:
        def step(t: Any, before: Any, *time: Any) -> None:
            h = cell.output(before)

            def units(j: Any, _: None) -> None:
                z_h = tiled.product(lambda k: h[*time, :, tiled.at(k)], W, j)
                old = jax.tree.map(lambda leaf: _one(leaf[*time, :, tiled.at(j)]), before)
                given = tiled.own(own, j), old, _row(z_h), tiled.columns(z_x, t, j)
                new = on_tiles(tiled.gate, *given, dtype=z_x.dtype)
                jax.tree.map(functools.partial(tiled.write, t, j), after, new)

            jax.lax.fori_loop(0, tiled.count, units, None)
            _wait(interpret)

        step(0, first)
        jax.lax.fori_loop(1, steps, lambda t, _: step(t, after, t - 1), None)

    shapes = jax.tree.map(lambda leaf: _shape(leaf, steps), carry)
    weights = W, _by_unit(own, tiled.N)
    (after,) = _launch(kernel, weights, (carry, z_x), (shapes,), interpret)
    return after


def backward(
    cell: GatedCell,
    W: Float[Array, "N G"],
    own: Params,
    before: Carry,
    z_h: Float[Array, "T B G"],
    z_x: Float[Array, "T B C"],
    last: Carry,
    d_h: Float[Array, "T B N"],
    *,
    alike: bool,
    keep_delta: bool,
    interpret: bool = False,
) -> tuple[Carry, Array, Array | None, Carry | None]:
    """The gradients on the way back through time (see the head of `lm_jax.models.recurrence`).

    Args:
      cell, W, own, z_x, interpret: as for `forward`.
      before: the carry before each step, leaves [T, B, N].
      z_h: h W_hh of each step.
      last: gradient of the carry after the last step.
      d_h: gradients of h_1 … h_T.
      alike: if True, the gate reads only z_h + z_x.
      keep_delta: return δ.

    Returns:
      the gradient of the carry before the first step, without the part that goes through z_h;
      ε_1 … ε_T; the gradients of z_x, None if `alike`; δ_1 … δ_T, or None.
    """
    tiled, steps = _Tiled(cell, W, last), z_x.shape[0]

    def pullback(own: Params, carry: Carry, z_h: Array, z_x: Array, delta: Carry) -> tuple:
        return jax.vjp(functools.partial(tiled.gate, own), carry, z_h, z_x)[1](delta)

    def kernel(
        W: Any, own: Any, before: Any, z_h: Any, z_x: Any, last: Any, d_h: Any, *found: Any
    ) -> None:
        returned, epsilon, d_z_x, deltas = found

        def step(t: Any, arrived: Any, is_last: bool) -> None:
            def units(j: Any, _: None) -> None:
                delta, structure = jax.tree.flatten(
                    jax.tree.map(lambda leaf: leaf[:, tiled.at(j)], arrived)
                )
                if not is_last:
                    delta[tiled.output] += tiled.product_back(epsilon, t + 1, W, j)
                delta[tiled.output] += d_h[t, :, tiled.at(j)]
                delta = structure.unflatten(map(_one, delta))
                old = jax.tree.map(lambda leaf: _one(leaf[t, :, tiled.at(j)]), before)
                z = tiled.columns(z_h, t, j), tiled.columns(z_x, t, j)
                back = on_tiles(pullback, tiled.own(own, j), old, *z, delta, dtype=z_x.dtype)
                _wait(interpret)  # until all threads have read what is written over
                places = (returned, None), (epsilon, t), (d_z_x, t), (deltas, t)
                for (place, time), value in zip(places, (*back, delta), strict=True):
                    if place is not None:
                        jax.tree.map(functools.partial(tiled.write, time, j), place, value)

            jax.lax.fori_loop(0, tiled.count, units, None)
            _wait(interpret)

        step(steps - 1, last, True)
        jax.lax.fori_loop(1, steps, lambda n, _: step(steps - 1 - n, returned, False), None)

    deltas = jax.tree.map(lambda leaf: _shape(leaf, steps), last) if keep_delta else None
    shapes = *jax.tree.map(_shape, (last, z_h, None if alike else z_x)), deltas
    weights = W, _by_unit(own, tiled.N)
    return _launch(kernel, weights, (before, z_h, z_x, last, d_h), shapes, interpret)


class _Tiled:
    """The tiles of a cell's arrays; j is the number of a tile of units."""

    def __init__(self, cell: GatedCell, W: Array, carry: Carry) -> None:
        self.N, width = W.shape
        self.gates = width // self.N
        self.tile = tile(self.N)
        self.count = self.N // self.tile
        self.precision = xla_precision(cell.precision)
        self.sums = jnp.promote_types(W.dtype, jnp.float32)
        self.gate = cell.resized(1).gate
        structure = jax.tree.structure(carry)
        self.output: Any = cell.output(structure.unflatten(range(structure.num_leaves)))
        """Place of h among the leaves of the carry."""

    def at(self, j: Any, g: int = 0) -> Any:
        """Columns of the units of a tile, for gate g."""
        return pl.ds(pl.multiple_of(g * self.N + j * self.tile, self.tile), self.tile)

    def columns(self, z: Any, t: Any, j: Any) -> Tiles:
        """All columns of z_t for the units of a tile, in the shape [1, columns of one unit]."""
        return _row([z[t, :, self.at(j, g)] for g in range(z.shape[-1] // self.N)])

    def own(self, own: Any, j: Any) -> Params:
        """The gate's own parameters for the units of a tile, a tile for each number of one unit."""

        def of(leaf: Any) -> Tiles:
            def row(*place: int) -> Array:
                return jnp.broadcast_to(leaf[*place, self.at(j)][None], (SEQUENCES, self.tile))

            return tiles_of(leaf.shape[:-1], row)

        return jax.tree.map(of, own)

    def product(self, h: Callable, W: Any, j: Any) -> tuple[Array, ...]:
        """h W_hh for each gate of the units of a tile; h gives the h of a tile."""

        def add(k: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            h_k = h(k).astype(W.dtype)
            return tuple(
                z + self._dot(h_k, W[self.at(k), self.at(j, g)], 0) for g, z in enumerate(sums)
            )

        zero = jnp.zeros((SEQUENCES, self.tile), self.sums)
        return jax.lax.fori_loop(0, self.count, add, (zero,) * self.gates)

    def product_back(self, epsilon: Any, t: Any, W: Any, j: Any) -> Array:
        """ε_t W_hhᵀ for the units of a tile."""

        def add(k: Any, total: Array) -> Array:
            for g in range(self.gates):
                columns = self.at(k, g)
                part = epsilon[t, :, columns].astype(W.dtype)
                total += self._dot(part, W[self.at(j), columns], 1)
            return total

        zero = jnp.zeros((SEQUENCES, self.tile), self.sums)
        return jax.lax.fori_loop(0, self.count, add, zero)

    def _dot(self, x: Array, W: Array, axis: int) -> Array:
        """The product over the last axis of x and an axis of W."""
        dimensions = (((1,), (axis,)), ((), ()))
        return jax.lax.dot_general(
            x, W, dimensions, self.precision, preferred_element_type=self.sums
        )

    def write(self, t: Any, j: Any, place: Any, values: Tiles) -> None:
        """Write the values of a tile's units into [T, B, C] at step t; t None: into [B, C]."""
        time = () if t is None else (t,)
        for g, value in enumerate(values.flat):
            place[*time, :, self.at(j, g)] = jnp.broadcast_to(value, (SEQUENCES, self.tile))


def _by_unit(own: Params, N: int) -> Params:
    """The gate's own parameters, with the units in an axis of their own, the last."""
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-1], -1, N), own)


def _row(tiles: Sequence[Any]) -> Tiles:
    """Tiles in the shape [1, number of tiles]."""
    return tiles_of((1, len(tiles)), lambda _, place: tiles[place])


def _one(tile: Array) -> Tiles:
    return _row([tile])


def _shape(leaf: Any, *over: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*over, *leaf.shape), leaf.dtype)


def _wait(interpret: bool) -> None:
    """Let the threads of a block wait for each other, and see what the others have written."""
    if not interpret:
        triton.debug_barrier()


def _launch(kernel: Callable, weights: Any, arrays: Any, shapes: Any, interpret: bool) -> Any:
    """Run a kernel with weights that all blocks read, and arrays of which each has its lanes."""

    def whole(leaf: Any) -> pl.BlockSpec:
        return pl.BlockSpec(leaf.shape, lambda i: (0,) * leaf.ndim)

    def of_sequences(leaf: Any) -> pl.BlockSpec:
        *steps, _, columns = leaf.shape
        return pl.BlockSpec((*steps, SEQUENCES, columns), lambda i: (*(0 for _ in steps), i, 0))

    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        in_specs=(*jax.tree.map(whole, weights), *jax.tree.map(of_sequences, arrays)),
        out_specs=jax.tree.map(of_sequences, shapes),
        grid=(jax.tree.leaves(shapes)[0].shape[-2] // SEQUENCES,),
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
    )(*weights, *arrays)
