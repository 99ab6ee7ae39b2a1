"""Claims about the context: n-grams, the fixed window, and the recurrent state."""

import functools
from pathlib import Path

import jax
import numpy as np

from lm_jax import figures, models
from lm_jax.config import RNN, Elman, Model, NGram, Window
from lm_jax.data.corpus import load
from lm_jax.lecture.shared import WORDS, E, H, bits, elman, held_out, short, trained, window
from lm_jax.models.counts import count, locate
from lm_jax.report.page import Drawing, Section, Table
from lm_jax.scoring.score import reading, token_nats
from lm_jax.training import Run

ORDERS = (2, 3, 4, 6, 8, 12)
SHOWN = 6  # n of the window model whose places are compared


def sparsity(folder: Path) -> Section:
    """Most longer n-grams of a new text were never seen; a neural model is smooth."""
    corpus = load(WORDS)
    V, text = len(corpus.vocabulary), corpus.validation.tokens
    counts = count(
        corpus.train.tokens,
        order=5,
        vocab_size=V,
        boundary=corpus.vocabulary.boundary,
        sentence_boundaries=True,
    )
    found = list(locate(counts, text))
    unseen = [float(np.mean(one.nodes < 0)) for one in found]
    new, known = (found[2].places[own] for own in (found[2].nodes < 0, found[2].nodes >= 0))
    kinds = {
        "trigram, maximum likelihood": NGram(order=3, smoothing="none"),
        "trigram, add-one": NGram(order=3, smoothing="add-k"),
        "trigram, Kneser-Ney": NGram(order=3),
        "neural, window of two words": Window(order=3, embedding_size=64, hidden_size=64),
    }
    rows = []
    for name, model in kinds.items():
        run = trained(folder, name.replace(", ", "-").replace(" ", "-"), model, WORDS)
        nats = _nats(run, text)
        rows.append([name, *(float(nats[places].mean()) for places in (known, new))])
    likelihood, add_one, kneser_ney, neural = (row[2] for row in rows)
    seen = len(counts.levels[2].token)
    draw = functools.partial(
        figures.setting_curve,
        range(1, 6),
        [100 * share for share in unseen],
        x="n",
        y="n-grams of the validation text never seen in training, %",
        words=[f"{share:.0%}" for share in unseen],
    )
    return Section(
        "How sparse are n-grams?",
        f"Of {short(V**3)} possible trigrams the training text holds {seen:,}, and {unseen[2]:.0%} "
        f"of the trigrams of a new text are not among them. To predict these, counts alone need "
        f"{likelihood:.1f} nats a word, add-one {add_one:.1f}, Kneser-Ney {kneser_ney:.1f}, and a "
        f"neural model of the same two words {neural:.1f}; a uniform guess needs "
        f"{np.log(V):.1f}.".replace("inf nats", "infinitely many nats"),
        [
            Drawing("sparsity", draw, "share of unseen n-grams, for n from 1 to 5"),
            Table(("nats a word", "trigram seen in training", "trigram never seen"), _inf(rows)),
        ],
        "Words of CPython's documentation. Counts alone give P = 0, infinite nats, to a word never "
        "seen after a known context. A neural model computes P from vectors of the words, and "
        "similar words have similar vectors.",
    )


def _nats(run: Run, tokens: np.ndarray) -> np.ndarray:
    """-ln P of each token of a text, float64."""
    blocks = token_nats(run.model, run.params, reading(tokens, run.vocabulary))
    return np.concatenate(list(blocks)).astype(np.float64)


def _inf(rows: list[list]) -> list[list]:
    """The rows with ∞ for an infinite number."""
    return [["∞" if cell == np.inf else cell for cell in row] for row in rows]


def growth(folder: Path) -> Section:
    """A window model's weights W grow with the window, and more context stops helping."""
    runs = {order: window(folder, order) for order in ORDERS}
    found = [bits(run) for run in runs.values()]
    sizes = [run.params["W"].size for run in runs.values()]
    best = int(np.argmin(found))
    near = next(k for k, bit in enumerate(found) if bit <= found[best] + 0.02)
    draw = functools.partial(
        figures.setting_curve,
        [round(size / 1000, 1) for size in sizes],
        found,
        x="weights of W, (n − 1) E H, in thousands",
        y="bits a character, validation",
        level={"Elman RNN": bits(elman(folder))},
    )
    return Section(
        "Does a longer window help?",
        f"W grows in proportion to the window, from {sizes[0]:,} weights at n = {ORDERS[0]} to "
        f"{sizes[-1]:,} at n = {ORDERS[-1]}. The loss falls from {found[0]:.2f} bits a character "
        f"to {found[near]:.2f} at n = {ORDERS[near]}; no longer window is more than 0.02 bits "
        f"better, and n = {ORDERS[-1]} has {found[-1]:.2f}.",
        [
            Drawing("growth", draw, "bits a character of window models over the weights of W"),
            Table(
                ("n", "weights of W", "bits a character"),
                list(zip(ORDERS, sizes, found, strict=True)),
            ),
        ],
        f"W has a block of E × H = {E} × {H} weights for each place of the window. All models had "
        "the same number of updates.",
    )


