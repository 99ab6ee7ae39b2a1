"""Metrics of a model on a task: the loss of the answers, and the share of sequences all right.

Validation and test are fixed sequences, never read in training (`lm_jax.data.tasks.held_out`). The
metrics therefore do not depend on the batch size or the seed.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from lm_jax.config import Data
from lm_jax.data.batches import Batch
from lm_jax.data.tasks import HELD_OUT_SEQUENCES, Task, held_out
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.scoring.score import perplexity_of


class TaskMetrics(NamedTuple):
    """Sums over the sequences of a task."""

    nats: float
    """-ln P of all answers; in a regression task, the sum of squared errors."""
    tokens: int
    """Number of answers."""
    right: int
    """Number of sequences without a wrong answer."""
    sequences: int
    task: Task

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    def plus(self, nats: np.ndarray, right: np.ndarray) -> "TaskMetrics":
        """The sums with one more batch, as yielded by `answers`; summed in float64."""
        return self._replace(
            nats=self.nats + float(np.sum(nats, dtype=np.float64)),
            tokens=self.tokens + nats.size,
            right=self.right + int(np.sum(right)),
            sequences=self.sequences + right.size,
        )

    def row(self) -> dict[str, float | int | None]:
        """The metrics by name, as in metrics.jsonl and result.json.

        `perplexity` is None for a regression task. `bits_per_character` and `characters` are always
        None, because a task has no characters.
        """
        return {
            "nats": self.nats_per_token,
            "perplexity": None if self.task.real else perplexity_of(self.nats_per_token),
            "bits_per_character": None,
            "tokens": self.tokens,
            "characters": None,
            "success": self.right / self.sequences,
            "sequences": self.sequences,
            "chance": self.task.chance,
        }


def answers(
    model: LanguageModel, params: Params, task: Task, data: Data, split: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each batch, the loss of each answer, [n], and True for each sequence all right, [B].

    Args:
      model, params: the model.
      task: the task.
      data: the config of the task.
      split: "validation" or "test".
    """
    read = answer_reader(model, task)
    for draw in held_out(data, split):
        batch = draw()
        nats, right = read(params, batch)
        yield np.asarray(nats)[np.asarray(batch.mask)], np.asarray(right)


def summed(blocks: Iterable[tuple[np.ndarray, np.ndarray]], task: Task) -> TaskMetrics:
    """Sums over the batches yielded by `answers`."""
    metrics = TaskMetrics(0.0, 0, 0, 0, task)
    for nats, right in blocks:
        metrics = metrics.plus(nats, right)
    return metrics


@functools.lru_cache(maxsize=16)
def answer_reader(
    model: LanguageModel, task: Task
) -> Callable[[Params, Batch], tuple[Array, Array]]:
    """The compiled program (params, batch) -> (loss[T, B], right[B]) of `answers`."""

    def read(params: Params, batch: Batch) -> tuple[Array, Array]:
        _, h = model.hidden(params, model.init_carry(HELD_OUT_SEQUENCES), batch.x)
        return model.nats(params, h, batch.y), task.right(model.logits(params, h), batch)

    return jax.jit(read)
