"""Sections of a page on a run's training, made from the rows of metrics.jsonl and the result."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_jax import figures
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.files import Row
from lm_jax.report.live_sections import live_sections
from lm_jax.report.page import Drawing, Quote, Section, Table
from lm_jax.report.range_section import range_section
from lm_jax.report.study import column, is_pruned, numbers
from lm_jax.report.wording import FIGURES, SPACED, is_spaced, usual_figures
from lm_jax.training.journal import validations

FEW = 3  # records that a curve needs
SAMPLES = 4  # texts shown of those that the model wrote during training


def learning_sections(
    rows: Sequence[Row],
    result: Row | None,
    *,
    vocabulary: Vocabulary | None,
    clip_norm: float | None,
    cell: str = "",
    ranged: bool = False,
) -> list[Section]:
    """The sections on the training: loss, splits, gradient norms, pace, and what was probed live.

    Args:
      rows: rows of metrics.jsonl.
      result: contents of result.json; None while the run is in training.
      vocabulary: a text's vocabulary; None for generated sequences.
      clip_norm: the clipping threshold, if the gradient is clipped by norm.
      cell: kind of the model's cell, for the names of its gates.
      ranged: True for a learning-rate range test.
    """
    trained = [row for row in rows if row["kind"] == "train"]
    probed = [row for row in rows if row["kind"] == "probe"]
    sections = [_loss(rows, trained, result, None if vocabulary is None else len(vocabulary))]
    if ranged:
        sections.append(range_section(trained))
    if result is not None and result["splits"]:
        sections.append(_splits(result, vocabulary))
    if len(trained) >= FEW:
        sections += [_norms(trained, clip_norm), *_within_chunk(trained), _pace(trained)]
    if len(probed) > 1:
        sections += live_sections(probed, cell)
    if result is not None and "ngrams" in result:
        sections.append(_counts(result["ngrams"]))
    return [*sections, *_samples(rows)]


def _loss(
    rows: Sequence[Row], trained: Sequence[Row], result: Row | None, size: int | None
) -> Section:
    judged = validations(rows)
    level = {} if size is None else {f"uniform guess, ln {size:,}": math.log(size)}
    chance = [row["chance"] for row in judged if row.get("chance") is not None]
    if chance:
        level["chance"] = chance[-1]
    said = _learnt(trained, judged, result, level)
    if result is not None and "entropy_rate" in result:
        level["entropy of the text"] = result["entropy_rate"]
    if len(trained) < FEW:
        few = f"There are too few records of training for a curve: {len(trained)}."
        counted = result is not None and "ngrams" in result
        return Section("Does the model learn?", said if counted else f"{said} {few}".strip(), [])
    validation = None
    if judged:
        validation = ([row["step"] for row in judged], column(judged, "nats"))
    return Section(
        "Does the model learn?",
        said,
        [
            Drawing(
                "loss",
                functools.partial(
                    figures.loss_curve,
                    column(trained, "step"),
                    column(trained, "nats"),
                    validation=validation,
                    level=level,
                    perplexity=size is not None,
                    y="loss" if size is None else "nats a token",
                ),
                said,
            )
        ],
        "Training: the mean over the updates of each record (pale), and a running mean. "
        + ("Perplexity is e to the loss. " if size else "")
        + ("Validation: the whole held-out split." if judged else ""),
    )


def _learnt(
    trained: Sequence[Row],
    judged: Sequence[Row],
    result: Row | None,
    level: dict[str, float],
) -> str:
    """The finding above the loss curve."""
    said = []
    if result is not None and result["status"] == "diverged":
        said.append(f"Loss, gradient or parameters were not finite at update {result['step']:,}.")
    losses = [(row["nats"], row) for row in judged if row["nats"] is not None]
    if not losses:
        if len(trained) >= FEW:
            first, last = trained[0]["nats"], trained[-1]["nats"]
            if None not in (first, last):
                said.append(f"The training loss went from {first:.3f} to {last:.3f}.")
        return " ".join(said)
    best, row = min(losses, key=lambda one: one[0])
    text = "success" not in row
    measured = [f"{_digits(best)} nats a token" if text else f"a loss of {_digits(best)}"]
    if text and row.get("perplexity") is not None:
        measured.append(f"perplexity {row['perplexity']:.4g}")
    if row.get("bits_per_character") is not None and not row.get("unknown"):
        measured.append(f"{row['bits_per_character']:.3f} bits a character")
    if row.get("success") is not None:
        measured.append(f"{row['success']:.1%} of the sequences right")
    at = f" at update {row['step']:,}" if row["step"] else ""
    said.append(f"Validation reached {', '.join(measured)}{at}")
    last, late = losses[-1]
    if len(losses) < 2:
        said[-1] += "."
    elif last > 1.005 * best:
        said[-1] += f", and has risen to {_digits(last)} since."
    elif late is row and losses[-2][0] > 1.005 * best:
        said[-1] += ", and was still falling."
    else:
        said[-1] += ", and changed by less than 0.5 % at the last validation."
    for name, value in level.items():
        if best > value:
            said.append(f"That is worse than {name}: {value:.3f}.")
    return " ".join(said)


def _digits(value: float) -> str:
    """A number of four digits."""
    return figures.plain(float(f"{value:.4g}"))


def _counts(ngrams: Sequence[Row]) -> Section:
    """The counts of an n-gram model, by order."""
    longest = ngrams[-1]
    said = (
        f"Of {longest['possible']:.3g} possible {longest['order']}-grams, {longest['seen']:,} occur"
    )
    said += f", {longest['once'] / max(longest['seen'], 1):.0%} of these a single time."
    if longest["unseen_share"] is not None:
        said += f" {longest['unseen_share']:.0%} of those in the test text were never seen."
    kept = ["kept"] if is_pruned(ngrams) else []
    head = ["n", "possible", "seen", "seen once", *kept, "unseen in test, share", "bytes"]
    names = ["order", "possible", "seen", "once", *kept, "unseen_share", "bytes"]
    rows = [[row[name] for name in names] for row in ngrams]
    return Section("How sparse are the counts?", said, [Table(head, rows)])


def _splits(result: Row, vocabulary: Vocabulary | None) -> Section:
    splits = result["splits"]
    there = [row for row in splits.values() if isinstance(row, dict)]
    if vocabulary is None:
        known = {
            "nats": "nats a token",
            "chance": "loss by chance",
            "success": "right, share",
            "tokens": "tokens",
            "sequences": "sequences",
        }
    else:
        usual = {name: FIGURES[name][0] for name in usual_figures(vocabulary, there)}
        known = {**usual, "tokens": "tokens", "unknown": "unknown"}
    shown = [name for name in known if any(row.get(name) is not None for row in there)]

    def cell(row: Row, name: str) -> Any:
        # The characters of unknown tokens are not paid for.
        return None if name == "bits_per_character" and row.get("unknown") else row.get(name)

    rows = [[split, *(cell(row, name) for name in shown)] for split, row in splits.items()]
    kept = result["parameters_step"]
    said = f"The parameters of update {kept:,} were kept." if kept else ""
    train, test = splits.get("train"), splits.get("test")
    if train and test and None not in (train["nats"], test["nats"]):
        gap = test["nats"] - train["nats"]
        said += f" On the test split the loss is {abs(gap):.3f} "
        said += "higher" if gap > 0 else "lower"
        said += " than on the training split."
    note = f"Bits a character: {SPACED}." if any(map(is_spaced, there)) else ""
    table = Table(["split", *(known[name] for name in shown)], rows)
    return Section("How good is the result?", said, [table], note)


def _norms(trained: Sequence[Row], clip_norm: float | None) -> Section:
    largest, counts = column(trained, "grad_norm_max"), np.diff([0, *column(trained, "step")])
    cut = float(np.nansum(column(trained, "clipped") * counts) / np.sum(counts))
    peak = int(np.nanargmax(largest)) if np.isfinite(largest).any() else 0
    middle = float(np.nanmedian(column(trained, "grad_norm")))
    said = (
        f"Clipping shortened the gradient of {cut:.1%} of the updates."
        if cut
        else "No update was clipped."
    )
    said += f" The largest norm, {largest[peak]:.3g}, lies among the updates up to "
    said += f"{trained[peak]['step']:,}, and is {largest[peak] / middle:.3g} times the median."
    return Section(
        "Did a gradient explode?",
        said,
        [
            Drawing(
                "gradient-norms",
                functools.partial(
                    figures.gradient_norms,
                    column(trained, "step"),
                    column(trained, "grad_norm"),
                    largest,
                    column(trained, "grad_norm_clipped") if cut else None,
                    threshold=clip_norm,
                ),
                said,
            )
        ],
        "The norm of the whole gradient: mean and largest over the updates of each record.",
    )


def _within_chunk(trained: Sequence[Row]) -> list[Section]:
    """‖∂L/∂h_t‖ over training; empty if the rows do not have it."""
    kept = [row for row in trained if row.get("delta_norms")]
    if len(kept) < FEW:
        return []
    norms = numbers([row["delta_norms"] for row in kept])
    first, last = (
        float(np.nanmean(norms[part, : max(1, norms.shape[1] // 2)])) for part in (0, -1)
    )
    said = (
        f"In the first half of a chunk of {norms.shape[1]} steps, the gradient of the loss with "
        f"respect to the state went from {first:.2g} to {last:.2g} during training."
    )
    return [
        Section(
            "How much gradient arrives at each step of a chunk?",
            said,
            [
                Drawing(
                    "state-gradients",
                    functools.partial(
                        figures.over_training_by_lag,
                        column(kept, "step"),
                        norms,
                        "‖∂L/∂h_t‖",
                        by="t, steps",
                    ),
                    said,
                )
            ],
            "L is the mean loss of the chunk. At the chunk's end only the last losses are left to "
            "send a gradient back.",
        )
    ]


def _pace(trained: Sequence[Row]) -> Section:
    speed = column(trained, "tokens_per_second")
    said = (
        f"{np.median(speed):,.0f} tokens a second (median of the records), "
        f"{trained[-1]['seconds']:,.0f} seconds for {trained[-1]['step']:,} updates."
    )
    steps = column(trained, "step")
    return Section(
        "How fast does it train?",
        said,
        [
            Drawing(
                "tokens-per-second",
                functools.partial(figures.over_training, steps, speed, "tokens a second"),
                said,
            ),
            Drawing(
                "learning-rate",
                functools.partial(
                    figures.over_training, steps, column(trained, "learning_rate"), "learning rate"
                ),
                "Learning rate over the updates",
            ),
        ],
        "The first record includes compiling.",
    )


def _samples(rows: Sequence[Row]) -> list[Section]:
    """Some of the texts that the model wrote during training; empty if there are none."""
    written = [row for row in rows if row.get("sample")]
    if not written:
        return []
    shown = [
        written[place] for place in np.unique(np.linspace(0, len(written) - 1, SAMPLES, dtype=int))
    ]
    quotes = [
        Quote(f"update {row['step']:,}, {_loss_of(row)}", row["sample"].strip("\n"))
        for row in shown
    ]
    first, last = written[0], written[-1]
    said = (
        f"The model wrote {len(written)} samples from the same random numbers, at update "
        f"{first['step']:,} with {_loss_of(first)}, and at last, at update {last['step']:,}, with "
        f"{_loss_of(last)}."
    )
    return [Section("What does it say as training goes on?", said, quotes)]


def _loss_of(row: Row) -> str:
    return "a loss that is not finite" if row["nats"] is None else f"{row['nats']:.3f} nats a token"
