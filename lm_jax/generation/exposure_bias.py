"""Exposure bias: the loss of a model that reads generated tokens instead of the text.

A text is cut into chunks of T tokens. Under teacher forcing the model reads the tokens of the text.
In free running the model reads the first token of the chunk and then its own samples
(`lm_jax.generation.sample_inputs`). The targets are the text's next tokens in both cases, and both
start each chunk from the state left by the preceding text. The difference in nats, by position in
the chunk, shows how errors accumulate in a model trained only on the text (Bengio et al., 2015;
Ranzato et al., 2016, call this exposure bias). At position 0 the difference is zero.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lm_jax.data.batches import Batch
from lm_jax.data.text import Text, in_memory
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.generation.sampling_options import check_seed
from lm_jax.generation.scheduled_sampling import sample_inputs
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import Carry, Params
from lm_jax.scoring.blocks import batches
from lm_jax.scoring.scorer import scoring_length
from lm_jax.settings import UserError


class Exposure(NamedTuple):
    """Nats per token by position in a chunk."""

    forced: np.ndarray
    """[T], mean nats under teacher forcing."""
    free: np.ndarray
    """[T], mean nats in free running."""
    tokens: np.ndarray
    """[T], number of tokens in each mean."""

    def mean(self, nats: np.ndarray) -> float:
        """Mean nats per token over all positions; `nats` is `forced` or `free`."""
        return float(np.sum(nats * self.tokens) / np.sum(self.tokens))

    @property
    def gap(self) -> float:
        """Mean nats per token in free running, minus the mean under teacher forcing."""
        # If an n-gram model gives P = 0, both means are infinite and the gap is NaN.
        return self.mean(self.free) - self.mean(self.forced)


def exposure(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    text: str | Text,
    *,
    length: int,
    greedy: bool = False,
    seed: int = 0,
) -> Exposure:
    """Mean nats per token by position, under teacher forcing and in free running.

    Args:
      model, params: a trained model.
      vocabulary: the model's vocabulary.
      text: the text, read as a single sequence in chunks; the last chunk may be shorter.
      length: T.
      greedy: if True, free running reads the likeliest token instead of a sample.
      seed: seed of the samples.

    Raises:
      UserError: a number is out of range; the text is empty, or not UTF-8.
    """
    longest = scoring_length(len(vocabulary))
    if not 1 <= length <= longest:
        raise UserError(f"exposure={length} must be from 1 to {longest:,}")
    check_seed(seed)
    text = in_memory("text", text) if isinstance(text, str) else text
    both, key = _both(model, greedy), jax.random.key(seed)
    carry = model.init_carry(1)
    sums, tokens = np.zeros((2, length)), np.zeros(length, np.int64)
    for number, (piece, batch) in enumerate(batches(vocabulary, text, length)):
        carry, nats = both(params, carry, batch, key, number)
        there = slice(len(piece.tokens))
        sums[:, there] += np.asarray(nats, np.float64)[:, there, 0]
        tokens[there] += 1
    reached = slice(int(np.count_nonzero(tokens)))
    forced, free = (sums / np.maximum(tokens, 1))[:, reached]
    return Exposure(forced, free, tokens[reached])


@functools.lru_cache(maxsize=16)
def _both(model: LanguageModel, greedy: bool) -> Callable[..., tuple[Carry, Array]]:
    """The program (params, carry, batch, key, number) -> (carry, nats[2, T, B])."""

    def program(
        params: Params, carry: Carry, batch: Batch, key: Array, number: Array
    ) -> tuple[Carry, Array]:
        carry = restart(model, carry, batch.start)
        batch = batch._replace(start=jnp.zeros_like(batch.start))
        own = sample_inputs(
            model, params, carry, batch, jax.random.fold_in(key, number), jnp.ones(()), greedy
        )
        after, h = model.hidden(params, carry, batch.x)
        _, own_h = model.hidden(params, carry, own.x)
        pairs = [model.nats(params, states, batch.y) for states in (h, own_h)]
        return after, jnp.stack(pairs)

    return jax.jit(program, donate_argnums=1)
