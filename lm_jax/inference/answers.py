"""What a model answers to a task: the loss where something is asked, and how often all is right.

Validation and test are fixed sequences that training never reads (`lm_jax.data.tasks.held_out`),
so their figures depend on no batch size and no seed.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from lm_jax.config import Data
from lm_jax.data.batches import Batch
from lm_jax.data.tasks import HELD_OUT_LANES, Task, held_out
from lm_jax.inference.score import perplexity_of
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params


class Answers(NamedTuple):
    """What a model made of some sequences of a task."""

    nats: float
    """-ln P of all that was asked for; of a real task, the sum of squared errors."""
    tokens: int
    """How much was asked for."""
    right: int
    """Sequences all of whose answers are right."""
    sequences: int
    task: Task

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    def row(self) -> dict[str, float | int | None]:
        """The figures under their names in metrics.jsonl and result.json.

        `perplexity` is None where the task is real, and so is what goes by characters: a task has
        none.
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
    """The loss of each answer, [n], and which sequences are right, [B], batch by batch.

    Args:
      model, params: the model.
      task: what it is asked.
      data: the config of the task.
      split: validation or test.
    """
    read = _reader(model, task)
    for draw in held_out(data, split):
        batch = draw()
        nats, right = read(params, batch)
        yield np.asarray(nats)[np.asarray(batch.mask)], np.asarray(right)


def summed(blocks: Iterable[tuple[np.ndarray, np.ndarray]], task: Task) -> Answers:
    """The sums of what `answers` gives, in float64."""
    nats, tokens, right, sequences = 0.0, 0, 0, 0
    for block, correct in blocks:
        nats += float(np.sum(block, dtype=np.float64))
        tokens += block.size
        right += int(np.sum(correct))
        sequences += correct.size
    return Answers(nats, tokens, right, sequences, task)


@functools.lru_cache(maxsize=16)
def _reader(model: LanguageModel, task: Task) -> Callable[[Params, Batch], tuple[Array, Array]]:
    def read(params: Params, batch: Batch) -> tuple[Array, Array]:
        _, h = model.hidden(params, model.init_carry(HELD_OUT_LANES), batch.x)
        return model.nats(params, h, batch.y), task.right(model.logits(params, h), batch)

    return jax.jit(read)
