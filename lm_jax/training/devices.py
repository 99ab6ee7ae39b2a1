"""One batch on several devices: each has some of the lanes, and all of the parameters.

Lanes do not see one another, so a device reads its own through time, forwards and backwards. What
is one number, or one array, for the whole batch (the loss, each weight's gradient) is a sum over
lanes, and XLA adds up the devices' parts where it is used: once an update for a product over all
steps, as those of the explicit pass are. A program for one device holds nothing of this.

Bits depend on the number of devices, for sums are taken in another order.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm_jax.models.base import Carry
from lm_jax.settings import UserError

NOWHERE = -1
"""In place of the lanes' axis, for an array that every device has whole."""


def device_count(devices: int | None) -> int:
    """How many devices to use: as many as are asked for, or all.

    Args:
      devices: None: every device of JAX's default backend.

    Raises:
      UserError: there are fewer, or it is not positive.
    """
    there = jax.device_count()
    if devices is None:
        return there
    if not 1 <= devices <= there:
        raise UserError(f"devices={devices}: this machine's {jax.default_backend()} has {there}")
    return devices


def mesh_of(devices: int, batch_size: int) -> Mesh | None:
    """The first devices in a row, along the lanes; None for one.

    Raises:
      UserError: there are fewer, or batch_size lanes cannot be divided evenly.
    """
    count = device_count(devices)
    if batch_size % count:
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared evenly by {count} devices: take a "
            f"multiple of {count}, or fewer devices"
        )
    if count == 1:
        return None
    return jax.make_mesh((count,), ("lanes",), (AxisType.Auto,), devices=jax.devices()[:count])


def spread_over(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Within it the functions that are traced can tell that lanes are on several devices."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def lanes_axes(init_carry: Callable[[int], Carry], batch_size: int) -> Any:
    """The axis of each leaf of a carry that grows with the batch, or NOWHERE."""

    def grows(one: Any, two: Any) -> int:
        sizes = enumerate(zip(one.shape, two.shape, strict=True))
        return next((axis for axis, (a, b) in sizes if a != b), NOWHERE)

    shapes = (jax.eval_shape(lambda n=n: init_carry(n)) for n in (batch_size, 2 * batch_size))
    return jax.tree.map(grows, *shapes)


def sharded(mesh: Mesh, tree: Any, axes: Any) -> Any:
    """A tree within a compiled function, laid out over the devices.

    Args:
      mesh: the devices.
      tree: arrays.
      axes: for each, which axis the lanes are, or NOWHERE.
    """

    def place(leaf: Any, axis: int) -> Any:
        spec = PartitionSpec() if axis == NOWHERE else PartitionSpec(*[None] * axis, "lanes")
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree, axes)
