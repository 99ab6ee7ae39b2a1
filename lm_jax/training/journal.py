"""The metrics and the result of a run: metrics.jsonl and result.json.

metrics.jsonl has a single writer and a JSON object per line; a number that is not finite is `null`.
Rows are on the disk before the checkpoint of the same step. When a run resumes after a crash, rows
later than the checkpoint are removed, and the file reads as if the crash had not happened.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from lm_jax.files import (
    Row,
    as_json,
    read_json,
    to_disk,
    whole_rows,
    write_json,
    write_rows,
)
from lm_jax.settings import VERSION, UserError, fits

Watch = Callable[[int, Row | None], None]  # see `lm_jax.train`

Number = Annotated[float, Field(allow_inf_nan=False)]
NumberOrNull = Number | None
"""A number; None if not finite."""
Whole = Annotated[int, Field(ge=0, lt=2**63)]
StepNumber = Annotated[int, Field(ge=0, lt=2**31)]


class Known(pydantic.BaseModel):
    """Typed fields of a JSON object read by the program; the object may have more fields."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)


class VectorCoverage(Known):
    """Number of tokens with pretrained vectors."""

    found: Whole
    of: Whole
    covered: Number


class TrainRow(Known):
    """Row for the updates since the last training row."""

    kind: Literal["train"]
    step: Annotated[StepNumber, Field(gt=0)]
    split: str
    nats: NumberOrNull
    grad_norm: NumberOrNull
    grad_norm_max: NumberOrNull
    grad_norm_clipped: NumberOrNull
    clipped: NumberOrNull
    tokens_per_second: Number
    seconds: Number


class EvaluationRow(Known):
    """Row for an evaluation of a split."""

    kind: Literal["evaluation"]
    step: StepNumber
    split: str
    nats: NumberOrNull


class VectorsRow(VectorCoverage):
    """Row for the pretrained vectors, read before the first update."""

    kind: Literal["vectors"]
    step: StepNumber
    split: str


class ProbeRow(Known):
    """Row for the measurements of a live probe."""

    kind: Literal["probe"]
    step: StepNumber
    split: str
    horizon: dict[str, NumberOrNull] | None = None
    lag_norms: Annotated[list[NumberOrNull], Field(min_length=1)] | None = None
    spectral_radius: dict[str, list[NumberOrNull]] | None = None
    lyapunov: NumberOrNull = None


AnyRow = Annotated[TrainRow | EvaluationRow | VectorsRow | ProbeRow, Field(discriminator="kind")]


class SplitMetrics(Known):
    """Metrics of a split, in a result."""

    nats: NumberOrNull
    perplexity: NumberOrNull
    bits_per_character: NumberOrNull
    tokens: Whole
    characters: Whole | None
    unknown: Whole | None
    success: NumberOrNull = None


class Ngrams(Known):
    """Counts of the n-grams of an order, in a result."""

    order: Whole
    possible: Number
    seen: Whole
    once: Whole
    unseen_share: NumberOrNull
    bytes: Whole


class Result(Known):
    """Contents of result.json."""

    status: Literal["finished", "diverged", "stopped", "pruned"]
    step: StepNumber
    stopped_early: bool
    parameters_step: StepNumber
    splits: dict[str, SplitMetrics]
    parameters: Whole
    seconds: Number
    tokens_per_second: Number
    vectors: VectorCoverage | None = None
    ngrams: list[Ngrams] | None = None
    entropy_rate: NumberOrNull = None


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl, up to the first incomplete or damaged line."""
    if not path.exists():
        return []
    return [row for row, _ in whole_rows(path.read_bytes().splitlines(keepends=True), is_row)]


def is_row(row: Row) -> bool:
    """True if the row is valid in a metrics.jsonl: kind, step, split and numbers."""
    return fits(row, AnyRow)


class Journal:
    """The open metrics.jsonl of a run.

    Attributes:
      rows: the rows of the file.
      seconds: training time according to the rows.
    """

    def __init__(self, run_dir: Path, step: int, judged: int, *, vectors_again: bool = False):
        """Open the file, and remove the rows later than the state that the run resumes from.

        Args:
          run_dir: the run.
          step: step of the state that the run resumes from.
          judged: step of the last validation in this state.
          vectors_again: True if the run has read the pretrained vectors again; the old row about
            the vectors is then removed.
        """
        path = run_dir / "metrics.jsonl"
        vectors = -1 if vectors_again else step
        # A live probe measures before the update, so a resumed run repeats the probe of `step`.
        known = {"train": step, "evaluation": judged, "vectors": vectors, "probe": step - 1}
        self.rows = [row for row in read_rows(path) if row["step"] <= known[row["kind"]]]
        write_rows(path, self.rows)
        self.seconds = max((row.get("seconds", 0.0) for row in self.rows), default=0.0)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append a row and flush the file to the operating system."""
        self.rows.append(row)
        self._file.write(as_json(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        to_disk(self._file)

    def close(self) -> None:
        self.sync()
        self._file.close()


def write_result(run_dir: Path, result: Row) -> None:
    """Write result.json, the final result of a run."""
    write_json(run_dir / "result.json", {"version": VERSION, **result}, indent=2)


def read_result(run_dir: Path) -> Row | None:
    """The contents of result.json, or None if the run has not ended or the file is damaged."""
    try:
        result = read_json(run_dir / "result.json")
    except (FileNotFoundError, UserError):
        return None
    return result if fits(result, Result) else None
