"""Tokens in: what a token's vector, one-hot or learned, contributes to a layer.

A layer reads a token through the product of the token's vector with a matrix. A learned vector is a
row of the table C [V, E] (Bengio et al., 2003, section 2), which all places that read tokens share.
A one-hot vector is never written out: the token's number stands for it, and its product with a
matrix is a row of the matrix.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Params, scaled_normal


def init_embedding(key: Array, vocab_size: int, embedding_size: int | None) -> Params:
    """The table {"C": [V, E]} with entries N(0, 1), or {} for one-hot vectors."""
    if embedding_size is None:
        return {}
    return {"C": jax.random.normal(key, (vocab_size, embedding_size))}


def init_projection(
    key: Array, vocab_size: int, embedding_size: int | None, outputs: int
) -> Float[Array, "inputs outputs"]:
    """The first matrix that a token's vector meets: [E, outputs], or [V, outputs] if one-hot."""
    if embedding_size is not None:
        return scaled_normal(key, embedding_size, outputs)
    # One row is read at a time, so one input counts, not V.
    return jax.random.normal(key, (vocab_size, outputs))


def vectors(
    params: Params, x: Int[Array, "*shape"]
) -> Float[Array, "*shape E"] | Int[Array, "*shape"]:
    """The tokens' vectors: learned ones, or the numbers that stand for one-hot ones.

    Args:
      params: what `init_embedding` gave.
      x: numbers of tokens.
    """
    return params["C"][x] if params else x


def times(
    vectors: Float[Array, "..."] | Int[Array, "..."], W: Float[Array, "inputs outputs"]
) -> Float[Array, "..."]:
    """Each token's vector times W: [..., outputs]."""
    return W[vectors] if jnp.issubdtype(vectors.dtype, jnp.integer) else vectors @ W
