"""How the parameters are found."""

from typing import Annotated, Literal

from pydantic import Field

from lm_jax.settings import (
    Adjustable,
    Chance,
    Count,
    Number,
    PositiveCount,
    Rate,
    Scale,
    Size,
    Weight,
    settings,
)

ONLINE = ("rtrl", "snap1", "uoro")
"""The gradients that are carried forward in time, for which an update is one step after another."""


@settings
class SGD:
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Another brings its own flags."""


@settings
class ASGD:
    """Averaged SGD, begun when validation stops getting better (Merity et al., 2018)."""

    kind: Literal["asgd"] = "asgd"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Another brings its own flags."""
    patience: Size = 5
    """n: the average begins at the first validation that is worse than the best of all but the last
    n; from then on it is what is validated and kept."""


@settings
class Momentum:
    """Gradient descent with momentum (Polyak, 1964)."""

    kind: Literal["momentum"] = "momentum"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Another brings its own flags."""
    momentum: Rate = 0.9
    """Share of the last update that is carried on."""
    nesterov: bool = False
    """Look ahead by one update (Nesterov, 1983)."""


@settings
class Adam:
    """Adam (Kingma & Ba, 2015)."""

    kind: Literal["adam"] = "adam"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Another brings its own flags."""
    b1: Rate = 0.9
    """Decay of the mean of gradients, per update."""
    b2: Rate = 0.999
    """Decay of the mean of squared gradients, per update."""
    eps: Scale = 1e-8
    """Added to the root of the mean square."""


