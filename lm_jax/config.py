"""Everything that can be set about a run, with its default, its unit and what it is for.

A config is a frozen value: two equal configs name the same run. A family of alternatives (models,
optimizers, schedules) is a union of classes told apart by their field `kind`. What the field types
mean to the machinery is told in `lm_jax.settings`.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field

from lm_jax.settings import (
    Adjustable,
    Count,
    Number,
    PositiveCount,
    Rate,
    Seed,
    Size,
    Weight,
    settings,
)


@settings
class Data:
    """Which text, cut into which tokens, read in which order."""

    source: Literal["builtin", "tfds", "file", "memory"] = "builtin"
    """builtin: the documentation inside CPython; tfds: a TensorFlow data set; file: files of your
    own; memory: text handed to `lm_jax.train`."""
    name: str | None = None
    """tfds: the data set, as `tiny_shakespeare` or `wiki40b/en`."""
    text_key: str | None = None
    """tfds: the feature that holds the text; None finds it."""
    train: str | None = None
    """file: path of the training text; alone, it is cut 90 / 5 / 5 into the three splits."""
    validation: str | None = None
    """file: path of the validation text."""
    test: str | None = None
    """file: path of the test text."""
    tokenizer: Literal["char", "byte", "word", "bpe"] = "char"
    """char: Unicode characters; byte: the 256 bytes of UTF-8; word: what white space separates,
    with <eos> at the end of each line; bpe: byte-pair encoding, of bytes."""
    tokenizer_file: str | None = None
    """bpe: path of a byte-level tokenizer.json; None: learnt from the training text."""
    vocabulary_size: Size | None = None
    """char, word: keep this many tokens, the most frequent, <unk> among them; None keeps all. bpe:
    make this many, the 256 bytes among them; None: 4096."""
    min_count: Size = 1
    """char, word: tokens seen less often than this in the training text become <unk>."""
    batching: Literal["streams", "sentences"] = "streams"
    """streams: each lane reads on where it stopped; sentences: each row of a batch is one line of
    text, from a fresh carry, in an order drawn anew every epoch."""
    batch_size: Size = 32
    """B, lanes or sentences read side by side."""
    length: Size = 64
    """T, tokens of each lane in one update; of sentences, where a longer one is cut."""

    def __post_init__(self) -> None:
        belongs = {"tfds": ("name", "text_key"), "file": ("train", "validation", "test")}
        for source, fields in belongs.items():
            for field in fields:
                if self.source != source and getattr(self, field) is not None:
                    raise ValueError(f"data.{field} is read only with data.source={source}")
        if self.source == "tfds" and not self.name:
            raise ValueError("data.source=tfds needs data.name, such as tiny_shakespeare")
        if self.source == "file":
            given = [field for field in belongs["file"] if getattr(self, field)]
            if given not in (["train"], ["train", "validation", "test"]):
                raise ValueError(
                    "data.source=file needs data.train alone, or data.train, data.validation and "
                    f"data.test; got {', '.join(given) or 'none of them'}"
                )
        if self.tokenizer_file is not None and self.tokenizer != "bpe":
            raise ValueError("data.tokenizer_file is read only with data.tokenizer=bpe")
        if self.tokenizer_file is not None and self.vocabulary_size is not None:
            raise ValueError(
                "data.vocabulary_size is not read with data.tokenizer_file, which says it"
            )
        if self.tokenizer == "bpe" and self.min_count != 1:
            raise ValueError("data.min_count is read only with data.tokenizer=char or word")
        if self.tokenizer == "bpe" and (self.vocabulary_size or 256) < 256:
            raise ValueError(
                f"data.vocabulary_size={self.vocabulary_size} leaves no room for the 256 bytes of "
                "data.tokenizer=bpe"
            )
        if self.tokenizer == "byte" and (self.vocabulary_size is not None or self.min_count != 1):
            raise ValueError(
                "data.vocabulary_size and data.min_count are not read with data.tokenizer=byte: "
                "there are 256 bytes"
            )
        if self.vocabulary_size is not None and self.vocabulary_size < 3:
            raise ValueError(
                f"data.vocabulary_size={self.vocabulary_size} leaves no room for a token beside "
                "<unk> and the line's end: give 3 or more"
            )


@settings
class Window:
    """The fixed-window model of Bengio et al. (2003): n - 1 tokens in, the next one out."""

    kind: Literal["window"] = "window"
    """The family of models: window or rnn. Another family brings its own flags."""
    order: Annotated[int, Field(ge=2)] = 5
    """n: the model reads the last n - 1 tokens."""
    embedding_size: Size | None = 64
    """E, the length of a token's learned vector; None: one-hot vectors."""
    hidden_size: Size = 256
    """H, units of the hidden layer."""
    activation: Literal["tanh", "sigmoid", "relu"] = "tanh"
    """The hidden layer's nonlinearity."""
    gain: Number = 1.0
    """Initial hidden weights: the standard deviation of W times the square root of its inputs."""


@settings
class RNN:
    """A recurrent model: stacked cells, unrolled over time by one scan a layer."""

    kind: Literal["rnn"] = "rnn"
    """The family of models: window or rnn. Another family brings its own flags."""
    cell: Literal["elman"] = "elman"
    """elman: h_t = f(x_t W_xh + h_{t-1} W_hh + b_h)."""
    activation: Literal["tanh", "sigmoid", "relu"] = "tanh"
    """f, the cell's nonlinearity."""
    embedding_size: Size | None = 64
    """E, the length of a token's learned vector; None: one-hot vectors."""
    hidden_size: Size = 256
    """H, units of each layer."""
    layers: Size = 1
    """Cells stacked on one another."""
    gain: Number = 1.0
    """Initial W_hh: an orthogonal matrix times this, which is every singular value then."""


