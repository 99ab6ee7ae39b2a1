"""What a model gives a text: -ln P of each token, the carry running through from first to last.

Nothing here depends on a batch size: a text is read in one lane, from its first token to its last,
and the sum is taken in float64. Only where a model was trained on independent sentences is it
judged on sentences, each from a fresh carry.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from lm_jax.data.batches import (
    Sentences,
    Streams,
    batch_at,
    sentences,
    steps_per_epoch,
    streams,
)
from lm_jax.data.text import Text, in_memory
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.inference.blocks import Block, blocks
from lm_jax.inference.scorer import Scorer, chunk_length, reader
from lm_jax.inference.static import static, stretch_length
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params


class Reading(NamedTuple):
    """A text as a model is judged on it."""

    source: Streams | Sentences
    length: int
    """Tokens of each lane in one call of the compiled program."""


class Loss(NamedTuple):
    """The cross-entropy of a text under a model."""

    nats: float
    """-ln P of the whole text."""
    tokens: int
    characters: int
    """Length of the text in Unicode characters."""
    unknown: int
    """Tokens that the vocabulary lacks; each is scored as `<unk>`."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(mean nats per token)."""
        return perplexity_of(self.nats_per_token)

    @property
    def bits_per_character(self) -> float | None:
        """-log2 P(text) / characters; None where tokens are unknown, whose characters P leaves out.

        Infinite where there are bytes but none that begins a character.
        """
        if self.unknown:
            return None
        return self.nats / math.log(2) / self.characters if self.characters else math.inf

    def row(self) -> dict[str, float | int | None]:
        """The figures under their names in metrics.jsonl and result.json."""
        return {
            "nats": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_character": self.bits_per_character,
            "tokens": self.tokens,
            "characters": self.characters,
            "unknown": self.unknown,
        }


def perplexity_of(nats_per_token: float) -> float:
    """exp(mean nats per token), infinite where that is no number of the machine's; NaN of NaN."""
    return math.inf if nats_per_token > 700 else math.exp(nats_per_token)


def reading(tokens: np.ndarray, vocabulary: Vocabulary) -> Reading:
    """A text as one stream."""
    return Reading(streams(tokens, vocabulary.boundary, 1), chunk_length(len(vocabulary)))


def sentence_reading(
    tokens: np.ndarray, vocabulary: Vocabulary, batch_size: int, length: int
) -> Reading:
    """A text as independent sentences, cut as in training (`lm_jax.data.batches.sentences`)."""
    return Reading(sentences(tokens, vocabulary.boundary, batch_size, length), length)


def token_nats(model: LanguageModel, params: Params, reading: Reading) -> Iterator[np.ndarray]:
    """-ln P of each token, [n] at a time, in the text's order where it is read as one stream."""
    source, length = reading
    read = reader(model)
    carry = model.init_carry(source.lengths.shape[-1])
    for step in range(steps_per_epoch(source, length)):
        batch = _batch_at(source, step, length)
        carry, nats = read(params, carry, batch)
        yield np.asarray(nats)[np.asarray(batch.mask)]


def total(blocks: Iterable[np.ndarray], characters: int, unknown: int) -> Loss:
    """The sum of what `token_nats` gives, in float64; `characters`, `unknown`: of the text."""
    nats, tokens = 0.0, 0
    for block in blocks:
        nats += float(np.sum(block, dtype=np.float64))
        tokens += block.size
    return Loss(nats, tokens, characters, unknown)


def evaluate(
    model: LanguageModel, params: Params, reading: Reading, characters: int, unknown: int
) -> Loss:
    """The cross-entropy of a whole text.

    Args:
      model, params: the model.
      reading: the text's tokens.
      characters: of the text.
      unknown: its tokens that the vocabulary lacks.
    """
    return total(token_nats(model, params, reading), characters, unknown)


# Apart from the model's program, which then is the same for texts of every length.
_batch_at = jax.jit(batch_at, static_argnums=2)


class Score(NamedTuple):
    """What a model says of a text."""

    tokens: np.ndarray
    """[N] numbers of the text's tokens."""
    nats: np.ndarray
    """[N] -ln P of each token, given all before it."""
    loss: Loss

    @property
    def unknown(self) -> int:
        """Tokens that the vocabulary lacks."""
        return self.loss.unknown


def score(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    text: str | Text,
    scorer: Scorer | None = None,
) -> Score:
    """-ln P of a text, in all and by token (`blocks` gives it piece by piece).

    Args:
      model, params: a trained model, `run.model` and `run.params`.
      vocabulary: its vocabulary, `run.vocabulary`.
      text: what to score; tokens that the vocabulary lacks count as `<unk>`.
      scorer: another way than the model as it is: `lm_jax.inference.dynamic` or `cache`.

    Raises:
      UserError: the text is empty, or not UTF-8.
    """
    scorer = scorer or static(model, stretch_length(len(vocabulary)))
    text = in_memory("text", text) if isinstance(text, str) else text
    tally = Tally()
    found = list(tally.over(blocks(scorer, params, vocabulary, text)))
    tokens, nats = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:2])
    return Score(tokens, nats, tally.loss)


class Tally:
    """The sums over scored blocks, taken as they go by.

    Attributes:
      loss: the cross-entropy of what has gone by.
    """

    def __init__(self) -> None:
        self.loss = Loss(0.0, 0, 0, 0)

    def over(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """The same blocks, each counted when it is asked for."""
        for block in blocks:
            nats, tokens, characters, unknown = self.loss
            self.loss = Loss(
                nats + float(np.sum(block.nats, dtype=np.float64)),
                tokens + len(block.tokens),
                characters + block.characters,
                unknown + block.unknown,
            )
            yield block
