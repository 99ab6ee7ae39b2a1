"""All settings of a run, with defaults, units and purpose.

A config is a frozen value: two equal configs name the same run. A family of alternatives (models,
readouts, optimizers, schedules) is a union of classes, distinguished by the field `kind`.
`lm_jax.settings` explains the field types.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

from lm_jax import files
from lm_jax.config import custom
from lm_jax.config.cell import GRU, LRU, LSTM, Cell, CustomCell, Elman, Gated, MinGRU, MinLSTM
from lm_jax.config.compatibility import check_compatibility
from lm_jax.config.custom import Custom
from lm_jax.config.data import BPE, TFDS, Builtin, Byte, Char, Data, File, Memory, Word
from lm_jax.config.gradient import ARTBP, RTRL, UORO, Explicit, Full, Gradient, SnAp1, Truncated
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
from lm_jax.config.optimizer import (
    ASGD,
    SGD,
    Adafactor,
    Adam,
    AdamW,
    Adan,
    Constant,
    Cosine,
    CustomOptimizer,
    Epochs,
    Group,
    Lion,
    Momentum,
    Muon,
    Optimizer,
    Plateau,
    RMSprop,
)
from lm_jax.config.task import (
    Adding,
    Copy,
    Markov,
    Memorisation,
    Multiplication,
    Permutation,
    Sequences,
    Task,
    TemporalOrder,
)
from lm_jax.config.train import LiveProbe, NoProbe, ScheduledSampling, TeacherForcing, Train
from lm_jax.fields import CODE, OneOf, Seed, alternatives, fields, paths, replace_at, types_at
from lm_jax.settings import VERSION, UserError, from_json, plain, settings, to_json
from lm_jax.suggestions import nearest_field, nearest_value

__all__ = [
    "ARTBP",
    "ASGD",
    "BPE",
    "GRU",
    "LRU",
    "LSTM",
    "RNN",
    "RTRL",
    "SGD",
    "TFDS",
    "UORO",
    "Adafactor",
    "Adam",
    "AdamW",
    "Adan",
    "AdaptiveSoftmax",
    "Adding",
    "Builtin",
    "Byte",
    "Cell",
    "Char",
    "Config",
    "Constant",
    "Convolution",
    "Copy",
    "Cosine",
    "Custom",
    "CustomCell",
    "CustomOptimizer",
    "Data",
    "Dropout",
    "Elman",
    "Epochs",
    "Explicit",
    "File",
    "Full",
    "Gated",
    "Gradient",
    "Group",
    "Lion",
    "LiveProbe",
    "Markov",
    "Memorisation",
    "Memory",
    "MinGRU",
    "MinLSTM",
    "Model",
    "Momentum",
    "Multiplication",
    "Muon",
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
    "Sequences",
    "SnAp1",
    "Softmax",
    "Task",
    "TeacherForcing",
    "TemporalOrder",
    "Train",
    "Truncated",
    "Window",
    "Word",
    "code_in",
    "in_steps",
    "override",
    "resolve",
    "train_of",
    "with_kinds",
]


@settings
class Config:
    """All settings that define a run."""

    data: Data = Data()
    model: Annotated[Model, OneOf()] = RNN()
    """Family of models."""
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
        raise UserError(f"model={config.model.kind} is not trained by gradients")
    return config.train


def resolve(config: Config) -> Config:
    """Fill in every field of a config implied by other fields or by a file.

    Raises:
      UserError: the file of a custom cell or optimizer, or of vectors, is missing, or has another
        SHA-256 than the config.
    """
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


def with_kinds(config: Config, kinds: Mapping[str, Any]) -> Config:
    """Choose other alternatives at some paths, {"model": "window"}, without checking the config.

    A new alternative has the default values; an alternative that was already chosen keeps its
    values. The n-gram model has `train` None, and any other model has a `Train`. At
    `train.groups`, the patterns of the groups are chosen.

    Raises:
      UserError: a path names no field with alternatives, or a kind is unknown.
    """
    # Shorter paths first: the model before its readout.
    for path, kind in sorted(kinds.items(), key=lambda item: item[0].count(".")):
        parent, _, name = path.rpartition(".")
        place = _at(config, parent)
        if not hasattr(place, name):
            raise UserError(f"there is no field {path}{read_with(config, path)}")
        there = getattr(place, name)
        if path == "train.groups":
            config = replace_at(config, path, _groups(there, kind))
        elif there is None or there.kind != kind:
            config = replace_at(config, path, _alternative(path, kind))
        if path == "model":
            train = None if kind == "ngram" else config.train or Train()
            config = replace_at(config, "train", train)
    return config


def _at(config: Any, path: str) -> Any:
    """The part of a config at a dotted path; None if there is none."""
    for name in filter(None, path.split(".")):
        if isinstance(config, tuple):
            config = config[int(name)] if name.isdigit() and int(name) < len(config) else None
        else:
            config = getattr(config, name, None)
    return config


def _alternative(path: str, kind: Any) -> Any:
    """The alternative of a kind, with its default values."""
    known = alternatives(Config, path)
    if kind is None and type(None) in types_at(Config, path):
        return None
    if isinstance(kind, str) and ":" in kind and CODE in known:
        return custom.resolved(known[CODE](kind=kind))
    if not isinstance(kind, str) or kind not in known:
        near = nearest_value(path, kind, known)
        raise UserError(f"{path}={kind!r}: choose from {', '.join(known)}{near}")
    return known[kind]()


def _groups(there: tuple[Group, ...], patterns: Any) -> tuple[Group, ...]:
    if patterns is None:
        return ()
    if not isinstance(patterns, list | tuple) or not all(isinstance(one, str) for one in patterns):
        raise UserError(f"train.groups={patterns!r} must be a list of patterns")
    known = {group.pattern: group for group in there}
    return tuple(known.get(pattern, Group(pattern)) for pattern in patterns)


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Change a config at some dotted paths: {"model.cell": "lstm", "model.cell.forget_bias": 0.5}.

    The path of an alternative takes its kind, and a new kind first resets the other fields at its
    place to their defaults; the other changes follow. `train.groups` takes the groups' patterns.
    `None` switches a field off.

    Raises:
      UserError: a path names no field, or the values do not fit; names the field.
    """
    chosen = {path for path in changes if path == "train.groups" or alternatives(Config, path)}
    config = with_kinds(config, {path: changes[path] for path in chosen})
    values = json.loads(to_json(config))
    values.pop("version")
    for path, value in changes.items():
        if path in chosen:
            continue
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            if isinstance(place, list):
                place = dict(zip(map(str, range(len(place))), place, strict=True))
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict) and name not in place:
            place = place.get("arguments")  # of the user's own code
        if not isinstance(place, dict) or name not in place:
            known = [*paths(Config), *(path for path, _, _ in fields(config))]
            near = read_with(config, path) or nearest_field(path, known)
            raise UserError(f"there is no field {path}{near}")
        place[name] = plain(value)
    return from_json(Config, json.dumps({"version": VERSION, **values}), "the changed config")


def read_with(config: Config, path: str) -> str:
    """Name the alternatives that have a field missing from the config.

    Args:
      config: the config.
      path: dotted path of the field.

    Returns:
      a phrase for an error, empty if no alternative has the field:
      " with model=rnn: it is read with model=window or ngram".
    """
    found = paths(Config).get(path, ())
    there = {place: value for place, value, _ in fields(config)}
    if config.train is None and path.startswith("train."):
        return f" with model={config.model.kind}, which is not trained by gradients"
    if path.startswith("train.groups.") and _at(config, ".".join(path.split(".")[:3])) is None:
        return f": train.groups lists {len(train_of(config).groups)} patterns"
    for place in dict.fromkeys(place for needs in found for place, _ in needs):
        kinds = dict.fromkeys(kind for needs in found for at, kind in needs if at == place)
        if there.get(place) not in kinds:
            here = f" with {place}={there[place]}" if place in there else ""
            return f"{here}: it is read with {place}={' or '.join(kinds)}"
    return ""
