"""Failed trials: error.json in the run directory, until a later attempt succeeds."""

import traceback
from pathlib import Path
from typing import NamedTuple

from lm_jax.files import Row, make_folder, read_json, write_json
from lm_jax.settings import UserError

NAME = "error.json"


class Failure(NamedTuple):
    """The error of a failed trial."""

    error: str
    """Type and first line of the message."""
    type: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Make a failure from an exception, as text.

        The exception itself would keep the arrays of every frame in the traceback alive.
        """
        kind = type(error).__name__
        lines = str(error).strip().splitlines()
        told = "".join(traceback.format_exception(error))
        return cls(f"{kind}: {lines[0]}" if lines else kind, kind, told)


def record(run_dir: Path, failure: Failure, attempt: int) -> None:
    """Write error.json: the failure of a trial, and the number of the attempt."""
    make_folder(run_dir)
    told = {**failure._asdict(), "attempt": attempt}
    write_json(run_dir / NAME, told, indent=2)


def read(run_dir: Path) -> Row | None:
    """Read error.json; None if there is no such file."""
    try:
        found = read_json(run_dir / NAME)
    except FileNotFoundError:
        return None
    except UserError:
        found = {}
    if not isinstance(found.get("error"), str):
        return {"error": f"{NAME} is damaged", "traceback": ""}
    return found


def forget(run_dir: Path) -> None:
    """Removes error.json, after a later attempt has succeeded."""
    (run_dir / NAME).unlink(missing_ok=True)
