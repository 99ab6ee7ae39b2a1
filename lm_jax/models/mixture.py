"""The mixture of two language models, by a weighted mean of the two probabilities.

    p(y | past) = w p_a(y | past) + (1 - w) p_b(y | past)

Bengio et al. (2003) mix a neural model with an interpolated trigram model, because the two models
err in different places. Any two models of the same vocabulary can be mixed, including mixtures. The
code works with log-probabilities: a model may give a token probability zero, as an n-gram model
does, and w may be 0 or 1.

The weight is fitted afterwards, from the probabilities that both models give to a held-out text.
The mean log-probability is concave in w, and the slope

    S(w) = (1/N) Σ_t (p_a(t) - p_b(t)) / (w p_a(t) + (1 - w) p_b(t))

changes sign at most once. EM, w ← w + w (1 - w) S(w), converges to the same weight, more slowly the
more similar the models are; bisection takes the same time for any two models.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Carry, EdgeHook, LanguageModel, Params

HALVINGS = 60  # below the spacing of float64 near 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Both:
    """The two models' outputs for a text; an index picks time steps of both, as in an array."""

    a: Any
    b: Any

    def __getitem__(self, place: object) -> "Both":
        return jax.tree.map(lambda leaf: leaf[place], self)


@dataclasses.dataclass(frozen=True)
class Mixture(LanguageModel):
    """The mixture of two language models, as a language model.

    params and carry are pairs, model a first; h is a `Both`. The loss is the sum of the nats, and
    there is no dropout, because each model is trained separately.

    Raises:
      ValueError: the weight is not from 0 to 1.
    """

    a: LanguageModel
    b: LanguageModel
    """Two models of the same vocabulary."""
    weight: float | int | Array
    """w, the share of a, from 0 to 1."""

    def __post_init__(self) -> None:
        if isinstance(self.weight, float | int) and not 0 <= self.weight <= 1:
            raise ValueError(f"weight={self.weight} must be from 0 to 1")

    def init(self, key: Array) -> Params:
        key_a, key_b = jax.random.split(key)
        return self.a.init(key_a), self.b.init(key_b)

    def init_carry(self, batch_size: int) -> Carry:
        return self.a.init_carry(batch_size), self.b.init_carry(batch_size)

    def hidden(
        self,
        params: Params,
        carry: Carry,
        x: Int[Array, "T B"],
        hook: EdgeHook | None = None,
        tap: Array | None = None,
    ) -> tuple[Carry, Both]:
        del tap  # a mixture has no layers
        carry_a, h_a = self.a.hidden(params[0], carry[0], x, hook)
        carry_b, h_b = self.b.hidden(params[1], carry[1], x, hook)
        return (carry_a, carry_b), Both(h_a, h_b)

    def logits(self, params: Params, h: Both) -> Float[Array, "*shape V"]:
        log_a = jax.nn.log_softmax(self.a.logits(params[0], h.a))
        return self._mixed(log_a, jax.nn.log_softmax(self.b.logits(params[1], h.b)))

    def nats(self, params: Params, h: Both, y: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        return -self._mixed(-self.a.nats(params[0], h.a, y), -self.b.nats(params[1], h.b, y))

    def _mixed(self, log_a: Array, log_b: Array) -> Array:
        w = self.weight
        return jnp.logaddexp(jnp.log(w) + log_a, jnp.log1p(-w) + log_b)


def best_weight(nats_a: np.ndarray, nats_b: np.ndarray) -> float:
    """The share of model a that minimises the mixture's nats on a text.

    If both models agree on every token, all weights are equally good.

    Args:
      nats_a, nats_b: [N] -ln P of each token under each model (`lm_jax.scoring.score`); inf for
        probability zero.

    Raises:
      ValueError: the arrays differ in length, or a token has probability zero in both models.
    """
    nats_a, nats_b = np.asarray(nats_a, np.float64), np.asarray(nats_b, np.float64)
    if nats_a.shape != nats_b.shape:
        raise ValueError(f"{nats_a.size} tokens of one model, {nats_b.size} of the other")
    impossible = np.isinf(nats_a) & np.isinf(nats_b)
    if impossible.any():
        raise ValueError(f"{impossible.sum()} tokens have probability zero in both models")
    better = nats_a < nats_b
    # The smaller probability over the larger: cannot overflow, and 0 if the smaller is 0.
    ratio = np.exp(-np.abs(nats_a - nats_b))

    def slope(weight: float) -> float:
        of_best = np.where(better, weight, 1 - weight)
        with np.errstate(divide="ignore"):
            size = (1 - ratio) / (of_best + (1 - of_best) * ratio)
        return float(np.mean(np.where(better, size, -size)))

    if slope(1.0) >= 0:
        return 1.0
    if slope(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low
