"""The config of a run, and the fields that other fields or a file imply."""

import dataclasses
from typing import Annotated, Any

from lm_jax import files
from lm_jax.config import custom
from lm_jax.config.compatibility import check_compatibility
from lm_jax.config.custom import Custom
from lm_jax.config.data import Data
from lm_jax.config.gradient import Truncated
from lm_jax.config.layouts import with_tokens
from lm_jax.config.model import (
    RNN,
    Model,
    Network,
    NGram,
)
from lm_jax.config.train import Train
from lm_jax.fields import OneOf, Seed, replace_at
from lm_jax.settings import UserError, settings


@settings
class Config:
    """All settings that define a run."""

    data: Data = Data()
    model: Annotated[Model, OneOf()] = RNN()
    """Family of models."""
    train: Train | None = Train()
    """None: the model is counted, or was trained elsewhere (`data.source=memory`)."""
    seed: Seed = 0
    """Seed of the initial parameters and of every other draw."""

    def __post_init__(self) -> None:
        check_compatibility(self.data, self.model, self.train)
        if isinstance(self.model, NGram):
            # An n-gram model ignores `train`: drop it, or equal runs could differ in config.
            object.__setattr__(self, "train", None)


def train_of(config: Config) -> Train:
    """Return `config.train`, never None.

    Raises:
      UserError: the model is not trained by gradients, or was trained elsewhere.
    """
    if config.train is None and not isinstance(config.model, NGram):
        raise UserError(f"train=None: this model={config.model.kind} was trained elsewhere")
    if config.train is None:
        raise UserError(f"model={config.model.kind} is not trained by gradients")
    return config.train


def resolve(config: Config) -> Config:
    """Fill in every field of a config implied by other fields or by a file.

    Raises:
      UserError: the file of a custom cell or optimizer, or of vectors, is missing, or has another
        SHA-256 than the config; or the usual tokens of the text cannot be told.
    """
    config = dataclasses.replace(config, data=with_tokens(config.data))
    for path, code in code_in(config).items():
        config = replace_at(config, path, custom.resolved(code))
    if isinstance(config.model, Network) and config.model.vectors is not None:
        path, then = config.model.vectors, config.model.vectors_sha256
        found = files.sha256_of_file(path, f"model.vectors={path}")
        files.refuse_changed("model.vectors", path, then, found)
        config = replace_at(config, "model.vectors_sha256", found)
    train = config.train
    if train is None:
        return config
    for name in ("schedule", "feeding"):
        # With `epochs`, the number of updates depends on the text: `in_steps` fills it in.
        if getattr(getattr(train, name), "steps", 0) is None and train.epochs is None:
            config = replace_at(config, f"train.{name}.steps", train.steps)
    if isinstance(train.gradient, Truncated) and train.gradient.k1 is None:
        config = replace_at(config, "train.gradient.k1", config.data.length)
    return config


def code_in(config: Config) -> dict[str, Custom]:
    """Return the user's own code named by a config, by the path of the setting."""
    found: dict[str, Any] = {"model.cell": getattr(config.model, "cell", None)}
    if config.train is not None:
        found["train.optimizer"] = config.train.optimizer
        for number, group in enumerate(config.train.groups):
            found[f"train.groups.{number}.optimizer"] = group.optimizer
    return {path: code for path, code in found.items() if isinstance(code, Custom)}


def in_steps(config: Config, steps_per_epoch: int) -> Config:
    """Resolve a config, with `train.steps` computed from `train.epochs`.

    Args:
      config: a config with a `train`; without `train.epochs`, returned unchanged.
      steps_per_epoch: number of updates of an epoch.
    """
    train = train_of(config)
    if train.epochs is None:
        return config
    known = dataclasses.replace(train, steps=train.epochs * steps_per_epoch, epochs=None)
    config = resolve(dataclasses.replace(config, train=known))
    train = dataclasses.replace(train_of(config), epochs=train.epochs)
    return dataclasses.replace(config, train=train)