@settings
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Another brings its own flags."""
    b1: Rate = 0.9
    """Decay of the mean of gradients, per update."""
    b2: Rate = 0.999
    """Decay of the mean of squared gradients, per update."""
    eps: Scale = 1e-8
    """Added to the root of the mean square."""
    weight_decay: Weight = 1e-4
    """Share of each weight taken away per update, times the learning rate."""


@settings
class RMSprop:
    """RMSprop (Tieleman & Hinton, 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    """The optimizer: sgd, asgd, momentum, adam, adamw or rmsprop. Another brings its own flags."""
    decay: Rate = 0.9
    """Decay of the mean of squared gradients, per update."""
    eps: Scale = 1e-8
    """Added to the mean square before its root is taken."""


@settings
class Constant:
    """The learning rate as it is given."""

    kind: Literal["constant"] = "constant"
    """The schedule: constant, cosine, epochs or plateau. Another one brings its own flags."""


@settings
class Cosine:
    """A linear warm-up from zero, then half a cosine down (Loshchilov & Hutter, 2017)."""

    kind: Literal["cosine"] = "cosine"
    """The schedule: constant, cosine, epochs or plateau. Another one brings its own flags."""
    warmup_steps: Count = 100
    """Updates until the full learning rate."""
    steps: Count | None = None
    """Updates until the end of the descent; None: train.steps."""
    final: Rate = 0.05
    """The learning rate at the end, as a share of train.learning_rate."""


@settings
class Epochs:
    """Constant for some epochs, then a factor every epoch (Zaremba et al., 2014)."""

    kind: Literal["epochs"] = "epochs"
    """The schedule: constant, cosine, epochs or plateau. Another one brings its own flags."""
    constant_epochs: Count = 4
    """Epochs at the full learning rate."""
    factor: Rate = 0.5
    """The learning rate's factor from each epoch to the next."""


@settings
class Plateau:
    """A cut whenever the validation loss has stopped falling."""

    kind: Literal["plateau"] = "plateau"
    """The schedule: constant, cosine, epochs or plateau. Another one brings its own flags."""
    factor: Rate = 0.25
    """The learning rate's factor at a cut."""
    patience: PositiveCount = 1
    """Validations in a row without a new best before a cut."""


@settings
class TeacherForcing:
    """The model reads the text's own tokens."""

    kind: Literal["teacher"] = "teacher"
    """What the model reads in training: teacher or own. The latter brings its own flags."""


@settings
class OwnTokens:
    """Scheduled sampling (Bengio et al., 2015): the model reads some tokens of its own instead.

    With start = end = 1 it runs free. The first input of a chunk is always the text's.
    """

    kind: Literal["own"] = "own"
    """What the model reads in training: teacher or own. The latter brings its own flags."""
    draw: Literal["sample", "likeliest"] = "sample"
    """Its own token: drawn from its softmax, or the most likely one."""
    start: Rate = 0.0
    """Share of inputs that are its own at the first update."""
    end: Rate = 1.0
    """Share of inputs that are its own in the end."""
    curve: Literal["linear", "exponential", "sigmoid"] = "linear"
    """How the share goes from start to end."""
    steps: Count | None = None
    """Updates until the end; None: train.steps."""


@settings
class NoProbe:
    """The gradient is not watched; the compiled program is that of a run without probes."""

    kind: Literal["off"] = "off"
    """What is watched while training: off or live. The latter brings its own flags."""


QUESTIONS = ("deltas", "by_lag", "lags", "spectra", "lyapunov")


@settings
class LiveProbe:
    """How far the gradient reaches, watched while training, into metrics.jsonl."""

    kind: Literal["live"] = "live"
    """What is watched while training: off or live. The latter brings its own flags."""
    every: Adjustable = 500
    """Updates between two rows of kind probe."""
    deltas: bool = True
    """In every update the norm of δ_t at each step t of the chunk: of the loss's gradient that
    arrives at the layers' states, from step t + 1 and from the layer above at t; its mean stands in
    the rows of kind train."""
    by_lag: bool = True
    """The gradient of the chunk split over the lags, and the horizon: how many steps back half, 90
    % and 99 % of it lie."""
    lags: bool = False
    """The norm of the derivative of the state after the chunk by the state l steps before, at each
    lag l."""
    spectra: bool = True
    """The spectral radius and the largest singular value of each block of W_hh."""
    lyapunov: bool = True
    """The largest Lyapunov exponent along the chunk, in nats a step."""
    lanes: Size = 4
    """Lanes of the batch that by_lag, lags and lyapunov look at, from its first one on."""


@settings
class Train:
    """How the parameters are found."""

    steps: Adjustable = 2000
    """Updates in all."""
    epochs: Adjustable | None = None
    """Passes over the training text, from which train.steps follows; None: as train.steps says."""
    learning_rate: Number = 0.003
    """The full learning rate; the schedule gives a share of it."""
    schedule: Annotated[Constant | Cosine | Epochs | Plateau, Field(discriminator="kind")] = (
        Constant()
    )
    optimizer: Annotated[
        SGD | ASGD | Momentum | Adam | AdamW | RMSprop, Field(discriminator="kind")
    ] = Adam()
    feeding: Annotated[TeacherForcing | OwnTokens, Field(discriminator="kind")] = TeacherForcing()
    gradient: Literal["explicit", "full", "truncated", "artbp", "rtrl", "snap1", "uoro"] = (
        "explicit"
    )
    """explicit: backpropagation through all T steps of a chunk, by the backward pass written by
    hand where a cell has one; full: the same by autodiff; truncated: an update every k1 steps,
    backpropagated k2 steps, beyond the chunk's edge where k2 > k1; artbp: cut at random, without
    bias; and forward in time, from the text's start on: rtrl: exact, for small models; snap1: its
    sparse approximation, exact for a layer of mingru, minlstm or diagonal; uoro: its unbiased one
    of rank one."""
    recompute: Literal["none", "sqrt"] = "none"
    """explicit, full: what the way back keeps: none: all that it reads of every step; sqrt: the
    states between √T segments, each of which is computed a second time, for long chunks."""
    k1: Size | None = None
    """truncated: tokens of a lane between updates, in place of data.length; None: as that."""
    k2: Size | None = None
    """truncated: steps that the gradient goes back from each update."""
    cut_rate: Chance | None = None
    """artbp: chance that the gradient is cut between one step and the next."""
    clip_norm: Number | None = None
    """Threshold of the whole gradient's norm; None: no clipping."""
    clip_value: Number | None = None
    """Threshold of each entry of the gradient, after clip_norm; None: no clipping."""
    clip_delta: Number | None = None
    """Threshold inside backpropagation, at every time step t: of the norm of δ_t, the gradient of
    one sequence's summed nats that arrives at one layer's state, from step t + 1 and from the layer
    above at t; None: no clipping."""
    probe: Annotated[NoProbe | LiveProbe, Field(discriminator="kind")] = NoProbe()
    weight_decay: Weight | None = None
    """Share of each weight added to its gradient after clipping (an L2 penalty; that of adamw is
    apart from the gradient); None: none."""
    omega: Weight | None = None
    """Weight of the regulariser that keeps the norm of the gradient on its way back (Pascanu et
    al., 2013, equation 9; `lm_jax.gradients.remedies`), on W_hh; None: none."""
    flossing: Weight | None = None
    """Weight of gradient flossing, the mean square of the largest Lyapunov exponents along the
    batch, in steps per nat (Engelken, 2023); None: none."""
    flossing_exponents: Size = 8
    """How many exponents flossing pushes towards zero."""
    validate_every: Size | None = None
    """Updates between looks at the validation split; None: an epoch's."""
    patience: Size | None = None
    """Stop after this many validations in a row without a new best; None: never."""
    keep_best: bool = True
    """End with the parameters that were best on validation, not with the last."""
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
