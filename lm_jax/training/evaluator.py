"""Evaluation of a run on the whole validation split and the whole test split."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from lm_jax.config import Data
from lm_jax.data.corpus import Corpus, Split
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.scoring.score import Loss, Reading, reading, sentence_reading, token_nats, total
from lm_jax.scoring.task_metrics import TaskMetrics, answers, summed

Item = TypeVar("Item")


class Stopped(Exception):
    """A signal arrived during the evaluation of a split."""


class Evaluator:
    """Evaluator of parameters on the splits of a corpus.

    Attributes:
      data: the data config.
      corpus: the text.
      stopping: returns True once a stop signal has arrived.
      validation: the validation split, prepared once for all validations; None for a task.
    """

    def __init__(
        self,
        data: Data,
        corpus: Corpus,
        length: int,
        stopping: Callable[[], bool],
        like: "Evaluator | None" = None,
    ):
        """Prepare the validation split.

        Args:
          data: the data config.
          corpus: the text.
          length: tokens of each sentence in a call; the state goes on to the next call.
          stopping: returns True once a stop signal has arrived.
          like: another evaluator on the same text; the two evaluators share arrays.
        """
        self.data, self.corpus, self._length, self.stopping = data, corpus, length, stopping
        if like is not None:
            self.validation = like.validation
        else:
            self.validation = None if corpus.task else self._reading(corpus.validation)

    def reading(self, name: str) -> Reading:
        """The split called `name` of a text, prepared."""
        if name == "validation" and self.validation is not None:
            return self.validation
        return self._reading(getattr(self.corpus, name))

    def evaluate(self, model: LanguageModel, params: Params, name: str) -> Loss | TaskMetrics:
        """Evaluate the parameters on the split called `name`.

        Raises:
          Stopped: a signal arrived during the evaluation.
        """
        task, split = self.corpus.task, getattr(self.corpus, name)
        if task:
            asked = answers(model, params, task, self.data, name)
            return summed(self._until_stopped(asked), task)
        blocks = token_nats(model, params, self.reading(name))
        return total(self._until_stopped(blocks), split.size)

    def _reading(self, split: Split) -> Reading:
        vocabulary = self.corpus.vocabulary
        if self.data.batching == "streams":
            return reading(split.tokens, vocabulary)
        return sentence_reading(split.tokens, vocabulary, self.data.batch_size, self._length)

    def _until_stopped(self, blocks: Iterator[Item]) -> Iterator[Item]:
        for block in blocks:
            if self.stopping():
                raise Stopped
            yield block
