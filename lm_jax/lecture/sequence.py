"""Claims about a sequence: time, teacher forcing, the loss, and the size of the vocabulary."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax import figures, generation, models
from lm_jax import gradients as g
from lm_jax.config import RNN, Elman, Window
from lm_jax.data.batches import Batch
from lm_jax.data.corpus import load
from lm_jax.lecture.shared import elman, held_out, short
from lm_jax.models.fused import fused_cross_entropy
from lm_jax.models.readout import cross_entropy
from lm_jax.report.page import Drawing, Quote, Section

TOKENS, UNITS, ROUNDS = 4096, 256, 5  # of each reading, of the models, of the claim `speed`
FORCED = 64  # tokens of a passage of the claim `forcing`
TARGETS = 700  # targets of the claim `million`: 20 sequences of 35 words
MILLION = 1_000_000


def speed(folder: Path) -> Section:
    """The recurrence takes T steps in a row; a window model reads all tokens at once."""
    V, lengths = 96, [8, 64, 512, TOKENS]
    kinds = {
        "RNN": RNN(cell=Elman(), embedding_size=UNITS, hidden_size=UNITS),
        "window": Window(order=2, embedding_size=UNITS, hidden_size=UNITS),
    }
    tokens = np.random.default_rng(0).integers(0, V, TOKENS + 1).astype(np.int32)
    calls = []
    for settings in kinds.values():
        model = models.make(settings, V)
        params, gradient = model.init(jax.random.key(0)), jax.jit(g.explicit_bptt(model))
        for T in lengths:
            x, y = (jnp.asarray(part.reshape(-1, T).T) for part in (tokens[:-1], tokens[1:]))
            B = x.shape[1]
            batch = Batch(x, y, jnp.ones((T, B), bool), jnp.ones(B, bool))
            calls.append(functools.partial(gradient, params, model.init_carry(B), batch))
    rnn, window = np.reshape(_milliseconds(calls), (2, -1))
    draw = functools.partial(
        figures.lines,
        {"RNN": (lengths, rnn), "window": (lengths, window)},
        x=f"T, steps of each of the {TOKENS:,} / T sequences",
        y="milliseconds for the loss and the gradient",
        log_x=True,
        log_y=True,
    )
    return Section(
        "How slow is the recurrence?",
        f"The loss and the gradient on the same {TOKENS:,} tokens take the RNN {rnn[0]:.0f} ms as "
        f"sequences of {lengths[0]} steps and {rnn[-1]:.0f} ms as a single sequence, "
        f"{rnn[-1] / rnn[0]:.1f} times as long; the window model takes {window[0]:.0f} and "
        f"{window[-1]:.0f} ms, {window[-1] / window[0]:.1f} times as long.",
        [Drawing("speed", draw, "time of the gradient over the steps of a sequence")],
        "The arithmetic is the same at every T. Only the RNN's order changes: step t + 1 needs "
        "the state of step t, and T small products must wait for each other; the window model "
        f"has a single large product. Each point is the shortest of {ROUNDS} measurements, with "
        f"{UNITS} units.",
    )


def _milliseconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """The shortest time of each call over `ROUNDS` rounds; other programs disturb all alike."""
    found = []
    for _ in range(1 + ROUNDS):  # the first round compiles
        times = []
        for call in calls:
            began = time.perf_counter()
            jax.block_until_ready(call())
            times.append(1e3 * (time.perf_counter() - began))
        found.append(times)
    return np.min(found[1:], axis=0).tolist()


def forcing(folder: Path) -> Section:
    """Trained on the text alone, a model does worse on samples of the model as inputs."""
    run = elman(folder)
    text = run.vocabulary.decode(np.asarray(load(run.config.data).validation.tokens))
    found = generation.exposure(run.model, run.params, run.vocabulary, text, length=FORCED)
    place, guess = np.arange(1, 1 + FORCED), float(np.log(len(run.vocabulary)))
    apart = found.free - found.forced
    draw = functools.partial(
        figures.lines,
        {"own samples": (place, found.free), "the text": (place, found.forced)},
        x="place in the passage",
        y="nats a character",
        level={"uniform guess": guess},
    )
    return Section(
        "How well does a model predict after own samples?",
        f"Reading the text, the model needs {found.mean(found.forced):.2f} nats a character; "
        f"reading own samples, {found.mean(found.free):.2f}. The difference is "
        f"{apart[1]:.2f} nats at the second character, after a single sample, and "
        f"{apart[FORCED // 2 :].mean():.2f} over the second half of the passage.",
        [
            Drawing("forcing", draw, "loss over the place in a passage, on text and on samples"),
            Quote(
                "a sample of the same model",
                generation.sample(run.model, run.params, run.vocabulary, length=240, seed=1),
            ),
        ],
        f"The validation text in passages of {FORCED} characters. Both curves predict the text's "
        "own characters and start from the text's state; with own samples the model gets only "
        "the first character of each passage from the text.",
    )


def loss(folder: Path) -> Section:
    """The cross-entropy of a target is minus the logarithm of a single entry of the softmax."""
    run = elman(folder)
    V, batch = len(run.vocabulary), held_out(run, sequences=16, length=64)
    _, h = run.model.hidden(run.params, run.model.init_carry(16), batch.x)
    log_p = jax.nn.log_softmax(run.model.logits(run.params, h))
    whole = -jnp.sum(jax.nn.one_hot(batch.y, V) * log_p, axis=-1)  # -Σ_k y_k ln p_k
    nats = np.asarray(run.model.nats(run.params, h, batch.y))
    apart = float(np.abs(np.asarray(whole) - nats).max())
    fresh = run.model.init(jax.random.key(0))
    _, h = run.model.hidden(fresh, run.model.init_carry(16), batch.x)
    first = float(run.model.nats(fresh, h, batch.y).mean())
    t, b = np.unravel_index(np.argsort(nats, axis=None)[int(0.7 * nats.size)], nats.shape)
    p, target = np.exp(np.asarray(log_p)[t, b]), int(batch.y[t, b])
    read = run.vocabulary.decode(np.asarray(batch.x[max(0, t - 30) : t + 1, b]))
    draw = functools.partial(figures.next_token, p, run.vocabulary.tokens, target)
    return Section(
        "How much of the softmax does the cross-entropy read?",
        f"Over {nats.size:,} targets the sum of all V = {V} terms −y ln p and minus the "
        f"logarithm of the target's entry differ by at most {short(apart)} nats. Here "
        f"−ln {p[target]:.3f} = {-np.log(p[target]):.2f} nats. The mean is {first:.2f} nats "
        f"before training and {nats.mean():.2f} after; a uniform guess has ln V = {np.log(V):.2f}.",
        [
            Drawing("loss", draw, "probabilities of the next character, the target's in red"),
            Quote("the last characters read by the model", read),
        ],
        "The red bar is the next character of the text. The other entries matter only through the "
        "softmax's denominator.",
    )


def million(folder: Path) -> Section:
    """A vocabulary of a million words needs no memory for a million logits a target."""
    sizes = [1_000, 10_000, 100_000, MILLION]
    ways = {"all logits at once": _plain, "tile by tile": _tiled}
    held = {name: [_megabytes(way, V) for V in sizes] for name, way in ways.items()}
    W, h, y = _readout(10_000)
    one, other = (jax.jit(jax.grad(way, (0, 1)))(W, h, y) for way in ways.values())
    apart = max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a)) for a, b in zip(one, other, strict=True)
    )
    arguments = _readout(MILLION)
    gradient = jax.jit(jax.value_and_grad(_tiled, (0, 1))).lower(*arguments).compile()
    began = time.perf_counter()
    jax.block_until_ready(gradient(*arguments))
    taken = time.perf_counter() - began
    draw = functools.partial(
        figures.lines,
        {name: (sizes, found) for name, found in held.items()},
        x="V, words of the vocabulary",
        y=f"memory for the gradient of {TARGETS} targets, MB",
        log_x=True,
        log_y=True,
    )
    plain, tiled = (found[-1] for found in held.values())
    return Section(
        "How much memory does a vocabulary of a million words need?",
        f"At V = {MILLION:,} the logits of {TARGETS} targets and their gradient take "
        f"{plain:,.0f} MB at once, and {tiled:,.0f} MB tile by tile, beside W and the gradient of "
        f"W with {4e-6 * W.shape[0] * MILLION:,.0f} MB each. Loss and gradient take {taken:.1f} "
        f"seconds. At V = 10,000, where both are small, the two gradients differ by "
        f"{short(apart)} of the length.",
        [Drawing("million", draw, "memory of the loss and the gradient over the vocabulary")],
        "Memory of the compiled program beside inputs and results. A tile of logits becomes p − y, "
        "is multiplied into the gradient, and is forgotten (lm_jax/models/fused.py).",
    )


def _plain(W: jax.Array, h: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(cross_entropy(h @ W, y))


def _tiled(W: jax.Array, h: jax.Array, y: jax.Array) -> jax.Array:
    return fused_cross_entropy(W, None, h, y, jnp.ones(y.shape, bool))


def _readout(V: int, H: int = 64) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights [H, V], states [N, H] and targets [N], drawn at random."""
    draw = np.random.default_rng(0)
    W = draw.standard_normal((H, V), np.float32) / H**0.5
    h = draw.standard_normal((TARGETS, H), np.float32)
    return jnp.asarray(W), jnp.asarray(h), jnp.asarray(draw.integers(0, V, TARGETS))


def _megabytes(way: Callable, V: int) -> float:
    """Memory of the compiled loss and gradient beside arguments and results, in MB."""
    shapes = jax.eval_shape(lambda: (jnp.zeros((64, V)), jnp.zeros((TARGETS, 64))))
    program = jax.jit(jax.value_and_grad(way, (0, 1)))
    y = jax.ShapeDtypeStruct((TARGETS,), jnp.int32)
    found = program.lower(*shapes, y).compile().memory_analysis()
    assert found is not None
    return found.temp_size_in_bytes / 1e6
