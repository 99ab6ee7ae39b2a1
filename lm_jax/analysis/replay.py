"""Replay of a run: the state before any update, and the update that raised the loss most.

A run is a function of its config and text. Repeating the updates from the newest earlier
checkpoint, or from the start, therefore gives any earlier state again. On the same machine every
bit is the same, because the number of updates per call of the compiled loop does not change the
result. Validation losses are read from metrics.jsonl and not computed again. The steps of the
records are also read there, since a resumed run may have another `log_every`. Nothing is written.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.config import Memory, train_of
from lm_jax.files import Row
from lm_jax.gradients.loss_surface import batch_loss
from lm_jax.settings import UserError
from lm_jax.training import directory
from lm_jax.training.hosts import Processes
from lm_jax.training.journal import read_rows
from lm_jax.training.loop import prepared
from lm_jax.training.runs import Run
from lm_jax.training.state import TrainState
from lm_jax.training.step import after_validation, reset_metrics
from lm_jax.training.trainer import Trainer

NEIGHBOURS = 2  # a record's gradient norm is compared with this many records on each side


class Spike(NamedTuple):
    """An update and the loss of its own batch before and after."""

    step: int
    """Number of updates made earlier: `state_at(run, step)` is the state before this update."""
    before: float
    """Nats per token of the update's batch, under the parameters before the update."""
    after: float
    """Nats per token of the same batch from the same carry, under the parameters after the
    update."""


def state_at(run: Run, step: int, *, text: str | Sequence[str] | None = None) -> TrainState:
    """The state of a run after `step` updates.

    A validation or a record due at this step is already included.

    Args:
      run: a run that no process is training now.
      step: number of updates made, from 0 (before the first update) to `run.step`.
      text: with `data.source=memory`, the text given to `lm_jax.train`.

    Raises:
      UserError: the step is out of range; the run is not trained by gradients; the text of the run
        is missing or has changed.
    """
    if not 0 <= step <= run.step:
        raise UserError(f"step={step} must be from 0 to the {run.step} updates of {run.path}")
    work, rows = at_work(run, text)
    return replayed(work, work.restored(step), rows, step)


def spike(run: Run, *, text: str | Sequence[str] | None = None) -> Spike:
    """The update that raised the loss most, among the updates of two conspicuous records.

    The first is the record with the largest rise in mean nats over the previous record. The second
    is the record whose largest gradient norm is the highest multiple of the median norm of the
    neighbouring records. The updates of both records, and of the record before each, are made
    again, one by one. The rise of an update is measured on the update's own batch, without dropout
    or scheduled sampling. A difference in difficulty between batches therefore does not count.

    Args:
      run: a run that no process is training now.
      text: with `data.source=memory`, the text given to `lm_jax.train`.

    Returns:
      the update with the largest rise, the first in a tie; the change from a finite loss to NaN or
      infinity is the largest rise.

    Raises:
      UserError: as for `state_at`, or the run has no record yet.
    """
    work, rows = at_work(run, text)
    records = [row for row in rows if row["kind"] == "train" and row["step"] <= run.step]
    if not records:
        raise UserError(f"{run.path} has no record of an update yet")

    @jax.jit
    def nats(params, carry, batch):
        return batch_loss(work.model, carry, batch)(params)

    found, state = [], None
    for step in _suspects(records):
        state = replayed(work, work.restored(step) if state is None else state, rows, step)
        # Copied, because the update consumes the state's buffers.
        seen = work.next_batch(state)
        carry, batch = jax.tree.map(jnp.copy, seen)
        before = float(nats(state.params, carry, batch))
        state = replayed(work, state, rows, step + 1)
        found.append(Spike(step, before, float(nats(state.params, carry, batch))))
    before, after = np.array([[_number(spike.before), _number(spike.after)] for spike in found]).T
    return found[int(np.argmax(_difference(after, before)))]


def at_work(run: Run, text: str | Sequence[str] | None) -> tuple[Trainer, list[Row]]:
    """The trainer of a run, prepared on the run's text, and the rows of metrics.jsonl.

    Args and Raises: as `state_at`.
    """
    train_of(run.config)
    if isinstance(run.config.data.source, Memory) and text is None:
        raise UserError(
            f"{run.path} was trained on a text that a program has handed over: only a program "
            "that hands it over again, as text=…, can replay it"
        )
    config, corpus = prepared(run.config, text)
    directory.known(run.path, config, corpus.digest)
    work = Trainer(config, run.path, corpus, Processes(), lambda step, row: None)
    return work, read_rows(run.path / "metrics.jsonl")


def replayed(work: Trainer, state: TrainState, rows: list[Row], step: int) -> TrainState:
    """The state after `step` updates, replayed from `state`, an earlier state that is consumed."""
    step_made = int(state.step)
    validated = int(state.early_stopping.step)
    done = {"train": step_made, "evaluation": validated, "restored": step_made}
    for row in rows:
        kind = row["kind"]
        if kind not in done or not done[kind] < row["step"] <= step:
            continue
        state = work.replay_until(state, row["step"])
        if kind == "train":
            state = reset_metrics(work.config, state)
            continue
        if kind == "restored":
            state = state.with_lr_scale(row["lr_scale"])
            continue
        if row["nats"] is None:
            raise UserError(
                f"{work.run_dir} cannot be replayed beyond step {row['step']}: its validation there"
                " was not finite, and metrics.jsonl does not say whether it was infinite"
            )
        state = after_validation(work.config, state, jnp.asarray(row["nats"], float))
    return work.replay_until(state, step)


def _suspects(records: list[Row]) -> list[int]:
    """The updates of the two conspicuous records, and of the record before each."""
    nats, norms = (
        np.array([_number(row[name]) for row in records]) for name in ("nats", "grad_norm_max")
    )
    edges = [0, 0, *(row["step"] for row in records)]
    rises = _difference(nats, np.concatenate([[np.inf], nats[:-1]]))
    chosen = {int(np.argmax(rises)), int(np.argmax(_multiples(norms)))}
    return sorted({step for n in chosen for step in range(edges[n], edges[n + 2])})


def _difference(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The difference `after - before`; -∞ if `before` is not finite."""
    return np.subtract(after, before, out=np.full(len(after), -np.inf), where=np.isfinite(before))


def _multiples(norms: np.ndarray) -> np.ndarray:
    """Ratio of each norm to the median of the finite, positive neighbours; 1 without any."""
    multiples = np.ones(len(norms))
    for n, norm in enumerate(norms):
        around = np.concatenate([norms[max(n - NEIGHBOURS, 0) : n], norms[n + 1 :][:NEIGHBOURS]])
        around = around[np.isfinite(around) & (around > 0)]
        if around.size:
            multiples[n] = norm / np.median(around)
    return multiples


def _number(value: float | None) -> float:
    """The value, or infinity for null, NaN and the infinities (null in the file)."""
    return float("inf") if value is None or not np.isfinite(value) else value
