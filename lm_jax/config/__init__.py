"""Everything that can be set about a run, with its default, its unit and what it is for.

A config is a frozen value: two equal configs name the same run. A family of alternatives (models,
readouts, optimizers, schedules) is a union of classes told apart by their field `kind`. What the
field types mean to the machinery is told in `lm_jax.settings`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from lm_jax.config.data import Data
from lm_jax.config.model import (
    GATED,
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
    refuse_misfits,
)
from lm_jax.config.train import (
    ASGD,
    ONLINE,
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Epochs,
    LiveProbe,
    Momentum,
    NoProbe,
    OwnTokens,
    Plateau,
    RMSprop,
    TeacherForcing,
    Train,
)
from lm_jax.settings import (
    VERSION,
    Seed,
    UserError,
    alternatives,
    bind,
    from_json,
    nearest,
    plain,
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
    "OwnTokens",
    "Permutation",
    "Plateau",
    "RMSprop",
    "RecurrentDropout",
    "SampledSoftmax",
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
            if self.data.batching == "sentences":
                raise ValueError(
                    "data.batching=sentences is not read with model.kind=ngram: whether a context "
                    "ends with its line is told by model.bounded"
                )
            if self.data.task is not None and self.data.drawn:
                raise ValueError(
                    f"model.kind=ngram counts a text, and data.task={self.data.task.kind} is none"
                )
            # What is not read is not there, so that it cannot make two runs of one.
            object.__setattr__(self, "train", None)
            return
        if self.train is None:
            raise ValueError(f"model.kind={self.model.kind} needs train, how it is to be trained")
        if not isinstance(self.model, RNN):
            through_time = {
                "gradient": (self.train.gradient, "explicit"),
                "clip_delta": (self.train.clip_delta, None),
                "recompute": (self.train.recompute, "none"),
                "omega": (self.train.omega, None),
                "flossing": (self.train.flossing, None),
                "probe.kind": (self.train.probe.kind, "off"),
            }
            for field, (value, idle) in through_time.items():
                if value != idle:
                    raise ValueError(
                        f"train.{field}={value} has no meaning with model.kind={self.model.kind}: "
                        "its gradient does not travel through time"
                    )
        else:
            _refuse_through_time(self.model, self.train)
        if self.data.task is not None and self.data.drawn:
            refuse_misfits(self.data.task, self.model, self.train)
        whole_text = self.data.batching == "sentences"
        if (whole_text or self.data.drawn) and self.train.gradient == "truncated":
            length = self.data.length
            what = "data.batching=sentences" if whole_text else "data.source=task"
            one = "sentence" if whole_text else "sequence"
            whole = {"k1": self.train.k1 in (None, length), "k2": (self.train.k2 or 0) <= length}
            for field, fits in whole.items():
                if not fits:
                    raise ValueError(
                        f"train.{field}={getattr(self.train, field)} does not fit "
                        f"{what} with data.length={length}: "
                        f"a {one} is read whole, in one update"
                    )


def _refuse_through_time(model: RNN, train: Train) -> None:
    """Refuses what does not fit between a recurrent model and the gradient's way through it."""
    if train.gradient in ONLINE:
        _refuse_online(model, train.gradient)
    if train.recompute != "none":
        _refuse_segments(model, train.recompute)
    if train.omega is not None and model.cell not in GATED:
        raise ValueError(
            f"train.omega needs a W_hh: it is read only with model.cell={' or '.join(GATED)}"
        )
    if train.flossing is not None and train.flossing_exponents > model.hidden_size:
        raise ValueError(
            f"train.flossing_exponents={train.flossing_exponents} must be at most "
            f"model.hidden_size={model.hidden_size}"
        )


