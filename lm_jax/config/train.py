"""Settings of training: gradient, optimizer, schedule, clipping, validation."""

from typing import Annotated, Literal

from pydantic import Field

from lm_jax.settings import (
    Adjustable,
    Count,
    NonNegative,
    Positive,
    PositiveCount,
    PositiveFinite,
    Probability,
    Size,
    UnitInterval,
    settings,
)

ONLINE = ("rtrl", "snap1", "uoro")
"""Gradients carried forward in time; an update processes its time steps in sequence."""


@settings
class SGD:
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Each has its own flags."""


@settings
class ASGD:
    """Averaged SGD; averaging begins when validation stops improving (Merity et al., 2018)."""

    kind: Literal["asgd"] = "asgd"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Each has its own flags."""
    patience: Size = 5
    """n: averaging begins at the first validation worse than the best before the last n. From then
    on, the average is validated and kept."""


@settings
class Momentum:
    """Gradient descent with momentum (Polyak, 1964)."""

    kind: Literal["momentum"] = "momentum"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Each has its own flags."""
    momentum: UnitInterval = 0.9
    """Share of the last update carried over to the next."""
    nesterov: bool = False
    """Look ahead by one update (Nesterov, 1983)."""


@settings
class Adam:
    """Adam (Kingma & Ba, 2015)."""

    kind: Literal["adam"] = "adam"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Each has its own flags."""
    b1: UnitInterval = 0.9
    """Decay of the mean of gradients, per update."""
    b2: UnitInterval = 0.999
    """Decay of the mean of squared gradients, per update."""
    eps: PositiveFinite = 1e-8
    """Added to the root of the mean square."""


