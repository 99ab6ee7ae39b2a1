"""The metrics of a run: a row per record of updates, and the final result."""

from collections.abc import Mapping

import jax
import numpy as np
import optax

from lm_jax.files import Row
from lm_jax.models.base import Params
from lm_jax.training.checkpoint import tree_digest
from lm_jax.training.journal import Journal
from lm_jax.training.state import Summary, TrainState


def train_row(
    summary: Summary, *, steps_per_epoch: int, made: int, trained: float, seconds: float
) -> Row:
    """The row of metrics.jsonl for the updates since the last training row.

    Args:
      summary: the summary of the state, with the record.
      steps_per_epoch: number of updates of an epoch.
      made: number of the record's updates made by this process.
      trained: seconds taken by these updates.
      seconds: seconds taken by all updates of the run.
    """
    record = jax.tree.map(np.asarray, summary.record)
    steps, step, tokens = int(record.steps), int(summary.step), record.tokens
    row = {
        "step": step,
        "kind": "train",
        "split": "train",
        "epoch": step / steps_per_epoch,
        "nats": float(record.nats),
        "grad_norm": float(record.grad_norm),
        "grad_norm_max": float(record.grad_norm_max),
        "grad_norm_clipped": float(record.clipped_norm),
        "clipped": float(record.clipped / steps),
        "learning_rate": float(record.learning_rate),
        "tokens": tokens,
        "tokens_per_second": tokens * (made / steps) / max(trained, 1e-9),
        "seconds": seconds,
    }
    if summary.skipped is not None:
        row["skipped"] = int(summary.skipped.total)
    if record.deltas is not None:
        row["delta_norms"] = record.deltas.tolist()
    return row


def kept_params(state: TrainState) -> tuple[int, Params]:
    """The step and the parameters to keep: the best validated, or else the last."""
    if state.best_params is None or int(state.early_stopping.step) == 0:
        return int(state.step), state.eval_params
    return int(state.early_stopping.best_step), state.best_params


def result(
    steps: int,
    state: TrainState,
    journal: Journal,
    *,
    status: str,
    splits: Mapping[str, Row],
    floor: Row,
) -> Row:
    """The contents of result.json.

    Args:
      steps: number of updates that the config asks for.
      state: the last state.
      journal: the journal of the run.
      status: how the run ended, for example "finished".
      splits: metrics of the kept parameters by split; empty if the run did not finish.
      floor: `Corpus.floor`.
    """
    (parameters_step, params), step = kept_params(state), int(state.step)
    vectors = {
        row["kind"]: {name: row[name] for name in ("found", "of", "covered")}
        for row in journal.of_kind("vectors")
    }
    return {
        "status": status,
        "step": step,
        "stopped_early": status == "finished" and step < steps,
        "parameters_step": parameters_step,
        "splits": splits,
        "parameters": optax.tree.size(params),
        "sha256": tree_digest(params),
        "seconds": journal.seconds,
        # The median over the records, because the first compiles.
        "tokens_per_second": float(np.median(journal.speeds)) if journal.speeds else 0.0,
        **vectors,
        **floor,
    }
