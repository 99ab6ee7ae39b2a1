"""Scorers: functions that score a text chunk by chunk and keep a state between chunks.

The scorer of the unchanged model (`lm_jax.scoring.parallel`) keeps the carry.
`lm_jax.scoring.dynamic` also updates the parameters; `lm_jax.scoring.cache` also keeps a cache
of hidden states.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from lm_jax.data.batches import Batch
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import Carry, Params

LOGITS_AT_ONCE = 1 << 24  # numbers, 64 MiB in float32

State = Any


class Scorer(NamedTuple):
    """A scorer: -ln P of each token of a text, chunk by chunk."""

    init: Callable[[Params, int], State]
    """(params, batch_size) -> the state before the first chunk."""
    score_chunk: Callable[[Params, State, Batch], tuple[State, Array]]
    """(params, state, batch) -> (state, nats[T, B]); compiled; the given state is consumed."""
    length: int
    """T, tokens of a chunk."""


def scoring_length(size: int) -> int:
    """Tokens of a sequence per call: few enough to keep the logits small.

    Args:
      size: V.
    """
    return max(1, min(2048, LOGITS_AT_ONCE // size))


@functools.lru_cache(maxsize=16)
def reader(model: LanguageModel) -> Callable[[Params, Carry, Batch], tuple[Carry, Array]]:
    """The compiled program (params, carry, batch) -> (carry, nats[T, B])."""

    def read(params: Params, carry: Carry, batch: Batch) -> tuple[Carry, Array]:
        carry, h = model.hidden(params, restart(model, carry, batch.start), batch.x)
        return carry, model.nats(params, h, batch.y)

    return jax.jit(read, donate_argnums=1)
