"""The training step: pure functions of (config, state, source), and a compiled loop of steps.

A config is a pytree. The numbers of the config (learning rate, thresholds, seed) and the number of
steps of the loop are arguments of the functions compiled here. Therefore another learning rate
compiles nothing. A run may also be stopped and resumed at any step without a new compilation and
without changing a bit of the result. A step reads only the config, the text and the `TrainState`,
and a checkpoint holds the `TrainState`.

Arguments of several functions:

- config: resolved (`lm_jax.config.resolve`); numbers may be tracers.
- source: the tokens on the device (`lm_jax.data.batches`).
- vocab: V, or the characters of the words (`lm_jax.models.vocab_of`).
- mesh: the devices that share the sequences of a batch (`lm_jax.training.devices`), or None.
"""

import dataclasses
import enum
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from lm_jax import gradients, models
from lm_jax.config import (
    ASGD,
    Config,
    LiveProbe,
    Network,
    Plateau,
    ScheduledSampling,
    SkipBatch,
    Train,
    Truncated,
    train_of,
    unrounded,
)
from lm_jax.data.batches import Batch, Source, batch_at, steps_per_epoch
from lm_jax.data.characters import Vocab
from lm_jax.generation.scheduled_sampling import sample_inputs
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.models.rnn import RNNModel
from lm_jax.training.devices import REPLICATED, batch_axes, sharded, spread_over
from lm_jax.training.optimizer import clip, learning_rate, optimizer, own_share
from lm_jax.training.state import (
    EarlyStopping,
    MovingAverage,
    Skipped,
    Summary,
    TrainState,
    TriggeredAverage,
    accumulated,
    add,
    averaged,
    empty_average,
    empty_record,
    looked_at,
)
from lm_jax.trees import by_name, matching, norm, path_name

SHARED = ("vocab", "mesh")


class Draw(enum.IntEnum):
    """Uses of the seed; each use folds another number into the key."""

    INIT = 0
    ORDER = 1
    NOISE = 2
    FEEDING = 3
    ESTIMATOR = 4


# The function runs once: more optimization would save less time than the compiler takes for it.
@functools.partial(
    jax.jit,
    static_argnames="vocab",
    compiler_options={"xla_backend_optimization_level": "1"},
)
def init(config: Config, vocab: Vocab, given: dict[str, Array] | None = None) -> TrainState:
    """The state before the first update, on a single device.

    Args:
      config: see above.
      vocab: see above.
      given: initial parameters that are not drawn, by their dotted names.
    """
    train, model = train_of(config), _model(config, vocab)
    params = model.init(_key(config, Draw.INIT))
    if given:
        drawn = by_name(params)
        arrays = [jnp.asarray(given.get(at, leaf), leaf.dtype) for at, leaf in drawn.items()]
        params = jax.tree.unflatten(jax.tree.structure(params), arrays)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=optimizer(train, 0.0).init(params),  # the same for every rate
        carry=_estimator(config, model).init_carry(config.data.batch_size),
        record=empty_record(_delta_steps(config)),
        early_stopping=EarlyStopping(
            zero, jnp.full((), jnp.inf, float), zero, zero, zero, jnp.ones(())
        ),
        best_params=jax.tree.map(jnp.copy, params) if train.keep_best else None,
        average=_first_average(train, params),
        accumulated=jax.tree.map(jnp.zeros_like, params) if train.accumulate > 1 else None,
        skipped=Skipped(zero, zero) if isinstance(train.on_divergence, SkipBatch) else None,
    )


