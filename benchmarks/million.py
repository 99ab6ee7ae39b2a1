"""A million words: what memory training, scoring and drawing take, and how long.

    python -m benchmarks.million

An Elman network of 64 units, V = 1,000,000, B 20 T 35, exact softmax. The aim is no more than the
parameters, their gradient, the optimizer's state and 300 MB; once a model is trained, no more than
the parameters and 300 MB. Each case makes two updates, or reads or draws a chunk twice, in a
process of its own, and says by how much the memory at its peak was above what it was before the
parameters were drawn, and what XLA had planned for the compiled loop. In the table and in
results.json «the peer» is the aim.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command
from benchmarks.loss import memory
from benchmarks.rows import Row, row, show
from lm_jax import inference, models
from lm_jax.config import RNN, SGD, Adam, Config, Data, Softmax, Train, resolve
from lm_jax.data.batches import streams
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.settings import shape
from lm_jax.training.step import arguments, program

ROOT = Path(__file__).parent.parent
V, UNITS, LANES, LENGTH = 1_000_000, 64, 20, 35
CASES = {
    "SGD": (SGD(), None, False),
    "SGD, clipped": (SGD(), 1.0, False),
    "SGD, clipped, tied": (SGD(), 1.0, True),
    "Adam, clipped": (Adam(), 1.0, False),
}
USES = "scored", "drawn"


class Found(NamedTuple):
    """Of one case, in MB and seconds."""

    aim: float
    seen: float
    planned: float | None
    seconds: float
    """An update, or a word."""


def megabytes(tree: Any) -> float:
    """What the arrays of a tree take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6


def trained(name: str) -> Found:
    """Training, one of `CASES`."""
    optimizer, threshold, tied = CASES[name]
    config = resolve(
        Config(
            data=Data(batch_size=LANES, length=LENGTH),
            model=RNN(embedding_size=UNITS, hidden_size=UNITS, readout=Softmax(tied=tied)),
            train=Train(optimizer=optimizer, clip_norm=threshold, keep_best=False),
        )
    )
    made, values = program(shape(config), V), arguments(config)
    tokens = np.random.default_rng(0).integers(0, V, LANES * LENGTH * 5).astype(np.int32)
    source, state = streams(tokens, 0, LANES), jax.eval_shape(made.init, values)
    advance: Any = made.advance
    planned = advance.lower(state, source, values, 2).compile().memory_analysis()
    peak = planned.argument_size_in_bytes + planned.temp_size_in_bytes
    peak += planned.output_size_in_bytes - planned.alias_size_in_bytes
    bound = 2 * megabytes(state.params) + megabytes(state.opt_state) + 300
    before = memory("VmRSS")
    begun = made.advance(made.init(values), source, values, 1)
    begun.step.block_until_ready()
    began = time.perf_counter()
    made.advance(begun, source, values, 2).step.block_until_ready()
    seconds = time.perf_counter() - began
    return Found(bound, memory("VmHWM") - before, peak / 1e6, seconds)


def used(name: str) -> Found:
    """What a model does once it is trained, one of `USES`."""
    shaped = Config(model=RNN(embedding_size=UNITS, hidden_size=UNITS))
    model = models.make(shaped.model, V)
    vocabulary = Vocabulary("word", ("<unk>", "<eos>", *(f"w{n}" for n in range(V - 2))))
    drawn = np.random.default_rng(0).integers(0, V - 2, LANES * LENGTH)
    text = " ".join(f"w{n}" for n in drawn)
    assert len(vocabulary.numbers) == V  # made when first asked for, which the model is not to pay

    def once() -> None:
        if name == "scored":
            inference.score(model, params, vocabulary, text)
        else:
            inference.sample(model, params, vocabulary, length=LANES * LENGTH)

    before = memory("VmRSS")
    # Neither time nor memory depends on their values, and to draw them takes room of its own.
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01), shapes)
    bound = megabytes(params) + 300
    once()
    began = time.perf_counter()
    once()
    seconds = (time.perf_counter() - began) / (LANES * LENGTH)
    return Found(bound, memory("VmHWM") - before, None, seconds)


def row_of(name: str) -> Row:
    """Measures one case in a process of its own, prints all of it, and gives its row."""
    words = [sys.executable, "-m", "benchmarks.million", "--case", name]
    said = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = Found(*json.loads(said))
    took = f"{1e3 * found.seconds:.1f} ms a word"
    if found.planned is not None:
        took = f"{found.seconds:.1f} s an update, planned by XLA {found.planned:,.0f} MB"
    print(f"{name:20} aim {found.aim:6,.0f} MB   seen {found.seen:6,.0f} MB   {took}", flush=True)
    return row(f"a million words, {name}", "MB", found.seen, found.aim, "the aim")


def main() -> None:
    chosen = command.options(__doc__ or "")
    names = [name for name in (*CASES, *USES) if re.search(chosen.rows, f"a million words, {name}")]
    rows = [row_of(name) for name in names]
    show(rows)
    command.finish(rows, chosen)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        measure = used if sys.argv[2] in USES else trained
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
