"""Helpers of several commands."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import tyro

import lm_jax
from lm_jax.data.text import Text, file_text
from lm_jax.settings import UserError

Way = TypeVar("Way")
SAMPLE_LENGTH = 300  # tokens of a sample, if no length is given

Flag = tyro.conf.FlagCreatePairsOff[bool]
ExperimentName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
RunDir = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
TextFile = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TEXT")]


def divide_cpu(devices: int) -> None:
    """Divide the CPU into `devices` JAX devices; no effect after JAX's first computation."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)


def reading_text(run_dir: Path) -> lm_jax.Run:
    """Load a run; refuse a run on a task, without text."""
    run = lm_jax.load_run(run_dir)
    run.vocabulary.boundary  # noqa: B018 - raises for the vocabulary of a task
    return run


def text_of(run: lm_jax.Run, file: Path) -> Text:
    """Open a file as a text for a run's model; any bytes if the tokenizer is "byte"."""
    return file_text(str(file), str(file), any_bytes=run.vocabulary.tokenizer == "byte")


def mixed(run: lm_jax.Run, other: Path | None, weight: float | None) -> lm_jax.Run:
    """Replace a run's model by a mixture with another run's model, if `other` is given."""
    if other is None:
        return run
    weight = 0.5 if weight is None else weight
    if not 0 <= weight <= 1:
        raise UserError(f"--mix-weight={weight} must be from 0 to 1")
    beside = lm_jax.load_run(other)
    if beside.vocabulary != run.vocabulary:
        raise UserError(f"--mix={other} has another vocabulary than {run.path}")
    model = lm_jax.models.Mixture(run.model, beside.model, weight)
    return run._replace(model=model, params=(run.params, beside.params))


def by_ending(file: Path, ways: Mapping[str, Way]) -> Way:
    """The way for the ending of a file's name; the ending "" is a folder's."""
    ending = next((end for end in ways if end and file.name.endswith(end)), file.suffix)
    if ending not in ways:
        known = [f"end in {end}" if end else "have no ending, as a folder" for end in ways]
        raise UserError(f"{file}: the name must {' or '.join(known)}")
    return ways[ending]


def only_with(flag: str, value: Any, **given: Any) -> None:
    """Refuse the `given` flags if `flag` itself is not given."""
    for name, asked in given.items():
        if value is None and asked is not None:
            raise UserError(f"--{name} is read only with {flag}")


def either(**given: bool) -> None:
    """Refuse two switches that contradict each other."""
    asked = [name for name, value in given.items() if value]
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} do not go together")


def at_least(least: int, **given: int | None) -> None:
    """Refuse flags whose numbers are too small."""
    for name, number in given.items():
        if number is not None and number < least:
            raise UserError(f"--{name}={number} must be {least} or more")


def filled(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Merge `defaults` with the given values that are not None."""
    asked = {name: value for name, value in given.items() if value is not None}
    return {**defaults, **asked}
