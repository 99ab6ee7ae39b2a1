"""A vocabulary of a million words: memory and time of training, scoring and sampling.

    python -m benchmarks.million

An Elman network of 64 units, V = 1,000,000, B 20 T 35, exact softmax. The aim for training: at most
the parameters, the gradient, the optimizer's state, the best parameters if kept, and 300 MB. For a
whole run, with checkpoints, the aim has another leaf of parameters, 256 MB. For a trained model:
at most the parameters and 300 MB. In the table and in results.json «the peer» is the aim.

Each case makes two updates, or reads or draws a chunk twice, in a separate process. The case
reports the peak memory minus the memory before the parameters were drawn, and the memory planned by
XLA for the compiled loop.

A whole run is `run.py train` on files, in two processes: the first makes 2 updates; the second
resumes from the checkpoint of the first, up to 4 updates. Each process validates, saves, reads the
test text, loads the finished run and draws a sample. The figure is the larger of the two peaks of
the whole process, minus the memory after the start of JAX and the reading of the text: nothing is
subtracted for compilation, for Orbax, or for the checkpoint in progress. A third process then loads
and scores the last run again. Checkpoints and text take 6 GB of temporary disk space.
"""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command
from benchmarks.loss import memory
from benchmarks.rows import Row, row, show
from lm_jax import generation, load_run, models, scoring
from lm_jax.commands.train import train_command
from lm_jax.config import RNN, SGD, Adam, Config, Data, File, Softmax, Train, Word, resolve
from lm_jax.data.batches import streams
from lm_jax.data.corpus import load
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.training.directory import read_vocabulary
from lm_jax.training.step import init, run_until

ROOT = Path(__file__).parent.parent
V, UNITS, LANES, LENGTH = 1_000_000, 64, 20, 35
CASES = {
    "SGD": (SGD(), None, False),
    "SGD, clipped": (SGD(), 1.0, False),
    "SGD, clipped, tied": (SGD(), 1.0, True),
    "Adam, clipped": (Adam(), 1.0, False),
}
USES = "scored", "drawn"
RUNS = {
    "SGD": (SGD(), None, False),
    "Adam": (Adam(), None, False),
    "Adam, clipped": (Adam(), 1.0, False),
    "Adam, best kept": (Adam(), None, True),
    "Adam, clipped, best kept": (Adam(), 1.0, True),
}


class Found(NamedTuple):
    """Measurements of a case, in MB and seconds."""

    aim: float
    seen: float
    planned: float | None
    seconds: float
    """Seconds per update, per word, or in total."""


