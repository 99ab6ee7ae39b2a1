"""Checks across the parts of a config; an error names the incompatible fields."""

from typing import Any

from lm_jax.config.block import NoBlock
from lm_jax.config.cell import GATED, GRU, LSTM, MLSTM, CustomCell, Gated, Mogrifier
from lm_jax.config.data import Data, Memory
from lm_jax.config.embedding import CharacterInputs, Table
from lm_jax.config.gradient import Explicit, FullBackpropagation, Online, SnAp1, Truncated
from lm_jax.config.model import (
    RNN,
    Convolution,
    Model,
    NGram,
    Window,
)
from lm_jax.config.readout import (
    NoiseContrastive,
    SampledSoftmax,
    Softmax,
)
from lm_jax.config.task import REAL, Sequences, Task
from lm_jax.config.train import LiveProbe, Train
from lm_jax.fields import fields


def check_compatibility(data: Data, model: Model, train: Train | None) -> None:
    """Refuse settings valid alone but incompatible together.

    Raises:
      ValueError: names the fields.
    """
    if isinstance(model, NGram):
        _refuse_counted(data, train)
        return
    if train is None:
        if not isinstance(data.source, Memory):  # or the model was trained elsewhere
            raise ValueError(f"model={model.kind} needs train, how it is to be trained")
        return
    if data.jitter is not None:
        _refuse_jitter(data.jitter, model, train)
    if isinstance(model, RNN):
        _refuse_through_time(model, train)
        _refuse_single_steps(data, model, train)
    else:
        _refuse_timeless(model, train)
    if isinstance(data.source, Sequences):
        _refuse_task(data.source, model, train)
    if data.batching == "sentences" or data.generated:
        _refuse_cuts(data, train)


def _refuse_counted(data: Data, train: Train | None) -> None:
    """Refuse settings without meaning for an n-gram model."""
    changed = _changed(train, Train(), "train.") if train else {}
    for path, value in changed.items():
        raise ValueError(f"{path}={value} has no meaning with model=ngram, which is counted")
    if data.batching == "sentences":
        raise ValueError(
            "data.batching=sentences is not read with model=ngram: whether a context ends with its "
            "line is told by model.sentence_boundaries"
        )
    if isinstance(data.source, Sequences):
        raise ValueError(f"model=ngram counts a text, and data.source={data.source.kind} is none")


def _changed(config: Any, default: Any, prefix: str) -> dict[str, Any]:
    """Path and value of each field with another value than in the default."""
    idle = {path: value for path, value, _ in fields(default, prefix)}
    return {
        path: value for path, value, _ in fields(config, prefix) if value != idle.get(path, value)
    }


def _refuse_timeless(model: Window | Convolution, train: Train) -> None:
    """Refuse settings of backpropagation through time for a model without recurrence."""
    changed = _changed(train.gradient, Explicit(), "train.gradient.")
    for field, value in (("omega", train.omega), ("flossing", train.flossing)):
        if value is not None:
            changed[f"train.{field}"] = value
    if isinstance(train.probe, LiveProbe):
        changed["train.probe"] = train.probe.kind
    for path, value in changed.items():
        raise ValueError(
            f"{path}={value} has no meaning with model={model.kind}: its gradient does not travel "
            "through time"
        )


def _refuse_cuts(data: Data, train: Train) -> None:
    """Refuse truncation inside a sequence or sentence: an update reads all of it."""
    gradient, length = train.gradient, data.length
    if not isinstance(gradient, Truncated):
        return
    what, one = f"data.source={data.source.kind}", "sequence"
    if data.batching == "sentences":
        what, one = "data.batching=sentences", "sentence"
    whole = {"k1": gradient.k1 in (None, length), "k2": (gradient.k2 or 0) <= length}
    for field, fits in whole.items():
        if not fits:
            raise ValueError(
                f"train.gradient.{field}={getattr(gradient, field)} does not fit {what} with "
                f"data.length={length}: a {one} is read whole, in one update"
            )


def _refuse_jitter(jitter: int, model: Model, train: Train) -> None:
    """Refuse settings that need chunks of one length."""
    probe = train.probe
    others = {
        f"model={model.kind}": not isinstance(model, RNN),
        f"train.gradient={train.gradient.kind}": not isinstance(
            train.gradient, FullBackpropagation
        ),
        f"train.feeding={train.feeding.kind}": train.feeding.kind != "teacher",
        "train.probe=live": isinstance(probe, LiveProbe),
        f"train.flossing={train.flossing}": train.flossing is not None,
        f"train.omega={train.omega}": train.omega is not None,
    }
    for setting, needs in others.items():
        if needs:
            raise ValueError(
                f"data.jitter={jitter}, which makes chunks of different lengths, does not go with "
                f"{setting}"
            )


