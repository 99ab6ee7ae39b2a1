"""A trial that broke off with an error: error.json in its directory, until it is tried again."""

import json
import traceback
from pathlib import Path

from lm_jax.training.journal import Row, write_whole

NAME = "error.json"


def record(run_dir: Path, error: Exception) -> None:
    """Writes down what a trial died of, in one line (`error`) and in full (`traceback`)."""
    message = str(error).strip().splitlines()
    line = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
    full = "".join(traceback.format_exception(error))
    run_dir.mkdir(parents=True, exist_ok=True)
    write_whole(run_dir / NAME, json.dumps({"error": line, "traceback": full}, indent=2) + "\n")


def read(run_dir: Path) -> Row | None:
    """What was written down, or None where nothing was."""
    try:
        found = json.loads((run_dir / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("error"), str):
        return {"error": f"{NAME} is damaged", "traceback": ""}
    return found


def forget(run_dir: Path) -> None:
    """Takes the error away before the trial is tried again."""
    (run_dir / NAME).unlink(missing_ok=True)
