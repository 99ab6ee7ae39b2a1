"""The limit: the time of the matrix products of a training step alone.

Each product is compiled separately and timed at the true shape; the products of a recurrence, one
per time step, in a loop of T. A layer of H units, G columns and inputs of length H, for N = T B
tokens, has these products:

    forward     [N, H] [H, G]   all steps at once        T × [B, H] [H, G]
    backward    [N, G] [G, H]   into the input           T × [B, G] [G, H]
                [H, N] [N, G]   for W_xh, and for W_hh

and the readout has [N, H] [H, V], [N, V] [V, H] and [H, N] [N, V]. The time of a product is the
fastest of several measurements: the best of the machine.
"""

import functools
import math
import time

import jax
import jax.numpy as jnp

from benchmarks.sizes import Size

TRIES = 5
TRY = 0.04


def seconds_of(size: Size, *, readout: bool) -> float:
    """Seconds of all matrix products in a forward and backward pass.

    Args:
      size: size of the model and the batch.
      readout: if True, include the products of the readout.
    """
    H, G, B, T, V = size.hidden, size.width, size.batch, size.length, size.vocabulary
    N, dtype = T * B, size.precision
    layer = product(N, H, G, dtype) + product(N, G, H, dtype) + 2 * product(H, N, G, dtype)
    layer += recurrent(T, B, H, G, dtype) + recurrent(T, B, G, H, dtype)
    if not readout:
        return size.layers * layer
    top = product(N, H, V, dtype) + product(N, V, H, dtype) + product(H, N, V, dtype)
    return size.layers * layer + top


@functools.cache
def product(rows: int, inner: int, columns: int, dtype: str) -> float:
    """Seconds of a product [rows, inner] [inner, columns]."""
    a, b = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    return _fastest(jax.jit(jnp.matmul), a, b)


@functools.cache
def recurrent(length: int, rows: int, inner: int, columns: int, dtype: str) -> float:
    """Seconds of a loop of `length` products [rows, inner] [inner, columns]."""
    xs, W = jnp.ones((length, rows, inner), dtype), jnp.ones((inner, columns), dtype)
    return _fastest(jax.jit(lambda xs, W: jax.lax.map(lambda x: x @ W, xs)), xs, W)


def _fastest(f, *operands: jax.Array) -> float:
    jax.block_until_ready(f(*operands))
    best, calls = math.inf, 1
    for _ in range(TRIES):
        began = time.perf_counter()
        for _ in range(calls - 1):
            f(*operands)
        jax.block_until_ready(f(*operands))
        taken = (time.perf_counter() - began) / calls
        best, calls = min(best, taken), max(1, round(TRY / taken))
    return best
