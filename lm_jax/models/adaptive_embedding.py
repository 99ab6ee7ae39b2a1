"""Adaptive inputs: long vectors for frequent tokens, short ones for rare tokens.

Tokens are numbered by frequency. Band i = 0, 1, … holds the tokens from c_i to c_{i+1} - 1, with
c_0 = 0 and then the cutoffs. A token x of band i has a row of C_i [V_i, E_i], E_i = E / factor^i
(at least 1), and its vector is

    row x - c_i of C_i, times P_i [E_i, E]

(Baevski & Auli, 2019; the counterpart of the adaptive softmax, `lm_jax.models.adaptive`).
"""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Params, normal, scaled_normal
from lm_jax.models.embedding import Embedding
from lm_jax.models.matmul import matmul, rows
from lm_jax.settings import UserError


@dataclasses.dataclass(frozen=True)
class AdaptiveEmbedding(Embedding):
    """The map from tokens to vectors, with a table and a matrix for each band.

    Raises:
      UserError: the last cutoff is not below V.
    """

    _: dataclasses.KW_ONLY
    cutoffs: tuple[int, ...]
    """First token of each band but the first one, in rising order."""
    factor: int = 4
    """Ratio of the lengths of the vectors of two consecutive bands."""

    def __post_init__(self) -> None:
        V = self.vocab_size
        if self.cutoffs[-1] >= V:
            raise UserError(
                f"model.embedding.cutoffs={self.cutoffs} must stay below V={V}: give lower ones, "
                f"such as {V // 9} {V // 3}, or take model.embedding=table"
            )

    def init(self, key: Array) -> Params:
        """Bands of {"C": [V_i, E_i], "P": [E_i, E]}; the vectors have entries of variance 1."""
        assert self.size is not None
        spans, bands = list(pairwise((0, *self.cutoffs, self.vocab_size))), []
        for i, (k, (start, end)) in enumerate(
            zip(jax.random.split(key, len(spans)), spans, strict=True)
        ):
            first, second = jax.random.split(k)
            short = max(1, self.size // self.factor**i)
            P = scaled_normal(second, short, self.size)
            bands.append({"C": normal(first, (end - start, short)), "P": P})
        return {"bands": bands}

    def of_tokens(self, params: Params, x: Int[Array, "*shape"]) -> Float[Array, "*shape E"]:
        if self.as_many(x):
            return rows(self.table(params), x)

        def of_band(start: int, own: Params) -> Array:
            place, size = x - start, len(own["C"])
            here = (place >= 0) & (place < size)
            vectors = matmul(rows(own["C"], jnp.clip(place, 0, size - 1)), own["P"], self.precision)
            return jnp.where(here[..., None], vectors, 0)

        first, *others = map(of_band, (0, *self.cutoffs), params["bands"])
        return sum(others, first)

    def table(self, params: Params) -> Float[Array, "V E"]:
        bands = [matmul(own["C"], own["P"], self.precision) for own in params["bands"]]
        return jnp.concatenate(bands)
