"""Rows of a run in a CSV file, in TensorBoard or in Weights & Biases, while the run trains.

    with track.tensorboard("runs/mine") as watch:
        lm_jax.train(config, "runs/mine", watch=watch)

A tracker mirrors metrics.jsonl and changes nothing of the run. At the start of a call, a tracker
writes the rows of earlier calls anew; a resumed run therefore has every row once. A finished run
can be tracked, too. The name of a number is `split/name`, for example `validation/nats`, or
`probe/…` for a live probe. Infinite numbers, NaN and lists of more than 8 numbers are left out.
"""

import contextlib
import csv as csv_files
import io
import json
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lm_jax import files
from lm_jax.fields import fields
from lm_jax.files import Row
from lm_jax.settings import UserError, plain
from lm_jax.training import directory, journal
from lm_jax.training.journal import Watch

Name = Literal["csv", "tensorboard", "wandb"]
Write = Callable[[list[Row], bool], None]
"""(rows, anew): take some further rows; or, if anew, all rows of the run."""
LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
PLACE = ("step", "kind", "split")
LONGEST = 8  # numbers of a list: the gates of a cell, but not the lags of a chunk


def tracker(name: Name, run_dir: Path) -> contextlib.AbstractContextManager[Watch]:
    """The tracker with a given name.

    Raises:
      UserError: the tracker's library is missing.
    """
    known = {"csv": csv, "tensorboard": tensorboard, "wandb": wandb}
    return known[name](run_dir)


@contextlib.contextmanager
def trials(
    trackers: Sequence[Name], places: Callable[[], dict[str, Path]]
) -> Iterator[Callable[[str], Watch]]:
    """Track every trial of a sweep; a trial that was over before is tracked at the end.

    Args:
      trackers: names of trackers.
      places: gives the run directories of the trials that there are, by name.

    Yields:
      a `watch` for `lm_jax.sweep`.

    Raises:
      UserError: a tracker's library is missing.
    """
    for one in trackers:
        if one in LIBRARIES and find_spec(LIBRARIES[one]) is None:
            raise missing(one)
    opened: dict[str, contextlib.ExitStack] = {}

    def follow(name: str) -> Watch:
        if name in opened:  # a further attempt at the trial
            opened.pop(name).close()
        stack = opened[name] = contextlib.ExitStack()
        run_dir = places()[name]
        return together(*(stack.enter_context(tracker(one, run_dir)) for one in trackers))

    try:
        yield follow
        for name in places():
            if name not in opened:
                follow(name)
    finally:
        for stack in opened.values():
            stack.close()


def together(*watches: Watch) -> Watch:
    """Watch a run with several functions."""

    def watch(step: int, row: Row | None) -> None:
        for one in watches:
            one(step, row)

    return watch


@contextlib.contextmanager
def csv(run_dir: str | Path) -> Iterator[Watch]:
    """Write metrics.csv into the directory of a run: a line for each row.

    Args:
      run_dir: directory of the run.

    Yields:
      a `watch` for `lm_jax.train`.
    """
    path = Path(run_dir) / "metrics.csv"
    columns: list[str] = [*PLACE]

    def write(rows: list[Row], anew: bool) -> None:
        lines = [{**{name: row[name] for name in PLACE}, **numbers(row)} for row in rows]
        new = [name for line in lines for name in line if name not in columns]
        columns.extend(dict.fromkeys(new))
        if new and not anew:  # a new column changes every line
            write(journal.read_rows(path.with_name("metrics.jsonl")), True)
            return
        text = io.StringIO()
        writer = csv_files.DictWriter(text, columns, lineterminator="\n")
        if anew:
            writer.writeheader()
        writer.writerows(lines)
        if anew:
            files.write_whole(path, text.getvalue())
        else:
            with path.open("a", encoding="utf-8") as file:
                file.write(text.getvalue())

    with _mirror(run_dir, write) as watch:
        yield watch


