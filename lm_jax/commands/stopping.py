"""Messages of a run or a sweep after a stop signal: the saved step, and the command to go on."""

import contextlib
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lm_jax.files import free_name
from lm_jax.settings import UserError
from lm_jax.sweeps import read_results
from lm_jax.training import Run, journal
from lm_jax.training.checkpoint import steps_saved


@contextlib.contextmanager
def explained(
    run_dir: Path, command: str, words: Sequence[str], saved: Callable[[], str], *, restart: bool
) -> Iterator[None]:
    """After a stop signal, print the saved state and the command to go on, on standard error.

    After a restart, print the new name of the old directory as well.

    Args:
      run_dir: directory of the run or sweep.
      command: program and command, `python run.py train`.
      words: the words after the command.
      saved: returns a sentence about the saved state; called after the stop.
      restart: True if the command begins anew; the command to go on then omits --restart.
    """
    aside, begun = free_name(run_dir.absolute(), "old"), run_dir.exists()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if aside.exists() or not begun:
            words = without(words, "--restart")
        print(f"{saved()}\nto go on: {command} {shlex.join(words)}", file=sys.stderr)
        raise
    finally:
        if restart and aside.exists():
            print(f"the directory as it was: {aside}", file=sys.stderr)


def saved_of_run(run_dir: Path) -> str:
    """A sentence about the saved state of a stopped run."""
    with warnings.catch_warnings(action="ignore"):
        try:
            steps, result = steps_saved(run_dir), journal.read_result(run_dir)
        except (UserError, OSError):  # a damaged directory, which the command itself will name
            return f"stopped; what {run_dir} holds cannot be read"
    if not steps:
        return "stopped before anything was saved"
    if result is None:
        return f"stopped at once: {run_dir} holds step {steps[-1]:,}, the last save"
    if result["status"] == "stopped":
        return f"stopped and saved: {run_dir} holds step {steps[-1]:,}"
    return f"stopped, but the run is over: {run_dir} holds step {steps[-1]:,} and the result"


def saved_of_sweep(sweep_dir: Path, trials: int) -> str:
    """A sentence about the ended and saved trials of a stopped sweep of `trials` trials."""
    try:
        rows = read_results(sweep_dir)
    except UserError:
        rows = []
    ended = sum(row["status"] in ("finished", "diverged", "pruned") for row in rows)
    begun = sum(bool(steps_saved(path)) for path in sorted((sweep_dir / "trials").glob("*")))
    goes_on = f", {begun - ended} are begun and saved" if begun > ended else ""
    return f"stopped: {ended} of {trials} trials are over{goes_on}, in {sweep_dir}"


def longer(run: Run, command: str, words: Sequence[str]) -> str | None:
    """The command for twice the updates of a finished run; None if no command can do this."""
    train, result = run.config.train, run.result
    if train is None or result is None or result["status"] != "finished" or result["stopped_early"]:
        return None
    if train.epochs is None:
        flags = ["--train.steps", str(2 * train.steps)]
    else:
        flags = ["--train.epochs", str(2 * train.epochs), "--run-dir", str(run.path)]
    for name in ("schedule", "feeding"):  # what followed train.steps must not change
        steps = getattr(getattr(train, name), "steps", None)
        flags += [] if steps is None else [f"--train.{name}.steps", str(steps)]
    kept = without(words, "--restart")
    for flag in flags[::2]:
        for place in [place for place, word in enumerate(kept) if word == flag][::-1]:
            del kept[place : place + 2]
        kept = without(kept, flag)  # --flag=value is one word
    return f"{command} {shlex.join([*kept, *flags])}"


def without(words: Sequence[str], flag: str) -> list[str]:
    """The words of a command line without the word --flag or --flag=value."""
    return [word for word in words if word.partition("=")[0] != flag]
