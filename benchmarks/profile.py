"""Time of each operation in a layer's pass, measured by `jax.profiler`.

    python -m benchmarks.profile [--rows PATTERN] [--rounds PASSES] [--json PATH]

The layers of `benchmarks.recurrence`, forward and backward in a compiled loop, on a single device.
For each operation of the compiled program: milliseconds per pass, on the thread that started the
operation, and number of runs per pass. For a product shared with other threads, this is the time
until completion or until handover. `of the pass` is the share of the measured time of the pass.
"""

import gzip
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.ours import passes_of_a_layer
from benchmarks.recurrence import SIZES
from benchmarks.rows import write
from benchmarks.side_by_side import clock
from benchmarks.sizes import Size

LEAST = 0.005
"""Share of a pass; operations below this share are summed in a single line."""


def trace(run: Callable[[], object]) -> list[dict[str, Any]]:
    """The events of a run in JAX's profiler, in the trace event format."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def operations(size: Size, passes: int) -> tuple[float, dict[str, tuple[float, int]]]:
    """Measure the seconds of a pass, and the seconds and runs of each operation per pass."""
    way = passes_of_a_layer(size, 1)
    way.run(2)
    whole = clock(way.run, passes) / passes
    events = trace(lambda: way.run(passes))
    taken, runs = Counter(), Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            taken[event["name"]] += event["dur"]
            runs[event["name"]] += 1
    return whole, {
        name: (micro / 1e6 / passes, runs[name] // passes) for name, micro in taken.most_common()
    }


def show(name: str, whole: float, found: dict[str, tuple[float, int]]) -> None:
    """Prints the table of a layer."""
    table = Table(box=None, pad_edge=False, title=f"{name}: {1e3 * whole:.1f} ms a pass")
    for heading in ("ms a pass", "of the pass", "runs a pass"):
        table.add_column(heading, justify="right")
    table.add_column("operation")
    small = 0.0
    for operation, (seconds, runs) in found.items():
        if seconds < LEAST * whole:
            small += seconds
            continue
        share = f"{seconds / whole:.1%}"
        table.add_row(f"{1e3 * seconds:.2f}", share, f"{runs:,}", operation)
    table.add_row(f"{1e3 * small:.2f}", f"{small / whole:.1%}", "", "all others")
    Console().print(table)


def main() -> None:
    chosen = command.options(__doc__ or "", 5)
    seen = {}
    for name, size in SIZES.items():
        if re.search(chosen.rows, name):
            whole, found = operations(size, chosen.rounds)
            show(name, whole, found)
            seen[name] = {"seconds": whole, "operations": found}
    if chosen.json is not None:
        write(chosen.json, seen)


if __name__ == "__main__":
    main()
