"""What a run is between two updates, all of which a checkpoint holds, and how its parts go on."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32

from lm_jax.models.base import Carry, Params


class Record(NamedTuple):
    """Statistics of the steps since the last record was written.

    Losses and norms are kept as means: a sum of many loses its digits one after another, and may be
    beyond the largest float.
    """

    steps: Int[Array, ""]
    low_high: UInt32[Array, "2"]
    """Number of tokens as two integers of 32 bits, the low one first; see `tokens`."""
    nats: Float[Array, ""]
    """Mean over the tokens."""
    grad_norm: Float[Array, ""]
    """Mean."""
    grad_norm_max: Float[Array, ""]
    clipped_norm: Float[Array, ""]
    """Mean of the norm after clipping."""
    clipped: Int[Array, ""]
    """Steps on which clipping changed the gradient."""
    learning_rate: Float[Array, ""]
    """Learning rate of the last step."""
    deltas: Float[Array, " T"] | None
    """Mean ‖δ_t‖ at each step of the chunk (`Estimator.watched`); None where it is not watched."""

    @property
    def tokens(self) -> int:
        """Number of tokens, read on the host."""
        low, high = (int(part) for part in self.low_high)
        return low + (high << 32)


class Verdict(NamedTuple):
    """What the validations so far amount to."""

    step: Int[Array, ""]
    """The last step judged."""
    best_nats: Float[Array, ""]
    """Lowest mean nats per token so far."""
    best_step: Int[Array, ""]
    stale: Int[Array, ""]
    """Validations since the best one."""
    waited: Int[Array, ""]
    """Validations since the best one or the last cut of the learning rate."""
    cut: Float[Array, ""]
    """Product of the cuts of the learning rate."""


class Average(NamedTuple):
    """The mean of the parameters since validation stopped getting better (`ASGD`)."""

    params: Params
    """The mean; until it begins, the parameters themselves."""
    begun: Int[Array, ""]
    """The step whose parameters are the first in the mean; 0 before it begins."""
    recent: Float[Array, " n"]
    """Mean nats of the last n validations, the newest last."""
    older: Float[Array, ""]
    """The lowest of all validations before those."""


class TrainState(NamedTuple):
    """All that a run is, between two steps."""

    step: Int[Array, ""]
    """Updates made."""
    params: Params
    opt_state: optax.OptState
    carry: Carry
    """The gradient estimator's carry."""
    record: Record
    verdict: Verdict
    best_params: Params | None
    """Parameters that were best on validation; None where they are not kept."""
    average: Average | None
    """None where there is none."""

    @property
    def judged(self) -> Params:
        """The parameters that validation sees."""
        return self.params if self.average is None else self.average.params


def empty_average(params: Params, patience: int) -> Average:
    never = jnp.inf
    return Average(
        params=jax.tree.map(jnp.copy, params),
        begun=jnp.zeros((), jnp.int32),
        recent=jnp.full(patience, never, float),
        older=jnp.full((), never, float),
    )


def averaged(state: TrainState, params: Params) -> Average:
    """The average with the parameters of one more step in it."""
    average = cast(Average, state.average)
    count = jnp.where(average.begun > 0, state.step + 2 - average.begun, 1)
    mean = jax.tree.map(lambda mean, new: mean + (new - mean) / count, average.params, params)
    return average._replace(params=mean)


def looked_at(average: Average, step: Array, nats: Array) -> Average:
    """The average after a validation, which may begin it (Merity et al., 2018, algorithm 1)."""
    begins = (average.begun == 0) & (nats > average.older)
    return average._replace(
        begun=jnp.where(begins, step, average.begun),
        recent=jnp.append(average.recent[1:], nats),
        older=jnp.minimum(average.older, average.recent[0]),
    )


def empty_record(watched: int | None = None) -> Record:
    """A record of no steps, with δ_t of a chunk of so many steps, or without."""
    zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
    deltas = None if watched is None else jnp.zeros(watched)
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
    """A record with one more step in it."""
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
