"""What each trick of the fast path buys: the training step with it and without it.

    python -m benchmarks.tricks [--rounds N]

The same program is compiled from two configs, or run in two ways, and timed in turn.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.rows import Row, row, show
from benchmarks.side_by_side import clock, in_turn
from lm_jax.config import RNN, SGD, Config, Data, Train, override, resolve
from lm_jax.data.batches import Streams, streams
from lm_jax.settings import shape
from lm_jax.training.state import TrainState
from lm_jax.training.step import Program, arguments, program

WORDS = Config(
    data=Data(batch_size=20, length=35),
    model=RNN(cell="lstm", embedding_size=200, hidden_size=200, layers=2),
    train=Train(steps=10**6, optimizer=SGD(), learning_rate=1.0, clip_norm=0.25),
)
CHARACTERS = Config(
    data=Data(batch_size=32, length=128),
    model=RNN(cell="gru", embedding_size=128, hidden_size=128),
    train=Train(steps=10**6, clip_norm=1.0),
)
LONG = override(CHARACTERS, {"data.length": 2048, "data.batch_size": 8})
TEXTS = {"words, LSTM 200": (WORDS, 10_000), "characters, GRU 128": (CHARACTERS, 65)}


class Loop:
    """A run's compiled loop, ready to be timed."""

    def __init__(self, config: Config, vocabulary: int, changes: Mapping[str, Any]):
        config = resolve(override(config, changes))
        self.program: Program = program(shape(config), vocabulary)
        self.numbers = arguments(config)
        tokens = np.random.default_rng(0).integers(0, vocabulary, 400_000).astype(np.int32)
        self.source: Streams = streams(tokens, 0, config.data.batch_size)
        self.state: TrainState = self.program.init(self.numbers)

    def together(self, updates: int) -> None:
        """Makes updates in one call."""
        stop = int(self.state.step) + updates
        self.state = self.program.advance(self.state, self.source, self.numbers, stop)
        self.state.step.block_until_ready()

    def apart(self, updates: int) -> None:
        """Makes updates a call each, and looks at the loss after each."""
        for _ in range(updates):
            self.together(1)
            float(self.state.record.nats)

    def scratch(self) -> float:
        """MiB that an update takes besides its state and its text."""
        advance: Any = self.program.advance
        compiled = advance.lower(self.state, self.source, self.numbers, 1).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20


def compared(
    name: str, ours: Callable[[int], None], without: Callable[[int], None], what: str, rounds: int
) -> Row:
    """One trick: milliseconds an update with it and without it."""
    ways = []
    for way in (ours, without):
        way(2)
        calls = max(1, round(0.5 / (clock(way, 2) / 2)))
        ways.append(lambda way=way, calls=calls: clock(way, calls) / calls)
    figures = [1e3 * statistics.median(taken) for taken in in_turn(ways, rounds)]
    return row(name, "ms", figures[0], figures[1], what)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="figures that each median is of")
    rounds = parser.parse_args().rounds
    rows = []
    for text, (config, vocabulary) in TEXTS.items():
        ours = Loop(config, vocabulary, {})
        autodiff = Loop(config, vocabulary, {"train.gradient": "full"})
        rows.append(
            compared(
                f"backward pass by hand; {text}",
                ours.together,
                autodiff.together,
                "autodiff of the scan",
                rounds,
            )
        )
        looked_at = Loop(config, vocabulary, {})
        rows.append(
            compared(
                f"many updates a call; {text}",
                ours.together,
                looked_at.apart,
                "one, and its loss read",
                rounds,
            )
        )
    whole, cut = Loop(LONG, 65, {}), Loop(LONG, 65, {"train.recompute": "sqrt"})
    name = "segments recomputed; characters, T 2048"
    rows.append(row(name, "MiB", cut.scratch(), whole.scratch(), "all steps kept"))
    rows.append(compared(name, cut.together, whole.together, "all steps kept", rounds))
    show(rows)


if __name__ == "__main__":
    main()
