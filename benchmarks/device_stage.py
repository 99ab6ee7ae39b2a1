"""What the stages of `benchmarks.device` share: their sizes, a clock, and processes of their own.

A time is the median of three turns of about 0.3 s, in a single process.
"""

import os
import pydoc_data.topics
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.side_by_side import ROOT, clock
from benchmarks.sizes import Size

MARK = "== "
"""Begins the lines of a log that belong to the table."""
TURN, TURNS = 0.3, 3
SIZES = {
    "char lstm 512": Size("lstm", 512, 32, 128, 65),
    "word lstm 650, 2 layers": Size("lstm", 650, 20, 35, 10_000, 2),
    "word lstm 1500, 2 layers": Size("lstm", 1500, 20, 35, 10_000, 2),
    "char gru 128": Size("gru", 128, 32, 128, 65),
    "word lstm 200, 1 layer": Size("lstm", 200, 20, 35, 10_000),
}
SMALL_SIZES = {"lstm 16": Size("lstm", 16, 4, 8, 65)}


class Stage(NamedTuple):
    """What a stage is given."""

    small: bool
    """True for a trial with tiny sizes."""
    folder: Path
    """Folder for results and for the run of the quickstart."""

    @property
    def sizes(self) -> Mapping[str, Size]:
        return SMALL_SIZES if self.small else SIZES

    @property
    def text(self) -> str:
        """A text that every Python has, about 700,000 characters."""
        text = "\n".join(pydoc_data.topics.topics.values())
        return text[:20_000] if self.small else text

    @property
    def quickstart(self) -> Path:
        """The quickstart's run."""
        return self.folder / "quickstart"


def say(line: str) -> None:
    """Prints a line of the table."""
    print(MARK + line, flush=True)


@contextmanager
def measuring(what: str) -> Iterator[None]:
    """Report a failed measurement as a line of the table, and go on."""
    try:
        yield
    except Exception as error:  # one failure must not cost the other lines
        say(f"{what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}")


def seconds_of(run: Callable[[int], object]) -> float:
    """Time a method, in seconds per call: the median of some turns.

    Args:
      run: makes a number of calls, and returns after the last is done.
    """
    run(1)
    calls, taken = 1, clock(run, 1)
    while taken < TURN / 2:
        calls = min(10 * calls, int(calls * TURN / max(taken, 1e-4)) + 1)
        taken = clock(run, calls)
    calls = max(1, int(calls * TURN / taken))
    return statistics.median(clock(run, calls) / calls for _ in range(TURNS))


def seconds_of_call(function: Callable, *given: Any) -> float:
    """Time a function of arrays, compiled, in seconds per call."""
    import jax

    compiled = jax.jit(function)

    def run(calls: int) -> None:
        for _ in range(calls):
            jax.block_until_ready(compiled(*given))

    return seconds_of(run)


def second_time(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds of the second call."""
    function()
    began = time.perf_counter()
    found = function()
    return found, time.perf_counter() - began


def command(*words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    if ended.returncode:
        raise RuntimeError(f"{words[0]}: {ended.stderr.strip()[-300:]}")


def run_apart(stage: Stage, flag: str, limit: float, program: str, *words: str) -> str:
    """Run a Python program with flags of XLA; return its output."""
    present = os.environ.get("XLA_FLAGS", "")
    if stage.small:
        flag, limit = "", 600.0  # a CPU's XLA refuses flags of GPUs
    ended = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": f"{present} {flag}".strip()},
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip().splitlines() or [""])[-1])
    return ended.stdout.strip()
