"""The training step, and a compiled loop of many training steps.

`program` compiles a config's shape once; the config's numbers (learning rate, thresholds, seed) are
arguments. The number of steps of the loop is an argument too. A run may therefore be stopped and
resumed at any step without a new compilation and without changing a bit of the result. A step reads
only the text and the `TrainState`, and a checkpoint holds exactly the `TrainState`.
"""

import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lm_jax import gradients, models
from lm_jax.config import ASGD, Config, LiveProbe, Network, OwnTokens, Plateau, train_of
from lm_jax.data.batches import Batch, Source, batch_at, steps_per_epoch
from lm_jax.inference.feeding import fed
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.settings import bind, numbers
from lm_jax.training.devices import NOWHERE, lanes_axes, mesh_of, sharded, spread_over
from lm_jax.training.optimizer import clip, learning_rate, optimizer, own_share
from lm_jax.training.state import (
    TrainState,
    Verdict,
    add,
    averaged,
    empty_average,
    empty_record,
    looked_at,
)
from lm_jax.trees import norm

Numbers = Mapping[str, Any]


class Draw(enum.IntEnum):
    """Uses of the seed; each use folds a number of this enumeration into the key."""

    INIT = 0
    ORDER = 1
    NOISE = 2
    FEEDING = 3
    ESTIMATOR = 4


class Program(NamedTuple):
    """The compiled functions of a config's shape."""

    model: LanguageModel
    init: Callable[..., TrainState]
    """(numbers, vectors=None) -> the state before the first step; pretrained vectors [V, E] replace
    the randomly initialised embedding."""
    advance: Callable[[TrainState, Source, Numbers, Any], TrainState]
    """(state, source, numbers, stop) -> the state after `stop` steps of the run in all, or after
    the first step with a loss that is not finite; the given state is consumed."""
    judge: Callable[[TrainState, Any, Numbers], TrainState]
    """(state, mean validation nats, numbers) -> the state with the verdict, the best parameters and
    the average updated for this validation; the given state is consumed."""
    place: Callable[[TrainState, Numbers], TrainState]
    """(state, numbers) -> the state sharded over the devices, from arrays on any device; the given
    state is consumed."""
    about: Callable[[TrainState, Source, Numbers], tuple[Carry, Batch]]
    """(state, source, numbers) -> the model's carry and the batch of the next update."""
    clear: Callable[[TrainState], TrainState]
    """state -> the state with an empty record; the given state is consumed."""
    length: int
    """Tokens of each sequence in one step."""


def arguments(config: Config) -> dict[str, Array]:
    """The numbers of a config, as arrays for the functions of a `Program`."""
    return {
        path: jnp.asarray(value, jnp.uint32 if path == "seed" else type(value))
        for path, value in numbers(config).items()
    }