@settings
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Each has its own flags."""
    b1: UnitInterval = 0.9
    """Decay of the mean of gradients, per update."""
    b2: UnitInterval = 0.999
    """Decay of the mean of squared gradients, per update."""
    eps: PositiveFinite = 1e-8
    """Added to the root of the mean square."""
    weight_decay: NonNegative = 1e-4
    """Share of each weight subtracted per update, times the learning rate."""


@settings
class RMSprop:
    """RMSprop (Tieleman & Hinton, 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Each has its own flags."""
    decay: UnitInterval = 0.9
    """Decay of the mean of squared gradients, per update."""
    eps: PositiveFinite = 1e-8
    """Added to the mean square before taking the root."""


Optimizer = SGD | ASGD | Momentum | Adam | AdamW | RMSprop


@settings
class Constant:
    """A constant learning rate."""

    kind: Literal["constant"] = "constant"
    """The schedule: constant, cosine, epochs or plateau. Each has its own flags."""


@settings
class Cosine:
    """A linear warm-up from zero, then half a cosine down (Loshchilov & Hutter, 2017)."""

    kind: Literal["cosine"] = "cosine"
    """The schedule: constant, cosine, epochs or plateau. Each has its own flags."""
    warmup_steps: Count = 100
    """Updates until the full learning rate."""
    steps: Count | None = None
    """Updates until the end of the descent; None: train.steps."""
    final: UnitInterval = 0.05
    """The learning rate at the end, as a share of train.learning_rate."""


@settings
class Epochs:
    """Constant for some epochs, then multiplied by a factor every epoch (Zaremba et al., 2014)."""

    kind: Literal["epochs"] = "epochs"
    """The schedule: constant, cosine, epochs or plateau. Each has its own flags."""
    constant_epochs: Count = 4
    """Epochs at the full learning rate."""
    factor: UnitInterval = 0.5
    """Factor of the learning rate from each epoch to the next."""


@settings
class Plateau:
    """A lower learning rate whenever the validation loss has stopped falling."""

    kind: Literal["plateau"] = "plateau"
    """The schedule: constant, cosine, epochs or plateau. Each has its own flags."""
    factor: UnitInterval = 0.25
    """Factor of the learning rate at each reduction."""
    patience: PositiveCount = 1
    """Validations in a row without a new best before each reduction."""


@settings
class TeacherForcing:
    """Teacher forcing: the inputs are the tokens of the text."""

    kind: Literal["teacher"] = "teacher"
    """Inputs in training: teacher (the text) or own (scheduled sampling). own has more flags."""


@settings
class ScheduledSampling:
    """Scheduled sampling (Bengio et al., 2015): some inputs are the model's own predictions.

    With start = end = 1 all inputs but the first are the model's own. The first input of a chunk
    is always from the text.
    """

    kind: Literal["own"] = "own"
    """Inputs in training: teacher (the text) or own (scheduled sampling). own has more flags."""
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
    """Live probe of the gradient while training: off or live. live has more flags."""


QUESTIONS = ("deltas", "by_lag", "lags", "spectra", "lyapunov")


@settings
class LiveProbe:
    """Live probe of the gradient's reach while training; the results go to metrics.jsonl."""

    kind: Literal["live"] = "live"
    """Live probe of the gradient while training: off or live. live has more flags."""
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
    lanes: Size = 4
    """Number of sequences for by_lag, lags and lyapunov, the first of the batch."""


@settings
class Train:
    """Settings of training: gradient, optimizer, schedule, clipping, validation."""

    steps: Adjustable = 2000
    """Number of updates."""
    epochs: Adjustable | None = None
    """Passes over the training text; sets train.steps. None: use train.steps."""
    learning_rate: Positive = 0.003
    """Full learning rate; the schedule gives a share of this rate."""
    schedule: Annotated[Constant | Cosine | Epochs | Plateau, Field(discriminator="kind")] = (
        Constant()
    )
    optimizer: Annotated[Optimizer, Field(discriminator="kind")] = Adam()
    feeding: Annotated[TeacherForcing | ScheduledSampling, Field(discriminator="kind")] = (
        TeacherForcing()
    )
    gradient: Literal["explicit", "full", "truncated", "artbp", "rtrl", "snap1", "uoro"] = (
        "explicit"
    )
    """Backward in time: explicit: backpropagation through all T steps of a chunk, by a hand-written
    backward pass if the cell has one; full: backpropagation through all T steps by autodiff;
    truncated: an update every k1 steps, backpropagated k2 steps, beyond the chunk's edge if
    k2 > k1; artbp: randomly truncated, unbiased. Forward in time, from the start of the text: rtrl:
    exact, for small models; snap1: sparse approximation of rtrl, exact for a single layer of
    mingru, minlstm or diagonal; uoro: unbiased rank-one approximation of rtrl."""
    recompute: Literal["none", "sqrt"] = "none"
    """explicit, full: memory of backpropagation. none: keep everything that the backward pass reads
    of every step; sqrt: keep the states between √T segments and compute each segment a second time,
    for long chunks."""
    k1: Size | None = None
    """truncated: tokens of a sequence between updates; None: data.length."""
    k2: Size | None = None
    """truncated: time steps that the gradient goes back from each update."""
    cut_rate: Probability | None = None
    """artbp: probability of a cut between each time step and the next."""
    clip_norm: Positive | None = None
    """Threshold of the whole gradient's norm; None: no clipping."""
    clip_value: Positive | None = None
    """Threshold of each entry of the gradient, after clip_norm; None: no clipping."""
    clip_delta: Positive | None = None
    """Threshold of the norm of δ_t, inside backpropagation at every time step t. δ_t is the
    gradient of a sequence's summed loss that arrives at a layer's state from step t + 1 and from
    the layer above at t. None: no clipping."""
    probe: Annotated[NoProbe | LiveProbe, Field(discriminator="kind")] = NoProbe()
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
    log_every: Adjustable = 100
    """Updates between two rows of kind train in metrics.jsonl."""
    checkpoint_every: Adjustable = 500
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        if self.gradient != "truncated":
            for field in ("k1", "k2"):
                if getattr(self, field) is not None:
                    raise ValueError(f"train.{field} is read only with train.gradient=truncated")
        elif self.k2 is None:
            raise ValueError("train.gradient=truncated needs train.k2, the steps to go back")
        if self.recompute != "none" and self.gradient not in ("explicit", "full"):
            raise ValueError(
                f"train.recompute={self.recompute} is read only with train.gradient=explicit or "
                "full"
            )
        if self.flossing is None and self.flossing_exponents != 8:
            raise ValueError("train.flossing_exponents is read only with train.flossing")
        if isinstance(self.probe, LiveProbe):
            asked = {name: getattr(self.probe, name) for name in QUESTIONS}
            if not any(asked.values()):
                raise ValueError(
                    f"train.probe.kind=live asks nothing: set one of {', '.join(asked)} to True"
                )
        watched = isinstance(self.probe, LiveProbe) and self.probe.deltas
        if watched and self.gradient not in ("explicit", "full"):
            raise ValueError(
                "train.probe.deltas is read off the backward pass of train.gradient=explicit or "
                f"full: with train.gradient={self.gradient} it must be False"
            )
        if self.gradient != "artbp":
            if self.cut_rate is not None:
                raise ValueError("train.cut_rate is read only with train.gradient=artbp")
        elif self.cut_rate is None:
            raise ValueError("train.gradient=artbp needs train.cut_rate, the chance of a cut")
        if self.clip_delta is not None and self.gradient in ("artbp", *ONLINE):
            raise ValueError(
                "train.clip_delta is read only with train.gradient=explicit, full or truncated"
            )
