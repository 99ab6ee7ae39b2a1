"""Settings of the optimizer, of groups of parameters, and of the learning rate's schedule."""

from typing import Annotated, ClassVar, Literal

from lm_jax.config.custom import Custom
from lm_jax.fields import (
    Count,
    NonNegative,
    OneOf,
    Positive,
    PositiveCount,
    PositiveFinite,
    Size,
    UnitInterval,
)
from lm_jax.settings import settings


@settings
class SGD:
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"


@settings
class ASGD:
    """Averaged SGD; averaging begins when validation stops improving (Merity et al., 2018)."""

    kind: Literal["asgd"] = "asgd"
    patience: Size = 5
    """n: averaging begins at the first validation worse than the best before the last n. From then
    on, the average is validated and kept."""


@settings
class Momentum:
    """Gradient descent with momentum (Polyak, 1964)."""

    kind: Literal["momentum"] = "momentum"
    momentum: UnitInterval = 0.9
    """Share of the last update carried over to the next."""
    nesterov: bool = False
    """Look ahead by one update (Nesterov, 1983)."""


@settings
class Adam:
    """Adam (Kingma & Ba, 2015)."""

    kind: Literal["adam"] = "adam"
    beta1: UnitInterval = 0.9
    """Decay of the mean of gradients, per update."""
    beta2: UnitInterval = 0.999
    """Decay of the mean of squared gradients, per update."""
    eps: PositiveFinite = 1e-8
    """Added to the root of the mean square."""


@settings
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"
    beta1: UnitInterval = 0.9
    """Decay of the mean of gradients, per update."""
    beta2: UnitInterval = 0.999
    """Decay of the mean of squared gradients, per update."""
    eps: PositiveFinite = 1e-8
    """Added to the root of the mean square."""
    weight_decay: NonNegative = 1e-4
    """Share of each weight subtracted per update, times the learning rate."""


@settings
class RMSprop:
    """RMSprop (Tieleman & Hinton, 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    decay: UnitInterval = 0.9
    """Decay of the mean of squared gradients, per update."""
    eps: PositiveFinite = 1e-8
    """Added to the mean square before taking the root."""


@settings
class Adan:
    """Adan, with Nesterov's momentum in three means (Xie et al., 2022)."""

    kind: Literal["adan"] = "adan"
    beta1: UnitInterval = 0.98
    """Decay of the mean of gradients, per update."""
    beta2: UnitInterval = 0.92
    """Decay of the mean of the differences between successive gradients, per update."""
    beta3: UnitInterval = 0.99
    """Decay of the mean of squares, per update."""
    eps: PositiveFinite = 1e-8
    """Added to the root of the mean square."""
    weight_decay: NonNegative = 0.0
    """Share of each weight subtracted per update, times the learning rate."""


@settings
class Adafactor:
    """Adafactor: squares kept as a row and a column of each matrix (Shazeer & Stern, 2018)."""

    kind: Literal["adafactor"] = "adafactor"
    factor_from: Size = 128
    """A matrix is factored if both of its sizes are at least this."""
    decay: UnitInterval = 0.8
    """Exponent c of the decay 1 - t^-c of the mean of squares at update t."""
    clip: Positive | None = 1.0
    """Threshold of the root mean square of each parameter's update; None: no clipping."""
    relative: bool = True
    """Multiply the learning rate by the root mean square of each parameter."""
    momentum: UnitInterval | None = None
    """Decay of the mean of updates; None: no momentum."""


@settings
class Lion:
    """Lion, the sign of a mean of gradients (Chen et al., 2023)."""

    kind: Literal["lion"] = "lion"
    beta1: UnitInterval = 0.9
    """Weight of the mean against the gradient, in the sign."""
    beta2: UnitInterval = 0.99
    """Decay of the mean of gradients, per update."""
    weight_decay: NonNegative = 1e-3
    """Share of each weight subtracted per update, times the learning rate."""


@settings
class Muon:
    """Muon: orthogonalised momentum (Jordan et al., 2024) for the matrices of the hidden layers.

    The embedding, the readout and all vectors take Adam.
    """

    kind: Literal["muon"] = "muon"
    beta: UnitInterval = 0.95
    """Decay of the mean of gradients, per update."""
    nesterov: bool = True
    """Look ahead by one update (Nesterov, 1983), in Adam as well (Dozat, 2016)."""
    iterations: Size = 5
    """Newton-Schulz iterations of each orthogonalisation."""
    weight_decay: NonNegative = 0.0
    """Share of each matrix of the hidden layers subtracted per update, times the learning rate."""
    beta1: UnitInterval = 0.9
    """Adam: decay of the mean of gradients, per update."""
    beta2: UnitInterval = 0.999
    """Adam: decay of the mean of squared gradients, per update."""


@settings
class CustomOptimizer(Custom):
    """An optimizer of your own: a function (learning_rate) -> `optax.GradientTransformation`."""

    setting: ClassVar[str] = "train.optimizer"
    passed: ClassVar[tuple[str, ...]] = ("learning_rate",)


Rule = SGD | Momentum | Adam | AdamW | RMSprop | Adan | Adafactor | Lion | Muon | CustomOptimizer

Optimizer = ASGD | Rule


@settings
class Group:
    """Parameters with a learning rate, a weight decay or an optimizer of their own.

    A parameter belongs to the first group whose pattern fits its path.
    """

    pattern: str
    """Pattern of the parameters' paths, with * for any characters: `embedding.*`, `*W_hh`."""
    learning_rate: NonNegative | None = None
    """Full learning rate of these parameters; None: train.learning_rate."""
    weight_decay: NonNegative | None = None
    """L2 penalty of these parameters; None: train.weight_decay."""
    optimizer: Annotated[Rule | None, OneOf()] = None
    """Rule of these parameters; None: train.optimizer."""


@settings
class Constant:
    """A constant learning rate."""

    kind: Literal["constant"] = "constant"


@settings
class Cosine:
    """A linear warm-up from 1/`warmup_steps` of the rate, then half a cosine down (Loshchilov &
    Hutter, 2017)."""

    kind: Literal["cosine"] = "cosine"
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
    constant_epochs: Count = 4
    """Epochs at the full learning rate."""
    factor: UnitInterval = 0.5
    """Factor of the learning rate from each epoch to the next."""


@settings
class Plateau:
    """A lower learning rate whenever the validation loss has stopped falling."""

    kind: Literal["plateau"] = "plateau"
    factor: UnitInterval = 0.25
    """Factor of the learning rate at each reduction."""
    patience: PositiveCount = 1
    """Validations in a row without a new best before each reduction."""


@settings
class RangeTest:
    """A learning-rate range test: the rate rises, by the same factor at each update, from `low` to
    train.learning_rate (Smith, 2017, section 3.3, with a straight line)."""

    kind: Literal["range"] = "range"
    low: PositiveFinite = 1e-6
    """Learning rate of the first update."""
    steps: Count | None = None
    """Updates until the full learning rate; None: train.steps."""


Schedule = Constant | Cosine | Epochs | Plateau | RangeTest
