"""One JAX device for each CPU core, the batch's lanes shared, against threads within each product.

    python -m benchmarks.devices [--rounds N]

Whole updates of the training program, in one process for each side (XLA's CPU devices are made when
it starts). The two take turns, so that what else the machine does hits both; printed are medians
over the rounds, of seconds an update, and their ratio, above 1 where several devices are faster.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

CASES = {
    "word lstm 200": ("lstm", 200, 10_000, 20, 35),
    "word lstm 650": ("lstm", 650, 10_000, 20, 35),
    "char gru 128": ("gru", 128, 65, 32, 128),
    "char lstm 128": ("lstm", 128, 65, 32, 128),
    "char lstm 512": ("lstm", 512, 65, 32, 128),
}
SECONDS = 1.0  # of a measurement, about


def serve(devices: int) -> None:
    """Measures, each time a case's name comes in, and prints seconds an update."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import numpy as np

    from lm_jax.config import RNN, Config, Data, Train, resolve
    from lm_jax.data.batches import streams
    from lm_jax.settings import shape
    from lm_jax.training.step import arguments, program

    made = {}
    for name in map(str.strip, sys.stdin):
        cell, hidden, V, B, T = CASES[name]
        if name not in made:
            config = resolve(
                Config(
                    data=Data(source="memory", batch_size=B, length=T),
                    model=RNN(cell=cell, hidden_size=hidden, embedding_size=hidden),
                    train=Train(keep_best=False),
                )
            )
            tokens = np.random.default_rng(0).integers(1, V, 200_000).astype(np.uint16)
            compiled, numbers = program(shape(config), V, devices), arguments(config)
            source = streams(tokens, 0, B)
            state = compiled.advance(compiled.init(numbers), source, numbers, 2)
            made[name] = [compiled, numbers, source, state, 2]
        compiled, numbers, source, state, steps = made[name]
        first, began = int(state.step), time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            state = compiled.advance(state, source, numbers, int(state.step) + steps)
            state.step.block_until_ready()
        taken = (time.perf_counter() - began) / (int(state.step) - first)
        made[name][3] = state
        print(taken, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return
    cores = len(os.sched_getaffinity(0))
    sides = {
        count: subprocess.Popen(
            [sys.executable, __file__, "--serve", str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for count in (1, cores)
    }

    def ask(count: int, name: str) -> float:
        side = sides[count]
        assert side.stdin is not None
        assert side.stdout is not None
        side.stdin.write(f"{name}\n")
        side.stdin.flush()
        return float(side.stdout.readline())

    print(f"{'update, ms':16}{'1 device':>10}{f'{cores} devices':>12}{'ratio':>8}")
    for name in CASES:
        for count in sides:
            ask(count, name)  # compiles
        rounds = [{count: ask(count, name) for count in sides} for _ in range(asked.rounds)]
        one, many = (1e3 * statistics.median(row[count] for row in rounds) for count in sides)
        ratio = statistics.median(row[1] / row[cores] for row in rounds)
        print(f"{name:16}{one:10.1f}{many:12.1f}{ratio:8.2f}", flush=True)
    for side in sides.values():
        side.communicate()


if __name__ == "__main__":
    main()
