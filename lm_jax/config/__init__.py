"""All settings of a run, with defaults, units and purpose.

A config is a frozen value: two equal configs name the same run. A family of alternatives (models,
readouts, optimizers, schedules) is a union of classes, distinguished by the field `kind`.
`lm_jax.settings` explains the field types.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from lm_jax.config.compatibility import check_compatibility
from lm_jax.config.data import Data
from lm_jax.config.model import (
    RNN,
    AdaptiveSoftmax,
    Convolution,
    Dropout,
    Model,
    Network,
    NGram,
    NoiseContrastive,
    RecurrentDropout,
    SampledSoftmax,
    Softmax,
    Window,
)
from lm_jax.config.source import sha256_of, sha256_of_vectors
from lm_jax.config.task import (
    Adding,
    Copy,
    Markov,
    Memorisation,
    Multiplication,
    Permutation,
    Task,
    TemporalOrder,
)
from lm_jax.config.train import (
    ASGD,
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Epochs,
    LiveProbe,
    Momentum,
    NoProbe,
    Optimizer,
    Plateau,
    RMSprop,
    ScheduledSampling,
    TeacherForcing,
    Train,
)
from lm_jax.settings import (
    VERSION,
    Seed,
    UserError,
    alternatives,
    fields,
    from_json,
    nearest_field,
    nearest_value,
    paths,
    plain,
    replace_at,
    settings,
    to_json,
)

__all__ = [
    "ASGD",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveSoftmax",
    "Adding",
    "Config",
    "Constant",
    "Convolution",
    "Copy",
    "Cosine",
    "Data",
    "Dropout",
    "Epochs",
    "LiveProbe",
    "Markov",
    "Memorisation",
    "Model",
    "Momentum",
    "Multiplication",
    "NGram",
    "Network",
    "NoProbe",
    "NoiseContrastive",
    "Optimizer",
    "Permutation",
    "Plateau",
    "RMSprop",
    "RecurrentDropout",
    "SampledSoftmax",
    "ScheduledSampling",
    "Softmax",
    "Task",
    "TeacherForcing",
    "TemporalOrder",
    "Train",
    "Window",
    "in_steps",
    "override",
    "resolve",
    "train_of",
    "with_kind",
]


@settings
class Config:
    """All settings that define a run."""

    data: Data = Data()
    model: Annotated[Model, Field(discriminator="kind")] = RNN()
    train: Train | None = Train()
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
      UserError: the model is not trained by gradients.
    """
    if config.train is None:
        raise UserError(f"model.kind={config.model.kind} is not trained by gradients")
    return config.train


def resolve(config: Config) -> Config:
    """Fill in every field of a config implied by other fields or by a file.

    Raises:
      UserError: the file of a custom cell, or of vectors, is missing, or has another SHA-256 than
        the config.
    """
    data = dataclasses.replace(config.data, source=config.data.origin)
    config = dataclasses.replace(config, data=data)
    if isinstance(config.model, RNN) and ":" in config.model.cell:
        found = sha256_of(config.model.cell, config.model.cell_sha256)
        model = dataclasses.replace(config.model, cell_sha256=found)
        config = dataclasses.replace(config, model=model)
    if isinstance(config.model, Network) and config.model.vectors is not None:
        found = sha256_of_vectors(config.model.vectors, config.model.vectors_sha256)
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, vectors_sha256=found)
        )
    if config.train is None:
        return config
    filled: dict[str, Any] = {}
    for name in ("schedule", "feeding"):
        part = getattr(config.train, name)
        # With `epochs`, the number of updates depends on the text: `in_steps` fills it in.
        if getattr(part, "steps", 0) is None and config.train.epochs is None:
            filled[name] = dataclasses.replace(part, steps=config.train.steps)
    if config.train.gradient == "truncated" and config.train.k1 is None:
        filled["k1"] = config.data.length
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **filled))


def in_steps(config: Config, epoch: int) -> Config:
    """Resolve a config, with `train.steps` computed from `train.epochs`.

    Args:
      config: a config with a `train`; without `train.epochs`, returned unchanged.
      epoch: updates of an epoch.
    """
    train = train_of(config)
    if train.epochs is None:
        return config
    known = dataclasses.replace(train, steps=train.epochs * epoch, epochs=None)
    config = resolve(dataclasses.replace(config, train=known))
    train = dataclasses.replace(train_of(config), epochs=train.epochs)
    return dataclasses.replace(config, train=train)


def with_kind(config: Config, kinds: Mapping[str, str]) -> Config:
    """Choose other alternatives at some paths, {"model": "window"}, without checking the config.

    A new alternative has the default values; an alternative that was already chosen keeps its
    values. The n-gram model has `train` None, and any other model has a `Train`.

    Raises:
      UserError: a path names no field with alternatives, or a kind is unknown.
    """
    # Shorter paths first: the model before its readout.
    for path, kind in sorted(kinds.items(), key=lambda item: item[0].count(".")):
        known = alternatives(Config, path)
        if kind not in known:
            near = nearest_value(f"{path}.kind", kind, known)
            raise UserError(f"{path}.kind={kind!r}: choose from {', '.join(known)}{near}")
        there: Any = config
        *parents, name = path.split(".")
        for parent in parents:
            there = getattr(there, parent, None)
        if there is None or not hasattr(there, name):
            raise UserError(f"there is no field {path}.kind")
        there = getattr(there, name)
        if there is None or there.kind != kind:
            config = replace_at(config, path, known[kind]())
        if path == "model":
            train = None if kind == "ngram" else config.train or Train()
            config = replace_at(config, "train", train)
    return config


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Change a config at some dotted paths: {"model.cell": "lstm", "seed": 3}.

    A new `kind` first resets the other fields at its place to the defaults of the new kind; the
    other changes follow. `None` switches a field off.

    Raises:
      UserError: a path names no field, or the values do not fit; names the field.
    """
    kinds = {path.removesuffix(".kind"): kind for path, kind in changes.items() if _is_kind(path)}
    values = json.loads(to_json(with_kind(config, kinds)))
    values.pop("version")
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or name not in place:
            near = read_with(config, path) or nearest_field(path, Config)
            raise UserError(f"there is no field {path}{near}")
        place[name] = plain(value)
    return from_json(Config, json.dumps({"version": VERSION, **values}), "the changed config")


def _is_kind(path: str) -> bool:
    return path.endswith(".kind")


def read_with(config: Config, path: str) -> str:
    """Name the alternatives that have a field missing from the config.

    Args:
      config: the config.
      path: dotted path of the field.

    Returns:
      a phrase for an error, empty if no alternative has the field:
      " with model.kind=rnn: it is read with model.kind=window or ngram".
    """
    found = paths(Config).get(path, ())
    there = {place: value for place, value, _ in fields(config) if _is_kind(place)}
    for place in dict.fromkeys(f"{place}.kind" for needs in found for place, _ in needs):
        kinds = dict.fromkeys(
            kind for needs in found for at, kind in needs if f"{at}.kind" == place
        )
        if there.get(place) not in kinds:
            here = f" with {place}={there[place]}" if place in there else ""
            return f"{here}: it is read with {place}={' or '.join(kinds)}"
    if found and config.train is None:
        return f" with model.kind={config.model.kind}, which is not trained by gradients"
    return ""