@functools.partial(jax.jit, static_argnames=SHARED, donate_argnames="state")
def run_until(
    config: Config,
    state: TrainState,
    source: Source,
    stop: Int[Array, ""] | int,
    vocab: Vocab,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state after `stop` updates, or after the first update at which the run diverges.

    The given state is consumed.
    """

    def goes_on(state: TrainState) -> Array:
        # The loop ends there whenever the host looks at the state next.
        return (state.step < stop) & ~diverged(config, state)

    def one_more(state: TrainState) -> TrainState:
        return update(config, state, source, vocab, mesh)

    with spread_over(mesh):
        return jax.lax.while_loop(goes_on, one_more, state)


def diverged(config: Config, state: TrainState) -> Bool[Array, "*lanes"]:
    """True if a loss or a gradient since the last record was not finite; if batches are left out,
    true if too many were in a row."""
    rule = train_of(config).on_divergence
    if isinstance(rule, SkipBatch) and state.skipped is not None:
        return state.skipped.in_a_row >= rule.limit
    return ~(jnp.isfinite(state.record.nats) & jnp.isfinite(state.record.grad_norm))


@jax.jit
def is_sound(config: Config, state: TrainState) -> Bool[Array, ""]:
    """True unless the run has diverged, or a parameter is not finite."""
    leaves = jax.tree.leaves(state.params)
    return ~diverged(config, state) & jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))


@jax.jit
def summary(config: Config, state: TrainState) -> Summary:
    """The part of the state that the host reads between updates."""
    return Summary(
        step=state.step,
        record=state.record,
        early_stopping=state.early_stopping,
        skipped=state.skipped,
        diverged=diverged(config, state),
        sound=is_sound(config, state),
    )


def update(
    config: Config, state: TrainState, source: Source, vocab: Vocab, mesh: Mesh | None = None
) -> TrainState:
    """One update: batch, gradient, clipping, optimizer, record."""
    train, model = train_of(config), _model(config, vocab)
    if config.data.jitter is not None:
        assert isinstance(model, RNNModel)
        model = dataclasses.replace(model, holds=True)
    batch = batch_of(config, source, state.step)
    if mesh is not None:
        axes = jax.tree.map(lambda leaf: min(1, leaf.ndim - 1), batch)  # start is [B]
        batch = sharded(mesh, batch, axes)
    estimate = _estimator(config, model.for_training(_key(config, Draw.NOISE, state.step)))
    if train.omega is not None:
        estimate = gradients.with_omega(estimate, model, train.omega)
    if train.flossing is not None:
        estimate = gradients.with_flossing(
            estimate, model, train.flossing, train.flossing_exponents
        )
    if isinstance(train.feeding, ScheduledSampling):
        batch = sample_inputs(
            model,
            state.params,
            estimate.model_carry(state.params, state.carry),
            batch,
            _key(config, Draw.FEEDING, state.step),
            own_share(train.feeding, state.step),
            train.feeding.draw == "likeliest",
        )
    loss, carry, grads, info = estimate(state.params, state.carry, batch)
    if isinstance(config.model, Network) and config.model.freeze:
        grads = replaced(grads, jax.tree.map(jnp.zeros_like, grads), config.model.freeze)
    if state.accumulated is not None:
        grads = accumulated(state, grads, train.accumulate)
    grad_norm = norm(grads)
    clipped, changed, clipped_norm = clip(train, grads, grad_norm)
    epoch = state.step // steps_per_epoch(source, chunk_length(config))
    rate = learning_rate(train, state.step, epoch, state.early_stopping.lr_scale)
    scaled = rate
    if config.data.jitter is not None:
        scaled = rate * jnp.max(jnp.sum(batch.mask, axis=0)) / config.data.length
    rule = optimizer(train, scaled, clipped_norm)
    updates, opt_state = rule.update(clipped, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)
    if state.accumulated is not None:
        # The parameters change with the last gradient of the mean.
        last = state.step % train.accumulate == train.accumulate - 1
        old = state.params, state.opt_state
        params, opt_state = optax.tree.where(last, (params, opt_state), old)
    if isinstance(config.model, Network) and config.model.freeze:
        params = replaced(params, state.params, config.model.freeze)
    record = add(
        state.record,
        tokens=jnp.sum(batch.mask, dtype=jnp.int32),
        loss=loss,
        grad_norm=grad_norm,
        clipped_norm=clipped_norm,
        clipped=changed,
        rate=rate,
        deltas=info.delta_norms,
    )
    skipped = state.skipped
    if skipped is not None:
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        made = params, opt_state, carry, record
        old = state.params, state.opt_state, state.carry, state.record
        params, opt_state, carry, record = optax.tree.where(finite, made, old)
        skipped = skipped.after(finite)
    state = state._replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        carry=carry,
        record=record,
        skipped=skipped,
        average=averaged(state, params, train.ema_decay),
        accumulated=None if state.accumulated is None else grads,
    )
    return _shard(config, state, vocab, mesh)


@functools.partial(jax.jit, donate_argnames="state")
def after_validation(config: Config, state: TrainState, nats: Float[Array, ""]) -> TrainState:
    """The state with the result of a validation: best parameters, patience, plateau, averaging.

    The given state is consumed.

    Args:
      config: see above.
      state: the state whose parameters were validated.
      nats: mean loss per token of the validation split.
    """
    schedule, early_stopping = train_of(config).schedule, state.early_stopping
    better = nats < early_stopping.best_nats
    plateau_steps = jnp.where(better, 0, early_stopping.plateau_steps + 1)
    lr_scale = early_stopping.lr_scale
    if isinstance(schedule, Plateau):
        tired = plateau_steps >= schedule.patience
        lr_scale = jnp.where(tired, lr_scale * schedule.factor, lr_scale)
        plateau_steps = jnp.where(tired, 0, plateau_steps)
    best = state.best_params
    if best is not None:
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.eval_params, best)
    early_stopping = EarlyStopping(
        step=state.step,
        best_nats=jnp.minimum(nats, early_stopping.best_nats),
        best_step=jnp.where(better, state.step, early_stopping.best_step),
        since_best=jnp.where(better, 0, early_stopping.since_best + 1),
        plateau_steps=plateau_steps,
        lr_scale=lr_scale,
    )
    average = state.average
    if isinstance(average, TriggeredAverage):
        average = looked_at(average, state.step, nats)
    return state._replace(early_stopping=early_stopping, best_params=best, average=average)


@functools.partial(jax.jit, donate_argnames="state")
def reset_metrics(config: Config, state: TrainState) -> TrainState:
    """The state with an empty record. The given state is consumed."""
    return state._replace(record=empty_record(_delta_steps(config)))


@functools.partial(jax.jit, static_argnames="vocab")
def peek_batch(
    config: Config, state: TrainState, source: Source, vocab: Vocab
) -> tuple[Carry, Batch]:
    """The model's carry and the batch of the next update."""
    estimate = _estimator(config, _model(config, vocab))
    return estimate.model_carry(state.params, state.carry), batch_of(config, source, state.step)


@functools.partial(jax.jit, static_argnames=SHARED, donate_argnames="state")
def shard(config: Config, state: TrainState, vocab: Vocab, mesh: Mesh | None) -> TrainState:
    """The state sharded over the devices. The given state is consumed."""
    return _shard(config, state, vocab, mesh)


def batch_of(config: Config, source: Source, step: Int[Array, ""] | int) -> Batch:
    """The batch of the update after `step` updates."""
    steps = config.data.steps if config.data.generated else chunk_length(config)
    return batch_at(source, step, steps, _key(config, Draw.ORDER), config.data.jitter)


def chunk_length(config: Config) -> int:
    """T: tokens of each sequence in one update, the mean if there is `data.jitter`."""
    gradient = train_of(config).gradient
    if isinstance(gradient, Truncated) and gradient.k1 and config.data.batching == "streams":
        return gradient.k1
    return config.data.length


def eval_model(config: Config, vocab: Vocab) -> LanguageModel:
    """The model of a config, to be evaluated but not to be initialized.

    Its products do not round, and its recurrences are scans.

    Configs that differ only in numbers share the model, and therefore the compiled evaluation.
    """
    config = dataclasses.replace(config, model=unrounded(config.model))
    return _model(jax.tree.map(lambda number: type(number)(0), config), vocab)


def replaced(tree: Params, other: Params, patterns: Sequence[str]) -> Params:
    """The tree, with the leaves of another one for all parameters that match a pattern."""

    def choose(path: Sequence[Any], leaf: Array, instead: Array) -> Array:
        return instead if matching(path_name(path), patterns) else leaf

    return jax.tree.map_with_path(choose, tree, other)


def _first_average(train: Train, params: Params) -> MovingAverage | TriggeredAverage | None:
    if train.ema_decay is not None:
        return MovingAverage(jax.tree.map(jnp.copy, params))
    if isinstance(train.optimizer, ASGD):
        return empty_average(params, train.optimizer.patience)
    return None


def _shard(config: Config, state: TrainState, vocab: Vocab, mesh: Mesh | None) -> TrainState:
    if mesh is None:
        return state
    carry, rest = state.carry, state._replace(carry=None)
    init_carry = _estimator(config, _model(config, vocab)).init_carry
    axes = batch_axes(init_carry, config.data.batch_size)
    rest = sharded(mesh, rest, jax.tree.map(lambda _: REPLICATED, rest))
    return rest._replace(carry=sharded(mesh, carry, axes))


def _model(config: Config, vocab: Vocab) -> LanguageModel:
    return models.make(config.model, vocab, regression=config.data.regression)


def _estimator(config: Config, model: LanguageModel) -> gradients.Estimator:
    key, deltas = _key(config, Draw.ESTIMATOR), _delta_steps(config) is not None
    return gradients.make(train_of(config).gradient, model, key=key, delta_norms=deltas)


def _key(config: Config, draw: Draw, step: Int[Array, ""] | None = None) -> Array:
    key = jax.random.fold_in(jax.random.key(config.seed), draw)
    return key if step is None else jax.random.fold_in(key, step)


def _delta_steps(config: Config) -> int | None:
    """Number of time steps with a recorded ‖δ_t‖; None if the run records none."""
    probe = train_of(config).probe
    return chunk_length(config) if isinstance(probe, LiveProbe) and probe.deltas else None