def _refuse_segments(model: RNN, recompute: str) -> None:
    """Refuses what is not the same where a chunk is read in segments."""
    if model.change_penalty is not None:
        raise ValueError(
            f"model.change_penalty={model.change_penalty}, which looks from one step to the next, "
            f"does not go with train.recompute={recompute}"
        )
    for name in ("inputs", "between", "outputs"):
        chance = getattr(model.dropout, name)
        if chance is not None and not model.dropout.locked:
            raise ValueError(
                f"model.dropout.{name}={chance} goes with train.recompute={recompute} only where "
                "one mask serves all steps: set model.dropout.locked"
            )


def train_of(config: Config) -> Train:
    """`config.train` of a model that is trained by gradients, where it is never None."""
    if config.train is None:
        raise UserError(f"model.kind={config.model.kind} is not trained by gradients")
    return config.train


def _refuse_online(model: RNN, gradient: str) -> None:
    """Refuses what a gradient that is carried forward, step by step, cannot go with."""
    drawn = {f"dropout.{name}": value for name, value in vars(model.dropout).items()}
    drawn.pop("dropout.locked")
    for field, value in {**drawn, "change_penalty": model.change_penalty}.items():
        if value is not None:
            raise ValueError(
                f"model.{field}={value} does not go with train.gradient={gradient}, which takes "
                "every step by itself"
            )
    if isinstance(model.readout, SampledSoftmax | NoiseContrastive):
        raise ValueError(
            f"model.readout.kind={model.readout.kind}, which draws once for all steps of an "
            f"update, does not go with train.gradient={gradient}"
        )
    if gradient == "snap1" and (
        model.cell not in GATED or model.layer_norm or model.reset == "before"
    ):
        raise ValueError(
            "train.gradient=snap1 needs a cell whose gate is elementwise: model.cell=elman, lstm "
            "without model.layer_norm, or gru with model.reset=after"
        )


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
      UserError: the file of a cell of one's own, or of vectors, is not there, or not the one that
        the config says.
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
        # How many updates some epochs are is not known before the text is.
        if getattr(part, "steps", 0) is None and config.train.epochs is None:
            filled[name] = dataclasses.replace(part, steps=config.train.steps)
    if config.train.gradient == "truncated" and config.train.k1 is None:
        filled["k1"] = config.data.length
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **filled))


def in_steps(config: Config, epoch: int) -> Config:
    """The resolved config, its `train.epochs` turned into updates; `epoch` updates make one."""
    train = train_of(config)
    if train.epochs is None:
        return config
    known = dataclasses.replace(train, steps=train.epochs * epoch, epochs=None)
    config = resolve(dataclasses.replace(config, train=known))
    train = dataclasses.replace(train_of(config), epochs=train.epochs)
    return dataclasses.replace(config, train=train)


def with_kind(config: Config, kinds: Mapping[str, str]) -> Config:
    """The config with other alternatives at some paths, {"model": "window"}, unchecked.

    An alternative that was not there comes with its defaults, and one that was stays as it is. A
    counted model is not trained, and any other is.
    """
    # The model before its readout, in whatever order they are given.
    for path, kind in sorted(kinds.items(), key=lambda item: item[0].count(".")):
        known = alternatives(Config, path)
        if kind not in known:
            raise UserError(f"{path}.kind={kind!r}: choose from {', '.join(known)}")
        there: Any = config
        *parents, name = path.split(".")
        for parent in parents:
            there = getattr(there, parent, None)
        if there is None or not hasattr(there, name):
            raise UserError(f"there is no field {path}.kind")
        there = getattr(there, name)
        if there is None or there.kind != kind:
            config = bind(config, {path: known[kind]()})
        if path == "model":
            train = None if kind == "ngram" else config.train or Train()
            config = bind(config, {"train": train})
    return config


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with other values at some dotted paths: {"model.cell": "lstm", "seed": 3}.

    Where a `kind` is changed, the other fields at that place are those of the new kind by default,
    before the changes at them are made. `None` switches a field off.

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
            raise UserError(f"there is no field {path}{nearest(path, _paths(values))}")
        place[name] = plain(value)
    return from_json(Config, json.dumps({"version": VERSION, **values}), "the changed config")


def _is_kind(path: str) -> bool:
    return path.endswith(".kind")


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name
