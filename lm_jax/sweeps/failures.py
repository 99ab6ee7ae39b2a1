"""A trial that broke off with an error: error.json in its directory, until it comes to its end."""

import json
import traceback
from pathlib import Path
from typing import NamedTuple

from lm_jax.files import write_whole
from lm_jax.settings import UserError, parsed
from lm_jax.training.journal import Row

NAME = "error.json"


class Failure(NamedTuple):
    """What went wrong with a trial."""

    error: str
    """In one line."""
    type: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """An exception in words.

        The exception itself holds on to every array of the frames that it went through.
        """
        kind = type(error).__name__
        lines = str(error).strip().splitlines()
        told = "".join(traceback.format_exception(error))
        return cls(f"{kind}: {lines[0]}" if lines else kind, kind, told)


def record(run_dir: Path, failure: Failure, attempt: int) -> None:
    """Writes down what a trial died of, and at which attempt."""
    run_dir.mkdir(parents=True, exist_ok=True)
    told = {**failure._asdict(), "attempt": attempt}
    write_whole(run_dir / NAME, json.dumps(told, indent=2) + "\n")


def read(run_dir: Path) -> Row | None:
    """What was written down, or None where nothing was."""
    try:
        found = parsed((run_dir / NAME).read_bytes(), NAME)
    except FileNotFoundError:
        return None
    except UserError:
        found = {}
    if not isinstance(found.get("error"), str):
        return {"error": f"{NAME} is damaged", "traceback": ""}
    return found


def forget(run_dir: Path) -> None:
    """Takes the error away from a trial that has come to its end after all."""
    (run_dir / NAME).unlink(missing_ok=True)