@settings
class SGD:
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    """The optimizer: sgd, momentum, adam, adamw or rmsprop. Another one brings its own flags."""


@settings
class Momentum:
    """Gradient descent with momentum (Polyak, 1964)."""

    kind: Literal["momentum"] = "momentum"
    """The optimizer: sgd, momentum, adam, adamw or rmsprop. Another one brings its own flags."""
    momentum: Rate = 0.9
    """Share of the last update that is carried on."""
    nesterov: bool = False
    """Look ahead by one update (Nesterov, 1983)."""


@settings
class Adam:
    """Adam (Kingma & Ba, 2015)."""

    kind: Literal["adam"] = "adam"
    """The optimizer: sgd, momentum, adam, adamw or rmsprop. Another one brings its own flags."""
    b1: Rate = 0.9
    """Decay of the mean of gradients, per update."""
    b2: Rate = 0.999
    """Decay of the mean of squared gradients, per update."""
    eps: Number = 1e-8
    """Added to the root of the mean square."""


@settings
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"
    """The optimizer: sgd, momentum, adam, adamw or rmsprop. Another one brings its own flags."""
    b1: Rate = 0.9
    """Decay of the mean of gradients, per update."""
    b2: Rate = 0.999
    """Decay of the mean of squared gradients, per update."""
    eps: Number = 1e-8
    """Added to the root of the mean square."""
    weight_decay: Weight = 1e-4
    """Share of each weight taken away per update, times the learning rate."""


@settings
class RMSprop:
    """RMSprop (Tieleman & Hinton, 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    """The optimizer: sgd, momentum, adam, adamw or rmsprop. Another one brings its own flags."""
    decay: Rate = 0.9
    """Decay of the mean of squared gradients, per update."""
    eps: Number = 1e-8
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
class Train:
    """How the parameters are found."""

    steps: Adjustable = 2000
    """Updates in all."""
    learning_rate: Number = 0.003
    """The full learning rate; the schedule gives a share of it."""
    schedule: Annotated[Constant | Cosine | Epochs | Plateau, Field(discriminator="kind")] = (
        Constant()
    )
    optimizer: Annotated[SGD | Momentum | Adam | AdamW | RMSprop, Field(discriminator="kind")] = (
        Adam()
    )
    gradient: Literal["full", "truncated"] = "full"
    """full: backpropagation through all T steps of a chunk; truncated: an update every k1 steps,
    backpropagated k2 steps, beyond the chunk's edge where k2 > k1."""
    k1: Size | None = None
    """truncated: tokens of a lane between updates, in place of data.length; None: as that."""
    k2: Size | None = None
    """truncated: steps that the gradient goes back from each update."""
    clip_norm: Number | None = None
    """Threshold of the whole gradient's norm; None: no clipping."""
    clip_value: Number | None = None
    """Threshold of each entry of the gradient, after clip_norm; None: no clipping."""
    clip_delta: Number | None = None
    """Threshold inside backpropagation, at every time step: of the norm of the gradient of one
    sequence's summed nats with respect to one layer's state; None: no clipping."""
    validate_every: Size | None = None
    """Updates between looks at the validation split; None: an epoch's."""
    patience: Size | None = None
    """Stop after this many validations in a row without a new best; None: never."""
    keep_best: bool = True
    """End with the parameters that were best on validation, not with the last."""
    log_every: Adjustable = 100
    """Updates in a record of metrics.jsonl."""
    checkpoint_every: Adjustable = 500
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        if self.gradient == "full":
            for field in ("k1", "k2"):
                if getattr(self, field) is not None:
                    raise ValueError(f"train.{field} is read only with train.gradient=truncated")
        elif self.k2 is None:
            raise ValueError("train.gradient=truncated needs train.k2, the steps to go back")


@settings
class Config:
    """Everything that makes a run what it is."""

    data: Data = Data()
    model: Annotated[Window | RNN, Field(discriminator="kind")] = RNN()
    train: Train = Train()
    seed: Seed = 0
    """Of the initial parameters and of every other draw."""

    def __post_init__(self) -> None:
        if self.model.kind == "window":
            for field, idle in (("gradient", "full"), ("clip_delta", None)):
                if getattr(self.train, field) != idle:
                    raise ValueError(
                        f"train.{field}={getattr(self.train, field)} has no meaning with "
                        "model.kind=window: its gradient does not travel through time"
                    )
        if self.data.batching == "sentences" and self.train.gradient == "truncated":
            length = self.data.length
            whole = {"k1": self.train.k1 in (None, length), "k2": (self.train.k2 or 0) <= length}
            for field, fits in whole.items():
                if not fits:
                    raise ValueError(
                        f"train.{field}={getattr(self.train, field)} does not fit "
                        f"data.batching=sentences with data.length={length}: "
                        "a sentence is read whole, in one update"
                    )


def resolve(config: Config) -> Config:
    """The config with every field that follows another one filled in."""
    filled: dict[str, Any] = {}
    schedule = config.train.schedule
    if schedule.kind == "cosine" and schedule.steps is None:
        filled["schedule"] = dataclasses.replace(schedule, steps=config.train.steps)
    if config.train.gradient == "truncated" and config.train.k1 is None:
        filled["k1"] = config.data.length
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **filled))
