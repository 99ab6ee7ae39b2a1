"""The metrics and the result of a run: metrics.jsonl and result.json.

metrics.jsonl has a single writer and a JSON object per line; a number that is not finite is `null`.
Rows are on the disk before the checkpoint of the same step. When a run resumes after a crash, rows
later than the checkpoint are removed, and the file reads as if the crash had not happened. Both
files are sealed, so that damage is found (`lm_jax.files.sealed`).
"""

import hashlib
import itertools
import warnings
from array import array
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pydantic
from pydantic import Field

from lm_jax import files
from lm_jax.files import Row, seal_of
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
    sample: str | None = None


class VectorsRow(VectorCoverage):
    """Row for the pretrained vectors, read before the first update."""

    kind: Literal["vectors"]
    step: StepNumber
    split: str


class InitFromRow(Known):
    """Row for the parameters of another run, read before the first update (`model.init_from`)."""

    kind: Literal["init_from"]
    step: StepNumber
    split: str
    run: str
    run_step: StepNumber
    parameters: Whole
    sha256: str


class ProbeRow(Known):
    """Row for the measurements of a live probe."""

    kind: Literal["probe"]
    step: StepNumber
    split: str
    horizon: dict[str, NumberOrNull] | None = None
    lag_norms: Annotated[list[NumberOrNull], Field(min_length=1)] | None = None
    spectral_radius: dict[str, list[NumberOrNull]] | None = None
    lyapunov: NumberOrNull = None


class RestoredRow(Known):
    """Row for a return to a checkpoint after a divergence (`train.on_divergence=restore`)."""

    kind: Literal["restored"]
    step: StepNumber
    split: str
    diverged: StepNumber
    lr_scale: Number


AnyRow = Annotated[
    TrainRow | EvaluationRow | VectorsRow | InitFromRow | ProbeRow | RestoredRow,
    Field(discriminator="kind"),
]


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

    status: Literal["finished", "diverged", "stopped", "pruned", "imported"]
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


class Kept(NamedTuple):
    """The rows of metrics.jsonl that a checkpoint stands on."""

    rows: int
    """Number of rows."""
    seals: str
    """SHA-256 over the rows' seals."""

    @staticmethod
    def of(seals: Collection[str]) -> "Kept":
        """The rows with some seals."""
        return Kept(len(seals), files.sha256("".join(seals)))


NO_ROWS = Kept.of([])


class Found(NamedTuple):
    """Contents of a metrics.jsonl."""

    rows: dict[int, Row]
    """Undamaged rows by number, from 0."""
    seals: dict[int, str]
    damage: list[str]
    """Damaged or missing parts, a line for each."""


def find_rows(path: Path) -> Found:
    """Read a metrics.jsonl and check each row; an incomplete last line is no damage.

    Each line is sealed (`lm_jax.files.sealed`), and holds its number as `row`: lines that have
    changed are found, and so are lines that are missing, doubled or in another order.
    """
    rows: dict[int, Row] = {}
    seals: dict[int, str] = {}
    damage = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):  # being written, or cut by a crash
        lines.pop()
    for place, line in enumerate(lines):
        try:
            number, row, seal = read_row(line)
        except UserError as error:
            damage.append(f"{path}: line {place + 1} {error}")
            continue
        if number in rows:
            damage.append(f"{path}: line {place + 1} repeats row {number}")
        rows.setdefault(number, row)
        seals.setdefault(number, seal)
    for before, after in itertools.pairwise([-1, *sorted(rows)]):
        if after > before + 1:
            damage.append(f"{path}: {after - before - 1} rows are missing before row {after}")
    return Found({number: rows[number] for number in sorted(rows)}, seals, damage)


def read_row(line: bytes) -> tuple[int, Row, str]:
    """The number, the content and the seal of a line of metrics.jsonl.

    Raises:
      UserError: the line is damaged.
    """
    try:
        row = files.read_row(line, "it")
        number = row.pop("row")
    except (UserError, KeyError):
        raise UserError("is damaged") from None
    if not isinstance(number, int) or not is_row(row):
        raise UserError("is no row")
    return number, row, str(seal_of(line.decode()))


