"""Common command line of the benchmarks: choice of rows, number of rounds, output file."""

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
    # A GPU rounds the factors of a product: to 10 bits (TensorFloat-32) or 7.
    ("cpu", "float32"): 1e-5,
    ("gpu", "float32"): 1e-3,
    ("gpu", "bfloat16"): 3e-2,
}


class Options(NamedTuple):
    """Options of a benchmark."""

    rounds: int
    rows: str
    """Regular expression, searched in the names of rows."""
    json: Path | None
    """Additional output file, a JSON list of rows."""


class Device(NamedTuple):
    """The device of JAX."""

    backend: str
    kind: str

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions to time on the device."""
        return tuple(precision for backend, precision in TOLERANCES if backend == self.backend)


def options(description: str, rounds: int = ROUNDS) -> Options:
    """Reads the command line, and restricts this process and child processes to --threads cores.

    Args:
      description: help text of the benchmark.
      rounds: default of --rounds.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    most = len(cores) if cores else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=_count, default=rounds, help="figures in each median")
    parser.add_argument(
        "--rows", type=pattern, default="", metavar="PATTERN", help="only rows whose name has it"
    )
    parser.add_argument("--threads", type=_count, default=most, help="and cores, of every side")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there as well")
    found = vars(parser.parse_args())
    threads = found.pop("threads")
    if threads > most:
        parser.error(f"--threads {threads}: there are {most} cores")
    if cores:
        os.sched_setaffinity(0, cores[:threads])
    # The settings of OpenMP and of XLA.
    os.environ |= {"OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}
    return Options(**found)


def _count(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of 1 or more")
    return int(word)


def pattern(word: str) -> str:
    """Check a regular expression of the command line."""
    try:
        re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no regular expression: {error}") from None
    return word


def device() -> Device:
    """Find the device of JAX, in a separate process (a JAX process would keep the GPU's memory).

    Ends the program if no peer runs on the device.
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
    """Compare lm_jax with PyTorch and Flax, for each size and precision.

    Args:
      device: the device of JAX.
      name: beginning of the rows' names.
      what: name of the maker function in `benchmarks.ours` and in both peers.
      sizes: sizes, by the rest of the rows' names.
      seconds: approximate time of a row.
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
    """Run the chosen comparisons; return the rows, and error messages of failed comparisons."""
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
            # The other comparisons continue.
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
    """Writes the rows to --json, and ends the program with an error if there are failures."""
    if chosen.json is not None:
        table.write(chosen.json, list(found))
    if failures:
        sys.exit("\n".join(failures))


def run(description: str, comparisons: Callable[[Device], Sequence[Comparison]]) -> None:
    """Main function of a benchmark with comparisons only."""
    chosen = options(description)
    found, failures = compared(comparisons(device()), chosen)
    finish(found, chosen, failures)
