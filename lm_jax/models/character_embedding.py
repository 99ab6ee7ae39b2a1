"""Vectors of words made from their characters by a convolution (Kim et al., 2016).

    c_1 … c_L = vectors of a word's symbols, zero after its end
    y_k = max_i tanh(F_k · [c_i; …; c_{i + w - 1}] + b_k)        for each filter k of w symbols
    z = t ∘ ReLU(y W_H + b_H) + (1 - t) ∘ y,   t = σ(y W_T + b_T)       a highway layer

i runs over all places at which the filter fits into L. y has a number for each filter of all
widths; z of one highway layer is the y of the next one (Srivastava et al., 2015). If there are not
E filters, a matrix without bias maps z to the E numbers of the vector (Jozefowicz et al., 2016).
tanh is increasing, so the code takes the maximum first.

Letters: A symbols, L symbols of the longest word, d numbers of a symbol's vector, K filters.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm_jax.data.characters import WordCharacters
from lm_jax.models.base import Params, affine, normal, scaled_normal
from lm_jax.models.embedding import Embedding
from lm_jax.models.matmul import matmul, rows

WORDS = 4096
"""Words of the table whose vectors are computed side by side."""
TRANSFORM_BIAS = -2.0
"""Initial b_T: a highway layer begins near the identity, as in the authors' code."""


@dataclasses.dataclass(frozen=True)
class CharacterEmbedding(Embedding):
    """The map from words to vectors, by the characters of the words.

    The parameters are {"symbols": [A, d], "filters": …, "highway": …} and perhaps a "P" [K, E].
    """

    _: dataclasses.KW_ONLY
    words: WordCharacters
    """The symbols of each word."""
    character_size: int = 15
    """d."""
    widths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Symbols that the filters of each group read."""
    filters: tuple[int, ...] = (25, 50, 75, 100, 125, 150)
    """Number of filters of each group."""
    highway: int = 1
    """Number of highway layers."""

    def init(self, key: Array) -> Params:
        assert self.size is not None
        symbols, groups, layers, last = jax.random.split(key, 4)
        d, K = self.character_size, sum(self.filters)
        filters = [
            {"F": scaled_normal(k, w * d, count), "b": jnp.zeros(count)}
            for k, w, count in zip(
                jax.random.split(groups, len(self.widths)), self.widths, self.filters, strict=True
            )
        ]
        highway = [_init_highway(jax.random.fold_in(layers, n), K) for n in range(self.highway)]
        table = normal(symbols, (self.words.symbols, d))
        params = {"symbols": table, "filters": filters, "highway": highway}
        return params if self.size == K else {**params, "P": scaled_normal(last, K, self.size)}

    def of_tokens(self, params: Params, x: Int[Array, "*shape"]) -> Float[Array, "*shape E"]:
        if self.as_many(x):
            return rows(self.table(params), x)
        return self._of_symbols(params, jnp.asarray(self._numbers)[x])

    def table(self, params: Params) -> Float[Array, "V E"]:
        # In parts, and computed a second time in the backward pass: the windows of all words take
        # many times the memory of their vectors.
        of_word = jax.checkpoint(lambda numbers: self._of_symbols(params, numbers))
        return jax.lax.map(of_word, jnp.asarray(self._numbers), batch_size=WORDS)

    @property
    def _numbers(self) -> np.ndarray:
        """The symbols [V, L] of all words, with L at least the width of the widest filter."""
        numbers = self.words.numbers
        missing = max(0, max(self.widths) - numbers.shape[1])
        return np.pad(numbers, ((0, 0), (0, missing)))

    def _of_symbols(
        self, params: Params, numbers: Int[Array, "*shape L"]
    ) -> Float[Array, "*shape E"]:
        c = jnp.where(numbers[..., None] > 0, rows(params["symbols"], numbers), 0)
        groups = zip(self.widths, params["filters"], strict=True)
        y = jnp.concatenate([self._max_over_time(own, c, w) for w, own in groups], axis=-1)
        for own in params["highway"]:
            t = jax.nn.sigmoid(affine(y, own["W_T"], own["b_T"], self.precision))
            new = jax.nn.relu(affine(y, own["W_H"], own["b_H"], self.precision))
            y = t * new + (1 - t) * y
        return matmul(y, params["P"], self.precision) if "P" in params else y

    def _max_over_time(self, own: Any, c: Float[Array, "*shape L d"], w: int) -> Array:
        """The largest value of each filter of w symbols over all places, [*shape, filters]."""
        places = c.shape[-2] - w + 1
        windows = jnp.concatenate([c[..., i : i + places, :] for i in range(w)], axis=-1)
        z = jnp.max(matmul(windows, own["F"], self.precision), axis=-2)
        return jnp.tanh(z + jnp.broadcast_to(own["b"], z.shape))


def _init_highway(key: Array, K: int) -> Params:
    transform, new = jax.random.split(key)
    return {
        "W_T": scaled_normal(transform, K, K),
        "b_T": jnp.full(K, TRANSFORM_BIAS),
        "W_H": scaled_normal(new, K, K),
        "b_H": jnp.zeros(K),
    }