@contextlib.contextmanager
def tensorboard(run_dir: str | Path) -> Iterator[Watch]:
    """Write TensorBoard's event files into the folder tensorboard of a run's directory.

    Args:
      run_dir: directory of the run.

    Yields:
      a `watch` for `lm_jax.train`.

    Raises:
      UserError: tensorboardX is missing.
    """
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing("tensorboard") from None
    writers: list[Any] = []

    def write(rows: list[Row], anew: bool) -> None:
        if anew:
            # TensorBoard drops the events of earlier calls from step 0 on.
            folder = str(Path(run_dir) / "tensorboard")
            writers.append(SummaryWriter(folder, purge_step=0, flush_secs=5))
        for row in rows:
            for name, number in numbers(row).items():
                writers[-1].add_scalar(name, number, row["step"])
        writers[-1].flush()

    try:
        with _mirror(run_dir, write) as watch:
            yield watch
    finally:
        for writer in writers:
            writer.close()


@contextlib.contextmanager
def wandb(run_dir: str | Path, **options: Any) -> Iterator[Watch]:
    """Log a run to Weights & Biases, or with mode="offline" into the run directory's folder wandb.

    The file wandb.json keeps the id of the run at Weights & Biases and the number of rows sent. A
    resumed run continues under the same id, and sends no row twice.

    Args:
      run_dir: directory of the run.
      **options: further arguments of `wandb.init`: project, mode, tags. Weights & Biases also
        reads environment variables, for example WANDB_MODE=offline.

    Yields:
      a `watch` for `lm_jax.train`.

    Raises:
      UserError: wandb is missing.
    """
    try:
        import wandb as library  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing("wandb") from None
    run_dir, runs, place = Path(run_dir), [], 0
    path, sent = run_dir / "wandb.json", {"id": secrets.token_hex(4), "rows": 0}

    def begin() -> None:
        if path.exists():
            sent.update(json.loads(path.read_text(encoding="utf-8")))
        config = directory.read_config(run_dir)
        given = {
            "project": "lm_jax",
            "name": run_dir.name,
            "config": {name: plain(value) for name, value, _ in fields(config)},
            "settings": library.Settings(silent=True, console="off"),
            "reinit": "create_new",  # the trials of a sweep are open at the same time
            **options,
        }
        runs.append(library.init(**given, dir=run_dir, id=sent["id"], resume="allow"))
        runs[0].define_metric("*", step_metric="step")

    def write(rows: list[Row], anew: bool) -> None:
        nonlocal place
        if not runs:
            begin()
        if anew:
            place = 0
            if rows[-1]["kind"] == "restored":
                sent["rows"] = min(sent["rows"], len(rows) - 1)
        for row in rows:
            if place >= sent["rows"]:
                runs[0].log({"step": row["step"], **numbers(row)})
                sent["rows"] = place + 1
            place += 1
        files.write_whole(path, json.dumps(sent))

    try:
        with _mirror(run_dir, write) as watch:
            yield watch
    finally:
        for run in runs:
            run.finish()


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers of a row, by `split/name`."""
    prefix = "probe" if row["kind"] == "probe" else row["split"]
    found: dict[str, float] = {}
    _collect(prefix, {name: row[name] for name in row if name not in PLACE}, found)
    return found


def _collect(name: str, value: Any, found: dict[str, float]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _collect(f"{name}/{key}", inner, found)
    elif isinstance(value, list):
        if len(value) <= LONGEST:
            _collect(name, dict(enumerate(value)), found)
    elif isinstance(value, int | float) and math.isfinite(value):
        found[name] = float(value)


@contextlib.contextmanager
def _mirror(run_dir: str | Path, write: Write) -> Iterator[Watch]:
    """Call `write` with the rows of metrics.jsonl, first with all, then with each new row."""
    path, begun = Path(run_dir) / "metrics.jsonl", False
    ahead: list[Row] = []  # rows of another process, read before they are told

    def watch(step: int, row: Row | None) -> None:
        nonlocal begun, ahead
        if row is None:
            return
        if ahead and ahead[0] == row:
            ahead = ahead[1:]
            return
        # A return to a checkpoint has removed rows.
        if not begun or row["kind"] == "restored":
            rows = journal.read_rows(path)
            ahead = rows[rows.index(row) + 1 :] if row in rows else []
            write(rows, True)
        else:
            write([row], False)
        begun = True

    yield watch
    if not begun and path.exists():  # the run was over before
        write(journal.read_rows(path), True)


def missing(name: str) -> UserError:
    """The error for a missing library."""
    return UserError(f"track={name} needs a library: pip install -r requirements-track.txt")
