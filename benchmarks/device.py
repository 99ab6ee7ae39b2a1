"""What an accelerator does with lm_jax: speed beside peers, bits, numerics; in at most ten minutes.

    python -m benchmarks.device [STAGE ...] [--seconds 600] [--folder DIR] [--small]

The stages are functions of `benchmarks.device_speed` and `benchmarks.device_checks`. Each is a
separate process with a time limit, because a JAX process keeps the memory of the accelerator. A
stage that fails or runs out of time does not stop the others, and the table names the stages
without time left. DIR receives a log of each stage, the compiled training steps, and table.txt.
With --small all sizes are tiny, for a trial on a CPU.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import device_checks, device_speed
from benchmarks.device_stage import MARK, Stage
from benchmarks.side_by_side import ROOT


class Limited(NamedTuple):
    """A measurement, and its time limit in seconds."""

    measure: Callable[[Stage], None]
    limit: float


STAGES = {
    "about": Limited(device_checks.about, 60),
    "steps": Limited(device_speed.steps, 150),
    "peers": Limited(device_speed.peers, 120),
    "kernels": Limited(device_speed.kernels, 120),
    "launches": Limited(device_speed.launches, 60),
    "bits": Limited(device_checks.bits, 90),
    "lanes": Limited(device_speed.lanes, 90),
    "live": Limited(device_speed.live_probe, 60),
    "quickstart": Limited(device_checks.quickstart, 90),
    "evaluation": Limited(device_checks.evaluation, 60),
    "numerics": Limited(device_checks.numerics, 90),
    "tests": Limited(device_checks.tests, 150),
    "loss": Limited(device_speed.loss, 60),
    "ceilings": Limited(device_speed.ceilings, 60),
    "probe": Limited(device_checks.probe, 200),
}
"""In the order in which they run; evaluation and probe read the quickstart's run."""

LEAST = 15  # seconds; with less time left a stage is not started


def run_stage(name: str, chosen: argparse.Namespace, seconds: float) -> str:
    """Run a stage in a process of its own; return how the process ended."""
    words = ["--folder", str(chosen.folder), *(["--small"] if chosen.small else [])]
    kept = tempfile.gettempdir() + "/lm_jax-device"
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": f"{kept}/programs",
        "LM_JAX_CACHE": f"{kept}/texts",
        "PYTHONUNBUFFERED": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    began = time.monotonic()
    with open(chosen.folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.device", "--inside", name, *words],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended = {0: ""}.get(process.wait(seconds), f", exit status {process.returncode}")
        except subprocess.TimeoutExpired:
            ended = ", out of time"
        try:
            # Processes that the stage has started would keep the accelerator.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    return f"{time.monotonic() - began:.0f} s{ended}"


def lines_of(log: Path) -> list[str]:
    """Lines of the table in a log, or the log's last lines if there are none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    return found or ["no result: " + " / ".join(lines[-3:])[-400:]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--seconds", type=float, default=600, help="time limit of the whole")
    parser.add_argument("--folder", type=Path, default=Path("device-results"), metavar="DIR")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a trial on a CPU")
    parser.add_argument("--inside", choices=list(STAGES), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        STAGES[chosen.inside].measure(Stage(chosen.small, chosen.folder))
        return
    if unknown := set(chosen.stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; the stages: {', '.join(STAGES)}")
    chosen.folder = chosen.folder.absolute()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + chosen.seconds
    with open(chosen.folder / "table.txt", "w", encoding="utf-8") as table:
        for name in chosen.stages or STAGES:
            left = end - time.monotonic()
            if left < LEAST:
                said = ["left out: no time"]
            else:
                limit = left if chosen.small else min(left, STAGES[name].limit)
                ended = run_stage(name, chosen, limit)
                said = [ended, *lines_of(chosen.folder / f"{name}.log")]
            for line in said:
                print(f"{name:9} | {line}", flush=True)
                print(f"{name:9} | {line}", file=table, flush=True)


if __name__ == "__main__":
    main()