def _refuse_through_time(model: RNN, train: Train) -> None:
    """Refuse settings of the gradient unsupported by the recurrent model."""
    if isinstance(train.gradient, Online):
        _refuse_online(model, train.gradient)
    if isinstance(train.gradient, FullBackpropagation) and train.gradient.recompute != "none":
        _refuse_segments(model, train.gradient.recompute)
    if train.omega is not None and not isinstance(model.cell, Gated):
        raise ValueError(
            f"train.omega needs a W_hh: it is read only with model.cell={' or '.join(GATED)}"
        )
    if model.recurrence != "scan" and (
        not isinstance(train.gradient, Explicit | Truncated)
        or train.gradient.clip_delta is not None
    ):
        raise ValueError(
            f"model.recurrence={model.recurrence} is read only with train.gradient=explicit or "
            "truncated, and without train.gradient.clip_delta"
        )
    if train.flossing is not None and train.flossing_exponents > min(model.sizes):
        raise ValueError(
            f"train.flossing_exponents={train.flossing_exponents} must be at most "
            f"model.hidden_size={min(model.sizes)}"
        )


def _refuse_single_steps(data: Data, model: RNN, train: Train) -> None:
    """Refuse a penalty on the change between two time steps if an update reads a single step."""
    name, steps = "data.length", data.length
    if isinstance(train.gradient, Truncated) and train.gradient.k1 is not None:
        name, steps = "train.gradient.k1", train.gradient.k1
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
            f"does not go with train.gradient.recompute={recompute}"
        )
    for name in ("inputs", "between", "outputs"):
        chance = getattr(model.dropout, name)
        if chance is not None and not model.dropout.locked:
            raise ValueError(
                f"model.dropout.{name}={chance} goes with train.gradient.recompute={recompute} "
                "only if one mask serves all steps: set model.dropout.locked"
            )


def _refuse_online(model: RNN, gradient: Online) -> None:
    """Refuse settings incompatible with a gradient carried forward in time."""
    drawn = {f"dropout.{name}": value for name, value in vars(model.dropout).items()}
    drawn.pop("dropout.locked")
    for field, value in {**drawn, "change_penalty": model.change_penalty}.items():
        if value is not None:
            raise ValueError(
                f"model.{field}={value} does not go with train.gradient={gradient.kind}, which "
                "takes every step by itself"
            )
    if isinstance(model.readout, SampledSoftmax | NoiseContrastive):
        raise ValueError(
            f"model.readout={model.readout.kind}, which draws once for all steps of an "
            f"update, does not go with train.gradient={gradient.kind}"
        )
    if isinstance(gradient, SnAp1):
        if not isinstance(model.block, NoBlock):
            raise ValueError(
                f"model.block={model.block.kind} does not go with train.gradient=snap1: it takes "
                "layers of cells alone"
            )
        cell = model.cell
        mixed = {
            ".layer_norm=True": isinstance(cell, LSTM) and cell.layer_norm,
            ".reset=before": isinstance(cell, GRU) and cell.reset == "before",
            f"={cell.kind}": isinstance(cell, CustomCell | MLSTM | Mogrifier),
        }
        for setting, is_so in mixed.items():
            if is_so:
                raise ValueError(
                    f"model.cell{setting} does not go with train.gradient=snap1: it takes a "
                    "built-in cell other than mlstm and mogrifier, without layer_norm and with "
                    "reset=after"
                )


def _refuse_task(task: Task, model: Window | Convolution | RNN, train: Train) -> None:
    """Refuse settings without meaning for a generated task."""
    name, kind = f"data.source={task.kind}", model.kind
    if train.feeding.kind != "teacher":
        raise ValueError(
            f"train.feeding={train.feeding.kind} is not read with {name}: what the model says "
            "is no input of it"
        )
    if train.sample_length is not None:
        raise ValueError(f"train.sample_length={train.sample_length} needs a text; {name} has none")
    if model.vectors is not None:
        raise ValueError(f"model.vectors is not read with {name}, whose symbols are no words")
    if isinstance(model.embedding, CharacterInputs):
        raise ValueError(
            f"model.embedding=characters is not read with {name}, whose symbols are no words"
        )
    if not isinstance(task, REAL):
        return
    if not isinstance(model, RNN):
        raise ValueError(f"{name} reads real numbers, which model={kind} does not: take model=rnn")
    if model.readout != Softmax():
        raise ValueError(f"model.readout is not read with {name}, whose target is a number")
    if not isinstance(model.embedding, Table):
        raise ValueError(
            f"model.embedding={model.embedding.kind} is not read with {name}, which has no words"
        )
    if model.dropout.embedding is not None:
        raise ValueError(f"model.dropout.embedding is not read with {name}, which has no words")
