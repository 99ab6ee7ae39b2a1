"""Input of the analysis: a chunk of a text, or whole sequences of a task.

A text is cut into B sequences. The analysis reads a chunk of T tokens of each sequence, after a
warm-up on the chunk before. A task gives B sequences of T steps, each from a fresh carry.

Letters: T steps of the chunk, B sequences, N steps of a long trajectory, S words of a sentence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.data.batches import Batch, batch_at, first_sequences, streams
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError


class Chunk(NamedTuple):
    """Input of the analysis."""

    carry: Carry
    """State of B sequences before the batch."""
    batch: Batch
    """T steps of each sequence; in a text, every step has a target."""
    path: np.ndarray
    """[N], or [N, I] for real inputs: the inputs of the first sequence from the batch on, for tools
    that need a long trajectory."""
    counts: np.ndarray | None
    """[V], number of occurrences of each token in the text; None for a task."""


def of_batch(model: LanguageModel, batch: Batch, sequences: int) -> Chunk:
    """Chunk of whole sequences of a task, from a fresh carry.

    Args:
      model: the model.
      batch: a batch of the task.
      sequences: B, the number of sequences to take.

    Raises:
      UserError: `sequences` is not from 1 to the number of sequences in the batch.
    """
    most = batch.mask.shape[1]
    if not 1 <= sequences <= most:
        raise UserError(f"sequences={sequences} must be from 1 to {most}, the sequences of a batch")
    batch = first_sequences(batch, sequences)
    return Chunk(model.init_carry(sequences), batch, np.asarray(batch.x[:, 0]), None)


def sentence(boundary: int, tokens: np.ndarray) -> Batch:
    """Batch of a single sentence, in which each word is the target of the word before.

    Args:
      boundary: the token before the first word.
      tokens: [S].

    Raises:
      UserError: the sentence is empty.
    """
    if not len(tokens):
        raise UserError("the sentence is empty")
    said = jnp.asarray(tokens, jnp.int32)[:, None]
    read = jnp.roll(said, 1, axis=0).at[0].set(boundary)
    return Batch(read, said, jnp.ones(said.shape, bool), jnp.ones(1, bool))


def chunk(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    tokens: np.ndarray,
    *,
    length: int,
    sequences: int,
) -> Chunk:
    """Chunk of a text, with the state before the chunk.

    Args:
      model, params, vocabulary: a trained model.
      tokens: all tokens of the text.
      length: T, 2 or more.
      sequences: B, 1 or more.

    Raises:
      UserError: `length` or `sequences` is too small, or the text is too short for two chunks in
        every sequence.
    """
    if length < 2 or sequences < 1:
        raise UserError(f"length={length} must be 2 or more and sequences={sequences} 1 or more")
    share = len(tokens) // sequences
    if share < 2 * length:
        raise UserError(
            f"the text's {len(tokens):,} tokens over sequences={sequences} make {share:,} each, "
            f"and two chunks of length={length} are needed: give a longer text, fewer sequences or "
            "a shorter length"
        )
    # The text has the smallest integer type that fits the vocabulary; a model reads int32.
    path = tokens[length - 1 : min(share, 16 * length) - 1].astype(np.int32)
    source = streams(tokens[: share * sequences], vocabulary.boundary, sequences)
    first, batch = (batch_at(source, step, length) for step in range(2))
    carry, _ = jax.jit(model.hidden)(params, model.init_carry(sequences), first.x)
    return Chunk(carry, batch, path, np.bincount(tokens, minlength=len(vocabulary)))
