"""Tokens in: learned or one-hot vectors, and their products with a matrix.

A layer reads a token through the product of the token's vector with a matrix. A learned vector is a
row of the table C [V, E] (Bengio et al., 2003, section 2), shared by all readers of tokens. A
one-hot vector is never written out: the token's number represents the vector, and the product of
the vector with a matrix is a row of the matrix. `lm_jax.models.adaptive_embedding` and
`character_embedding` make the vectors in other ways. If the input of a step is V real numbers,
these numbers take the place of the V entries of a one-hot vector.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Params, normal, scaled_normal
from lm_jax.models.dropout import DropoutMasks
from lm_jax.models.matmul import Precision, matmul, rows


@dataclasses.dataclass(frozen=True)
class Embedding:
    """The map from tokens to vectors, rows of one table."""

    vocab_size: int
    """V."""
    size: int | None
    """E, or None for one-hot vectors."""
    tied: bool = False
    """If True, the readout multiplies by the table, too."""
    precision: Precision = "float32"
    """Precision of the products that make the vectors; of a table, only with real inputs."""

    def init(self, key: Array) -> Params:
        """The table {"C": [V, E]} with entries N(0, 1), or {} for one-hot vectors.

        If the readout shares the table, entries are N(0, 1 / E), and initial logits are near zero.
        """
        if self.size is None:
            return {}
        C = normal(key, (self.vocab_size, self.size))
        return {"C": C / jnp.sqrt(self.size) if self.tied else C}

    def init_projection(self, key: Array, outputs: int) -> Float[Array, "inputs outputs"]:
        """The matrix that first multiplies a vector: [E, outputs], or [V, outputs] if one-hot."""
        if self.size is None:
            # A one-hot vector reads a single row, so the fan-in is 1, not V.
            return jax.random.normal(key, (self.vocab_size, outputs))
        # Preserves the variance, which is 1 / E if the table is tied.
        return scaled_normal(key, 1 if self.tied else self.size, outputs, rows=self.size)

    def as_many(self, x: Array) -> bool:
        """True if x has V numbers or more, and the size of x is no symbol."""
        return isinstance(x.size, int) and x.size >= self.vocab_size

    def of_tokens(self, params: Params, x: Int[Array, "*shape"]) -> Float[Array, "*shape E"]:
        """The learned vectors of tokens, without dropout."""
        return rows(params["C"], x)

    def table(self, params: Params) -> Float[Array, "V E"]:
        """The learned vectors of all tokens."""
        return params["C"]

    def vectors(
        self, params: Params, x: Int[Array, "T B"] | Float[Array, "T B V"], dropout: DropoutMasks
    ) -> Float[Array, "T B E"] | Int[Array, "T B"]:
        """The tokens' learned vectors; for one-hot vectors, the tokens' numbers themselves.

        Args:
          params: parameters from `init`.
          x: numbers of tokens, below 0 for no token; or real inputs.
          dropout: dropout of this update.
        """
        if self.size is None:
            return x
        if not jnp.issubdtype(x.dtype, jnp.integer):
            return dropout.on_inputs(matmul(x, self.table(params), self.precision))
        vectors = dropout.on_words(self.of_tokens(params, x), x, self.vocab_size)
        return dropout.on_inputs(vectors)

    def projected(
        self,
        params: Params,
        x: Int[Array, "T B"] | Float[Array, "T B V"],
        dropout: DropoutMasks,
        W: Float[Array, "inputs outputs"],
    ) -> tuple[Array, Array]:
        """Return (inputs, matrix), whose product by `times` is the tokens' vectors times W.

        By default these are the result of `vectors`, and W. If vectors are learned, x holds at
        least V tokens, and no dropout acts on the vectors, the shortcut is taken: the tokens'
        numbers, and C W, computed once for each word of the vocabulary.

        Args:
          params, x, dropout: as for `vectors`.
          W: the matrix that first multiplies a vector.
        """
        tokens = jnp.issubdtype(x.dtype, jnp.integer)
        if self.size is None or not tokens or not self.as_many(x) or dropout.on_vectors:
            return self.vectors(params, x, dropout), W
        return x, matmul(self.table(params), W, self.precision)


def times(
    vectors: Float[Array, "..."] | Int[Array, "..."],
    W: Float[Array, "inputs outputs"],
    precision: Precision = "float32",
) -> Float[Array, "..."]:
    """Each token's vector times W: [..., outputs]; a token's number picks a row of W."""
    if jnp.issubdtype(vectors.dtype, jnp.integer):
        return rows(W, vectors)
    return matmul(vectors, W, precision)