def megabytes(tree: Any) -> float:
    """Size of the arrays of a tree in MB."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6


def trained(name: str) -> Found:
    """Measure training, for a name in `CASES`."""
    optimizer, threshold, tied = CASES[name]
    config = resolve(
        Config(
            data=Data(batch_size=LANES, length=LENGTH),
            model=RNN(embedding_size=UNITS, hidden_size=UNITS, readout=Softmax(tied=tied)),
            train=Train(optimizer=optimizer, clip_norm=threshold, keep_best=False),
        )
    )
    tokens = np.random.default_rng(0).integers(0, V, LANES * LENGTH * 5).astype(np.int32)
    source, state = streams(tokens, 0, LANES), init.eval_shape(config, V)
    planned = run_until.lower(config, state, source, 2, V).compile().memory_analysis()
    assert planned is not None
    peak = planned.argument_size_in_bytes + planned.temp_size_in_bytes
    peak += planned.output_size_in_bytes - planned.alias_size_in_bytes
    bound = 2 * megabytes(state.params) + megabytes(state.opt_state) + 300
    before = memory("VmRSS")
    begun = run_until(config, init(config, V), source, 1, V)
    begun.step.block_until_ready()
    began = time.perf_counter()
    run_until(config, begun, source, 2, V).step.block_until_ready()
    seconds = time.perf_counter() - began
    return Found(bound, memory("VmHWM") - before, peak / 1e6, seconds)


def used(name: str) -> Found:
    """Measure a use of a trained model, for a name in `USES`."""
    shaped = Config(model=RNN(embedding_size=UNITS, hidden_size=UNITS))
    model = models.make(shaped.model, V)
    vocabulary = Vocabulary("word", ("<unk>", "<eos>", *(f"w{n}" for n in range(V - 2))))
    drawn = np.random.default_rng(0).integers(0, V - 2, LANES * LENGTH)
    text = " ".join(f"w{n}" for n in drawn)
    assert len(vocabulary.numbers) == V  # builds the cached index before the measurement

    def once() -> None:
        if name == "scored":
            scoring.score(model, params, vocabulary, text)
        else:
            generation.sample(model, params, vocabulary, length=LANES * LENGTH)

    before = memory("VmRSS")
    # Constants: drawing random parameters would take extra memory, and the values do not matter.
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01), shapes)
    bound = megabytes(params) + 300
    once()
    began = time.perf_counter()
    once()
    seconds = (time.perf_counter() - began) / (LANES * LENGTH)
    return Found(bound, memory("VmHWM") - before, None, seconds)


def write_text(folder: Path) -> None:
    """Writes a training text with every word once, 20 words per line, and two short texts."""
    words = [f"w{n}" for n in range(V - 2)]  # <unk> and <eos> complete the vocabulary
    lines = (" ".join(words[first : first + 20]) for first in range(0, len(words), 20))
    draws = np.random.default_rng(0)
    texts = {"train": "\n".join(lines)}
    for split in ("valid", "test"):
        texts[split] = " ".join(words[n] for n in draws.integers(0, len(words), LANES * LENGTH))
    folder.mkdir()
    for split, text in texts.items():
        (folder / f"{split}.txt").write_text(text + "\n")


def part_of_run(name: str, folder: Path, steps: int) -> Found:
    """Measure `run.py train` up to `steps` updates, for a name in `RUNS`."""
    optimizer, threshold, keep_best = RUNS[name]
    config = resolve(
        Config(
            data=Data(
                source=File(train=str(folder / "text")),
                tokenizer=Word(),
                batch_size=LANES,
                length=LENGTH,
            ),
            model=RNN(embedding_size=UNITS, hidden_size=UNITS),
            train=Train(
                steps=steps,
                optimizer=optimizer,
                clip_norm=threshold,
                keep_best=keep_best,
                log_every=1,
                validate_every=2,
                checkpoint_every=2,
            ),
        )
    )
    jnp.zeros(1).block_until_ready()
    assert len(load(config.data).vocabulary) == V
    before, began = memory("VmRSS"), time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        status = train_command(config, [], "million")("million", config, run_dir=folder / "run")
    assert status == 0
    seconds = time.perf_counter() - began
    state = init.eval_shape(config, V)
    bound = 2 * megabytes(state.params) + megabytes(state.opt_state) + 300
    bound += megabytes(state.best_params) + max(map(megabytes, jax.tree.leaves(state.params)))
    return Found(bound, memory("VmHWM") - before, None, seconds)


def loaded(folder: Path) -> Found:
    """Measure loading a run and scoring the test text."""
    jnp.zeros(1).block_until_ready()
    assert len(read_vocabulary(folder / "run")[0].numbers) == V
    before, began = memory("VmRSS"), time.perf_counter()
    run = load_run(folder / "run")
    scoring.score(run.model, run.params, run.vocabulary, (folder / "text/test.txt").read_text())
    seconds = time.perf_counter() - began
    return Found(megabytes(run.params) + 300, memory("VmHWM") - before, None, seconds)


def in_a_process(*words: str, cache: Path | None = None) -> Found:
    """Measure in a new process of this module."""
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.million", *words],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ if cache is None else {**os.environ, "LM_JAX_CACHE": str(cache)},
    ).stdout
    return Found(*json.loads(said))


def shown(name: str, found: Found, took: str) -> Row:
    """Prints the measurements of a case; returns the row."""
    print(f"{name:36} aim {found.aim:6,.0f} MB   seen {found.seen:6,.0f} MB   {took}", flush=True)
    return row(f"a million words, {name}", "MB", found.seen, found.aim, "the aim")


def rows_of_case(name: str) -> list[Row]:
    """Measure a name in `CASES` or `USES`."""
    found = in_a_process("--case", name)
    took = f"{1e3 * found.seconds:.1f} ms a word"
    if found.planned is not None:
        took = f"{found.seconds:.1f} s an update, planned by XLA {found.planned:,.0f} MB"
    return [shown(name, found, took)]


def rows_of_run(name: str) -> list[Row]:
    """Measure a name in `RUNS`; after the last name, also measure loading the run."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_text(folder / "text")
        here = functools.partial(in_a_process, cache=folder / "cache")
        parts = [here("--part", name, place, str(steps)) for steps in (2, 4)]
        whole = parts[0]._replace(
            seen=max(part.seen for part in parts), seconds=sum(part.seconds for part in parts)
        )
        rows = [shown(f"a whole run, {name}", whole, f"{whole.seconds:.0f} s in all")]
        if name == list(RUNS)[-1]:
            found = here("--loaded", place)
            rows.append(shown("a run loaded and scored", found, f"{found.seconds:.0f} s in all"))
        return rows


def main() -> None:
    chosen = command.options(__doc__ or "")
    ways = {name: functools.partial(rows_of_case, name) for name in (*CASES, *USES)}
    ways |= {f"a whole run, {name}": functools.partial(rows_of_run, name) for name in RUNS}
    rows: list[Row] = []
    for name, measure in ways.items():
        if re.search(chosen.rows, f"a million words, {name}"):
            rows += measure()
    show(rows)
    command.finish(rows, chosen)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        measure = used if sys.argv[2] in USES else trained
        print(json.dumps(measure(sys.argv[2])))
    elif sys.argv[1:2] == ["--part"]:
        print(json.dumps(part_of_run(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    elif sys.argv[1:2] == ["--loaded"]:
        print(json.dumps(loaded(Path(sys.argv[2]))))
    else:
        main()
