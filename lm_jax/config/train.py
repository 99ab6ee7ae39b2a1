"""Settings of training: gradient, optimizer, schedule, clipping, validation."""

from typing import Annotated, Literal

from lm_jax.config.gradient import ARTBP, Explicit, Full, Gradient, Truncated
from lm_jax.config.optimizer import ASGD, Adam, Constant, Group, Optimizer, RangeTest, Schedule
from lm_jax.fields import (
    Adjustable,
    Count,
    NonNegative,
    OneOf,
    Positive,
    Probability,
    Size,
    UnitInterval,
)
from lm_jax.settings import settings


@settings
class TeacherForcing:
    """Teacher forcing: the inputs are the tokens of the text."""

    kind: Literal["teacher"] = "teacher"


@settings
class ScheduledSampling:
    """Scheduled sampling (Bengio et al., 2015): some inputs are the model's own predictions.

    With start = end = 1 all inputs but the first are the model's own. The first input of a chunk
    is always from the text.
    """

    kind: Literal["own"] = "own"
    draw: Literal["sample", "likeliest"] = "sample"
    """sample: the model's token is drawn from its softmax; likeliest: the most likely token."""
    start: UnitInterval = 0.0
    """Share of the model's own tokens among the inputs at the first update."""
    end: UnitInterval = 1.0
    """Share of the model's own tokens among the inputs after `steps` updates."""
    curve: Literal["linear", "exponential", "sigmoid"] = "linear"
    """Shape of the share's curve from start to end."""
    steps: Count | None = None
    """Updates until the share reaches its end; None: train.steps."""


@settings
class NoProbe:
    """No live probe; the compiled program is that of a run without probes."""

    kind: Literal["off"] = "off"


QUESTIONS = ("deltas", "by_lag", "lags", "spectra", "lyapunov")


@settings
class LiveProbe:
    """Live probe of the gradient's reach while training; the results go to metrics.jsonl."""

    kind: Literal["live"] = "live"
    every: Adjustable = 500
    """Updates between two rows of kind probe."""
    deltas: bool = True
    """Record in every update the norm of δ_t at each time step t of the chunk. δ_t is the loss's
    gradient that arrives at the layers' states from step t + 1 and from the layer above at t. The
    rows of kind train hold the mean."""
    by_lag: bool = True
    """Split the gradient of the chunk over the lags, and give the horizon: the lags within which
    50 %, 90 % and 99 % of the gradient lie."""
    lags: bool = False
    """Give the norm of the derivative of the state after the chunk with respect to the state l
    steps earlier, at each lag l."""
    spectra: bool = True
    """Give the spectral radius and the largest singular value of each gate's block of W_hh."""
    lyapunov: bool = True
    """Give the largest Lyapunov exponent along the chunk, in nats a step."""
    sequences: Size = 4
    """Number of sequences for by_lag, lags and lyapunov, the first of the batch."""


@settings
class StopTraining:
    """End the run, as diverged."""

    kind: Literal["stop"] = "stop"


@settings
class SkipBatch:
    """Leave a batch out if its loss or gradient is not finite; the parameters stay as they were."""

    kind: Literal["skip"] = "skip"
    limit: Size = 10
    """End the run, as diverged, at so many batches in a row."""


@settings
class RestoreCheckpoint:
    """Return to the newest checkpoint and lower the learning rate."""

    kind: Literal["restore"] = "restore"
    factor: Probability = 0.5
    """Factor on the learning rate."""
    limit: Size = 3
    """Returns in a run; at the next divergence the run ends."""


