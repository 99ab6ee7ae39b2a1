"""A run as it was: its state before any update, and the update at which its loss rose most.

A run is a function of its config and its text, so any state it has been in is had again by going
the same way from the newest checkpoint before it, or from the start: to the very same bits on the
same machine, since how many updates the compiled loop makes at once changes none. What validation
said on that way is not computed again but read from metrics.jsonl, and so is where records ended,
for that may be asked for in another way when a run goes on. Nothing is written.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.config import train_of
from lm_jax.gradients.surface import batch_loss
from lm_jax.settings import UserError
from lm_jax.training import directory
from lm_jax.training.descent import Descent
from lm_jax.training.journal import Row, read_rows
from lm_jax.training.loop import prepared
from lm_jax.training.runs import Run
from lm_jax.training.state import TrainState
from lm_jax.training.step import after_validation, reset_metrics

NEIGHBOURS = 2  # records on each side that a record's gradient norm is compared with


class Spike(NamedTuple):
    """An update that made the loss of its own batch rise."""

    step: int
    """Updates made before it: `state_at(run, step)` is the state that it changed."""
    before: float
    """Nats per token of the update's batch under the parameters before it."""
    after: float
    """Of the same batch, from the same carry, under the parameters after it."""


def state_at(run: Run, step: int, *, text: str | Sequence[str] | None = None) -> TrainState:
    """The state of a run just before one of its updates.

    A validation or a record that was due there has been made.

    Args:
      run: one that is not being trained.
      step: updates made, from 0, the state before the first, to `run.step`.
      text: with `data.source=memory`, what `lm_jax.train` was given.

    Raises:
      UserError: the step is out of range; the run is not trained by gradients; its text cannot be
        had, or has changed since.
    """
    if not 0 <= step <= run.step:
        raise UserError(f"step={step} must be from 0 to the {run.step} updates of {run.run_dir}")
    work, rows = at_work(run, text)
    return replayed(work, work.restored(step), rows, step)


def spike(run: Run, *, text: str | Sequence[str] | None = None) -> Spike:
    """The update at which the loss rose most, of those that the run's records point to.

    Two records are looked into, each with the one before it: that whose mean nats lie highest above
    the record's before it, and that whose largest gradient norm is the highest multiple of the
    median of its neighbours'. All their updates are made again, one by one, and the rise of each is
    taken on its own batch, as the model reads the text, so that one batch's being harder than the
    next does not count.

    Args:
      run: one that is not being trained.
      text: with `data.source=memory`, what `lm_jax.train` was given.

    Returns:
      the first update of the highest rise; a loss that is no longer finite is the highest.

    Raises:
      UserError: as for `state_at`, or the run has no record yet.
    """
    work, rows = at_work(run, text)
    records = [row for row in rows if row["kind"] == "train" and row["step"] <= run.step]
    if not records:
        raise UserError(f"{run.run_dir} has no record of an update yet")

    @jax.jit
    def nats(params, carry, batch):
        return batch_loss(work.model, carry, batch)(params)

    found, state = [], None
    for step in _suspects(records):
        state = replayed(work, work.restored(step) if state is None else state, rows, step)
        # A copy, for the update takes the state's buffers over.
        seen = work.about(state)
        carry, batch = jax.tree.map(jnp.copy, seen)
        before = float(nats(state.params, carry, batch))
        state = replayed(work, state, rows, step + 1)
        found.append(Spike(step, before, float(nats(state.params, carry, batch))))
    before, after = np.array([[_number(spike.before), _number(spike.after)] for spike in found]).T
    return found[int(np.argmax(_difference(after, before)))]


def at_work(run: Run, text: str | Sequence[str] | None) -> tuple[Descent, list[Row]]:
    """The process that a run was, on its text, and the rows of its metrics.jsonl.

    Args and Raises: as `state_at`.
    """
    train_of(run.config)
    if run.config.data.origin == "memory" and text is None:
        raise UserError(
            f"{run.run_dir} was trained on a text that a program has handed over: only a program "
            "that hands it over again, as text=…, can replay it"
        )
    config, corpus = prepared(run.config, text)
    directory.refuse_other_text(run.run_dir, corpus)
    work = Descent(config, run.run_dir, corpus, [], lambda step, row: None)
    return work, read_rows(run.run_dir / "metrics.jsonl")


def replayed(work: Descent, state: TrainState, rows: list[Row], step: int) -> TrainState:
    """The state after `step` updates, from an earlier one, which is consumed."""
    done = {"train": int(state.step), "evaluation": int(state.verdict.step)}
    for row in rows:
        kind = row["kind"]
        if kind not in done or not done[kind] < row["step"] <= step:
            continue
        state = work.advanced(state, row["step"])
        if kind == "train":
            state = reset_metrics(work.config, state)
            continue
        if row["nats"] is None:
            raise UserError(
                f"{work.run_dir} cannot be replayed beyond step {row['step']}: its validation there"
                " was not finite, and metrics.jsonl does not say whether it was infinite"
            )
        state = after_validation(work.config, state, jnp.asarray(row["nats"], float))
    return work.advanced(state, step)


def _suspects(records: list[Row]) -> list[int]:
    """The updates of the records that stand out, and of those before them."""
    nats, norms = (
        np.array([_number(row[name]) for row in records]) for name in ("nats", "grad_norm_max")
    )
    edges = [0, 0, *(row["step"] for row in records)]
    rises = _difference(nats, np.concatenate([[np.inf], nats[:-1]]))
    chosen = {int(np.argmax(rises)), int(np.argmax(_multiples(norms)))}
    return sorted({step for n in chosen for step in range(edges[n], edges[n + 2])})


def _difference(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """after - before, and -∞ where there was nothing left to rise from."""
    return np.subtract(after, before, out=np.full(len(after), -np.inf), where=np.isfinite(before))


def _multiples(norms: np.ndarray) -> np.ndarray:
    """Each norm as a multiple of the median of the finite ones around it."""
    multiples = np.ones(len(norms))
    for n, norm in enumerate(norms):
        around = np.concatenate([norms[max(n - NEIGHBOURS, 0) : n], norms[n + 1 :][:NEIGHBOURS]])
        around = around[np.isfinite(around) & (around > 0)]
        if around.size:
            multiples[n] = norm / np.median(around)
    return multiples


def _number(value: float | None) -> float:
    """What is not finite was written down as null, and is more than any number."""
    return float("inf") if value is None or not np.isfinite(value) else value
