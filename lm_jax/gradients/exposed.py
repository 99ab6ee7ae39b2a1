"""Exposure: the gradient under teacher forcing beside that under the model's own tokens.

J_t is the mean nats of the targets at position t of a chunk, over the lanes; g_t its gradient where
the model has read the text, and ĝ_t where it has read its own tokens since the chunk began
(`lm_jax.inference.feeding`), the targets being the text's both times. The cosine between the two
says how much of what teacher forcing teaches at position t is what the model would need when it
goes on from its own words. At position 0 both have read the same, and it is 1.

Each position takes one backward pass over the chunk, of which all share one forward pass: O(T²)
time, and two gradients at a time in memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax import trees
from lm_jax.data.batches import Batch
from lm_jax.gradients.surface import refuse_integers
from lm_jax.models.base import Carry, LanguageModel, Params, restart
from lm_jax.settings import UserError


class ExposureCosines(NamedTuple):
    """Two gradients by position in a chunk."""

    cosine: Float[Array, " T"]
    """Between g_t and ĝ_t; NaN where one is zero, because no lane has a target there, or not
    finite."""
    forced: Float[Array, " T"]
    """‖g_t‖, nats per token per unit of the parameters."""
    free: Float[Array, " T"]
    """‖ĝ_t‖."""


def exposure_cosines(
    model: LanguageModel, params: Params, carry: Carry, batch: Batch, own: Batch
) -> ExposureCosines:
    """Cosine and norms of the gradients of each position's loss, reading the text or own tokens.

    Args:
      model, params: the model, without dropout.
      carry: the model's own, before the batch; made fresh where the batch's text starts.
      batch: T tokens of B lanes.
      own: the batch with its inputs replaced, as `lm_jax.inference.feeding.fed` makes it; no more
        than its inputs is read.

    Raises:
      UserError: the inputs differ in shape, or the parameters are not floating-point.
    """
    refuse_integers(params)
    if own.x.shape != batch.x.shape:
        raise UserError(
            f"own inputs are {list(own.x.shape)}, those of the batch {list(batch.x.shape)}"
        )
    carry = restart(model, carry, batch.start)
    tokens = jnp.maximum(jnp.sum(batch.mask, axis=1), 1)

    def pullback(x: Array) -> Callable:
        def by_position(params: Params) -> Float[Array, " T"]:
            _, h = model.hidden(params, carry, x)
            nats = model.nats(params, h, batch.y)
            return jnp.sum(jnp.where(batch.mask, nats, 0), axis=1) / tokens

        nats, back = jax.vjp(by_position, params)
        return lambda one_hot: back(one_hot.astype(nats.dtype))[0]

    forced, free = pullback(batch.x), pullback(own.x)

    def compared(one_hot: Array) -> ExposureCosines:
        g, own_g = forced(one_hot), free(one_hot)
        return ExposureCosines(trees.cosine(g, own_g), trees.norm(g), trees.norm(own_g))

    return jax.lax.map(compared, jnp.eye(batch.mask.shape[0]))
