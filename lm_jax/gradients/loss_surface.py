"""The loss of a batch as a surface over the parameters.

All parameters together are a point of a Euclidean space. A gradient or a direction is a tree with
the shapes of the parameters; `lm_jax.trees` computes lengths and angles of such trees.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.data.batches import Batch
from lm_jax.models.base import Carry, LanguageModel, Params, restart, total

LossFn = Callable[[Params], Array]
"""params -> [], nats per token."""


def batch_loss(model: LanguageModel, carry: Carry, batch: Batch) -> LossFn:
    """The mean nats over the targets of a batch, as a function of the parameters alone.

    Args:
      model: the language model.
      carry: the model's carry before the batch; reset where the text of a sequence starts.
      batch: T tokens of B sequences.
    """

    def loss(params: Params) -> Float[Array, ""]:
        _, h = model.hidden(params, restart(model, carry, batch.start), batch.x)
        nats = total(model.nats(params, h, batch.y), batch.mask)
        return nats / jnp.maximum(jnp.sum(batch.mask), 1)

    return loss
