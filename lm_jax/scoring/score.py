"""Cross-entropy of a text: -ln P of each token, with the carry kept from first to last token.

The results do not depend on a batch size. A text is read as a single sequence, from the first token
to the last, and summed in float64. Only a model trained on independent sentences is evaluated on
sentences, each from a fresh carry.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from lm_jax.data.batches import (
    Batch,
    Sentences,
    Streams,
    batch_at,
    sentences,
    steps_per_epoch,
    streams,
)
from lm_jax.data.text import Text, in_memory
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.scoring.blocks import Block, blocks
from lm_jax.scoring.parallel import parallel_scorer, stretch_length
from lm_jax.scoring.scorer import Scorer, reader, scoring_length


class Reading(NamedTuple):
    """A text prepared for evaluation."""

    source: Streams | Sentences
    length: int
    """Tokens of each sequence in a call of the compiled program."""

    @property
    def batch_size(self) -> int:
        """Number of sequences in a call of the compiled program."""
        return self.source.lengths.shape[-1]

    def batches(self) -> Iterator[Batch]:
        """The batches, in the order of the text."""
        for step in range(steps_per_epoch(self.source, self.length)):
            yield _batch_at(self.source, step, self.length)


class Loss(NamedTuple):
    """The cross-entropy of a text under a model."""

    nats: float
    """-ln P of the whole text."""
    tokens: int
    characters: int
    """Length of the text in Unicode characters."""
    unknown: int
    """Number of tokens missing from the vocabulary; each is scored as `<unk>`."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(mean nats per token)."""
        return perplexity_of(self.nats_per_token)

    @property
    def bits_per_character(self) -> float | None:
        """-log2 P(text) / characters; None if the text has unknown tokens.

        P does not cover the characters of an unknown token. The value is infinite if the text has
        bytes but no byte that begins a character.
        """
        if self.unknown:
            return None
        return self.nats / math.log(2) / self.characters if self.characters else math.inf

    def plus(self, nats: np.ndarray) -> "Loss":
        """The loss with the -ln P of some more tokens, [n], summed in float64."""
        more = float(np.sum(nats, dtype=np.float64))
        return self._replace(nats=self.nats + more, tokens=self.tokens + nats.size)

    def row(self) -> dict[str, float | int | None]:
        """The metrics by name, as in metrics.jsonl and result.json."""
        return {
            "nats": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_character": self.bits_per_character,
            "tokens": self.tokens,
            "characters": self.characters,
            "unknown": self.unknown,
        }


def perplexity_of(nats_per_token: float) -> float:
    """exp(mean nats per token); infinity on overflow, NaN for NaN."""
    return math.inf if nats_per_token > 700 else math.exp(nats_per_token)


def reading(tokens: np.ndarray, vocabulary: Vocabulary) -> Reading:
    """Prepare a text as a single stream."""
    return Reading(streams(tokens, vocabulary.boundary, 1), scoring_length(len(vocabulary)))


def sentence_reading(
    tokens: np.ndarray, vocabulary: Vocabulary, batch_size: int, length: int
) -> Reading:
    """Prepare a text as sentences, cut as in training (`lm_jax.data.batches.sentences`)."""
    return Reading(sentences(tokens, vocabulary.boundary, batch_size, length), length)


def token_nats(model: LanguageModel, params: Params, reading: Reading) -> Iterator[np.ndarray]:
    """Yield -ln P of each token, [n] at a time; for a stream, in the order of the text."""
    read, carry = reader(model), model.init_carry(reading.batch_size)
    for batch in reading.batches():
        carry, nats = read(params, carry, batch)
        yield np.asarray(nats)[np.asarray(batch.mask)]


def total(blocks: Iterable[np.ndarray], characters: int, unknown: int) -> Loss:
    """Sum the arrays of `token_nats` in float64; `characters` and `unknown` count the text's."""
    loss = Loss(0.0, 0, characters, unknown)
    for block in blocks:
        loss = loss.plus(block)
    return loss


def evaluate(
    model: LanguageModel, params: Params, reading: Reading, characters: int, unknown: int
) -> Loss:
    """The cross-entropy of a whole text.

    Args:
      model, params: the model.
      reading: the prepared text.
      characters: number of characters of the text.
      unknown: number of tokens missing from the vocabulary.
    """
    return total(token_nats(model, params, reading), characters, unknown)


# Compiled apart from the model's program, which is thereby the same for texts of every length.
_batch_at = jax.jit(batch_at, static_argnums=2)


class Score(NamedTuple):
    """Score of a text under a model."""

    tokens: np.ndarray
    """[N], token numbers of the text."""
    nats: np.ndarray
    """[N], -ln P of each token, given all earlier tokens."""
    loss: Loss

    @property
    def unknown(self) -> int:
        """Number of tokens missing from the vocabulary."""
        return self.loss.unknown


def score(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    text: str | Text,
    scorer: Scorer | None = None,
) -> Score:
    """Score a text: -ln P in total and by token (`blocks` yields the scores block by block).

    Args:
      model, params: a trained model, `run.model` and `run.params`.
      vocabulary: the model's vocabulary, `run.vocabulary`.
      text: the text to score; tokens missing from the vocabulary count as `<unk>`.
      scorer: `lm_jax.scoring.dynamic` or `cache`; None for the unchanged model.

    Raises:
      UserError: the text is empty, or not UTF-8.
    """
    scorer = scorer or parallel_scorer(model, stretch_length(len(vocabulary)))
    text = in_memory("text", text) if isinstance(text, str) else text
    tally = Tally()
    found = list(tally.over(blocks(scorer, params, vocabulary, text)))
    tokens, nats = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:2])
    return Score(tokens, nats, tally.loss)


class Tally:
    """Running totals over scored blocks.

    Attributes:
      loss: the cross-entropy of the blocks yielded by `over` until now.
    """

    def __init__(self) -> None:
        self.loss = Loss(0.0, 0, 0, 0)

    def over(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield the blocks unchanged, and add each block to the totals."""
        for block in blocks:
            nats, tokens, characters, unknown = self.loss
            self.loss = Loss(
                nats + float(np.sum(block.nats, dtype=np.float64)),
                tokens + len(block.tokens),
                characters + block.characters,
                unknown + block.unknown,
            )
            yield block
