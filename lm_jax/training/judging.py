"""How a run is judged: the figures of its validation and its test split, all of either."""

import signal
from collections.abc import Iterator, Sequence
from typing import TypeVar

from lm_jax.config import Data
from lm_jax.data.corpus import Corpus, Split
from lm_jax.inference.answers import Answers, answers, summed
from lm_jax.inference.score import Loss, Reading, reading, sentence_reading, token_nats, total
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params

Block = TypeVar("Block")


class Stopped(Exception):
    """A signal came while a split was being read."""


class Judge:
    """What knows the splits, and parameters by their figures.

    Attributes:
      validation: the validation split, ready to be read again and again; None of a task.
    """

    def __init__(
        self,
        data: Data,
        corpus: Corpus,
        length: int,
        received: Sequence[signal.Signals],
        like: "Judge | None" = None,
    ):
        """Makes the validation split ready.

        Args:
          data: the config.
          corpus: its text.
          length: of sentences, where a longer one is cut.
          received: signals to stop, as they come in.
          like: another one of the same text, whose arrays serve this one, too.
        """
        self._data, self._corpus, self._length, self._received = data, corpus, length, received
        if like is not None:
            self.validation = like.validation
        else:
            self.validation = None if corpus.task else self._reading(corpus.validation)

    def judged(self, model: LanguageModel, params: Params, name: str) -> Loss | Answers:
        """The figures of the split of that name.

        Raises:
          Stopped: a signal came on the way.
        """
        task, split = self._corpus.task, getattr(self._corpus, name)
        if task:
            asked = answers(model, params, task, self._data, name)
            return summed(self._until_stopped(asked), task)
        known = self.validation if name == "validation" else None
        blocks = token_nats(model, params, known or self._reading(split))
        return total(self._until_stopped(blocks), split.characters, split.unknown)

    def _reading(self, split: Split) -> Reading:
        vocabulary = self._corpus.vocabulary
        if self._data.batching == "streams":
            return reading(split.tokens, vocabulary)
        return sentence_reading(split.tokens, vocabulary, self._data.batch_size, self._length)

    def _until_stopped(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            if self._received:
                raise Stopped
            yield block
