"""Run all benchmarks in turn; print a table and write benchmarks/results.json.

    make bench, or: python -m benchmarks.all

A whole run takes about 40 minutes on two cores. Each benchmark is a separate program, receives the
options, and writes rows to a file. If a benchmark fails, rows are missing and the run ends with an
error. With --rows, results.json stays unchanged.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import command
from benchmarks import rows as table
from benchmarks.rows import Row, geometric_mean
from benchmarks.side_by_side import ROOT

BENCHMARKS = {  # name: about how many minutes
    "steps": 9,
    "recurrence": 7,
    "loss": 4,
    "startup": 2,
    "generation": 2,
    "credit": 1,
    "probes": 2,
    "million": 1,
    "devices": 5,
    "tricks": 3,
    "sweeps": 9,
}
RESULTS = Path(__file__).with_name("results.json")


def rows_of(name: str, folder: Path) -> tuple[list[Row], bool]:
    """Run a benchmark; return the rows, and True if the benchmark succeeded."""
    path = folder / f"{name}.json"
    words = [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:], "--json", str(path)]
    began = time.perf_counter()
    ended = subprocess.run(words, cwd=ROOT).returncode
    print(f"{name}: {(time.perf_counter() - began) / 60:.1f} minutes\n", flush=True)
    return json.loads(path.read_text()) if path.exists() else [], ended == 0


def main() -> None:
    chosen = command.options(__doc__ or "")
    found: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, minutes in BENCHMARKS.items():
            print(f"{name}: about {minutes} minutes", flush=True)
            rows, whole = rows_of(name, Path(folder))
            found += rows
            failed += [] if whole else [name]
    table.show(found)
    if steps := [each for each in found if each["name"].startswith("step, ")]:
        mean = geometric_mean(steps)
        print(f"training steps, geometric mean against the best peer: {mean:.2f}")
    if not chosen.rows:
        table.write(RESULTS, table.results(found, command.device().kind))
    command.finish(found, chosen, [f"failed: {', '.join(failed)}"] if failed else [])


if __name__ == "__main__":
    main()
