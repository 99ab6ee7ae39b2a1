"""Checks across the parts of a config; an error names the incompatible fields."""

import dataclasses
from typing import Any

from lm_jax.config.data import Data
from lm_jax.config.model import (
    GATED,
    RNN,
    Convolution,
    Model,
    NGram,
    NoiseContrastive,
    SampledSoftmax,
    Softmax,
    Window,
)
from lm_jax.config.task import REAL, Sequences, Task
from lm_jax.config.train import ONLINE, Train


def check_compatibility(data: Data, model: Model, train: Train | None) -> None:
    """Refuse settings valid alone but incompatible together.

    Raises:
      ValueError: names the fields.
    """
    if isinstance(model, NGram):
        _refuse_counted(data, train)
        return
    if train is None:
        raise ValueError(f"model.kind={model.kind} needs train, how it is to be trained")
    if isinstance(model, RNN):
        _refuse_through_time(model, train)
        _refuse_single_steps(data, model, train)
    else:
        _refuse_timeless(model, train)
    if isinstance(data.task, Sequences):
        _refuse_task(data.task, model, train)
    if data.batching == "sentences" or data.generated:
        _refuse_cuts(data, train)


def _refuse_counted(data: Data, train: Train | None) -> None:
    """Refuse settings without meaning for an n-gram model."""
    changed = dict(_changed(train)) if train else {}
    for field, value in changed.items():
        raise ValueError(
            f"train.{field}={value} has no meaning with model.kind=ngram, which is counted"
        )
    if data.batching == "sentences":
        raise ValueError(
            "data.batching=sentences is not read with model.kind=ngram: whether a context "
            "ends with its line is told by model.bounded"
        )
    if isinstance(data.task, Sequences):
        raise ValueError(f"model.kind=ngram counts a text, and data.task={data.task.kind} is none")


def _changed(train: Train) -> list[tuple[str, Any]]:
    """Return name and value of each field with a value other than its default."""
    return [
        (field.name, getattr(train, field.name))
        for field in dataclasses.fields(train)
        if getattr(train, field.name) != field.default
    ]


def _refuse_timeless(model: Window | Convolution, train: Train) -> None:
    """Refuse settings of backpropagation through time for a model without recurrence."""
    through_time = {
        "gradient": (train.gradient, "explicit"),
        "clip_delta": (train.clip_delta, None),
        "recompute": (train.recompute, "none"),
        "omega": (train.omega, None),
        "flossing": (train.flossing, None),
        "probe.kind": (train.probe.kind, "off"),
    }
    for field, (value, idle) in through_time.items():
        if value != idle:
            raise ValueError(
                f"train.{field}={value} has no meaning with model.kind={model.kind}: "
                "its gradient does not travel through time"
            )


def _refuse_cuts(data: Data, train: Train) -> None:
    """Refuse truncation inside a sequence or sentence: an update reads all of it."""
    if train.gradient != "truncated":
        return
    length = data.length
    what, one = "data.source=task", "sequence"
    if data.batching == "sentences":
        what, one = "data.batching=sentences", "sentence"
    whole = {"k1": train.k1 in (None, length), "k2": (train.k2 or 0) <= length}
    for field, fits in whole.items():
        if not fits:
            raise ValueError(
                f"train.{field}={getattr(train, field)} does not fit {what} with "
                f"data.length={length}: a {one} is read whole, in one update"
            )


def _refuse_through_time(model: RNN, train: Train) -> None:
    """Refuse settings of the gradient unsupported by the recurrent model."""
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


def _refuse_single_steps(data: Data, model: RNN, train: Train) -> None:
    """Refuse a penalty on the change between two time steps if an update reads a single step."""
    name, steps = ("data.length", data.length) if train.k1 is None else ("train.k1", train.k1)
    if model.change_penalty is not None and steps == 1 and not data.generated:
        raise ValueError(
            f"model.change_penalty={model.change_penalty} looks from one step to the next, and "
            f"{name}=1 has no two in an update"
        )


def _refuse_segments(model: RNN, recompute: str) -> None:
    """Refuse settings incompatible with computing a chunk in segments."""
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


def _refuse_online(model: RNN, gradient: str) -> None:
    """Refuse settings incompatible with a gradient carried forward in time."""
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
    if gradient == "snap1":
        mixed = {
            "layer_norm=True": model.layer_norm,
            "reset=before": model.reset == "before",
            f"cell={model.cell}": ":" in model.cell,
        }
        for setting, is_so in mixed.items():
            if is_so:
                raise ValueError(
                    f"model.{setting} does not go with train.gradient=snap1: it takes a built-in "
                    "cell, without model.layer_norm and with model.reset=after"
                )


def _refuse_task(task: Task, model: Window | Convolution | RNN, train: Train) -> None:
    """Refuse settings without meaning for a generated task."""
    name, kind = f"data.task={task.kind}", model.kind
    if train.feeding.kind != "teacher":
        raise ValueError(
            f"train.feeding.kind={train.feeding.kind} is not read with {name}: what the model says "
            "is no input of it"
        )
    if model.vectors is not None:
        raise ValueError(f"model.vectors is not read with {name}, whose symbols are no words")
    if not isinstance(task, REAL):
        return
    if not isinstance(model, RNN):
        raise ValueError(
            f"{name} reads real numbers, which model.kind={kind} does not: take model.kind=rnn"
        )
    if model.readout != Softmax():
        raise ValueError(f"model.readout is not read with {name}, whose target is a number")
    if model.dropout.words is not None:
        raise ValueError(f"model.dropout.words is not read with {name}, which has no words")
