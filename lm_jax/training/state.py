"""The whole state of a run between two updates, as saved in a checkpoint, and the update rules."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt32

from lm_jax.models.base import Carry, Params


class Record(NamedTuple):
    """Statistics of the steps since the last record was written.

    Losses and norms are kept as running means: a long sum loses precision and may overflow.
    """

    steps: Int[Array, ""]
    low_high: UInt32[Array, "2"]
    """Number of tokens as two 32-bit integers, low half first; see `tokens`."""
    nats: Float[Array, ""]
    """Mean loss per token."""
    grad_norm: Float[Array, ""]
    """Mean norm of the gradient before clipping, over the steps; with `train.accumulate`, the norm
    is of the mean of the gradients so far."""
    grad_norm_max: Float[Array, ""]
    clipped_norm: Float[Array, ""]
    """Mean norm of the gradient after clipping, over the steps."""
    clipped: Int[Array, ""]
    """Number of steps with a gradient changed by clipping."""
    learning_rate: Float[Array, ""]
    """Learning rate of the last step."""
    deltas: Float[Array, " T"] | None
    """Mean ‖δ_t‖ at each time step (`lm_jax.gradients.Info`); None if not asked for."""

    @property
    def tokens(self) -> int:
        """Number of tokens, as an integer on the host."""
        low, high = (int(part) for part in self.low_high)
        return low + (high << 32)


class EarlyStopping(NamedTuple):
    """Statistics of all validations, for early stopping and the plateau schedule."""

    step: Int[Array, ""]
    """Step of the last validation."""
    best_nats: Float[Array, ""]
    """Lowest mean nats per token."""
    best_step: Int[Array, ""]
    since_best: Int[Array, ""]
    """Number of validations since the best validation."""
    plateau_steps: Int[Array, ""]
    """Number of validations since the best validation or the last cut of the learning rate."""
    lr_scale: Float[Array, ""]
    """Factor on the learning rate: the product of all cuts, also of those after a divergence."""


class MovingAverage(NamedTuple):
    """Exponential moving average of the parameters (`train.ema_decay`)."""

    params: Params
    """Mean of the parameters after each update, those of n updates ago weighted by decay^n."""


class TriggeredAverage(NamedTuple):
    """Mean of the parameters since the validation loss stopped improving (`ASGD`)."""

    params: Params
    """The mean; before averaging begins, the current parameters."""
    begun: Int[Array, ""]
    """Step of the first parameters in the mean; 0 before averaging begins."""
    recent: Float[Array, " n"]
    """Mean nats of the last n validations, newest last."""
    older: Float[Array, ""]
    """Lowest mean nats of all validations before `recent`."""


class Skipped(NamedTuple):
    """Number of batches left out (`train.on_divergence=skip`)."""

    in_a_row: Int[Array, ""]
    total: Int[Array, ""]

    def after(self, finite: Bool[Array, ""]) -> "Skipped":
        """The numbers after one more batch, left out unless it is finite."""
        return Skipped(jnp.where(finite, 0, self.in_a_row + 1), self.total + ~finite)


class TrainState(NamedTuple):
    """The whole state of a run between two steps."""

    step: Int[Array, ""]
    """Number of updates made."""
    params: Params
    opt_state: optax.OptState
    carry: Carry
    """The gradient estimator's carry."""
    record: Record
    early_stopping: EarlyStopping
    best_params: Params | None
    """Parameters with the lowest validation loss; None without `train.keep_best`."""
    average: MovingAverage | TriggeredAverage | None
    """None without `train.ema_decay` or `ASGD`."""
    accumulated: Params | None = None
    """Mean gradient since the last change of the parameters; None if `train.accumulate` is 1."""
    skipped: Skipped | None = None
    """None unless `train.on_divergence` is skip."""

    @property
    def eval_params(self) -> Params:
        """The parameters to validate: the average if there is one, else the current parameters."""
        return self.params if self.average is None else self.average.params

    def with_lr_scale(self, lr_scale: float) -> "TrainState":
        """The state with another factor on the learning rate."""
        scale = jnp.asarray(lr_scale, float)
        return self._replace(early_stopping=self.early_stopping._replace(lr_scale=scale))


