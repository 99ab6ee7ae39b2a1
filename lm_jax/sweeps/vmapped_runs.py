"""Many runs as lanes of a single compiled program.

Runs whose configs differ only in numbers share their compiled functions (`lm_jax.training.step`).
This module holds the train states and configs of the runs on the devices, stacked on a leading
axis, [lanes, ...], and advances the runs side by side: `run_until` of a single run is mapped over
the axis. The axis is sharded over the devices. Each device works in rows of `width` lanes: `vmap`
within a row, and one row after another.

The states stay on the devices from the first update to the last. The host reads the summaries of
all lanes, a few numbers a lane, and the whole state of a single lane, to save the run for example.

The lanes are independent. A lane stops at a given update, or where its run diverges; afterwards
the lane's state stays unchanged. If fewer runs than lanes are left, the spare lanes
stand still in the same way. The result of a lane depends on the width, but not on the number of
lanes or on the lane's place.

On a CPU the width is 1, because wider rows were no faster there; `benchmarks/sweeps.py` compares an
update of a lane with an update of a single run. On an accelerator all lanes of a device are one
row.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from lm_jax.config import Config
from lm_jax.data.batches import Source
from lm_jax.data.characters import Vocab
from lm_jax.training.driver import to_host
from lm_jax.training.state import Summary, TrainState
from lm_jax.training.step import after_validation, reset_metrics, run_until, summary

AXIS = PartitionSpec("lanes")
EVERYWHERE = PartitionSpec()


class VmappedRuns:
    """The stacked train states of several runs, on the devices.

    The runs are numbered from 0, in the order of their configs. A run keeps its number when the
    lanes become fewer.

    Attributes:
      count: number of lanes, at least the number of runs.
      width: lanes in a row.
    """

    def __init__(
        self,
        vocab: Vocab,
        source: Source,
        configs: Sequence[Config],
        *,
        devices: Sequence[Any] | None = None,
        width: int | None = None,
    ):
        """Prepares lanes, without states yet.

        Args:
          vocab: V, or the characters of the words, of all runs.
          source: training tokens, read by all runs.
          configs: configs of the runs, which differ only in numbers; at least 1.
          devices: devices to use; None: all devices of the default backend.
          width: lanes in a row; None: 1 on a CPU, elsewhere all lanes of a device.
        """
        self._vocab, self._asked = vocab, width
        devices = jax.devices() if devices is None else list(devices)
        self._mesh = Mesh(np.array(devices), ("lanes",), axis_types=(AxisType.Auto,))
        self._source = jax.device_put(source, NamedSharding(self._mesh, EVERYWHERE))
        self._places = {run: run for run in range(len(configs))}
        self.count, self.width = self._size(len(configs))
        spare = self.count - len(configs)
        self._configs = jax.tree.map(
            lambda *leaves: self.over_devices(np.stack([np.asarray(leaf) for leaf in leaves])),
            *configs,
            *[configs[0]] * spare,
        )
        self._states: Any = None
        self._summaries: Summary | None = None

    def _size(self, runs: int) -> tuple[int, int]:
        """Number of lanes for some runs, and their width."""
        devices = self._mesh.devices
        # XLA compiles a map over a single lane differently from a map over several lanes.
        each = max(2, -(-runs // devices.size))
        width = self._asked or (1 if devices.flat[0].platform == "cpu" else each)
        return -(-each // width) * width * devices.size, width

    def place(self, run: int) -> int:
        """The lane of a run."""
        return self._places[run]

    def states(self) -> TrainState:
        """The stacked states; the next change consumes them."""
        return self._states

    def put(self, run: int, state: TrainState) -> None:
        """Makes `state` the state of a run."""
        if self._states is None:
            sharding = NamedSharding(self._mesh, AXIS)
            self._states = jax.tree.map(
                lambda leaf: jnp.zeros((self.count, *leaf.shape), leaf.dtype, device=sharding),
                state,
            )
        everywhere = jax.device_put(state, NamedSharding(self._mesh, EVERYWHERE))
        self._change(_with_lane(self._states, everywhere, self._places[run], self._mesh))

    def get(self, run: int) -> TrainState:
        """A copy of the state of a run, on the first device."""
        devices = list(self._mesh.devices.flat)
        nth, place = divmod(self._places[run], self.count // len(devices))
        own = jax.tree.map(
            lambda leaf: next(
                shard.data for shard in leaf.addressable_shards if shard.device == devices[nth]
            ),
            self._states,
        )
        state = _lane(own, place)
        return state if nth == 0 else jax.device_put(state, devices[0])

    def summary(self, run: int) -> Summary:
        """The summary of a run's state, as NumPy arrays."""
        if self._summaries is None:
            self._summaries = to_host(_summaries(self._configs, self._states))
        place = self._places[run]
        return jax.tree.map(lambda leaf: leaf[place, ...], self._summaries)

    def advance(self, stops: Mapping[int, int]) -> None:
        """Advances runs, and returns when the updates are made.

        Args:
          stops: the update to stop at, by run. A run already there stays unchanged, as do the other
            runs.
        """
        at = self._by_lane(stops, np.int32)
        self._change(
            _run_lanes_until(
                self._configs,
                self._states,
                self._source,
                at,
                self._vocab,
                self._mesh,
                self.width,
            )
        )
        self._states.step.block_until_ready()

    def reset_metrics(self, runs: Collection[int]) -> None:
        """Empties the records of some runs."""
        asked = self._by_lane(dict.fromkeys(runs, True), bool)
        self._change(_changed(reset_metrics, self._configs, self._states, asked))

    def after_validation(self, nats: Mapping[int, float]) -> None:
        """Notes the results of validations, in nats per token, by run."""
        asked = self._by_lane(dict.fromkeys(nats, True), bool)
        losses = self._by_lane(nats, np.float64)
        self._change(_changed(after_validation, self._configs, self._states, asked, losses))

    def keep(self, runs: Collection[int]) -> None:
        """Gives up the lanes of other runs if at least half of the lanes would stand still.

        Args:
          runs: the runs to keep, at least 1; the other runs may be gone afterwards.
        """
        count, width = self._size(len(runs))
        if self.width == 1 or 2 * len(runs) > self.count or count >= self.count:
            return
        places = [self._places[run] for run in runs]
        chosen = np.array(places + places[:1] * (count - len(places)))
        both = _chosen_lanes((self._configs, self._states), chosen, self._mesh)
        self._configs, states = both
        self._places = {run: place for place, run in enumerate(runs)}
        self.count, self.width = count, width
        self._change(states)

    def map(self, function: Callable, own: Any, shared: Any, width: int) -> Any:
        """Apply a pure function to each lane: `function(*own[lane], *shared)`.

        Args:
          function: a function, the same object at each call.
          own: tuple of trees, leaves [lanes, ...].
          shared: tuple of trees, the same for all lanes.
          width: lanes computed together by a device.
        """
        shared = jax.device_put(shared, NamedSharding(self._mesh, EVERYWHERE))
        return _mapped(function, own, shared, self._mesh, width)

    def over_devices(self, leaf: np.ndarray) -> jax.Array:
        """Shard an array [lanes, ...] over the devices."""
        return jax.device_put(leaf, NamedSharding(self._mesh, AXIS))

    def _by_lane(self, values: Mapping[int, Any], dtype: Any) -> jax.Array:
        """Array [lanes] of values by run; 0 in the other lanes."""
        lanes = np.zeros(self.count, dtype)
        for run, value in values.items():
            lanes[self._places[run]] = value
        return self.over_devices(lanes)

    def _change(self, states: Any) -> None:
        self._states, self._summaries = states, None


