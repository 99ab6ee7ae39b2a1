"""Overhead of a run besides arithmetic: start, work between updates, checkpoints.

    python -m benchmarks.startup

times `run.py train quickstart` up to the first row of metrics against a PyTorch script up to the
first update (`benchmarks.torch_start`), and prints a row per figure: the median, minimum and
maximum over several rounds, and the project's limit. Every start is a separate process; "cold"
means without compilation cache, "warm" after a run of an equal config.
"""

import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import command
from benchmarks import rows as table
from benchmarks.rows import Row, row
from benchmarks.side_by_side import ROOT

ROUNDS = 5
NAMES = ("start to first step, cold", "start to first step, warm")


def imported() -> float:
    """Seconds from the start of Python to the end of `import lm_jax`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import lm_jax"], cwd=ROOT, check=True)
    return time.perf_counter() - began


def first_step(cache: Path, run_dir: Path) -> float:
    """Seconds from the start of `run.py train quickstart` to the first row of metrics.jsonl."""
    command = [sys.executable, "run.py", "train", "quickstart", "--run-dir", str(run_dir)]
    environment = {**os.environ, "LM_JAX_CACHE": str(cache)}
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        metrics = run_dir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
            time.sleep(0.005)
        taken = time.perf_counter() - began
        process.kill()
    return taken


def first_step_of_torch(backend: str) -> float:
    """Seconds from the start of Python to the first update in PyTorch."""
    words = [sys.executable, "-m", "benchmarks.torch_start", backend]
    began = time.perf_counter()
    subprocess.run(words, cwd=ROOT, check=True)
    return time.perf_counter() - began


def first_steps(
    folder: Path, rounds: int, backend: str
) -> tuple[list[float], list[float], list[float]]:
    """Time cold, warm and PyTorch starts in turn, with a new cache for each cold and warm pair."""
    cold, warm, torch = [], [], []
    for number in range(rounds):
        cache = folder / f"cache{number}"
        cold.append(first_step(cache, folder / f"cold{number}"))
        warm.append(first_step(cache, folder / f"warm{number}"))
        if importlib.util.find_spec("torch") is not None:
            torch.append(first_step_of_torch(backend))
    return cold, warm, torch


def host_overhead(folder: Path) -> Iterator[float]:
    """Yield the share of the quickstart's time outside the compiled loop, without validation."""
    import dataclasses

    import lm_jax
    from lm_jax.config import train_of
    from lm_jax.experiment import load_experiment

    config = load_experiment("quickstart").config
    train = dataclasses.replace(
        train_of(config), steps=451, validate_every=10_000, checkpoint_every=10_000
    )
    config = dataclasses.replace(config, train=train)
    for number in range(ROUNDS):
        seen: list[tuple[float, float]] = []

        def watch(step: int, row: dict | None, seen: list = seen) -> None:
            if row is not None and row["kind"] == "train" and step <= 450:
                seen.append((time.perf_counter(), row["seconds"]))

        lm_jax.train(config, folder / f"overhead{number}", watch=watch)
        (began, inside_began), (ended, inside_ended) = seen[0], seen[-1]
        yield 1 - (inside_ended - inside_began) / (ended - began)


def checkpoint_block(folder: Path) -> Iterator[float]:
    """Yield the milliseconds of blocked training while a model of 5 million parameters is saved."""
    import optax

    from lm_jax.config import RNN, Config, Train, resolve
    from lm_jax.training import manifest
    from lm_jax.training.checkpoint import Checkpoints
    from lm_jax.training.journal import NO_ROWS
    from lm_jax.training.step import init

    config = resolve(Config(model=RNN(embedding_size=256, hidden_size=1024), train=Train()))
    state = init(config, 3250)
    print(f"checkpoint of {optax.tree.size(state.params):,} parameters, Adam, best parameters kept")
    checkpoints = Checkpoints(folder / "saved", 0, manifest.new(config, ""))
    for step in range(ROUNDS + 1):
        state = state._replace(step=state.step + 1)
        checkpoints.wait()
        began = time.perf_counter()
        checkpoints.save(state, NO_ROWS)
        taken = 1000 * (time.perf_counter() - began)
        if step:  # the first save also imports Orbax, in the background
            yield taken
    checkpoints.close()


def show(name: str, figures: list[float], unit: str, limit: float) -> None:
    """Prints a row."""
    median, least, most = statistics.median(figures), min(figures), max(figures)
    verdict = "met" if median <= limit else "missed"
    print(f"{name:42}{median:9.2f}{least:9.2f}{most:9.2f}  {unit:5} limit {limit:g}: {verdict}")


def repeated(measure: Callable[[], float]) -> list[float]:
    """Repeat a measurement, once per round."""
    return [measure() for _ in range(ROUNDS)]


def main() -> None:
    chosen = command.options(__doc__ or "")
    device = command.device()
    found: list[Row] = []
    print(f"jax {table.versions()['jax']}, {device.kind}, {os.cpu_count()} CPU cores")
    print(f"{'':42}{'median':>9}{'min':>9}{'max':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if any(re.search(chosen.rows, each) for each in NAMES):
            *ours, torch = first_steps(folder, chosen.rounds, device.backend)
            for what, taken, limit in zip(NAMES, ours, (5, 3), strict=True):
                show(what, taken, "s", limit)
                if torch:
                    medians = statistics.median(taken), statistics.median(torch)
                    found.append(row(what, "s", *medians, "PyTorch, eager"))
        if not chosen.rows:
            show("import lm_jax", repeated(imported), "s", 1.5)
            shares = [100 * share for share in host_overhead(folder)]
            show("time outside the compiled loop", shares, "%", 2)
            show("checkpoint holds up training", list(checkpoint_block(folder)), "ms", 50)
    table.show(found)
    command.finish(found, chosen)


if __name__ == "__main__":
    main()
