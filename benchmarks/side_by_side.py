"""The harness: lm_jax and peers, each in a separate process, timed in turn.

A side is a long-lived process with orders over a pipe, a line of JSON each: build the methods, time
them, report the numbers for comparison, run n calls and report the seconds. While a side works, the
other sides wait for a line. All sides have the cores and number of threads set by
`benchmarks.command`. A side is defined by a function in the module of the timed library:

    make(**settings) -> {name: build},  build() -> Way

If there are several methods (eager or compiled, linen or nnx), each is built and checked, and the
fastest becomes the side. If a method fails, the text below the table gives the reason.

Rounds go A B A B, and a figure is the median over the rounds. In a round each side makes as many
calls as fit into about `TURN` seconds.
"""

import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from benchmarks.rows import Row, is_rate, row

ROOT = Path(__file__).parent.parent
TURN = 0.5
PAUSE = 0.05
"""Seconds of waiting before a turn, for the threads of the previous side to go to sleep."""


class Way(NamedTuple):
    """A method to time, within the process of a side."""

    run: Callable[[int], object]
    """Makes a number of calls, and returns after the last is done."""
    check: Callable[[], list[float]]
    """Computes numbers for comparison: all sides must agree."""
    limit: Callable[[], float] | None = None
    """Measures the seconds of the matrix products of a call alone."""
    calls: int = 1
    """Number of the row's units (characters) made by a call."""


class Maker(NamedTuple):
    """The function that makes a side, and the function's arguments."""

    module: str
    function: str
    settings: Mapping[str, Any]


class Comparison(NamedTuple):
    """A comparison of lm_jax with peers; gives a row per peer."""

    name: str
    ours: Maker
    peers: tuple[Maker, ...]
    unit: str = "ms"
    seconds: float = 20
    """Approximate duration of the comparison on two cores."""
    tolerance: float = 1e-5
    """Largest relative difference between the numbers of two sides."""


class Absent(RuntimeError):
    """Raised if a side is not available on this machine."""


