"""What a study looks at: a chunk of a text, or whole sequences of a task.

A text is cut into B lanes of which one chunk of T tokens is looked at, the state warmed up on the
chunk before it. Of a task it is B sequences of T steps, each from a fresh carry.

Letters: T steps of the chunk, B lanes, N steps of a long trajectory, S words of a sentence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.data.batches import Batch, batch_at, first_lanes, streams
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError


class Chunk(NamedTuple):
    """What a study looks at."""

    carry: Carry
    """Of B lanes, before the batch."""
    batch: Batch
    """T steps of each lane; of a text, every one has a target."""
    path: np.ndarray
    """[N], or [N, I] of real inputs: what the first lane reads from there on, for what needs a long
    trajectory."""
    counts: np.ndarray | None
    """[V], how often each token occurs in the text; None of a task."""


def sequences(model: LanguageModel, batch: Batch, lanes: int) -> Chunk:
    """Whole sequences of a task, from a fresh carry.

    Args:
      model: the model.
      batch: of the task.
      lanes: B, the sequences that are looked at.

    Raises:
      UserError: the batch has not so many.
    """
    most = batch.mask.shape[1]
    if not 1 <= lanes <= most:
        raise UserError(f"lanes={lanes} must be from 1 to {most}, the sequences of a batch")
    batch = first_lanes(batch, lanes)
    return Chunk(model.init_carry(lanes), batch, np.asarray(batch.x[:, 0]), None)


def sentence(boundary: int, tokens: np.ndarray) -> Batch:
    """The words of a sentence as one lane, each the target of the one before it.

    Args:
      boundary: the token that stands before the first one.
      tokens: [S].

    Raises:
      UserError: there are none.
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
    lanes: int,
) -> Chunk:
    """A chunk of a text and the state before it.

    Args:
      model, params, vocabulary: a trained model.
      tokens: [N] of the text.
      length: T.
      lanes: B.

    Raises:
      UserError: the text is too short for two chunks in every lane.
    """
    if length < 2 or lanes < 1:
        raise UserError(f"length={length} must be 2 or more and lanes={lanes} 1 or more")
    share = len(tokens) // lanes
    if share < 2 * length:
        raise UserError(
            f"the text's {len(tokens):,} tokens over lanes={lanes} make {share:,} each, and two "
            f"chunks of length={length} are needed: give a longer text, fewer lanes or a shorter "
            "length"
        )
    # A text is kept in the smallest type that its vocabulary fits; a model reads 32 bits.
    path = tokens[length - 1 : min(share, 16 * length) - 1].astype(np.int32)
    source = streams(tokens[: share * lanes], vocabulary.boundary, lanes)
    first, batch = (batch_at(source, step, length) for step in range(2))
    carry, _ = jax.jit(model.hidden)(params, model.init_carry(lanes), first.x)
    return Chunk(carry, batch, path, np.bincount(tokens, minlength=len(vocabulary)))
