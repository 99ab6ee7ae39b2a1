"""Gradient check of a config: all gradient methods on a few tokens of the text, in float64."""

from typing import NamedTuple

import optax

from lm_jax import gradients, models
from lm_jax.config import Config, Network, train_of
from lm_jax.data.batches import Batch
from lm_jax.gradients import Check
from lm_jax.training.loop import prepared
from lm_jax.training.step import batch_of, eval_model, init
from lm_jax.training.trainer import pipeline_of

SEQUENCES, STEPS = 2, 8


class Proof(NamedTuple):
    """Results of a gradient check, and the size of the checked batch."""

    checks: list[Check]
    sequences: int
    """B of the batch."""
    steps: int
    """T of the batch."""
    parameters: int
    precision: str
    """`model.precision` of the config. The checked model has precision "float32"; in float64 the
    products of this model are not rounded."""

    @property
    def holds(self) -> bool:
        """True if all methods agree."""
        return all(check.agrees for check in self.checks)


def prove(config: Config, *, text: str | None = None) -> Proof:
    """Check that all gradient methods agree on the model and text of a config.

    The check uses the initial parameters and at most 8 tokens of at most 2 sequences: the first
    tokens of a text, or the last steps of a task. The model has no dropout, no other training noise
    and no rounding by `model.precision`.

    Args:
      config: the config to check.
      text: as for `lm_jax.train`.

    Raises:
      UserError: the config or the text is not usable, or float64 is switched off.
    """
    train_of(config)
    assert isinstance(config.model, Network)  # because `train` is set
    precision = config.model.precision
    config, corpus = prepared(config, text)
    vocab = models.vocab_of(config.model, corpus.vocabulary)
    params = init(config, vocab).params
    source, _ = pipeline_of(config, corpus).at(0)
    whole = batch_of(config, source, 0)
    # The targets of a task are at the end of the sequences.
    first = max(config.data.steps - STEPS, 0) if config.data.generated else 0
    seen = slice(first, first + STEPS)
    x, y, mask = (a[seen, :SEQUENCES] for a in (whole.x, whole.y, whole.mask))
    batch = Batch(x, y, mask, whole.start[:SEQUENCES])
    checks = gradients.verify(eval_model(config, vocab), params, batch)
    steps, sequences = batch.mask.shape
    return Proof(checks, sequences, steps, optax.tree.size(params), precision)
