"""The proof that the gradient of a config is right: a few tokens of its own text, in float64."""

import dataclasses
from typing import NamedTuple

from lm_jax import gradients
from lm_jax.config import Config, Network, train_of
from lm_jax.data.batches import Batch
from lm_jax.gradients import Check
from lm_jax.models import count
from lm_jax.training.feed import feed_of
from lm_jax.training.loop import prepared
from lm_jax.training.step import batch_of, chunk_length, eval_model, init

LANES, STEPS = 2, 8


class Proof(NamedTuple):
    """What was checked, and on what."""

    checks: list[Check]
    lanes: int
    """B of the batch."""
    steps: int
    """T of the batch."""
    parameters: int
    precision: str
    """`model.precision` of the config. What was checked is the model of float32 products, which in
    float64 are not rounded at all."""

    @property
    def holds(self) -> bool:
        """Whether all routes agree."""
        return all(check.agrees for check in self.checks)


def prove(config: Config, *, text: str | None = None) -> Proof:
    """Whether the routes to the gradient agree on a config's own model and text.

    On the initial parameters and the first tokens of the first lanes, at most 8 of 2 lanes, or of a
    task the last; the model as it is used, without dropout, the other noise of training and the
    rounding of `model.precision`.

    Args:
      config: what would be trained.
      text: as for `lm_jax.train`.

    Raises:
      UserError: the config or the text will not do, or float64 is switched off.
    """
    train_of(config)
    assert isinstance(config.model, Network)  # it is trained
    precision = config.model.precision
    model = dataclasses.replace(config.model, precision="float32")  # the other is refused
    config = dataclasses.replace(config, model=model)
    config, corpus = prepared(config, text)
    vocab_size = len(corpus.vocabulary)
    params = init(config, vocab_size).params
    source, _ = feed_of(config, corpus, chunk_length(config)).at(0)
    whole = batch_of(config, source, 0)
    # A task asks at the end of its sequences, behind which nothing is asked.
    first = max(config.data.steps - STEPS, 0) if config.data.drawn else 0
    seen = slice(first, first + STEPS)
    x, y, mask = (a[seen, :LANES] for a in (whole.x, whole.y, whole.mask))
    batch = Batch(x, y, mask, whole.start[:LANES])
    checks = gradients.verify(eval_model(config, vocab_size), params, batch)
    steps, lanes = batch.mask.shape
    return Proof(checks, lanes, steps, count(params), precision)
