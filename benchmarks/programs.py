"""The main compiled programs of lm_jax, with the shapes of their arguments, and without arrays.

A program is a jitted function of the package, and a `jax.ShapeDtypeStruct` for each array among the
arguments, placed on the devices of a mesh. Such programs can be lowered and compiled for devices
that this machine does not have. `benchmarks.cases` names the programs and their sizes.

Letters: B sequences of a batch, T time steps, V tokens of the vocabulary, H hidden units.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    use_abstract_mesh,
)

from benchmarks.sizes import CHUNKS
from lm_jax.config import Config, LiveProbe, override
from lm_jax.data.batches import Batch, Streams
from lm_jax.generation.drawing import State, drawing
from lm_jax.gradients.live_probe import live
from lm_jax.models import LanguageModel
from lm_jax.models.fused import fused_cross_entropy
from lm_jax.scoring import parallel, scorer
from lm_jax.sweeps import vmapped_runs
from lm_jax.training.devices import REPLICATED, batch_axes
from lm_jax.training.state import TrainState
from lm_jax.training.step import chunk_length, eval_model, init, run_until

LANES = 64
DRAWN = 64
"""Tokens of a call of the drawing program."""


class Program(NamedTuple):
    """A compiled function and the shapes of its arguments."""

    function: Any
    """From `jax.jit`."""
    arguments: tuple
    static: dict[str, Any] = {}
    """Arguments that are no arrays."""

    def lower(self, *platforms: str) -> list[jax.stages.Lowered]:
        """Lower the program for each platform; on a machine without a GPU, cuda is an H100."""
        h100 = AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
        with use_abstract_mesh(AbstractMesh((), (), abstract_device=h100)):
            traced = self.function.trace(*self.arguments, **self.static)
            return [traced.lower(lowering_platforms=(platform,)) for platform in platforms]


Devices = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A program at some sizes."""

    build: Callable[["Case", Devices], Program]
    config: Config
    vocab_size: int
    """V."""

    @property
    def steps(self) -> int | None:
        """T: time steps of an update, or of a call; None if the call decides."""
        if self.build is score_in_segments:
            return None
        if self.build is draw:
            return DRAWN
        if self.build is score:
            return scorer.scoring_length(self.vocab_size)
        return chunk_length(self.config)


def update(case: Case, devices: Devices) -> Program:
    """The loop of training steps (`run_until`); the devices share the sequences of a batch."""
    mesh, state = _mesh(devices, "batch"), _state(case)

    def carry(batch_size: int) -> Any:
        config = override(case.config, {"data.batch_size": batch_size})
        carry = _state(dataclasses.replace(case, config=config)).carry
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)

    axes = jax.tree.map(lambda _: REPLICATED, state)
    axes = axes._replace(carry=batch_axes(carry, case.config.data.batch_size))
    arguments = (
        _on(mesh, case.config),
        _on(mesh, state, axes),
        _on(mesh, _source(case)),
        _on(mesh, 1),
    )
    shared = mesh if len(devices) > 1 else None
    return Program(run_until, arguments, {"vocab": case.vocab_size, "mesh": shared})


