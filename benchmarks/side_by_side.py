"""The harness: ours and its peers, one process each, timed in turn.

A side is a process that stays alive and does what it is told over a pipe, a line of JSON at a time:
make what is to be timed, give the numbers that all sides must agree on, time itself, do n calls and
say how long they took. While one side works the others wait for a line. All have the cores and the
number of threads that `benchmarks.command` has set. What a side is, a function says that lives
beside the library it times:

    make(**settings) -> {name: build},  build() -> Way

Of several ways (eager or compiled, linen or nnx) each is built and checked, and the fastest is the
side; a way that cannot be had is named beneath the table, with the reason.

Rounds go A B A B, and a figure is the median over the rounds. In a round each side does as many
calls as take it about `TURN` seconds.
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
"""Seconds before a turn, in which the threads of the side before go to sleep."""


class Way(NamedTuple):
    """One way of doing what is timed; it lives in the process of its side."""

    run: Callable[[int], object]
    """Does so many calls, and comes back when the last is done."""
    check: Callable[[], list[float]]
    """Numbers that all sides agree on."""
    limit: Callable[[], float] | None = None
    """Seconds that the matrix products of a call take by themselves."""
    calls: int = 1
    """How many of the row's units (characters) a call makes."""


class Maker(NamedTuple):
    """Where a side comes from."""

    module: str
    function: str
    settings: Mapping[str, Any]


class Comparison(NamedTuple):
    """What becomes a row for each peer."""

    name: str
    ours: Maker
    peers: tuple[Maker, ...]
    unit: str = "ms"
    seconds: float = 20
    """About how long it takes on two cores."""
    tolerance: float = 1e-5
    """Relative difference at which two sides no longer do the same."""


class Absent(RuntimeError):
    """A side that cannot be had on this machine."""


class Side:
    """A process that does the work of one side."""

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
        """What the side answers.

        Raises:
          Absent: it cannot do it.
          RuntimeError: it has ended.
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
    """A row for each peer that can be had, and remarks on those that cannot.

    Args:
      comparison: what is compared.
      rounds: how many figures each median is of.

    Raises:
      RuntimeError: two sides do not agree, or ours cannot be had.
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
    """From seconds a call to a row's unit."""
    if is_rate(unit):
        return lambda seconds: calls / seconds
    scale = {"ms": 1e3, "s": 1.0}[unit]
    return lambda seconds: scale * seconds


def agree(comparison: Comparison, ours: Mapping[str, Any], peer: Mapping[str, Any]) -> None:
    """Refuses to time two sides that do different things.

    Raises:
      RuntimeError: their numbers differ; a peer may give fewer of them.
    """
    pairs = itertools.product(ours["numbers"].items(), peer["numbers"].items())
    for (way, mine), (name, theirs) in pairs:
        for number, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            if not abs(a - b) <= comparison.tolerance * max(abs(a), abs(b)):
                raise RuntimeError(
                    f"{comparison.name}: {way} gives {a!r} and {name} {b!r} (number {number})"
                )


def timed(side: Side, seconds: float) -> Callable[[], float]:
    """One turn of a side, which gives the seconds of a call.

    Args:
      side: the side.
      seconds: about what a call takes.
    """
    calls = max(1, round(TURN / seconds))
    return lambda: side.tell(do="run", calls=calls) / calls


def in_turn(ways: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """The figures of each way, taken A B A B."""
    figures: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, taken in zip(ways, figures, strict=True):
            time.sleep(PAUSE)
            taken.append(way())
    return figures


def clock(run: Callable[[int], object], calls: int) -> float:
    """Seconds that so many calls take."""
    began = time.perf_counter()
    run(calls)
    return time.perf_counter() - began


def fastest(builds: Mapping[str, Callable[[], Way]]) -> tuple[Way, dict[str, Any]]:
    """Builds, checks and times each way, and keeps the best.

    Returns:
      the way, and what the harness wants to know of it.

    Raises:
      Absent: none can be had.
    """
    ways, numbers, remarks = {}, {}, []
    for name, build in builds.items():
        try:
            way = build()
            numbers[name] = way.check()
            way.run(2)
        except Exception as error:
            # Whatever hinders a peer's library, the row is timed without it, and says so.
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
    """What the harness says, a line at a time."""
    for line in sys.stdin:
        yield json.loads(line)


def serve(maker: Maker) -> None:
    """The life of a side."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
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
