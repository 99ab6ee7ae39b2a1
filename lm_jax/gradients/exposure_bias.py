"""Exposure bias: the gradient under teacher forcing compared with the gradient on own tokens.

J_t is the mean nats of the targets at position t of a chunk, over the sequences. g_t is the
gradient of J_t for a model that reads the text. ĝ_t is the gradient of J_t for a model that reads
its own tokens from the beginning of the chunk on (`lm_jax.generation.sample_inputs`). The targets
come from the text both times. The cosine between g_t and ĝ_t tells how much of the lesson of
teacher forcing at position t serves a model that goes on from its own words. At position 0 the
inputs are the same, and the cosine is 1.

Each g_t and each ĝ_t takes one backward pass over the chunk; all positions share the forward pass.
The time is O(T²), and two gradients at a time are in memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax import trees
from lm_jax.data.batches import Batch
from lm_jax.gradients.validation import check_floating
from lm_jax.models.base import Carry, LanguageModel, Params, restart
from lm_jax.settings import UserError


class ExposureCosines(NamedTuple):
    """Cosine and norms of the two gradients at each position of a chunk."""

    cosine: Float[Array, " T"]
    """Cosine between g_t and ĝ_t; NaN if a gradient is zero (no sequence has a target at t) or not
    finite."""
    forced: Float[Array, " T"]
    """‖g_t‖, in nats per token per unit of the parameters."""
    free: Float[Array, " T"]
    """‖ĝ_t‖, in the same unit."""


def exposure_cosines(
    model: LanguageModel, params: Params, carry: Carry, batch: Batch, own: Batch
) -> ExposureCosines:
    """Cosine and norms of the gradients at each position, on the text and on own tokens.

    Args:
      model, params: the model, without dropout.
      carry: the model's own carry before the batch; reset for each sequence whose text starts here.
      batch: T tokens of B sequences.
      own: the batch with inputs replaced, made by `lm_jax.generation.sample_inputs`; only the
        inputs are read.

    Raises:
      UserError: the inputs differ in shape, or the parameters are not floating-point.
    """
    check_floating(params)
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