@settings
class Train:
    """Settings of training: gradient, optimizer, schedule, clipping, validation."""

    steps: Adjustable = 2000
    """Number of updates."""
    epochs: Adjustable | None = None
    """Passes over the training text; sets train.steps. None: use train.steps."""
    learning_rate: Positive = 0.003
    """Full learning rate; the schedule gives a share of this rate."""
    schedule: Annotated[Schedule, OneOf()] = Constant()
    """Learning rate over the updates."""
    optimizer: Annotated[Optimizer, OneOf()] = Adam()
    """Rule from gradients to updates; or your own, or any of Optax, as FILE.py:NAME or
    package.module:NAME."""
    groups: tuple[Group, ...] = ()
    """Groups of parameters with a learning rate, a weight decay or an optimizer of their own; as a
    flag, the patterns of the groups."""
    accumulate: Size = 1
    """Updates whose gradients are averaged into one change of the parameters."""
    ema_decay: Probability | None = None
    """Decay per update of an exponential moving average of the parameters, validated and kept in
    place of the parameters; None: no average."""
    feeding: Annotated[TeacherForcing | ScheduledSampling, OneOf()] = TeacherForcing()
    """Inputs in training."""
    gradient: Annotated[Gradient, OneOf()] = Explicit()
    """Estimator of the gradient."""
    clip_norm: Positive | None = None
    """Threshold of the whole gradient's norm; None: no clipping."""
    clip_value: Positive | None = None
    """Threshold of each entry of the gradient, after clip_norm; None: no clipping."""
    probe: Annotated[NoProbe | LiveProbe, OneOf()] = NoProbe()
    """Live probe of the gradient while training."""
    weight_decay: NonNegative | None = None
    """Share of each weight added to its gradient after clipping (an L2 penalty; adamw has its own,
    separate from the gradient); None: none."""
    omega: NonNegative | None = None
    """Weight of the regulariser Ω on W_hh, which preserves the gradient's norm on its way back
    (Pascanu et al., 2013, equation 9; `lm_jax.gradients.regularizers`); None: none."""
    flossing: NonNegative | None = None
    """Weight of gradient flossing, the mean square of the largest Lyapunov exponents along the
    batch, in steps per nat (Engelken, 2023); None: none."""
    flossing_exponents: Size = 8
    """Number of Lyapunov exponents that flossing pushes towards zero."""
    validate_every: Size | None = None
    """Updates between validations; None: an epoch."""
    patience: Size | None = None
    """Stop after this many validations in a row without a new best; None: never."""
    keep_best: bool = True
    """End with the best parameters on validation instead of the last."""
    sample_length: Adjustable | None = None
    """Tokens of a sample drawn at each validation, kept in metrics.jsonl; None: no sample."""
    log_every: Adjustable = 100
    """Updates between two rows of kind train in metrics.jsonl."""
    checkpoint_every: Adjustable = 500
    """Updates between checkpoints."""
    on_divergence: Annotated[StopTraining | SkipBatch | RestoreCheckpoint, OneOf()] = StopTraining()
    """Reaction to a loss, a gradient or a parameter that is no longer finite."""

    def __post_init__(self) -> None:
        gradient = self.gradient
        if isinstance(gradient, Truncated) and gradient.k2 is None:
            raise ValueError(
                "train.gradient=truncated needs train.gradient.k2, the steps to go back"
            )
        if isinstance(gradient, ARTBP) and gradient.cut_rate is None:
            raise ValueError(
                "train.gradient=artbp needs train.gradient.cut_rate, the chance of a cut"
            )
        if self.flossing is None and self.flossing_exponents != 8:
            raise ValueError("train.flossing_exponents is read only with train.flossing")
        if isinstance(self.probe, LiveProbe):
            asked = {name: getattr(self.probe, name) for name in QUESTIONS}
            if not any(asked.values()):
                raise ValueError(
                    f"train.probe=live asks nothing: set one of {', '.join(asked)} to True"
                )
            if self.probe.deltas and not isinstance(gradient, Explicit | Full):
                raise ValueError(
                    "train.probe.deltas is read off the backward pass of train.gradient=explicit "
                    f"or full: with train.gradient={gradient.kind} it must be False"
                )
        if isinstance(self.on_divergence, SkipBatch) and self.accumulate > 1:
            raise ValueError(
                "train.on_divergence=skip does not go with train.accumulate, which needs each batch"
            )
        if isinstance(self.schedule, RangeTest) and self.schedule.low >= self.learning_rate:
            raise ValueError(
                f"train.schedule.low={self.schedule.low:g} must be below "
                f"train.learning_rate={self.learning_rate:g}, the end of the range"
            )
        if self.ema_decay is not None and isinstance(self.optimizer, ASGD):
            raise ValueError(
                "train.ema_decay does not go with train.optimizer=asgd, which takes an average of "
                "its own"
            )
