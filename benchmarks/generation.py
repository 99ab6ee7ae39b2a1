"""Speed of sampling and scoring text.

    python -m benchmarks.generation

Against PyTorch: 10,000 characters by `lm_jax.generation.sample` from an Elman model of 320 units,
against a Python loop as in makemore, which calls `torch.nn.RNN` for each token and reads the token
back to the host. Both models must assign the same probability to a text.

The other comparisons use the model of the quickstart.

Sampling: 10,000 characters by `lm_jax.generation.sample` (a single compiled program without waiting
for the host), against a Python loop, which makes a compiled call for each token (the model, the
draw and the key's derivation) and reads the token back. Both must produce the same text, or the
program ends with an error.

Scoring: a text as a single stream, in parallel segments if the model forgets its past; the same
text line by line; and the forward half of training on the same tokens, in the quickstart's batches.

The methods are timed in turn, A B A B. The parameters are untrained. The times do not depend on the
parameters, except for the stream: if the model does not forget, the stream is read token by token.
"""

import dataclasses
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import command
from benchmarks.command import TOLERANCES, Device
from benchmarks.rows import Row, row
from benchmarks.side_by_side import Comparison, Maker
from benchmarks.sizes import Size
from lm_jax import generation, models, scoring
from lm_jax.config import Config
from lm_jax.data import sources
from lm_jax.data.batches import batch_at, steps_per_epoch, streams
from lm_jax.data.corpus import Corpus, load
from lm_jax.experiment import load_experiment
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params

LENGTH = 10_000
LEAST_RATIO = 20
DRAWN = Size("elman", 320, batch=1, length=100, vocabulary=90)


def loop_sampler(model: LanguageModel, params: Params, corpus: Corpus) -> Callable[[], str]:
    """Make a sampler of the same text as `lm_jax.generation.sample`, with a call per token."""
    size, boundary = len(corpus.vocabulary), corpus.vocabulary.boundary

    @jax.jit
    def step(params, carry, token, key, place, temperature):
        carry, h = model.hidden(params, carry, token[None, None])
        noise = jax.random.gumbel(jax.random.fold_in(key, place), (size,))
        scaled = model.logits(params, h)[0, 0] / temperature
        return carry, jnp.argmax(scaled + noise).astype(jnp.int32)

    def draw() -> str:
        key = jax.random.fold_in(jax.random.key(0), 0)  # the key of sample 0
        carry, token, drawn = model.init_carry(1), jnp.asarray(boundary, jnp.int32), []
        for place in range(LENGTH):
            carry, token = step(params, carry, token, key, place, 1.0)
            drawn.append(int(token))
        return corpus.vocabulary.decode(drawn)

    return draw


def forward(
    model: LanguageModel, params: Params, config: Config, tokens: np.ndarray, boundary: int
) -> Callable[[], jax.Array]:
    """Make the forward half of an epoch of training, as a compiled loop."""
    source, length = streams(tokens, boundary, config.data.batch_size), config.data.length

    @jax.jit
    def epoch(params, source):
        def step(number, state):
            carry, nats = state
            batch = batch_at(source, number, length)
            carry, h = model.hidden(params, carry, batch.x)
            return carry, nats + jnp.sum(jnp.where(batch.mask, model.nats(params, h, batch.y), 0))

        start = (model.init_carry(source.lengths.shape[0]), jnp.zeros(()))
        return jax.lax.fori_loop(0, steps_per_epoch(source, length), step, start)[1]

    return lambda: epoch(params, source).block_until_ready()


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time the methods in turn, in every round, after a first run of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def show(seconds: dict[str, list[float]], tokens: int) -> None:
    """Prints a row per method: tokens per second, median, minimum and maximum."""
    for name, taken in seconds.items():
        rates = [tokens / value for value in (statistics.median(taken), max(taken), min(taken))]
        print(f"{name:42}" + "".join(f"{rate:12,.0f}" for rate in rates))


