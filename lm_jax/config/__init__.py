"""Everything that can be set about a run, with its default, its unit and what it is for.

A config is a frozen value: two equal configs name the same run. A family of alternatives (models,
readouts, optimizers, schedules) is a union of classes told apart by their field `kind`. What the
field types mean to the machinery is told in `lm_jax.settings`.
"""

import dataclasses
from typing import Annotated, Any

from pydantic import Field

from lm_jax.config.data import Data
from lm_jax.config.model import (
    RNN,
    AdaptiveSoftmax,
    Convolution,
    Dropout,
    Network,
    NGram,
    NoiseContrastive,
    RecurrentDropout,
    SampledSoftmax,
    Softmax,
    Window,
)
from lm_jax.config.source import sha256_of
from lm_jax.config.train import (
    ASGD,
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Epochs,
    Momentum,
    OwnTokens,
    Plateau,
    RMSprop,
    TeacherForcing,
    Train,
)
from lm_jax.settings import Seed, UserError, settings

__all__ = [
    "ASGD",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveSoftmax",
    "Config",
    "Constant",
    "Convolution",
    "Cosine",
    "Data",
    "Dropout",
    "Epochs",
    "Model",
    "Momentum",
    "NGram",
    "Network",
    "NoiseContrastive",
    "OwnTokens",
    "Plateau",
    "RMSprop",
    "RecurrentDropout",
    "SampledSoftmax",
    "Softmax",
    "TeacherForcing",
    "Train",
    "Window",
    "resolve",
    "train_of",
]

Model = Window | Convolution | RNN | NGram


@settings
class Config:
    """Everything that makes a run what it is."""

    data: Data = Data()
    model: Annotated[Model, Field(discriminator="kind")] = RNN()
    train: Train | None = Train()
    seed: Seed = 0
    """Of the initial parameters and of every other draw."""

    def __post_init__(self) -> None:
        if isinstance(self.model, NGram):
            changed = dict(_changed(self.train)) if self.train else {}
            for field, value in changed.items():
                raise ValueError(
                    f"train.{field}={value} has no meaning with model.kind=ngram, which is counted"
                )
            # What is not read is not there, so that it cannot make two runs of one.
            object.__setattr__(self, "train", None)
            return
        if self.train is None:
            raise ValueError(f"model.kind={self.model.kind} needs train, how it is to be trained")
        if not isinstance(self.model, RNN):
            for field, idle in (("gradient", "full"), ("clip_delta", None)):
                if getattr(self.train, field) != idle:
                    raise ValueError(
                        f"train.{field}={getattr(self.train, field)} has no meaning with model.kind"
                        f"={self.model.kind}: its gradient does not travel through time"
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


def train_of(config: Config) -> Train:
    """`config.train` of a model that is trained by gradients, where it is never None."""
    if config.train is None:
        raise UserError(f"model.kind={config.model.kind} is not trained by gradients")
    return config.train


def _changed(train: Train) -> list[tuple[str, Any]]:
    """The fields that are not as they are by default."""
    return [
        (field.name, getattr(train, field.name))
        for field in dataclasses.fields(train)
        if getattr(train, field.name) != field.default
    ]


def resolve(config: Config) -> Config:
    """The config with every field that follows another one filled in.

    Raises:
      UserError: the file of a cell of one's own is not there, or not the one that the config says.
    """
    if isinstance(config.model, RNN) and ":" in config.model.cell:
        found = sha256_of(config.model.cell, config.model.cell_sha256)
        model = dataclasses.replace(config.model, cell_sha256=found)
        config = dataclasses.replace(config, model=model)
    if config.train is None:
        return config
    filled: dict[str, Any] = {}
    for name in ("schedule", "feeding"):
        part = getattr(config.train, name)
        if getattr(part, "steps", 0) is None:
            filled[name] = dataclasses.replace(part, steps=config.train.steps)
    if config.train.gradient == "truncated" and config.train.k1 is None:
        filled["k1"] = config.data.length
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **filled))
