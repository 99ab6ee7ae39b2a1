"""Cross-entropy of a text: -ln P of each token, with the carry kept from first to last token.

The results do not depend on a batch size. A text is read as a single sequence, from the first token
to the last, and summed in float64. Only a model trained on independent sentences is evaluated on
sentences, each from a fresh carry and read to its end, however long.

A loss is given per token, and per unit of the text as written: per word, character and byte. -ln P
covers the spelling of all known tokens, and none of an unknown token's spelling; figures per unit
of a text with unknown tokens are therefore None.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from lm_jax.data.batches import (
    Batch,
    Sentences,
    Streams,
    batch_at,
    sentences,
    steps_per_epoch,
    streams,
)
from lm_jax.data.sizes import TextSize
from lm_jax.data.text import Text, in_memory
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models import LanguageModel, best_weight
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
        """The batches, in the order of the text; a long sentence goes on in the next batch."""
        if isinstance(self.source, Streams):
            for step in range(steps_per_epoch(self.source, self.length)):
                yield _batch_at(self.source, step, self.length)
            return
        for row, longest in enumerate(np.max(np.asarray(self.source.lengths), axis=1).tolist()):
            for place in range(0, longest, self.length):
                yield _rest_at(self.source, row, place, self.length)


class Loss(NamedTuple):
    """The cross-entropy of a text under a model."""

    nats: float
    """-ln P of the whole text."""
    tokens: int
    size: TextSize
    """Sizes of the text; each of its unknown tokens is scored as `<unk>`."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_token(self) -> float:
        return self.nats_per_token / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(mean nats per token)."""
        return perplexity_of(self.nats_per_token)

    @property
    def perplexity_per_word(self) -> float | None:
        """P(text) to the power -1 / words; None if P does not cover all words of the text."""
        nats = None if self.size.spaced else self._nats_per(self.size.words)
        return None if nats is None else perplexity_of(nats)

    @property
    def bits_per_character(self) -> float | None:
        """-log2 P(text) / characters; None if the text has unknown tokens.

        The value is infinite if the text has bytes but no byte that begins a character.
        """
        return _in_bits(self._nats_per(self.characters))

    @property
    def bits_per_byte(self) -> float | None:
        """-log2 P(text) / bytes of UTF-8; None if P does not cover all bytes of the text."""
        return None if self.size.spaced else _in_bits(self._nats_per(self.size.bytes))

    @property
    def characters(self) -> int:
        """Characters of the text, without the white space of a spaced text."""
        return self.size.words if self.size.spaced else self.size.characters

    def _nats_per(self, units: int) -> float | None:
        """-ln P(text) / units; None if tokens are unknown."""
        if self.size.unknown:
            return None
        return self.nats / units if units else math.inf

    def plus(self, nats: np.ndarray) -> "Loss":
        """The loss with the -ln P of some more tokens, [n], summed in float64."""
        more = float(np.sum(nats, dtype=np.float64))
        return self._replace(nats=self.nats + more, tokens=self.tokens + nats.size)

    def row(self) -> dict[str, float | int | None]:
        """The metrics by name, as in metrics.jsonl and result.json."""
        return {
            "nats": self.nats_per_token,
            "bits_per_token": self.bits_per_token,
            "perplexity": self.perplexity,
            "perplexity_per_word": self.perplexity_per_word,
            "bits_per_character": self.bits_per_character,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "words": None if self.size.spaced else self.size.words,
            "characters": self.characters,
            "bytes": None if self.size.spaced else self.size.bytes,
            "unknown": self.size.unknown,
        }


def _in_bits(nats: float | None) -> float | None:
    return None if nats is None else nats / math.log(2)


def perplexity_of(nats_per_token: float) -> float:
    """exp(mean nats per token); infinity on overflow, NaN for NaN."""
    return math.inf if nats_per_token > 700 else math.exp(nats_per_token)


def reading(tokens: np.ndarray, vocabulary: Vocabulary) -> Reading:
    """Prepare a text as a single stream."""
    return Reading(streams(tokens, vocabulary.boundary, 1), scoring_length(len(vocabulary)))


def sentence_reading(
    tokens: np.ndarray, vocabulary: Vocabulary, batch_size: int, length: int
) -> Reading:
    """Prepare a text as sentences, which are read whole, `length` tokens of each in a call."""
    whole = max(1, len(tokens))
    return Reading(sentences(tokens, vocabulary.boundary, batch_size, whole), length)


def token_nats(model: LanguageModel, params: Params, reading: Reading) -> Iterator[np.ndarray]:
    """Yield -ln P of each token, [n] at a time; for a stream, in the order of the text."""
    read, carry = reader(model), model.init_carry(reading.batch_size)
    for batch in reading.batches():
        carry, nats = read(params, carry, batch)
        yield np.asarray(nats)[np.asarray(batch.mask)]


def total(blocks: Iterable[np.ndarray], size: TextSize) -> Loss:
    """Sum the arrays of `token_nats` in float64, for a text of the given size."""
    loss = Loss(0.0, 0, size)
    for block in blocks:
        loss = loss.plus(block)
    return loss


def evaluate(model: LanguageModel, params: Params, reading: Reading, size: TextSize) -> Loss:
    """The cross-entropy of a whole text.

    Args:
      model, params: the model.
      reading: the prepared text.
      size: sizes of the text, `Split.size` of a corpus.
    """
    return total(token_nats(model, params, reading), size)


def fitted_weight(
    model_a: LanguageModel,
    params_a: Params,
    model_b: LanguageModel,
    params_b: Params,
    reading: Reading,
) -> float:
    """The share of model a in the mixture with the fewest nats on a text.

    Args:
      model_a, params_a, model_b, params_b: two models of the same vocabulary.
      reading: the prepared text, as a rule the validation text; both models read it alike.

    Raises:
      ValueError: a token has probability zero in both models.
    """
    trained = (model_a, params_a), (model_b, params_b)
    return best_weight(*(np.concatenate(list(token_nats(*one, reading))) for one in trained))


# Compiled apart from the model's program, which is thereby the same for texts of every length.
_batch_at = jax.jit(batch_at, static_argnums=2)


@functools.partial(jax.jit, static_argnums=3)
def _rest_at(
    source: Sentences, row: Int[Array, ""] | int, place: Int[Array, ""] | int, length: int
) -> Batch:
    """The sentences of a row from their token `place` on; they start at place 0."""
    rest = source._replace(starts=source.starts + place, lengths=source.lengths - place)
    batch = batch_at(rest, row, length)
    return batch._replace(start=batch.start & (place == 0))


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
        return self.loss.size.unknown


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
        self.loss = Loss(0.0, 0, TextSize())

    def over(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield the blocks unchanged, and add each block to the totals."""
        for block in blocks:
            self.loss = self.loss.plus(block.nats)._replace(size=self.loss.size.plus(block.size))
            yield block