class FixedState(NamedTuple):
    """The saved state of a run without updates: its parameters are counted, or imported."""

    step: np.ndarray
    """0, the number of updates."""
    params: Params


class Summary(NamedTuple):
    """The small part of a train state, which the host reads between updates.

    The fields `step` to `skipped` are the fields of `TrainState`.
    """

    step: Int[Array, ""]
    record: Record
    early_stopping: EarlyStopping
    skipped: Skipped | None
    diverged: Bool[Array, ""]
    sound: Bool[Array, ""]
    """False if the run has diverged, or a parameter is not finite."""


def empty_average(params: Params, patience: int) -> TriggeredAverage:
    """The average before the first update; `patience` is n of `ASGD`."""
    never = jnp.inf
    return TriggeredAverage(
        params=jax.tree.map(jnp.copy, params),
        begun=jnp.zeros((), jnp.int32),
        recent=jnp.full(patience, never, float),
        older=jnp.full((), never, float),
    )


def averaged(
    state: TrainState, params: Params, decay: float | Array | None = None
) -> MovingAverage | TriggeredAverage | None:
    """The average with the new parameters of one more step.

    Args:
      state: the state before the step.
      params: the parameters after the step.
      decay: of a moving average, per step.
    """
    average = state.average
    if average is None:
        return None
    if isinstance(average, TriggeredAverage):
        count = jnp.where(average.begun > 0, state.step + 2 - average.begun, 1)
    else:
        assert decay is not None
        count = (1 - decay ** (state.step + 1)) / (1 - decay)
    mean = jax.tree.map(lambda mean, new: mean + (new - mean) / count, average.params, params)
    return average._replace(params=mean)


def accumulated(state: TrainState, grads: Params, count: int) -> Params:
    """The mean of the gradients since the last change of the parameters.

    Args:
      state: the state before the step.
      grads: the gradient of the step.
      count: number of steps between two changes.
    """
    before = state.step % count

    def mean(so_far: Array, new: Array) -> Array:
        return jnp.where(before == 0, new, so_far + (new - so_far) / (before + 1))

    return jax.tree.map(mean, state.accumulated, grads)


def looked_at(average: TriggeredAverage, step: Array, nats: Array) -> TriggeredAverage:
    """The average after a validation; averaging may begin (Merity et al., 2018, algorithm 1)."""
    begins = (average.begun == 0) & (nats > average.older)
    return average._replace(
        begun=jnp.where(begins, step, average.begun),
        recent=jnp.append(average.recent[1:], nats),
        older=jnp.minimum(average.older, average.recent[0]),
    )


def empty_record(delta_steps: int | None = None) -> Record:
    """An empty record; `delta_steps` is the number of time steps in `deltas`."""
    zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
    deltas = None if delta_steps is None else jnp.zeros(delta_steps)
    return Record(none, jnp.zeros(2, jnp.uint32), zero, zero, zero, zero, none, zero, deltas)


def add(
    record: Record,
    *,
    tokens: Array,
    loss: Array,
    grad_norm: Array,
    clipped_norm: Array,
    clipped: Array,
    rate: Array,
    deltas: Array | None = None,
) -> Record:
    """The record with one more step added."""
    steps = record.steps + 1
    more = tokens.astype(jnp.uint32)
    low = record.low_high[0] + more
    high = record.low_high[1] + (low < more)

    total = low.astype(float) + high.astype(float) * 2.0**32

    def mean(so_far: Array, new: Array) -> Array:
        return so_far + (new - so_far) / steps

    return Record(
        steps=steps,
        low_high=jnp.stack([low, high]),
        nats=record.nats + (loss - record.nats) * (tokens / jnp.maximum(total, 1)),
        grad_norm=mean(record.grad_norm, grad_norm),
        grad_norm_max=jnp.maximum(record.grad_norm_max, grad_norm),
        clipped_norm=mean(record.clipped_norm, clipped_norm),
        clipped=record.clipped + clipped,
        learning_rate=rate,
        deltas=None if record.deltas is None or deltas is None else mean(record.deltas, deltas),
    )