def ratio(above: list[float], below: list[float]) -> float:
    """Speedup of the second method over the first, the median over the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def against_torch(device: Device) -> list[Comparison]:
    """Compare the sampling speed with PyTorch, in characters per second."""
    settings = dataclasses.asdict(DRAWN) | {"characters": LENGTH}
    return [
        Comparison(
            f"drawing, elman {DRAWN.hidden}",
            Maker("benchmarks.ours", "draw", settings),
            (Maker("benchmarks.torch_peer", "draw", settings | {"backend": device.backend}),),
            unit="characters/s",
            seconds=30,
            tolerance=TOLERANCES[device.backend, "float32"],
        )
    ]


def against_ourselves(rounds: int) -> list[Row]:
    """Compare methods of lm_jax for sampling and scoring, on the quickstart's model."""
    config = load_experiment("quickstart").config
    corpus = load(config.data)
    vocabulary = corpus.vocabulary
    model = models.make(config.model, len(vocabulary))
    params = model.init(jax.random.key(0))
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores")
    print(f"{optax.tree.size(params):,} parameters, {len(vocabulary)} characters")
    print(f"{'tokens a second':42}{'median':>12}{'least':>12}{'most':>12}")

    ways = {
        "drawn, a call a token": loop_sampler(model, params, corpus),
        "drawn, one program": lambda: generation.sample(model, params, vocabulary, length=LENGTH),
    }
    loop, program = ways.values()
    if loop() != program():
        sys.exit("the two ways of drawing give different texts")
    seconds = in_turn(ways, rounds)
    show(seconds, LENGTH)
    faster = ratio(*seconds.values())
    verdict = "met" if faster >= LEAST_RATIO else "missed"
    rows = [compared("drawing, quickstart", seconds, LENGTH)]
    print(f"one program is {faster:.1f} times as fast; target {LEAST_RATIO}: {verdict}")

    text = sources.splits(config.data.source, config.data.tokenizer.kind)["train"]
    tokens = corpus.train.tokens
    static = scoring.parallel_scorer(model, scoring.stretch_length(len(vocabulary)))
    ways = {
        "training's forward half": forward(model, params, config, tokens, vocabulary.boundary),
        "scored line by line": lambda: list(scoring.line_blocks(model, params, vocabulary, text)),
        "scored as one stream": lambda: list(scoring.blocks(static, params, vocabulary, text)),
    }
    whole = sum(
        float(block.nats.sum()) for block in scoring.blocks(static, params, vocabulary, text)
    )
    training = float(forward(model, params, config, tokens, vocabulary.boundary)())
    # Training starts each sequence of the batch from a fresh carry: the sums differ a little.
    if abs(whole - training) > 0.01 * whole:
        sys.exit(f"scoring gives {whole:.1f} nats and training's forward half {training:.1f}")
    seconds = in_turn(ways, rounds)
    show(seconds, len(tokens))
    half, by_line, stream = seconds.values()
    print(f"line by line is {ratio(half, by_line):.2f} times as fast as training's forward half,")
    print(f"one stream {ratio(half, stream):.2f} times")
    halves = {name: seconds[name] for name in list(seconds)[:2]}
    return [*rows, compared("scoring, quickstart", halves, len(tokens))]


def compared(name: str, seconds: Mapping[str, list[float]], tokens: int) -> Row:
    """Make a row of results.json: the second method against the first."""
    (peer_name, peer), (_, ours) = seconds.items()
    fast, slow = (tokens / statistics.median(taken) for taken in (ours, peer))
    return row(name, "tokens/s", fast, slow, f"lm_jax, {peer_name}")


def main() -> None:
    chosen = command.options(__doc__ or "")
    found, failures = command.compared(against_torch(command.device()), chosen)
    if re.search(chosen.rows, "drawing, quickstart") or re.search(
        chosen.rows, "scoring, quickstart"
    ):
        found += against_ourselves(chosen.rounds)
    command.finish(found, chosen, failures)


if __name__ == "__main__":
    main()
