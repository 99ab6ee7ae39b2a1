"""Many runs as lanes of a single compiled program.

Runs whose configs differ only in numbers share their compiled functions (`lm_jax.training.step`).
This module advances the runs side by side: train states and configs are stacked on a leading axis,
[lanes, ...], and `run_until` of a single run is mapped over the axis. The axis is sharded over the
devices. Each device works in rows of `width` lanes: `vmap` within a row, and one row after another.

The lanes are independent. A lane stops at a given update, or where its run diverges; afterwards
the lane's state stays unchanged. If fewer runs than lanes are left, the spare lanes
stand still in the same way. The result of a lane depends on the width, but not on the number of
lanes or on the lane's place.

On a CPU the width is 1, because wider rows were no faster there; `benchmarks/sweeps.py` compares an
update of a lane with an update of a single run. On an accelerator all lanes of a device are one
row.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm_jax.config import Config
from lm_jax.data.batches import Source
from lm_jax.training.state import TrainState
from lm_jax.training.step import diverged, run_until

AXIS = PartitionSpec("lanes")
EVERYWHERE = PartitionSpec()


class VmappedRuns:
    """The stacked train states of several runs, on the devices.

    Attributes:
      count: number of lanes, at least the number requested.
    """

    def __init__(
        self,
        vocab_size: int,
        source: Source,
        count: int,
        *,
        devices: Sequence[Any] | None = None,
        width: int | None = None,
    ):
        """Prepares lanes, without states yet.

        Args:
          vocab_size: V of all runs.
          source: training tokens, read by all runs.
          count: largest number of runs.
          devices: devices to use; None: all devices of the default backend.
          width: lanes in a row; None: 1 on a CPU, elsewhere all lanes of a device.
        """
        self._vocab_size, self._asked = vocab_size, width
        devices = jax.devices() if devices is None else list(devices)
        on_cpu = devices[0].platform == "cpu"
        # XLA compiles a map over a single lane differently from a map over several lanes.
        each = max(2, -(-count // len(devices)))
        width = width or (1 if on_cpu else each)
        each = -(-each // width) * width
        self.count, self._width = each * len(devices), width
        self._mesh = Mesh(np.array(devices), ("lanes",), axis_types=(AxisType.Auto,))
        self._source = jax.device_put(source, NamedSharding(self._mesh, EVERYWHERE))
        self._states: Any = None
        self._configs: Any = None

    def for_fewer(self, count: int) -> "VmappedRuns":
        """Fewer lanes for `count` runs if at least half of the present lanes would stand still."""
        if self._width == 1 or 2 * count > self.count:
            return self
        devices = list(self._mesh.devices.flat)
        fewer = VmappedRuns(
            self._vocab_size, self._source, count, devices=devices, width=self._asked
        )
        return fewer if fewer.count < self.count else self

    def stack(self, states: Sequence[TrainState], configs: Sequence[Config]) -> None:
        """Stacks the states of the runs, at least 1; spare lanes repeat the first run."""
        spare = self.count - len(states)
        self._states = self._stacked([*states, *[states[0]] * spare])
        self._configs = self._stacked([*configs, *[configs[0]] * spare])

    def advance(self, stops: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Advances every run to its own stop.

        Args:
          stops: the update to stop at, for each run; a run already there stays unchanged.

        Returns:
          two arrays [runs]: the number of updates made, and True if the run has diverged.
        """
        still = [0] * (self.count - len(stops))
        at = self._placed(np.array([*stops, *still], np.int32))
        self._states = _run_lanes_until(
            self._configs, self._states, self._source, at, self._vocab_size, self._mesh, self._width
        )
        runs = len(stops)
        ended = np.asarray(diverged(self._configs, self._states))
        return np.asarray(self._states.step)[:runs], ended[:runs]

    def unstack(self, runs: int) -> list[TrainState]:
        """Return the states of the first `runs` lanes, on the host, and free all lanes."""
        host = jax.tree.map(np.asarray, self._states)
        self._states = None
        return [jax.tree.map(lambda leaf, lane=lane: leaf[lane, ...], host) for lane in range(runs)]

    def _stacked(self, trees: Sequence[Any]) -> Any:
        # Leaf by leaf: otherwise all leaves would be on the host and on the devices at once.
        return jax.tree.map(
            lambda *leaves: self._placed(np.stack([np.asarray(leaf) for leaf in leaves])), *trees
        )

    def _placed(self, leaf: np.ndarray) -> jax.Array:
        return jax.device_put(leaf, NamedSharding(self._mesh, AXIS))


@functools.partial(
    jax.jit, static_argnames=("vocab_size", "mesh", "width"), donate_argnames="states"
)
def _run_lanes_until(
    configs: Any, states: Any, source: Source, stops: Any, vocab_size: int, mesh: Mesh, width: int
) -> Any:
    """`run_until` of every lane; leaves [lanes, ...]. The given states are consumed."""

    def local(configs: Any, states: Any, source: Source, stops: Any) -> Any:
        def lane(own: tuple) -> TrainState:
            config, state, stop = own
            return run_until(config, state, source, stop, vocab_size)

        # batch_size=1 would vmap over one lane and compile another program than a single run's.
        rows = None if width == 1 else width
        return jax.lax.map(lane, (configs, states, stops), batch_size=rows)

    specs = (AXIS, AXIS, EVERYWHERE, AXIS)
    # The lanes do not communicate, and check_vma cannot prove this.
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=AXIS, check_vma=False)
    return mapped(configs, states, source, stops)
