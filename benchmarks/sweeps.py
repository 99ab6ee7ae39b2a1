"""A sweep as lanes of a single program, against separate runs in turn.

    python -m benchmarks.sweeps

Two measurements: the time of an update of a lane against an update of a single run, without the
start of either; and the time of a whole sweep of 32 short trials from the command line against 32
separate commands, all with a warm compilation cache (at most three rounds).
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from benchmarks import command
from benchmarks.rows import Row, row, show
from benchmarks.side_by_side import clock, in_turn
from lm_jax.config import GRU, LSTM, RNN, Config, Data, Elman, Train, resolve
from lm_jax.data.batches import streams
from lm_jax.sweeps.vmapped_runs import VmappedRuns
from lm_jax.training.step import init, run_until

ROOT = Path(__file__).parent.parent
TRIALS, UPDATES = 32, 500
CELLS = {"elman": Elman, "gru": GRU, "lstm": LSTM}
SIZES = (("elman", 64, 16, 32), ("gru", 64, 16, 32), ("gru", 128, 32, 64), ("lstm", 64, 32, 64))
V = 96
WHOLE = f"{TRIALS} trials of {UPDATES} updates, GRU 64"
EXPERIMENT = f'''"""Thirty-two small character models: what a sweep costs."""

from lm_jax.config import GRU, RNN, Config, Data, Train


def config():
    return Config(
        data=Data(batch_size=16, length=32),
        model=RNN(cell=GRU(), hidden_size=64),
        train=Train(steps={UPDATES}, clip_norm=1.0),
    )


def sweep():
    return [
        {{"train.learning_rate": 0.0005 * 1.2**n, "seed": n}} for n in range({TRIALS})
    ]
'''


def lane_rows(pattern: str, rounds: int) -> list[Row]:
    """Compare an update of a lane, among 32 on all devices, with an update of a single run."""
    rows = []
    tokens = np.random.default_rng(0).integers(0, V, 200_000).astype(np.uint8)
    for cell, hidden, batch, length in SIZES:
        name = f"a lane's update, {cell} {hidden}, B {batch} T {length}"
        if not re.search(pattern, name):
            continue
        config = resolve(
            Config(
                data=Data(batch_size=batch, length=length),
                model=RNN(cell=CELLS[cell](), hidden_size=hidden),
                train=Train(steps=10**6, clip_norm=1.0),
            )
        )
        source = streams(tokens, 0, batch)
        configs = [replace(config, seed=n) for n in range(TRIALS)]
        lanes = VmappedRuns(V, source, configs)
        for run, each in enumerate(configs):
            lanes.put(run, init(each, V))
        reached, alone = 0, init(config, V)

        def beside(updates: int, lanes: VmappedRuns = lanes) -> None:
            nonlocal reached
            reached += updates
            lanes.advance(dict.fromkeys(range(TRIALS), reached))

        def by_itself(updates: int, source=source, config=config) -> None:
            nonlocal alone
            alone = run_until(config, alone, source, int(alone.step) + updates, V)
            alone.step.block_until_ready()

        ways = []
        for way, per in ((beside, TRIALS), (by_itself, 1)):
            way(1)
            calls = max(1, round(0.5 / clock(way, 2) * 2))
            ways.append(lambda way=way, per=per, n=calls: clock(way, n) / n / per)
        lane, run = (1e3 * statistics.median(taken) for taken in in_turn(ways, rounds))
        rows.append(row(name, "ms", lane, run, "a lone run"))
    return rows


def sweep_row(rounds: int) -> Row:
    """Compare a sweep's command with separate commands for all trials."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Path(folder) / "small.py"
        experiment.write_text(EXPERIMENT)

        def do(*words: str) -> None:
            line = [sys.executable, str(ROOT / "run.py"), words[0], str(experiment), *words[1:]]
            subprocess.run(
                [*line, "--run-dir", f"{folder}/run"], check=True, capture_output=True, cwd=ROOT
            )
            shutil.rmtree(f"{folder}/run")

        def each(number: int) -> None:
            rate = ("--train.learning-rate", str(0.0005 * 1.2**number), "--seed", str(number))
            do("train", *rate)

        do("sweep")
        each(0)
        whole, apart = in_turn(
            [
                lambda: clock(lambda _: do("sweep"), 1),
                lambda: clock(lambda _: [each(number) for number in range(TRIALS)], 1),
            ],
            rounds,
        )
    return row(WHOLE, "s", statistics.median(whole), statistics.median(apart), "as many commands")


def main() -> None:
    chosen = command.options(__doc__ or "")
    if hasattr(os, "sched_getaffinity"):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    rows = lane_rows(chosen.rows, chosen.rounds)
    if re.search(chosen.rows, WHOLE):
        rows.append(sweep_row(min(chosen.rounds, 3)))
    show(rows)
    command.finish(rows, chosen)


if __name__ == "__main__":
    main()
