"""The command line that the benchmarks share: which rows, how many rounds, where they go."""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import rows as table
from benchmarks.rows import Row
from benchmarks.side_by_side import Comparison, Maker, compare
from benchmarks.sizes import Size

ROUNDS = 7
TOLERANCES = {
    # A GPU rounds what it multiplies: to 10 bits (TensorFloat-32) or 7.
    ("cpu", "float32"): 1e-5,
    ("gpu", "float32"): 1e-3,
    ("gpu", "bfloat16"): 3e-2,
}


class Options(NamedTuple):
    """What was asked for."""

    rounds: int
    rows: str
    """A regular expression, found somewhere in the name of a row."""
    json: Path | None
    """Where the rows go as well, a JSON list."""


class Device(NamedTuple):
    """What JAX computes on."""

    backend: str
    kind: str

    @property
    def precisions(self) -> tuple[str, ...]:
        """What is worth timing on it."""
        return tuple(precision for backend, precision in TOLERANCES if backend == self.backend)


def options(description: str, rounds: int = ROUNDS) -> Options:
    """Reads the command line, and keeps this process and those it starts to the cores asked for.

    Args:
      description: of the benchmark.
      rounds: unless told otherwise.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    most = len(cores) if cores else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=_count, default=rounds, help="figures in each median")
    parser.add_argument(
        "--rows", type=_pattern, default="", metavar="PATTERN", help="only rows whose name has it"
    )
    parser.add_argument("--threads", type=_count, default=most, help="and cores, of every side")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there as well")
    found = vars(parser.parse_args())
    threads = found.pop("threads")
    if threads > most:
        parser.error(f"--threads {threads}: there are {most} cores")
    if cores:
        os.sched_setaffinity(0, cores[:threads])
    # OpenMP's and XLA's ways of being told.
    os.environ |= {"OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}
    return Options(**found)


def _count(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of 1 or more")
    return int(word)


def _pattern(word: str) -> str:
    try:
        re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no regular expression: {error}") from None
    return word


def device() -> Device:
    """What JAX computes on; asked in a process of its own, for one that has a GPU keeps its memory.

    Ends the program where no peer computes on it.
    """
    program = "import jax; first = jax.devices()[0]; print(first.platform, first.device_kind)"
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    found = Device(*said.stdout.strip().split(maxsplit=1))
    if not found.precisions:
        sys.exit(f"JAX computes on {found.backend}, where there is no peer: JAX_PLATFORMS=cpu")
    return found


def beside_peers(
    device: Device, name: str, what: str, sizes: Mapping[str, Size], seconds: float
) -> list[Comparison]:
    """Ours beside PyTorch's and Flax's, for each size and precision.

    Args:
      device: what JAX computes on.
      name: what the rows' names begin with.
      what: the maker that `benchmarks.ours` and both peers have.
      sizes: by the rest of their names.
      seconds: that a row takes, about.
    """
    found = []
    for precision in device.precisions:
        for size_name, size in sizes.items():
            settings = dataclasses.asdict(size) | {"precision": precision}
            theirs = settings | {"backend": device.backend}
            found.append(
                Comparison(
                    f"{name}, {size_name}" + (f", {precision}" if precision != "float32" else ""),
                    Maker("benchmarks.ours", what, settings),
                    (
                        Maker("benchmarks.torch_peer", what, theirs),
                        Maker("benchmarks.flax_peer", what, theirs),
                    ),
                    seconds=seconds,
                    tolerance=TOLERANCES[device.backend, precision],
                )
            )
    return found


def compared(comparisons: Sequence[Comparison], chosen: Options) -> tuple[list[Row], list[str]]:
    """The rows of the comparisons that were chosen, and what went wrong with the others."""
    found: list[Row] = []
    remarks: list[str] = []
    failures: list[str] = []
    for each in comparisons:
        if not re.search(chosen.rows, each.name):
            continue
        print(f"{each.name}: about {each.seconds:.0f} s", flush=True)
        try:
            new, said = compare(each, rounds=chosen.rounds)
        except RuntimeError as error:
            # What the others give is worth having.
            failures.append(f"{each.name}: {error}")
            print(failures[-1], flush=True)
        else:
            found += new
            remarks += said
    table.show(found)
    for remark in remarks:
        print(remark)
    return found, failures


def finish(found: Sequence[Row], chosen: Options, failures: Sequence[str] = ()) -> None:
    """Leaves the rows where they were asked for, and ends with an error if any are missing."""
    if chosen.json is not None:
        table.write(chosen.json, list(found))
    if failures:
        sys.exit("\n".join(failures))


def run(description: str, comparisons: Callable[[Device], Sequence[Comparison]]) -> None:
    """The whole life of a benchmark that is comparisons and nothing else."""
    chosen = options(description)
    found, failures = compared(comparisons(device()), chosen)
    finish(found, chosen, failures)
