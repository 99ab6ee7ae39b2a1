"""Tokens in: what a token's vector, one-hot or learned, contributes to a layer.

A layer reads a token through the product of the token's vector with a matrix. A learned vector is a
row of the table C [V, E] (Bengio et al., 2003, section 2), which all places that read tokens share.
A one-hot vector is never written out: the token's number stands for it, and its product with a
matrix is a row of the matrix. Where the inputs are V real numbers at each step, they stand where
the one-hot vector of V numbers stands, and everything else is the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Params, normal, scaled_normal
from lm_jax.models.dropout import Noise
from lm_jax.models.product import Precision, product


class Embedding(NamedTuple):
    """How tokens become vectors."""

    vocab_size: int
    """V."""
    size: int | None
    """E, or None for one-hot vectors."""
    tied: bool = False
    """Whether the readout multiplies by the table, too."""
    precision: Precision = "float32"
    """Of the product with real inputs; a token's vector is a row of the table, as it stands."""

    def init(self, key: Array) -> Params:
        """The table {"C": [V, E]} with entries N(0, 1), or {} for one-hot vectors.

        Where the readout shares it they are N(0, 1 / E), so that logits begin near zero.
        """
        if self.size is None:
            return {}
        C = normal(key, (self.vocab_size, self.size))
        return {"C": C / jnp.sqrt(self.size) if self.tied else C}

    def init_projection(self, key: Array, outputs: int) -> Float[Array, "inputs outputs"]:
        """The first matrix that a vector meets: [E, outputs], or [V, outputs] if one-hot."""
        if self.size is None:
            # One row is read at a time, so one input counts, not V.
            return jax.random.normal(key, (self.vocab_size, outputs))
        # Keeps the variance, which is 1 / E where the table is tied.
        return scaled_normal(key, 1 if self.tied else self.size, outputs, rows=self.size)

    def vectors(
        self, params: Params, x: Int[Array, "T B"] | Float[Array, "T B V"], noise: Noise
    ) -> Float[Array, "T B E"] | Int[Array, "T B"]:
        """The tokens' vectors: learned ones, or the numbers that stand for one-hot ones.

        Args:
          params: what `init` gave.
          x: numbers of tokens, below 0 for no token; or real inputs.
          noise: of this update.
        """
        if self.size is None:
            return x
        vectors = times(x, params["C"], self.precision)
        if jnp.issubdtype(x.dtype, jnp.integer):
            vectors = noise.on_words(vectors, x, self.vocab_size)
        return noise.on_inputs(vectors)

    def before(
        self,
        params: Params,
        x: Int[Array, "T B"] | Float[Array, "T B V"],
        noise: Noise,
        W: Float[Array, "inputs outputs"],
    ) -> tuple[Array, Array]:
        """Vectors, and the matrix to multiply them by, such that the product is that with W.

        They are those of `vectors` and W itself; or, where there are more tokens than words and
        every token's vector is its row of C, the tokens' numbers and C W: the same product, made
        once for each word.

        Args:
          params, x, noise: as for `vectors`.
          W: the first matrix that a vector meets.
        """
        tokens = jnp.issubdtype(x.dtype, jnp.integer)
        if self.size is None or not tokens or self.vocab_size > x.size or noise.on_vectors:
            return self.vectors(params, x, noise), W
        return x, product(params["C"], W, self.precision)


def times(
    vectors: Float[Array, "..."] | Int[Array, "..."],
    W: Float[Array, "inputs outputs"],
    precision: Precision = "float32",
) -> Float[Array, "..."]:
    """Each token's vector times W: [..., outputs]."""
    if jnp.issubdtype(vectors.dtype, jnp.integer):
        return W[vectors]
    return product(vectors, W, precision)