@functools.lru_cache(maxsize=32)
def program(shape: Config, vocab_size: int, devices: int = 1) -> Program:
    """The compiled program of a run.

    Args:
      shape: `lm_jax.settings.shape` of a resolved config.
      vocab_size: V.
      devices: number of devices to share the sequences of a batch; each device holds all the
        parameters (`training.devices`).

    Raises:
      UserError: there are fewer devices, or the batch cannot be divided evenly among the devices.
    """
    train, data = train_of(shape), shape.data
    length = train.k1 if train.k1 is not None and data.batching == "streams" else data.length
    watched = length if isinstance(train.probe, LiveProbe) and train.probe.deltas else None
    mesh = mesh_of(devices, data.batch_size)
    make = functools.partial(models.make, vocab_size=vocab_size, real=data.real)

    def spread(state: TrainState, config: Config) -> TrainState:
        if mesh is None:
            return state
        carry, rest = state.carry, state._replace(carry=None)
        axes = lanes_axes(_estimator(config, make(config.model)).init_carry, data.batch_size)
        rest = sharded(mesh, rest, jax.tree.map(lambda _: NOWHERE, rest))
        return rest._replace(carry=sharded(mesh, carry, axes))

    def init(values: Numbers, vectors: Array | None = None) -> TrainState:
        config = bind(shape, values)
        model = make(config.model)
        params = model.init(_key(config, Draw.INIT))
        if vectors is not None:
            params = {**params, "embedding": {"C": vectors.astype(float)}}
        none = jnp.zeros((), jnp.int32)
        state = TrainState(
            step=none,
            params=params,
            opt_state=optimizer(train_of(config), 0.0).init(params),
            carry=_estimator(config, model).init_carry(data.batch_size),
            record=empty_record(watched),
            verdict=Verdict(none, jnp.full((), jnp.inf, float), none, none, none, jnp.ones(())),
            best_params=jax.tree.map(jnp.copy, params) if train.keep_best else None,
            average=empty_average(params, train.optimizer.patience)
            if isinstance(train.optimizer, ASGD)
            else None,
        )
        return spread(state, config)

    def place(state: TrainState, values: Numbers) -> TrainState:
        return spread(state, bind(shape, values))

    def update(state: TrainState, source: Source, config: Config) -> TrainState:
        train = train_of(config)
        model = make(config.model)
        noise = jax.random.fold_in(_key(config, Draw.NOISE), state.step)
        grad_fn = _estimator(config, model.noisy(noise))
        if train.omega is not None:
            grad_fn = gradients.with_omega(grad_fn, model, train.omega)
        if train.flossing is not None:
            exponents = train.flossing_exponents
            grad_fn = gradients.with_flossing(grad_fn, model, train.flossing, exponents)
        batch = batch_of(config, source, state.step, length)
        if mesh is not None:
            axes = jax.tree.map(lambda leaf: min(1, leaf.ndim - 1), batch)  # start is [B]
            batch = sharded(mesh, batch, axes)
        if isinstance(train.feeding, OwnTokens):
            batch = fed(
                model,
                state.params,
                grad_fn.model_carry(state.params, state.carry),
                batch,
                jax.random.fold_in(_key(config, Draw.FEEDING), state.step),
                own_share(train.feeding, state.step),
                train.feeding.draw == "likeliest",
            )
        if grad_fn.watched is None or watched is None:
            (loss, carry, grads), deltas = grad_fn(state.params, state.carry, batch), None
        else:
            (loss, carry, grads), deltas = grad_fn.watched(state.params, state.carry, batch)
        grad_norm = norm(grads)
        clipped, changed, clipped_norm = clip(train, grads, grad_norm)
        rate = learning_rate(
            train,
            state.step,
            state.step // steps_per_epoch(source, length),
            state.verdict.cut,
        )
        rule = optimizer(train, rate, clipped_norm)
        updates, opt_state = rule.update(clipped, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if isinstance(config.model, Network) and config.model.freeze_vectors:
            params = _with_embedding_of(state.params, params)
        record = add(
            state.record,
            tokens=jnp.sum(batch.mask, dtype=jnp.int32),
            loss=loss,
            grad_norm=grad_norm,
            clipped_norm=clipped_norm,
            clipped=changed,
            rate=rate,
            deltas=deltas,
        )
        state = state._replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            carry=carry,
            record=record,
            average=None if state.average is None else averaged(state, params),
        )
        return spread(state, config)

    def advance(state: TrainState, source: Source, values: Numbers, stop: Array) -> TrainState:
        with spread_over(mesh):
            return advanced(state, source, bind(shape, values), stop)

    def advanced(state: TrainState, source: Source, config: Config, stop: Array) -> TrainState:

        def goes_on(state: TrainState) -> Array:
            # Stop at the first loss that is not finite, so that the result does not depend on when
            # the host looks at the loss.
            return (state.step < stop) & jnp.isfinite(state.record.nats)

        return jax.lax.while_loop(goes_on, lambda state: update(state, source, config), state)

    def about(state: TrainState, source: Source, values: Numbers) -> tuple[Carry, Batch]:
        config = bind(shape, values)
        made = _estimator(config, make(config.model))
        batch = batch_of(config, source, state.step, length)
        return made.model_carry(state.params, state.carry), batch

    def judge(state: TrainState, nats: Array, values: Numbers) -> TrainState:
        schedule, verdict = train_of(bind(shape, values)).schedule, state.verdict
        better = nats < verdict.best_nats
        waited = jnp.where(better, 0, verdict.waited + 1)
        cut = verdict.cut
        if isinstance(schedule, Plateau):
            tired = waited >= schedule.patience
            cut = jnp.where(tired, cut * schedule.factor, cut)
            waited = jnp.where(tired, 0, waited)
        best = state.best_params
        if best is not None:
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.judged, best)
        verdict = Verdict(
            step=state.step,
            best_nats=jnp.minimum(nats, verdict.best_nats),
            best_step=jnp.where(better, state.step, verdict.best_step),
            stale=jnp.where(better, 0, verdict.stale + 1),
            waited=waited,
            cut=cut,
        )
        average = None if state.average is None else looked_at(state.average, state.step, nats)
        return state._replace(verdict=verdict, best_params=best, average=average)

    def clear(state: TrainState) -> TrainState:
        return state._replace(record=empty_record(watched))

    return Program(
        model=make(shape.model),
        # `init` runs once: a better program would save less time than its compilation takes.
        init=jax.jit(init, compiler_options={"xla_backend_optimization_level": "1"}),
        advance=jax.jit(advance, donate_argnums=0),
        place=jax.jit(place, donate_argnums=0),
        about=jax.jit(about),
        judge=jax.jit(judge, donate_argnums=0),
        clear=jax.jit(clear, donate_argnums=0),
        length=length,
    )


def batch_of(config: Config, source: Source, step: Int[Array, ""] | int, length: int) -> Batch:
    """The batch of update `step`: T = `length` tokens of each sequence; all of a generated one."""
    steps = config.data.steps if config.data.drawn else length
    return batch_at(source, step, steps, _key(config, Draw.ORDER))


def _with_embedding_of(old: Any, new: Any) -> Params:
    return {**new, "embedding": old["embedding"]}


def _estimator(config: Config, model: LanguageModel) -> gradients.Estimator:
    return gradients.make(train_of(config), model, key=_key(config, Draw.ESTIMATOR))


def _key(config: Config, draw: Draw) -> Array:
    return jax.random.fold_in(jax.random.key(config.seed), draw)