def places(folder: Path) -> Section:
    """Each place of the window has weights of its own."""
    run = window(folder, SHOWN)
    W, fresh = (
        np.asarray(params["W"], np.float64)  # [n - 1, E, H]
        for params in (run.params, run.model.init(jax.random.key(0)))
    )
    flat = W.reshape(len(W), -1)
    norms = np.linalg.norm(flat, axis=1)
    cosine = (flat / norms[:, None]) @ (flat / norms[:, None]).T
    largest = np.abs(cosine[~np.eye(len(W), dtype=bool)]).max()
    names = [f"{place - len(W) + 1}".replace("-", "−") for place in range(len(W))]
    alike = functools.partial(
        figures.heat_map,
        cosine,
        names,
        names,
        x="place, 0 is the newest character",
        y="place",
        words=[[f"{value:.2f}" for value in row] for row in cosine],
    )
    sizes = functools.partial(
        figures.setting_curve,
        names,
        norms.tolist(),
        x="place, 0 is the newest character",
        y="‖W_i‖",
        level={"before training": float(np.linalg.norm(fresh, axis=(1, 2)).mean())},
    )
    return Section(
        "Do the places of a window share weights?",
        f"The blocks of W for two places have a cosine of at most {largest:.2f}; equal blocks "
        f"would have 1, and two random blocks of this size 0 ± {1 / np.sqrt(E * H):.2f}. The "
        f"block of the newest character has a norm of {norms[-1]:.1f}, that of the oldest "
        f"{norms[0]:.1f}.",
        [
            Drawing("places", alike, "cosines of the weights of all pairs of places"),
            Drawing("place-norms", sizes, "norm of the weights of each place"),
        ],
        f"The window model of n = {SHOWN}. Knowledge about a character at a place must be learnt "
        "again at every other place; a recurrence has the same W for all.",
    )


def sharing(folder: Path) -> Section:
    """The parameters of an RNN do not depend on the length of the context."""
    run, lengths = elman(folder), [2**k for k in range(9)]
    V = len(run.vocabulary)
    windows = [_size(Window(order=n + 1, embedding_size=E, hidden_size=H), V) for n in lengths]
    rnn = _size(RNN(cell=Elman(), embedding_size=E, hidden_size=H), V)
    batch = held_out(run, sequences=64, length=lengths[-1])
    _, h = run.model.hidden(run.params, run.model.init_carry(64), batch.x)
    loss = np.asarray(run.model.nats(run.params, h, batch.y)).mean(axis=1) / np.log(2)  # [T]
    means = [float(loss[n // 2 : n].mean()) for n in lengths]  # n // 2 + 1 to n characters read
    T = run.config.data.length
    sizes = functools.partial(
        figures.lines,
        {"window": (lengths, windows), "RNN": (lengths, [rnn] * len(lengths))},
        x="characters of context",
        y="parameters",
        log_x=True,
        log_y=True,
    )
    read = functools.partial(
        figures.setting_curve,
        lengths,
        means,
        x="characters read since the empty state, at most",
        y="bits a character",
    )
    return Section(
        "How many parameters does a longer context cost?",
        f"From 1 to {lengths[-1]} characters of context a window model grows from {windows[0]:,} "
        f"to {windows[-1]:,} parameters; the RNN has {rnn:,} at any length. The same parameters "
        f"need {means[0]:.2f} bits a character after a single character, {means[4]:.2f} after "
        f"{lengths[3] + 1} to {lengths[4]}, and {means[-1]:.2f} after {lengths[-2] + 1} to "
        f"{lengths[-1]}, more than the {T} steps of a chunk in training.",
        [
            Drawing("sharing", sizes, "parameters of a window model and an RNN over the context"),
            Drawing("sharing-loss", read, "loss of the RNN over the characters read"),
        ],
        "The RNN reads 64 passages of the validation text, each from an empty state; each point is "
        "the mean loss from half as many characters on.",
    )


def _size(model: Model, V: int) -> int:
    """Parameters of a model with V tokens."""
    params = jax.eval_shape(models.make(model, V).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))
