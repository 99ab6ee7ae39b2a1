"""A batch on several devices: each device has some of the sequences and all of the parameters.

The sequences of a batch are independent, and each device runs the forward and backward pass of its
own sequences. The loss and the gradients of the weights are sums over sequences; XLA adds up the
parts of the devices. A gradient computed as a product over all time steps, as in the explicit
backward pass, is added up once per update. The program for a single device contains none of this.

The last bits depend on the number of devices, because the order of summation changes.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm_jax.models.base import Carry
from lm_jax.settings import UserError

REPLICATED = -1
"""Value in place of the batch axis, for an array replicated on every device."""


def device_count(devices: int | None, batch_size: int) -> int:
    """The number of devices of this process to use.

    Args:
      devices: the number asked for; None for as many devices of JAX's default backend as divide the
        batch.
      batch_size: number of sequences of a batch.

    Raises:
      UserError: the machine has fewer devices, or the number is not positive.
    """
    there = jax.local_device_count()
    if devices is None:
        return next(count for count in range(there, 0, -1) if batch_size % count == 0)
    if not 1 <= devices <= there:
        raise UserError(f"devices={devices}: this machine's {jax.default_backend()} has {there}")
    return devices


def make_mesh(devices: int, batch_size: int) -> Mesh | None:
    """A one-dimensional mesh of the first devices, along the batch axis; None for one device.

    Raises:
      UserError: the machine has fewer devices, or batch_size is not divisible by the number.
    """
    count = device_count(devices, batch_size)
    check_divisible(batch_size, count)
    if count == 1:
        return None
    first = jax.local_devices()[:count]
    return jax.make_mesh((count,), ("batch",), (AxisType.Auto,), devices=first)


def check_divisible(batch_size: int, count: int) -> None:
    """Check that each of `count` devices can have as many sequences as the others.

    Raises:
      UserError: batch_size is not divisible by the number.
    """
    if batch_size % count:
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared evenly by {count} devices: take a "
            f"multiple of {count}, or fewer devices"
        )


def on_the_host() -> contextlib.AbstractContextManager:
    """Context of computations that a TPU would compile for minutes, such as QR: on the CPU there.

    On other platforms, and if JAX_PLATFORMS names no CPU, the context changes nothing.
    """
    if jax.default_backend() == "tpu":
        with contextlib.suppress(RuntimeError):
            return jax.default_device(jax.local_devices(backend="cpu")[0])
    return contextlib.nullcontext()


def spread_over(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Context in which traced functions can see that the batch is on several devices."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def batch_axes(init_carry: Callable[[int], Carry], batch_size: int) -> Any:
    """The batch axis of each leaf of a carry; REPLICATED for a leaf without a batch axis."""

    def grows(one: Any, two: Any) -> int:
        sizes = enumerate(zip(one.shape, two.shape, strict=True))
        return next((axis for axis, (a, b) in sizes if a != b), REPLICATED)

    shapes = (jax.eval_shape(lambda n=n: init_carry(n)) for n in (batch_size, 2 * batch_size))
    return jax.tree.map(grows, *shapes)


def sharded(mesh: Mesh, tree: Any, axes: Any) -> Any:
    """The tree with its leaves sharded over the devices; for use inside a compiled function.

    Args:
      mesh: the devices.
      tree: arrays.
      axes: the batch axis of each array, or REPLICATED.
    """

    def place(leaf: Any, axis: int) -> Any:
        spec = PartitionSpec() if axis == REPLICATED else PartitionSpec(*[None] * axis, "batch")
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree, axes)
