"""A run of a model that is counted, not trained: one pass over the text, and the same directory.

It has one checkpoint, of step 0, and one row of metrics.jsonl for each split it is judged on. What
speaks against counting longer n-grams stands in result.json under `ngrams`
(`lm_jax.models.counts.Row`).
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_jax import models
from lm_jax.config import Config, NGram
from lm_jax.data.corpus import Corpus
from lm_jax.inference.score import reading, token_nats, total
from lm_jax.models.base import Params
from lm_jax.models.counts import Counts, count, statistics
from lm_jax.models.ngram import fit, held_out_weights, structure
from lm_jax.training import directory, journal
from lm_jax.training.checkpoint import AsStored, Checkpoints, digest


class CountedState(NamedTuple):
    """What is saved of a counted model."""

    step: np.ndarray
    """0: no updates."""
    params: Params


def template(model: NGram) -> dict[str, Any]:
    """The structure of the state, for restoring it."""
    return {"step": AsStored(), "params": structure(model.order, AsStored())}


def run_counting(
    config: Config,
    run_dir: Path,
    corpus: Corpus,
    received: list[signal.Signals],
    watch: Callable[[int, journal.Row | None], None],
) -> None:
    """Counts the training text, judges the model, and writes the run down.

    After a signal it returns without a result, and the run is counted anew next time.
    """
    assert isinstance(config.model, NGram)
    directory.write_config(run_dir, config)
    (run_dir / "result.json").unlink(missing_ok=True)
    began = time.perf_counter()
    counts = count(
        corpus.train.tokens,
        order=config.model.order,
        vocab_size=len(corpus.vocabulary),
        boundary=corpus.vocabulary.boundary,
        bounded=config.model.bounded,
    )
    params = fitted(config.model, counts, corpus.validation.tokens)
    seconds = time.perf_counter() - began
    model = models.make(config.model, len(corpus.vocabulary))
    log = journal.Journal(run_dir, 0, -1)
    checkpoints = Checkpoints(run_dir, -1)
    splits = {}
    try:
        for name in ("validation", "test"):
            split, blocks = getattr(corpus, name), []
            for block in token_nats(model, params, reading(split.tokens, corpus.vocabulary)):
                if received:
                    return
                blocks.append(block)
            loss = total(blocks, split.characters)
            row = {"step": 0, "kind": "evaluation", "split": name, **loss.row()}
            log.write(row)
            watch(0, row)
            splits[name] = {**loss.row(), "unknown": split.unknown}
        log.sync()
        checkpoints.save(CountedState(np.zeros((), np.int32), params))
        checkpoints.wait()
        rows = statistics(counts, corpus.test.tokens, params)
        result = {
            "status": "finished",
            "step": 0,
            "stopped_early": False,
            "parameters_step": 0,
            "splits": splits,
            "parameters": models.count(params),
            "sha256": digest(params),
            "seconds": seconds,
            "ngrams": [{**row._asdict(), "unseen_share": row.unseen_share} for row in rows],
        }
        journal.write_result(run_dir, result)
    finally:
        log.close()
        checkpoints.close()


def fitted(model: NGram, counts: Counts, held_out: np.ndarray) -> Params:
    """The parameters that a config asks for."""
    weights = held_out_weights(counts, held_out) if model.smoothing == "interpolated" else None
    add = 1.0 if model.k is None else model.k
    params = fit(counts, smoothing=model.smoothing, add=add, weights=weights)
    return jax.block_until_ready(params)
