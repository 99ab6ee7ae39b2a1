"""Helpers of several commands."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import tyro

import lm_jax
from lm_jax import scoring
from lm_jax.config import Memory
from lm_jax.data.corpus import Corpus, load
from lm_jax.data.text import Text, file_text
from lm_jax.report.terminal import say
from lm_jax.settings import UserError
from lm_jax.training import directory
from lm_jax.training.evaluator import Evaluator

Way = TypeVar("Way")
SAMPLE_LENGTH = 300  # tokens of a sample, if no length is given
FIT = "fit"  # --mix-weight

Flag = tyro.conf.FlagCreatePairsOff[bool]
ExperimentName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
RunDir = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
Words = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
"""Values of a flag that takes several at a time, and may be given several times."""
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


def mixed(run: lm_jax.Run, other: Path | None, weight: str | None) -> lm_jax.Run:
    """Replace a run's model by a mixture with another run's model, if `other` is given.

    A line on standard error tells a weight that is no number of the user's.

    Args:
      run: the run.
      other: the other run's directory.
      weight: the flag --mix-weight: a number, "fit" or None.
    """
    if other is None:
        return run
    number = 0.5 if weight is None else _number(weight)
    if weight != FIT and not 0 <= number <= 1:
        raise UserError(f"--mix-weight={weight} must be from 0 to 1, or {FIT}")
    beside = lm_jax.load_run(other)
    if beside.vocabulary != run.vocabulary:
        raise UserError(f"--mix={other} has another vocabulary than {run.path}")
    if weight is None:
        say(f"mixed half and half; --mix-weight {FIT} fits the weight to the validation text")
    elif weight == FIT:
        number = _fitted(run, beside)
        say(f"--mix-weight {number:.4f} gives the validation text of {run.path} the fewest nats")
    model = lm_jax.models.Mixture(run.model, beside.model, number)
    return run._replace(model=model, params=(run.params, beside.params))


def by_ending(file: Path, ways: Mapping[str, Way]) -> Way:
    """The way for the ending of a file's name; the ending "" is a folder's."""
    ending = next((end for end in ways if end and file.name.endswith(end)), file.suffix)
    if ending not in ways:
        known = f"end in {' or '.join(filter(None, ways))}"
        folder = ", or have no ending, as a folder" if "" in ways else ""
        raise UserError(f"{file}: the name must {known}{folder}")
    return ways[ending]


def _number(typed: str) -> float:
    """The number that a flag gives; NaN for anything else."""
    try:
        return float(typed)
    except ValueError:
        return math.nan


def _fitted(run: lm_jax.Run, beside: lm_jax.Run) -> float:
    """The weight of the first of two models that fits the first run's validation text best."""
    data = run.config.data
    corpus = corpus_of(run, f"--mix-weight={FIT} reads the validation text")
    judge = Evaluator(data, corpus, data.length, lambda: False)
    trained = (run.model, run.params, beside.model, beside.params)
    try:
        return scoring.fitted_weight(*trained, judge.reading("validation"))
    except ValueError as error:
        raise UserError(f"--mix-weight={FIT}: {error}") from None


def corpus_of(run: lm_jax.Run, reads: str) -> Corpus:
    """The text of a run, the same as in training.

    Args:
      run: the run.
      reads: beginning of the error if the run has not kept the text.

    Raises:
      UserError: the run's text was in memory, or has changed since.
    """
    if isinstance(run.config.data.source, Memory):
        raise UserError(f"{reads}, which a run of data.source=memory has not kept")
    corpus = load(run.config.data)
    directory.known(run.path, run.config, corpus.digest)
    return corpus


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
