"""A run of an n-gram model: counts in a single pass over the text, in an ordinary run directory.

The run has one checkpoint, at step 0, and one row of metrics.jsonl per evaluated split. The entry
`ngrams` of result.json shows the cost and sparsity of longer n-grams
(`lm_jax.models.counts.OrderStatistics`).
"""

import itertools
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from lm_jax import models
from lm_jax.config import Config, NGram
from lm_jax.data.corpus import Corpus, Split
from lm_jax.files import Row
from lm_jax.models.base import Params
from lm_jax.models.counts import Counts, count, statistics
from lm_jax.models.ngram import structure
from lm_jax.models.smoothing import fit, held_out_weights
from lm_jax.scoring.score import Loss, reading, token_nats, total
from lm_jax.settings import UserError
from lm_jax.training import directory, journal
from lm_jax.training.checkpoint import AsStored, Checkpoints, tree_digest
from lm_jax.training.state import FixedState

JUDGED = ("validation", "test")  # splits to evaluate


def template(model: NGram) -> dict[str, Any]:
    """The structure of the saved state, as a template for restoring."""
    return {"step": AsStored(), "params": structure(model.order, AsStored())}


class NGramRun:
    """Run of an n-gram model, in a single process."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        corpus: Corpus,
        received: list[signal.Signals],
        watch: journal.Watch,
    ):
        """Count the n-grams of the training text.

        Raises:
          UserError: the text has no n-gram as long as the config's order; or the config is of an
            imported model.
        """
        assert isinstance(config.model, NGram)
        if config.model.smoothing == "backoff":
            raise UserError(
                "model.smoothing=backoff is the model of an ARPA file, which `import` reads: "
                "nothing is counted"
            )
        self.config, self.run_dir, self.corpus = config, run_dir, corpus
        self.received, self.watch = received, watch
        self.model = models.make(config.model, len(corpus.vocabulary))
        began = time.perf_counter()
        self.counts = count(
            corpus.train.tokens,
            order=config.model.order,
            vocab_size=len(corpus.vocabulary),
            boundary=corpus.vocabulary.boundary,
            sentence_boundaries=config.model.sentence_boundaries,
        )
        self.params = fitted(config.model, self.counts, corpus.validation.tokens)
        self.seconds = time.perf_counter() - began

    def run(self) -> None:
        """Evaluate the model and write the metrics, the checkpoint and the result.

        After a signal the method returns without a result; the next call counts again.
        """
        directory.write_config(self.run_dir, self.config)
        (self.run_dir / "result.json").unlink(missing_ok=True)
        known = directory.known(self.run_dir, self.config, self.corpus.digest)
        log = journal.Journal(self.run_dir)
        checkpoints = Checkpoints(self.run_dir, -1, known)
        try:
            losses = {name: self._loss(getattr(self.corpus, name)) for name in JUDGED}
            if self.received:
                return
            for name, loss in losses.items():
                row = {"step": 0, "kind": "evaluation", "split": name, **loss.row()}
                log.write(row)
                self.watch(0, row)
            log.sync()
            checkpoints.save(FixedState(np.zeros((), np.int32), self.params), log.kept)
            checkpoints.finish(log.whole)
            journal.write_result(self.run_dir, self._result(losses))
        finally:
            try:
                log.close()
            finally:
                checkpoints.close()

    def _loss(self, split: Split) -> Loss:
        """The cross-entropy of a split, or of the beginning of the split if a signal arrived."""
        blocks = token_nats(self.model, self.params, reading(split.tokens, self.corpus.vocabulary))
        unstopped = itertools.takewhile(lambda _: not self.received, blocks)
        return total(unstopped, split.characters, split.unknown)

    def _result(self, losses: dict[str, Loss]) -> Row:
        splits = {name: loss.row() for name, loss in losses.items()}
        rows = statistics(self.counts, self.corpus.test.tokens, self.params)
        return {
            "status": "finished",
            "step": 0,
            "stopped_early": False,
            "parameters_step": 0,
            "splits": splits,
            "parameters": optax.tree.size(self.params),
            "sha256": tree_digest(self.params),
            "seconds": self.seconds,
            "tokens_per_second": len(self.corpus.train.tokens) / self.seconds,
            **self.corpus.floor,
            "ngrams": [{**row._asdict(), "unseen_share": row.unseen_share} for row in rows],
        }


def fitted(model: NGram, counts: Counts, held_out: np.ndarray) -> Params:
    """The parameters of an n-gram model, fitted to the counts by the config's smoothing."""
    weights = held_out_weights(counts, held_out) if model.smoothing == "interpolated" else None
    add = 1.0 if model.k is None else model.k
    params = fit(
        counts,
        smoothing=model.smoothing,
        add=add,
        weights=weights,
        cutoffs=model.prune,
        entropy_threshold=model.entropy_threshold,
    )
    return jax.block_until_ready(params)