class Lane:
    """The state of a run in a lane (`lm_jax.training.driver.StateHolder`)."""

    def __init__(self, runs: VmappedRuns, run: int):
        self._runs, self._run = runs, run

    @property
    def summary(self) -> Summary:
        """See `StateHolder`."""
        return self._runs.summary(self._run)

    @property
    def state(self) -> TrainState:
        """See `StateHolder`; a copy."""
        return self._runs.get(self._run)

    @state.setter
    def state(self, state: TrainState) -> None:
        self._runs.put(self._run, state)


@functools.partial(jax.jit, static_argnames=("vocab", "mesh", "width"), donate_argnames="states")
def _run_lanes_until(
    configs: Any, states: Any, source: Source, stops: Any, vocab: Vocab, mesh: Mesh, width: int
) -> Any:
    """`run_until` of every lane; leaves [lanes, ...]. The given states are consumed."""

    def lane(config: Config, state: TrainState, stop: Any, source: Source) -> TrainState:
        return run_until(config, state, source, stop, vocab)

    return _over_lanes(lane, (configs, states, stops), (source,), mesh, width)


@functools.partial(jax.jit, static_argnames=("function", "mesh", "width"))
def _mapped(function: Callable, own: Any, shared: Any, mesh: Mesh, width: int) -> Any:
    return _over_lanes(function, own, shared, mesh, width)


def _over_lanes(function: Callable, own: Any, shared: Any, mesh: Mesh, width: int) -> Any:
    def local(own: Any, shared: Any) -> Any:
        # batch_size=1 would vmap over one lane and compile another program than a single run's.
        rows = None if width == 1 else width
        return jax.lax.map(lambda lane: function(*lane, *shared), own, batch_size=rows)

    # The lanes do not communicate, and check_vma cannot prove this.
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(AXIS, EVERYWHERE), out_specs=AXIS, check_vma=False
    )
    return mapped(own, shared)


_summaries = jax.jit(jax.vmap(summary))


@functools.partial(jax.jit, static_argnames="change", donate_argnames="states")
def _changed(
    change: Callable, configs: Any, states: Any, asked: Bool[Array, " lanes"], *own: Any
) -> Any:
    """`change(config, state, *own)` of the asked lanes. The given states are consumed."""

    def lane(asked: Any, config: Config, state: TrainState, *own: Any) -> TrainState:
        new = change(config, state, *own)
        return jax.tree.map(lambda new, old: jnp.where(asked, new, old), new, state)

    return jax.vmap(lane)(asked, configs, states, *own)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="states")
def _with_lane(states: Any, state: TrainState, place: Any, mesh: Mesh) -> Any:
    """The states with another state in a lane. The given states are consumed."""

    def local(states: Any, state: TrainState, place: Any) -> Any:
        def written(lanes: Array, new: Array) -> Array:
            here = place - jax.lax.axis_index("lanes") * len(lanes)
            at = jnp.clip(here, 0, len(lanes) - 1)
            new = jnp.where(here == at, new, lanes[at])
            return jax.lax.dynamic_update_index_in_dim(lanes, new, at, 0)

        return jax.tree.map(written, states, state)

    specs = (AXIS, EVERYWHERE, EVERYWHERE)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=AXIS, check_vma=False)
    return mapped(states, state, place)


@jax.jit
def _lane(states: Any, place: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], states)


@functools.partial(jax.jit, static_argnames="mesh")
def _chosen_lanes(tree: Any, places: Any, mesh: Mesh) -> Any:
    chosen = jax.tree.map(lambda leaf: leaf[places], tree)
    return jax.lax.with_sharding_constraint(chosen, NamedSharding(mesh, AXIS))
