"""Memory and time of a long run with a record for every update, and of many runs in one process.

    python -m benchmarks.flat [--updates 100000] [--runs 50]

prints a line for every tenth of the updates, and for every fifth run, each of which is trained,
probed and loaded. Both memory and time should stay as they are. `make bench` leaves this out.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax

import lm_jax
from lm_jax.config import RNN, Config, Data, Memory, Train, override

TEXT = "the cat sat on the mat\nand the dog lay by the cat\n\nall was still\n" * 12
CONFIG = Config(
    data=Data(source=Memory(), batch_size=4, length=8),
    model=RNN(embedding_size=4, hidden_size=8),
    train=Train(validate_every=5000, checkpoint_every=5000, log_every=1),
)
CELLS = "elman", "lstm", "gru", "mingru", "lru"


def resident() -> str:
    """The memory of this process that is in use, and the number of arrays."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    size = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return f"{size:.0f} MB, {len(jax.live_arrays())} arrays"


def long_run(updates: int, folder: str) -> None:
    """Train a small model, and print the time of an update and the memory."""
    share, began = max(1, updates // 10), time.perf_counter()

    def watch(step: int, row: dict | None) -> None:
        nonlocal began
        if step % share == 0 and row is not None and row["kind"] == "train":
            now = time.perf_counter()
            print(f"update {step:,}: {(now - began) / share * 1e3:.2f} ms each, {resident()}")
            began = now

    config = override(CONFIG, {"train.steps": updates})
    lm_jax.train(config, f"{folder}/long", text=TEXT, watch=watch)


def many_runs(runs: int, folder: str) -> None:
    """Train, probe and load runs of different models, and print the memory."""
    for number in range(1, runs + 1):
        cell, size = CELLS[number % len(CELLS)], 8 + 2 * number
        changes = {"model.cell": cell, "model.hidden_size": size, "train.steps": 20}
        run = lm_jax.train(override(CONFIG, changes), f"{folder}/{number}", text=TEXT)
        lm_jax.probe(run, text=TEXT, length=4, only=["lags", "by_lag"])
        lm_jax.load_run(run.path)
        if number % 5 == 0:
            print(f"run {number}: {resident()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=50)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        long_run(asked.updates, folder)
        many_runs(asked.runs, folder)


if __name__ == "__main__":
    main()