def lanes(case: Case, devices: Devices) -> Program:
    """The loop of training steps in `LANES` lanes of a sweep; each device has some of the lanes."""
    mesh = _mesh(devices, "lanes")
    own = _on(mesh, (case.config, _state(case), np.int32(1)))
    own = jax.tree.map(lambda leaf: leaf.update(shape=(LANES, *leaf.shape)), own)
    configs, states, stops = _on(mesh, own, jax.tree.map(lambda _: 0, own))
    arguments = configs, states, _on(mesh, _source(case)), stops
    static = {"vocab": case.vocab_size, "mesh": mesh, "width": LANES // len(devices)}
    return Program(vmapped_runs._run_lanes_until, arguments, static)


def score(case: Case, devices: Devices) -> Program:
    """The program of validation: -ln P of each token of one sequence."""
    model, params = _model(case)
    arguments = params, _carry(model, 1), _batch(scorer.scoring_length(case.vocab_size), 1)
    return Program(scorer.reader(model), _on(_mesh(devices), arguments))


def score_in_segments(case: Case, devices: Devices) -> Program:
    """The program of `score`: -ln P of each token of a long text, in parallel segments."""
    model, params = _model(case)
    state = parallel._ParallelState(_carry(model, 1), _array((), bool))
    batch = _batch(parallel.stretch_length(case.vocab_size), 1)
    program = parallel._reader(model)
    return Program(program, (*_on(_mesh(devices), (params, state, batch)), True))


def draw(case: Case, devices: Devices) -> Program:
    """The program of `sample`: a chunk of one text."""
    model, params = _model(case)
    token, forced = _array((1,), np.int32), _array((DRAWN,), np.int32)
    noise = _array((DRAWN, 1, case.vocab_size), np.float32)
    params = jax.eval_shape(functools.partial(model.precompute, tokens=DRAWN), params)
    arguments = params, State(_carry(model, 1), token), forced, noise, np.float32(1)
    return Program(drawing(model), (*_on(_mesh(devices), arguments), None, np.int32(-1)))


def probe(case: Case, devices: Devices) -> Program:
    """All questions of a live probe."""
    model, params = _model(case)
    B = case.config.data.batch_size
    arguments = params, _carry(model, B), _batch(case.config.data.length, B)
    return Program(live(LiveProbe(lags=True), model), _on(_mesh(devices), arguments))


def loss(case: Case, devices: Devices) -> Program:
    """The cross-entropy of a batch, fused with the readout, and its gradient."""
    data, V = case.config.data, case.vocab_size
    H: int = vars(case.config.model)["hidden_size"]
    N = data.batch_size * data.length
    shapes = ((H, V), np.float32), ((V,), np.float32), ((N, H), np.float32)
    arguments = tuple(_array(*each) for each in (*shapes, ((N,), np.int32), ((N,), bool)))
    both = jax.jit(jax.value_and_grad(fused_cross_entropy, (0, 1, 2)))
    return Program(both, _on(_mesh(devices), arguments))


def _mesh(devices: Devices, axis: str = "batch") -> Mesh:
    return Mesh(np.array(devices), (axis,), axis_types=(AxisType.Auto,))


def _on(mesh: Mesh, tree: Any, axes: Any = None) -> Any:
    """Shapes of a tree's leaves on the devices, each with its axis shared, or replicated."""

    def shape(leaf: Any, axis: int) -> jax.ShapeDtypeStruct:
        known = jax.typeof(leaf) if isinstance(leaf, int | float | np.generic) else leaf
        spec = [] if axis == REPLICATED else [*[None] * axis, mesh.axis_names[0]]
        return jax.ShapeDtypeStruct(
            known.shape,
            known.dtype,
            sharding=NamedSharding(mesh, PartitionSpec(*spec)),
            weak_type=getattr(known, "weak_type", False),
        )

    leaves, structure = jax.tree.flatten(tree)
    places = [REPLICATED] * len(leaves) if axes is None else jax.tree.leaves(axes)
    return structure.unflatten([shape(*each) for each in zip(leaves, places, strict=True)])


def _state(case: Case) -> TrainState:
    return init.eval_shape(case.config, vocab=case.vocab_size)


def _source(case: Case) -> Streams:
    B, T = case.config.data.batch_size, case.config.data.length
    # Tokens of a text have the smallest type that holds them.
    dtype = np.min_scalar_type(case.vocab_size - 1)
    dtype = np.int32 if dtype == np.uint32 else dtype
    return Streams(_array((CHUNKS * T + 1, B), dtype), _array((B,), np.int32))


def _model(case: Case) -> tuple[LanguageModel, Any]:
    """The model and the shapes of its parameters."""
    model = eval_model(case.config, case.vocab_size)
    return model, _state(case).params


def _carry(model: LanguageModel, batch_size: int) -> Any:
    return jax.eval_shape(lambda: model.init_carry(batch_size))


def _batch(T: int, B: int) -> Batch:
    tokens = _array((T, B), np.int32)
    return Batch(tokens, tokens, _array((T, B), bool), _array((B,), bool))


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)
