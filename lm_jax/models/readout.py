"""Tokens out: the softmax over the vocabulary, p = softmax(h W_hy + b_y)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Params, affine, scaled_normal


def init_readout(key: Array, hidden_size: int, vocab_size: int) -> Params:
    """{"W_hy": [H, V], "b_y": [V]}."""
    return {"W_hy": scaled_normal(key, hidden_size, vocab_size), "b_y": jnp.zeros(vocab_size)}


def logits(params: Params, h: Float[Array, "*shape H"]) -> Float[Array, "*shape V"]:
    """h W_hy + b_y: log-probabilities but for a constant."""
    return affine(h, params["W_hy"], params["b_y"])


def nats(
    params: Params, h: Float[Array, "*shape H"], y: Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """-ln softmax(h W_hy + b_y)[y], the cross-entropy of each target, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, h), y)
