"""Many passes through a layer in a single compiled program, as in training.

Every separate call of a compiled JAX function allocates new buffers; a compiled loop reuses the
buffers.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

HAIR = 1e-9
"""Step size of a tiny gradient step on weights and input between passes. Without the step, XLA
would compute everything once for all passes."""


def passes(
    both: Callable[..., Any],
    params: Any,
    x: jax.Array,
    d_h: jax.Array,
    carry: Any = (),
    devices: int = 1,
) -> Callable[[int], Any]:
    """Compile a loop of forward and backward passes; the result takes the number of passes.

    Args:
      both: (params, x, d_h, carry) -> (value, (d_params, d_x)).
      params, x, d_h, carry: first arguments of `both`; x and d_h are [T, B, H], the carry's leaves
        [B, ...].
      devices: number of devices sharing the batch; B is a multiple of this number.
    """

    def many(calls: Any, params: Any, x: jax.Array, d_h: jax.Array, carry: Any) -> Any:
        def once(_: Any, at: Any) -> Any:
            d_params, d_x = both(*at, d_h, carry)[1]
            if devices > 1:
                d_params = jax.lax.psum(d_params, "batch")
            grads = d_params, d_x
            return jax.tree.map(lambda leaf, grad: leaf - leaf.dtype.type(HAIR) * grad, at, grads)

        return jax.lax.fori_loop(0, calls, once, (params, x))

    whole, rows = PartitionSpec(), PartitionSpec(None, "batch")
    specs = whole, rows, rows, PartitionSpec("batch")
    data = params, x, d_h, carry
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("batch",))
        many = jax.shard_map(
            many, mesh=mesh, in_specs=(whole, *specs), out_specs=(whole, rows), check_vma=False
        )
        data = tuple(
            jax.device_put(each, NamedSharding(mesh, spec))
            for each, spec in zip(data, specs, strict=True)
        )
    compiled = jax.jit(many)
    return lambda calls: jax.block_until_ready(compiled(calls, *data))
