"""The lm_jax side: the program of `lm_jax.train`, a single layer, and `generation.sample`."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import products, sizes
from benchmarks.looped import passes
from benchmarks.side_by_side import Absent, Way
from benchmarks.sizes import Size
from lm_jax import generation
from lm_jax.config import GRU, LSTM, RNN, SGD, Config, Data, Elman, Train, override, resolve
from lm_jax.data.batches import Streams
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models import cells, layers
from lm_jax.training.devices import make_mesh
from lm_jax.training.state import TrainState
from lm_jax.training.step import eval_model, init, reset_metrics, run_until, shard

CONFIGS = {"elman": Elman, "gru": GRU, "lstm": LSTM}
CELLS = {"elman": cells.ElmanCell, "gru": cells.GRUCell, "lstm": cells.LSTMCell}


def config_of(size: Size) -> Config:
    """Make a config for a model and batch size, with clipped gradient descent."""
    # float32 is the default; only another precision is named.
    chosen: dict[str, Any] = {} if size.precision == "float32" else {"precision": size.precision}
    return resolve(
        Config(
            data=Data(batch_size=size.batch, length=size.length),
            model=RNN(
                cell=CONFIGS[size.cell](),
                embedding_size=size.hidden,
                hidden_size=size.hidden,
                layers=size.layers,
                **chosen,
            ),
            train=Train(learning_rate=sizes.LEARNING_RATE, optimizer=SGD(), clip_norm=sizes.CLIP),
        )
    )


def step(**settings: Any) -> dict[str, Callable[[], Way]]:
    """Make whole training steps, in a compiled loop.

    On a CPU there are two methods, as with `--devices`: a single device with threads within each
    matrix product, and a device per core, each with a share of the batch.
    """
    size = Size(**settings)
    ways: dict[str, Callable[[], Way]] = {"one device": functools.partial(updates, size, 1)}
    if (cores := devices_of(size)) > 1:
        ways[f"{cores} devices"] = functools.partial(updates, size, cores)
    return ways


def step_on_one(**settings: Any) -> dict[str, Callable[[], Way]]:
    """Make whole training steps on a single device."""
    return {"one device": functools.partial(updates, Size(**settings), 1)}


def step_on_each(**settings: Any) -> dict[str, Callable[[], Way]]:
    """Make whole training steps on a device per core.

    Raises:
      Absent: JAX does not run on a CPU of several cores, or B is not a multiple of their number.
    """
    size = Size(**settings)
    if (cores := devices_of(size)) == 1:
        raise Absent(f"no devices that could share {size.batch} sequences")
    return {f"{cores} devices": functools.partial(updates, size, cores)}


def updates(size: Size, devices: int, changes: Mapping[str, Any] | None = None) -> Way:
    """Make whole training steps on a given number of devices.

    Args:
      size: of the model and the batch.
      devices: number of devices.
      changes: of the config of `size`, at dotted paths.
    """
    config = override(config_of(size), changes or {})
    V, mesh = size.vocabulary, make_mesh(devices, config.data.batch_size)
    lengths = jnp.full(size.batch, sizes.CHUNKS * size.length, jnp.int32)
    source = Streams(jnp.asarray(sizes.tokens(size)), lengths)

    def begin() -> TrainState:
        state = init(config, V)
        params = jax.tree.map(jnp.asarray, sizes.weights(size))
        assert jax.tree.structure(params) == jax.tree.structure(state.params)
        return shard(config, state._replace(params=params), V, mesh)

    def check() -> list[float]:
        state, losses = begin(), []
        for number in range(sizes.CHECKED):
            state = run_until(config, state, source, number + 1, V, mesh)
            losses.append(float(state.record.nats))
            state = reset_metrics(config, state)
        return losses

    state, done = begin(), 0

    def run(calls: int) -> None:
        nonlocal state, done
        done += calls
        state = jax.block_until_ready(run_until(config, state, source, done, V, mesh))
        if int(state.step) != done:
            raise RuntimeError(f"the loss was not finite at step {int(state.step)}")

    return Way(run, check, lambda: products.seconds_of(size, readout=True))


def compiled_update(size: Size) -> jax.stages.Compiled:
    """The compiled loop of training steps, on a single device."""
    config, V = config_of(size), size.vocabulary
    lengths = jnp.full(size.batch, sizes.CHUNKS * size.length, jnp.int32)
    source = Streams(jnp.asarray(sizes.tokens(size)), lengths)
    return run_until.lower(config, init(config, V), source, 1, V).compile()


def devices_of(size: Size) -> int:
    """Number of cores of this process, if JAX runs on the CPU and the number divides B; else 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    jax.config.update("jax_num_cpu_devices", cores)
    return cores if jax.default_backend() == "cpu" and size.batch % cores == 0 else 1


def layer(**settings: Any) -> dict[str, Callable[[], Way]]:
    """Make forward and backward passes of a layer over a chunk, with the gradient of the input.

    The methods: a Python call per pass; a compiled loop on a single device; a compiled loop on a
    device per core.
    """
    size = Size(**settings)
    ways = {
        "a call a pass": functools.partial(passes_of_a_layer, size, 0),
        "passes in one loop": functools.partial(passes_of_a_layer, size, 1),
    }
    if (cores := devices_of(size)) > 1:
        ways[f"passes in one loop, {cores} devices"] = functools.partial(
            passes_of_a_layer, size, cores
        )
    return ways


def passes_of_a_layer(size: Size, devices: int) -> Way:
    """Make passes of a layer in a loop on some devices; for 0 devices, a separate call per pass."""
    made = layers.CellLayer(CELLS[size.cell](size.hidden), size.hidden)
    params, x, d_h = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, size.precision),
        (sizes.weights(size)["layers"][0], *sizes.sequence(size)),
    )
    carry = jax.tree.map(lambda leaf: leaf.astype(size.precision), made.init_carry(size.batch))

    @jax.jit
    def both(params, x, d_h, carry):
        def weighted(params, x):
            return jnp.sum(made.run(params, carry, x)[1] * d_h, dtype=jnp.float32)

        return jax.value_and_grad(weighted, argnums=(0, 1))(params, x)

    def check() -> list[float]:
        h = jax.jit(made.run)(params, carry, x)[1]
        d_params, d_x = both(params, x, d_h, carry)[1]
        compared = h, d_h, d_x, d_params["W_xh"], d_params["W_hh"]
        return sizes.of_a_layer(*map(np.asarray, compared))

    def called(calls: int) -> None:
        for _ in range(calls):
            jax.block_until_ready(both(params, x, d_h, carry))

    run = passes(both, params, x, d_h, carry, devices) if devices else called
    return Way(run, check, lambda: products.seconds_of(size, readout=False))


def draw(characters: int, **settings: Any) -> dict[str, Callable[[], Way]]:
    """Make calls of `lm_jax.generation.sample`, each for a number of characters."""

    def build() -> Way:
        size = Size(**settings)
        model = eval_model(config_of(size), size.vocabulary)
        params = jax.tree.map(jnp.asarray, sizes.weights(size))
        letters = (chr(number) for number in range(ord("!"), ord("!") + size.vocabulary - 2))
        vocabulary = Vocabulary("char", ("<unk>", "\n", *letters))

        def check() -> list[float]:
            x, y = map(jnp.asarray, sizes.passage(size))
            h = model.hidden(params, model.init_carry(size.batch), x)[1]
            return [float(jnp.mean(model.nats(params, h, y)))]

        def run(calls: int) -> None:
            for _ in range(calls):
                generation.sample(model, params, vocabulary, length=characters)

        return Way(run, check, calls=characters)

    return {"ours": build}
