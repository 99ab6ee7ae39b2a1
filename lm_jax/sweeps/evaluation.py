"""Evaluation of many lanes together: a batch of a split is read by all lanes in a single call.

The losses of a lane are those of `lm_jax.training.evaluator`: the lanes read the same batches in
the same order, and each lane is summed in float64 on the host. On an accelerator a call reads as
many lanes at once as hold no more tokens than an update of all lanes; an update keeps more numbers
of each token than an evaluation, so the evaluation needs no memory beyond that of training.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.data.tasks import HELD_OUT_SEQUENCES, Task, held_out
from lm_jax.models import LanguageModel
from lm_jax.scoring.score import Loss
from lm_jax.scoring.scorer import reader
from lm_jax.scoring.task_metrics import TaskMetrics, answer_reader
from lm_jax.sweeps.vmapped_runs import VmappedRuns
from lm_jax.training.evaluator import Stopped
from lm_jax.training.trainer import Trainer


def losses(
    runs: VmappedRuns, works: Mapping[int, Trainer], split: Literal["validation", "test"]
) -> dict[int, Loss] | dict[int, TaskMetrics]:
    """Evaluate runs on a split.

    Args:
      runs: the lanes.
      works: the trainers of the runs to evaluate, by the run's number; at least 1.
      split: the split. For the validation split, the parameters are `TrainState.eval_params`; for
        the test split, the kept parameters of runs that have been validated.

    Returns:
      the loss of each run, by the run's number.

    Raises:
      Stopped: a signal arrived during the evaluation.
    """
    states = runs.states()
    params = states.eval_params
    if split == "test" and states.best_params is not None:
        params = states.best_params
    asked = np.zeros(runs.count, bool)
    asked[[runs.place(run) for run in works]] = True
    own = runs.over_devices(asked), params
    first = next(iter(works.values()))
    read = _read_text if first.corpus.task is None else _read_task
    return read(runs, works, split, own)


def _read_text(
    runs: VmappedRuns, works: Mapping[int, Trainer], split: str, own: tuple[Any, Any]
) -> dict[int, Loss]:
    first = next(iter(works.values()))
    model, reading = first.model, first.evaluator.reading(split)
    size = getattr(first.corpus, split).size
    found = {run: Loss(0.0, 0, size) for run in works}
    carry = jax.tree.map(
        lambda leaf: runs.over_devices(np.tile(leaf, (runs.count, *[1] * leaf.ndim))),
        model.init_carry(reading.batch_size),
    )
    read, width = _lane_reader(model), _width(runs, first, reading.batch_size * reading.length)
    for batch in reading.batches():
        carry, nats = runs.map(read, (*own, carry), (batch,), width)
        nats, mask = np.asarray(nats), np.asarray(batch.mask)
        _check_stopped(first)
        found = {run: loss.plus(nats[runs.place(run)][mask]) for run, loss in found.items()}
    return found


def _read_task(
    runs: VmappedRuns, works: Mapping[int, Trainer], split: str, own: tuple[Any, Any]
) -> dict[int, TaskMetrics]:
    first = next(iter(works.values()))
    task = first.corpus.task
    assert task is not None
    found = {run: TaskMetrics(0.0, 0, 0, 0, task) for run in works}
    read = _lane_answers(first.model, task)
    width = _width(runs, first, HELD_OUT_SEQUENCES * first.config.data.length)
    # The sequences of two runs may differ in length.
    draws = {run: held_out(work.config.data, split) for run, work in works.items()}
    by_place = {runs.place(run): run for run in works}
    for nth in range(len(next(iter(draws.values())))):
        batches = {run: jax.tree.map(np.asarray, own[nth]()) for run, own in draws.items()}
        spare = next(iter(batches.values()))
        placed = [
            batches[by_place[place]] if place in by_place else spare for place in range(runs.count)
        ]
        stacked = jax.tree.map(lambda *leaves: runs.over_devices(np.stack(leaves)), *placed)
        nats, right = jax.device_get(runs.map(read, (*own, stacked), (), width))
        _check_stopped(first)
        for run, metrics in found.items():
            place, mask = runs.place(run), batches[run].mask
            found[run] = metrics.plus(nats[place][mask], right[place])
    return found


def _width(runs: VmappedRuns, work: Trainer, tokens: int) -> int:
    """Number of lanes evaluated at once by a device, for `tokens` tokens of each in a call."""
    if runs.width == 1:
        return 1
    of_an_update = work.config.data.batch_size * work.length
    return max(1, min(runs.width, runs.width * of_an_update // tokens))


def _check_stopped(work: Trainer) -> None:
    if work.received:
        raise Stopped


@functools.lru_cache(maxsize=16)
def _lane_reader(model: LanguageModel) -> Callable:
    return _if_asked(reader(model))


@functools.lru_cache(maxsize=16)
def _lane_answers(model: LanguageModel, task: Task) -> Callable:
    return _if_asked(answer_reader(model, task))


def _if_asked(read: Callable) -> Callable:
    """The function of (asked, *arguments): `read(*arguments)`, or zeros if not asked."""

    def reads(asked: Any, *arguments: Any) -> Any:
        empty = jax.eval_shape(read, *arguments)

        def zeros(*_: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), empty)

        return jax.lax.cond(asked, read, zeros, *arguments)

    return reads