class Side:
    """The process of a side."""

    def __init__(self, maker: Maker):
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side_by_side", json.dumps(maker)],
            cwd=ROOT,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def tell(self, **order: Any) -> Any:
        """Send an order to the side; return the answer.

        Raises:
          Absent: the side is not available.
          RuntimeError: the process has ended.
        """
        orders, answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        try:
            orders.write(json.dumps(order) + "\n")
            orders.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._said.seek(0)
            last = self._said.read().decode(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError("a side has ended: " + "\n".join(last))
        answer = json.loads(line)
        if "absent" in answer:
            raise Absent(answer["absent"])
        return answer["answer"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()


def compare(comparison: Comparison, *, rounds: int) -> tuple[list[Row], list[str]]:
    """Run a comparison; return a row for each available peer, and remarks on the others.

    Args:
      comparison: the comparison.
      rounds: number of figures in each median.

    Raises:
      RuntimeError: two sides do not agree, or the lm_jax side is not available.
    """
    sides = [Side(maker) for maker in (comparison.ours, *comparison.peers)]
    try:
        made, remarks = [], []
        for side in sides:
            try:
                made.append((side, side.tell(do="make")))
            except Absent as reason:
                if side is sides[0]:
                    raise
                remarks.append(f"{comparison.name}: {reason}")
        remarks += [f"{comparison.name}: {line}" for _, about in made for line in about["remarks"]]
        of_ours = made[0][1]
        if len(of_ours["numbers"]) > 1:
            remarks.append(f"{comparison.name}: ours with {of_ours['name']}")
        for _, about in made[1:]:
            agree(comparison, of_ours, about)
        seconds = in_turn([timed(side, about["seconds"]) for side, about in made], rounds)
        limit = made[0][0].tell(do="limit")
    finally:
        for side in sides:
            side.close()
    ours, *peers = (statistics.median(taken) for taken in seconds)
    figure = units(comparison.unit, made[0][1]["calls"])
    rows = [
        row(
            comparison.name,
            comparison.unit,
            figure(ours),
            figure(peer),
            about["name"],
            None if limit is None else limit / ours,
        )
        for (_, about), peer in zip(made[1:], peers, strict=True)
    ]
    return rows, remarks


def units(unit: str, calls: int) -> Callable[[float], float]:
    """Make the conversion from seconds per call to a row's unit."""
    if is_rate(unit):
        return lambda seconds: calls / seconds
    scale = {"ms": 1e3, "s": 1.0}[unit]
    return lambda seconds: scale * seconds


def agree(comparison: Comparison, ours: Mapping[str, Any], peer: Mapping[str, Any]) -> None:
    """Checks the numbers of two sides, before timing; a peer may give fewer numbers.

    Raises:
      RuntimeError: the numbers differ.
    """
    pairs = itertools.product(ours["numbers"].items(), peer["numbers"].items())
    for (way, mine), (name, theirs) in pairs:
        for number, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            if not abs(a - b) <= comparison.tolerance * max(abs(a), abs(b)):
                raise RuntimeError(
                    f"{comparison.name}: {way} gives {a!r} and {name} {b!r} (number {number})"
                )


def timed(side: Side, seconds: float) -> Callable[[], float]:
    """Make a function for a turn of a side; the function returns the seconds of a call.

    Args:
      side: the side.
      seconds: approximate time of a call.
    """
    calls = max(1, round(TURN / seconds))
    return lambda: side.tell(do="run", calls=calls) / calls


def in_turn(ways: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Measure each method in every round, in turn, A B A B."""
    figures: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, taken in zip(ways, figures, strict=True):
            time.sleep(PAUSE)
            taken.append(way())
    return figures


def clock(run: Callable[[int], object], calls: int) -> float:
    """Time a number of calls, in seconds."""
    began = time.perf_counter()
    run(calls)
    return time.perf_counter() - began


def fastest(builds: Mapping[str, Callable[[], Way]]) -> tuple[Way, dict[str, Any]]:
    """Build, check and time each method, and keep the fastest.

    Returns:
      the fastest method, and a report for the harness.

    Raises:
      Absent: no method works.
    """
    ways, numbers, remarks = {}, {}, []
    for name, build in builds.items():
        try:
            way = build()
            numbers[name] = way.check()
            way.run(2)
        except Exception as error:
            # Any failure of a peer's method: go on without the method, and report the reason.
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            remarks.append(f"{name} left out: {type(error).__name__}: {reason}")
        else:
            ways[name] = way
    if not ways:
        raise Absent("; ".join(remarks))

    def turn(way: Way) -> Callable[[], float]:
        calls = max(1, round(TURN / 2 / clock(way.run, 1)))
        return lambda: clock(way.run, calls) / calls

    figures = in_turn([turn(way) for way in ways.values()], 3)
    taken = {name: min(each) for name, each in zip(ways, figures, strict=True)}
    best = min(taken, key=lambda name: taken[name])
    about = {"name": best, "seconds": taken[best], "numbers": numbers, "remarks": remarks}
    return ways[best], {**about, "calls": ways[best].calls}


def orders() -> Iterator[dict[str, Any]]:
    """Yield the orders of the harness, one per line of stdin."""
    for line in sys.stdin:
        yield json.loads(line)


def serve(maker: Maker) -> None:
    """Main loop of a side's process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # stdout of libraries goes to stderr: only answers go to the pipe
    way = None
    for order in orders():
        try:
            if order["do"] == "make":
                module = importlib.import_module(maker.module)
                way, answer = fastest(getattr(module, maker.function)(**maker.settings))
            elif order["do"] == "limit":
                answer = way.limit() if way is not None and way.limit is not None else None
            else:
                assert way is not None
                answer = clock(way.run, order["calls"])
            answers.write(json.dumps({"answer": answer}) + "\n")
        except (Absent, ImportError) as reason:
            answers.write(json.dumps({"absent": str(reason)}) + "\n")


if __name__ == "__main__":
    serve(Maker(*json.loads(sys.argv[1])))
