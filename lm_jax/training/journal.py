"""What a run writes down: metrics.jsonl and result.json.

metrics.jsonl has one writer and one JSON object a line; a number that is not finite is `null`. Rows
are safe on the disk before the checkpoint of their step is. After a crash, rows beyond the
checkpoint that the run goes on from are taken away again, so the file reads as if nothing had
happened.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from lm_jax.files import as_json, finite, write_whole
from lm_jax.settings import VERSION, UserError, fits, parsed

Row = dict[str, Any]
Watch = Callable[[int, Row | None], None]  # see `lm_jax.train`

Number = Annotated[float, Field(allow_inf_nan=False)]
Figure = Number | None
"""None for what is not finite."""
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Step = Annotated[int, Field(ge=0, lt=2**31)]


class Known(pydantic.BaseModel):
    """What of a JSON object is read again, with its type; more may stand there."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)


class Vectors(Known):
    """How many tokens have pretrained vectors."""

    found: Whole
    of: Whole
    covered: Number


class TrainRow(Known):
    """The updates since the last such row."""

    kind: Literal["train"]
    step: Annotated[Step, Field(gt=0)]
    split: str
    nats: Figure
    grad_norm: Figure
    grad_norm_max: Figure
    grad_norm_clipped: Figure
    clipped: Figure
    tokens_per_second: Number
    seconds: Number


class EvaluationRow(Known):
    """A split, scored."""

    kind: Literal["evaluation"]
    step: Step
    split: str
    nats: Figure


class VectorsRow(Vectors):
    """What was read before the first update."""

    kind: Literal["vectors"]
    step: Step
    split: str


class ProbeRow(Known):
    """What a live probe has answered."""

    kind: Literal["probe"]
    step: Step
    split: str
    horizon: dict[str, Figure] | None = None
    lag_norms: Annotated[list[Figure], Field(min_length=1)] | None = None
    spectral_radius: dict[str, list[Figure]] | None = None
    lyapunov: Figure = None


AnyRow = Annotated[TrainRow | EvaluationRow | VectorsRow | ProbeRow, Field(discriminator="kind")]


class Split(Known):
    """The figures of a split, in a result."""

    nats: Figure
    perplexity: Figure
    bits_per_character: Figure
    tokens: Whole
    characters: Whole | None
    unknown: Whole | None
    success: Figure = None


class Ngrams(Known):
    """What is counted of n-grams of one order."""

    order: Whole
    possible: Number
    seen: Whole
    once: Whole
    unseen_share: Figure
    bytes: Whole


class Result(Known):
    """What a run came to."""

    status: Literal["finished", "diverged", "stopped", "pruned"]
    step: Step
    stopped_early: bool
    parameters_step: Step
    splits: dict[str, Split]
    parameters: Whole
    seconds: Number
    tokens_per_second: Number
    vectors: Vectors | None = None
    ngrams: list[Ngrams] | None = None
    entropy_rate: Figure = None


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a line that is torn or damaged ends the reading."""
    if not path.exists():
        return []
    return [row for row, _ in whole_rows(path.read_bytes().splitlines(keepends=True), is_row)]


def whole_rows(lines: Iterable[bytes], good: Callable[[Row], bool]) -> Iterator[tuple[Row, int]]:
    """Each row of some lines of JSON and the bytes of its line, up to one that is torn or damaged.

    Args:
      lines: with their ends.
      good: whether a row has what it is to have.
    """
    for line in lines:
        try:
            row = parsed(line, "the line")
        except UserError:
            return
        if not line.endswith(b"\n") or not good(row):
            return
        yield row, len(line)


def is_row(row: Row) -> bool:
    """Whether a row is one of a metrics.jsonl: its kind, its place and its numbers."""
    return fits(row, AnyRow)


class Journal:
    """The open metrics.jsonl of a run.

    Attributes:
      rows: those that stand.
      seconds: of training, according to them.
    """

    def __init__(self, run_dir: Path, step: int, judged: int, *, vectors_again: bool = False):
        """Opens the file of a run that goes on, and takes away what came after.

        Args:
          run_dir: the run.
          step: the step that it goes on from.
          judged: the step of the last validation that it knows of.
          vectors_again: whether it has read its pretrained vectors, and will write so.
        """
        path = run_dir / "metrics.jsonl"
        vectors = -1 if vectors_again else step
        # A live probe asks before each update.
        known = {"train": step, "evaluation": judged, "vectors": vectors, "probe": step - 1}
        self.rows = [row for row in read_rows(path) if row["step"] <= known[row["kind"]]]
        write_whole(path, "".join(as_json(row) + "\n" for row in self.rows))
        self.seconds = max((row.get("seconds", 0.0) for row in self.rows), default=0.0)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Adds a row, and hands it to the operating system."""
        self.rows.append(row)
        self._file.write(as_json(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all rows are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()


def write_result(run_dir: Path, result: Row) -> None:
    """Writes result.json, the last word on a run."""
    write_whole(
        run_dir / "result.json", json.dumps(finite({"version": VERSION, **result}), indent=2)
    )


def read_result(run_dir: Path) -> Row | None:
    """What `write_result` wrote, or None where a run has not come to an end, or its end is lost."""
    try:
        result = parsed((run_dir / "result.json").read_bytes(), "result.json")
    except (FileNotFoundError, UserError):
        return None
    return result if fits(result, Result) else None
