"""Many runs as lanes of one compiled program.

Runs whose configs differ in numbers alone have one program (`lm_jax.training.step`). Here
they go through it side by side: their states are stacked on a leading axis, [lanes, ...], each with
its own numbers, and `advance` of one run is mapped over that axis. The axis is sharded over the
devices; a device takes its lanes `width` at a time, by `vmap`, and one such row after another.

No lane sees another. A lane stops where it is told to, or at the first loss that is not finite, and
is then carried along as it is; where fewer runs than lanes are left, the rest are such lanes. What
a lane computes depends on the width, but on neither the number of lanes nor its place.

On a CPU the width is 1, for wider rows were no faster there; `benchmarks/sweeps.py` compares a
lane's update with a lone run's. On an accelerator all lanes of a device are one row.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm_jax.config import Config
from lm_jax.data.batches import Source
from lm_jax.training.state import TrainState
from lm_jax.training.step import run_until

AXIS = PartitionSpec("lanes")
EVERYWHERE = PartitionSpec()


class Lanes:
    """The states of several runs, on the devices.

    Attributes:
      count: how many lanes there are, at least as many as were asked for.
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
        """Makes room for runs.

        Args:
          vocab_size: V of all of them.
          source: what all of them read.
          count: how many there will be, at most.
          devices: where; None: all of the default backend.
          width: lanes in a row; None: 1 on a CPU, and all of a device's elsewhere.
        """
        self._vocab_size, self._asked = vocab_size, width
        devices = jax.devices() if devices is None else list(devices)
        on_cpu = devices[0].platform == "cpu"
        # A map over one lane would be compiled in another way than one over several.
        each = max(2, -(-count // len(devices)))
        width = width or (1 if on_cpu else each)
        each = -(-each // width) * width
        self.count, self._width = each * len(devices), width
        self._mesh = Mesh(np.array(devices), ("lanes",), axis_types=(AxisType.Auto,))
        self._source = jax.device_put(source, NamedSharding(self._mesh, EVERYWHERE))
        self._advance = _mapped(vocab_size, self._mesh, width)
        self._states: Any = None
        self._configs: Any = None

    def for_fewer(self, count: int) -> "Lanes":
        """Lanes for that many runs, where those that stand still would cost half of the work."""
        if self._width == 1 or 2 * count > self.count:
            return self
        devices = list(self._mesh.devices.flat)
        fewer = Lanes(self._vocab_size, self._source, count, devices=devices, width=self._asked)
        return fewer if fewer.count < self.count else self

    def put(self, states: Sequence[TrainState], configs: Sequence[Config]) -> None:
        """Takes runs in, one or more; the lanes that are left over repeat the first."""
        spare = self.count - len(states)
        self._states = self._stacked([*states, *[states[0]] * spare])
        self._configs = self._stacked([*configs, *[configs[0]] * spare])

    def advance(self, stops: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Makes updates.

        Args:
          stops: for each run, the update to stop at; a run that is there already stays.

        Returns:
          each run's updates made so far, and whether its loss is finite.
        """
        still = [0] * (self.count - len(stops))
        at = self._placed(np.array([*stops, *still], np.int32))
        self._states = self._advance(self._configs, self._states, self._source, at)
        runs = len(stops)
        nats = np.asarray(self._states.record.nats)
        return np.asarray(self._states.step)[:runs], np.isfinite(nats)[:runs]

    def take(self, runs: int) -> list[TrainState]:
        """The states of the first so many lanes, which are given up here."""
        host = jax.tree.map(np.asarray, self._states)
        self._states = None
        return [jax.tree.map(lambda leaf, lane=lane: leaf[lane, ...], host) for lane in range(runs)]

    def _stacked(self, trees: Sequence[Any]) -> Any:
        # One after another, or all would be stacked on the host and on the devices at once.
        return jax.tree.map(
            lambda *leaves: self._placed(np.stack([np.asarray(leaf) for leaf in leaves])), *trees
        )

    def _placed(self, leaf: np.ndarray) -> jax.Array:
        return jax.device_put(leaf, NamedSharding(self._mesh, AXIS))


@functools.lru_cache(maxsize=32)
def _mapped(vocab_size: int, mesh: Mesh, width: int) -> Callable[..., Any]:
    """`run_until` of many lanes: (configs, states, source, stops) -> states."""

    def local(configs: Any, states: Any, source: Source, stops: Any) -> Any:
        def lane(own: tuple) -> TrainState:
            config, state, stop = own
            return run_until(config, state, source, stop, vocab_size)

        # A batch of one would be a vmap over one lane, which is not the program of a lone run.
        rows = None if width == 1 else width
        return jax.lax.map(lane, (configs, states, stops), batch_size=rows)

    specs = (AXIS, AXIS, EVERYWHERE, AXIS)
    # Nothing goes from lane to lane, which is what the check would have to prove.
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=AXIS, check_vma=False)
    return jax.jit(mapped, donate_argnums=1)