def line_of(number: int, row: Row) -> str:
    """The line of metrics.jsonl for a row."""
    return files.line_of({**row, "row": number})


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a warning names those that are damaged or missing."""
    found = find_rows(path)
    if found.damage:
        warnings.warn(in_short(found.damage), stacklevel=2)
    return list(found.rows.values())


def validations(rows: Iterable[Row]) -> list[Row]:
    """The rows of evaluations on the validation split."""
    return [row for row in rows if row["kind"] == "evaluation" and row["split"] == "validation"]


def in_short(damage: list[str]) -> str:
    """The first lines of a list, in one line."""
    more = f"; and {len(damage) - 3} more" if len(damage) > 3 else ""
    return "; ".join(damage[:3]) + more


def is_row(row: Row) -> bool:
    """True if the row is valid in a metrics.jsonl: kind, step, split and numbers."""
    return fits(row, AnyRow)


def holds(run_dir: Path, kept: Kept) -> bool:
    """True if metrics.jsonl consists of the rows of a checkpoint, undamaged."""
    found = find_rows(run_dir / "metrics.jsonl")
    return not found.damage and Kept.of(found.seals.values()) == kept


class Journal:
    """The open metrics.jsonl of a run; the memory does not grow with the number of training rows.

    Attributes:
      last: the rows of the last step.
      older: rows of earlier steps, but for those of kind train and probe.
      speeds: tokens per second of all training rows.
      seconds: training time according to the rows.
    """

    def __init__(self, run_dir: Path, kept: Kept = NO_ROWS):
        """Open the file, and remove the rows later than the state that the run resumes from.

        If rows are damaged or missing, a copy of the file is kept as metrics.jsonl.damaged-N, and a
        warning tells what is lost.

        Args:
          run_dir: the run.
          kept: the rows of the checkpoint that the run resumes from.
        """
        path = run_dir / "metrics.jsonl"
        found = find_rows(path)
        numbers = [number for number in found.rows if number < kept.rows]
        rows = [found.rows[number] for number in numbers]
        intact = Kept.of([found.seals[number] for number in numbers]) == kept
        if found.damage or not intact:
            if len(numbers) == kept.rows and not intact:
                rows = []  # intact, but of another run
            lost = kept.rows - len(rows)
            damage = in_short(found.damage) or f"{path} does not hold the rows of this run"
            copy = f", the file as it was: {files.keep_damaged(path)}" if path.exists() else ""
            warnings.warn(f"{damage} ({lost} of {kept.rows} rows are lost{copy})", stacklevel=2)
        self.last: list[Row] = []
        self.older: list[Row] = []
        self.speeds, self.seconds = array("d"), 0.0
        self._count, self._seals = 0, hashlib.sha256()
        files.write_whole(path, "".join([self._added(row) for row in rows]))
        self._file = path.open("a", encoding="utf-8")

    def of_kind(self, kind: str) -> list[Row]:
        """The rows of a kind; of kind train or probe, those of the last step."""
        return [row for row in [*self.older, *self.last] if row["kind"] == kind]

    @property
    def whole(self) -> Kept:
        """All rows so far."""
        return Kept(self._count, self._seals.hexdigest())

    @property
    def kept(self) -> Kept:
        """The rows so far for a checkpoint, which a resumed run keeps.

        A live probe in the last row is left out: the resumed run measures again, or not at all if
        the step is no longer the last.
        """
        if self.last and self.last[-1]["kind"] == "probe":
            return Kept(self._count - 1, self._before.hexdigest())
        return self.whole

    def write(self, row: Row) -> None:
        """Append a row and flush the file to the operating system."""
        self._file.write(self._added(row))
        self._file.flush()

    def _added(self, row: Row) -> str:
        """The line of the next row, which is counted from here on."""
        line = line_of(self._count, row)
        self._count, self._before = self._count + 1, self._seals.copy()
        self._seals.update(str(seal_of(line)).encode())
        if self.last and self.last[-1]["step"] != row["step"]:
            self.older += [old for old in self.last if old["kind"] not in ("train", "probe")]
            self.last = []
        self.last.append(row)
        if row["kind"] == "train":
            self.speeds.append(row["tokens_per_second"])
            self.seconds = max(self.seconds, row["seconds"])
        return line

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        files.to_disk(self._file)

    def close(self) -> None:
        """Wait as in `sync`, and close the file; a closed file stays closed."""
        if not self._file.closed:
            self.sync()
            self._file.close()


def write_result(run_dir: Path, result: Row) -> None:
    """Write result.json, the final result of a run."""
    files.write_sealed(run_dir / "result.json", {"version": VERSION, **result})


def read_result(run_dir: Path) -> Row | None:
    """The contents of result.json; None if the run has not ended, or, with a warning, if the file
    is damaged."""
    path = run_dir / "result.json"
    try:
        found = files.read_sealed(path)
        if not fits(found, Result):
            raise UserError(f"{path} is damaged: it is no result")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UserError as error:
        warnings.warn(str(error), stacklevel=2)
        return None
    return found
