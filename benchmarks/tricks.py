"""Benefit of each optimization: the training step with and without the optimization.

    python -m benchmarks.tricks

A program is compiled from two configs, or run by two methods, and timed in turn.
"""

import functools
import re
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import command
from benchmarks.rows import row, show
from benchmarks.side_by_side import clock, in_turn
from lm_jax.config import GRU, LSTM, RNN, SGD, Config, Data, Train, override, resolve
from lm_jax.data.batches import Streams, streams
from lm_jax.training.state import TrainState
from lm_jax.training.step import init, run_until

WORDS = Config(
    data=Data(batch_size=20, length=35),
    model=RNN(cell=LSTM(), embedding_size=200, hidden_size=200, layers=2),
    train=Train(steps=10**6, optimizer=SGD(), learning_rate=1.0, clip_norm=0.25),
)
CHARACTERS = Config(
    data=Data(batch_size=32, length=128),
    model=RNN(cell=GRU(), embedding_size=128, hidden_size=128),
    train=Train(steps=10**6, clip_norm=1.0),
)
LONG = override(CHARACTERS, {"data.length": 2048, "data.batch_size": 8})
TEXTS = {"words, LSTM 200": (WORDS, 10_000), "characters, GRU 128": (CHARACTERS, 65)}
Pair = tuple[float, float]
"""A figure with an optimization, and without."""


class Loop:
    """The compiled loop of a run, ready for timing."""

    def __init__(self, config: Config, vocabulary: int, changes: Mapping[str, Any]):
        self.config, self.vocab_size = resolve(override(config, changes)), vocabulary
        tokens = np.random.default_rng(0).integers(0, vocabulary, 400_000).astype(np.int32)
        self.source: Streams = streams(tokens, 0, config.data.batch_size)
        self.state: TrainState = init(self.config, vocabulary)

    def together(self, updates: int) -> None:
        """Makes updates in a single call."""
        stop = int(self.state.step) + updates
        self.state = run_until(self.config, self.state, self.source, stop, self.vocab_size)
        self.state.step.block_until_ready()

    def apart(self, updates: int) -> None:
        """Makes updates with a call each, and reads the loss after each update."""
        for _ in range(updates):
            self.together(1)
            float(self.state.record.nats)

    def scratch(self) -> float:
        """Temporary memory of an update, in MiB, besides state and text."""
        seen = self.config, self.state, self.source, 1, self.vocab_size
        planned = run_until.lower(*seen).compile().memory_analysis()
        assert planned is not None
        return planned.temp_size_in_bytes / 2**20


def compared(ours: Callable[[int], None], without: Callable[[int], None], rounds: int) -> Pair:
    """Time two methods in turn: milliseconds per update with and without an optimization."""
    ways = []
    for way in (ours, without):
        way(2)
        calls = max(1, round(0.5 / (clock(way, 2) / 2)))
        ways.append(lambda way=way, calls=calls: clock(way, calls) / calls)
    with_it, without_it = (1e3 * statistics.median(taken) for taken in in_turn(ways, rounds))
    return with_it, without_it


def by_hand(config: Config, vocabulary: int, rounds: int) -> Pair:
    """Compare the hand-written backward pass with autodiff."""
    ours = Loop(config, vocabulary, {})
    autodiff = Loop(config, vocabulary, {"train.gradient": "full"})
    return compared(ours.together, autodiff.together, rounds)


def in_one_call(config: Config, vocabulary: int, rounds: int) -> Pair:
    """Compare many updates per call with a call per update followed by reading the loss."""
    ours, looked_at = Loop(config, vocabulary, {}), Loop(config, vocabulary, {})
    return compared(ours.together, looked_at.apart, rounds)


def main() -> None:
    chosen = command.options(__doc__ or "")
    rows = []

    def add(name: str, unit: str, without: str, measure: Callable[[], Pair]) -> None:
        if re.search(chosen.rows, name):
            rows.append(row(name, unit, *measure(), without))

    for text, (config, vocabulary) in TEXTS.items():
        for name, without, measure in (
            ("backward pass by hand", "autodiff of the scan", by_hand),
            ("many updates a call", "one, and its loss read", in_one_call),
        ):
            measured = functools.partial(measure, config, vocabulary, chosen.rounds)
            add(f"{name}; {text}", "ms", without, measured)
    whole, cut = Loop(LONG, 65, {}), Loop(LONG, 65, {"train.gradient.recompute": "sqrt"})
    name, without = "segments recomputed; characters, T 2048", "all steps kept"
    add(name, "MiB", without, lambda: (cut.scratch(), whole.scratch()))
    add(name, "ms", without, lambda: compared(cut.together, whole.together, chosen.rounds))
    show(rows)
    command.finish(rows, chosen)


if __name__ == "__main__":
    main()
