"""Two language models as one: the mixture of their probabilities.

    p(y | past) = w p_a(y | past) + (1 - w) p_b(y | past)

Bengio et al. (2003) mix a neural model with an interpolated trigram model, for the two
err in different places. Any two models of one vocabulary can be mixed, mixtures among them. All of
it is done with logarithms, so a model may give a token probability zero, as an n-gram model does,
and w may be 0 or 1.

The weight is found afterwards, from what both models have given to a held-out text: the mean
log-probability is concave in w, and its slope

    S(w) = (1/N) Σ_t (p_a(t) - p_b(t)) / (w p_a(t) + (1 - w) p_b(t))

changes sign at most once. EM, which is w ← w + w (1 - w) S(w), comes to the same weight, the slower
the more the models are alike; halving an interval takes as long for any two.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Between, Carry, LanguageModel, Params, total

HALVINGS = 60  # below the spacing of float64 near 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Both:
    """What both models have for a text; an index picks the time steps of both, as of an array."""

    a: Any
    b: Any

    def __getitem__(self, place: object) -> "Both":
        return jax.tree.map(lambda leaf: leaf[place], self)


def mixture(a: LanguageModel, b: LanguageModel, weight: float | int | Array) -> LanguageModel:
    """A language model of params (a's, b's), carry (a's, b's) and an h that is `Both`.

    Its loss is its nats, and it has no noise: the models are trained each by itself.

    Args:
      a, b: two models of one vocabulary.
      weight: w, the share of a, from 0 to 1.

    Raises:
      ValueError: the weight is not from 0 to 1.
    """
    if isinstance(weight, float | int) and not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} must be from 0 to 1")

    def mixed(log_a: Array, log_b: Array) -> Array:
        return jnp.logaddexp(jnp.log(weight) + log_a, jnp.log1p(-weight) + log_b)

    def hidden(
        params: Params,
        carry: Carry,
        x: Int[Array, "T B"],
        between: Between | None = None,
        tap: Array | None = None,
    ) -> tuple[Carry, Any]:
        del tap  # it has no layers of its own
        carry_a, h_a = a.hidden(params[0], carry[0], x, between)
        carry_b, h_b = b.hidden(params[1], carry[1], x, between)
        return (carry_a, carry_b), Both(h_a, h_b)

    def logits(params: Params, h: Any) -> Float[Array, "*shape V"]:
        log_a = jax.nn.log_softmax(a.logits(params[0], h.a))
        return mixed(log_a, jax.nn.log_softmax(b.logits(params[1], h.b)))

    def nats(params: Params, h: Any, y: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        return -mixed(-a.nats(params[0], h.a, y), -b.nats(params[1], h.b, y))

    def init(key: Array) -> Params:
        key_a, key_b = jax.random.split(key)
        return a.init(key_a), b.init(key_b)

    model = LanguageModel(
        init=init,
        init_carry=lambda batch_size: (a.init_carry(batch_size), b.init_carry(batch_size)),
        hidden=hidden,
        logits=logits,
        nats=nats,
        loss=lambda params, h, y, mask: total(nats(params, h, y), mask),
        noisy=lambda key: model,
    )
    return model


def best_weight(nats_a: np.ndarray, nats_b: np.ndarray) -> float:
    """The share of model a with which the mixture gives a text the fewest nats.

    Args:
      nats_a, nats_b: [N] -ln P of each token under either model (`lm_jax.inference.score`); inf
        where it is zero. Where the models are the same on the text, every weight is as good.

    Raises:
      ValueError: the two differ in length, or a token has probability zero in both.
    """
    nats_a, nats_b = np.asarray(nats_a, np.float64), np.asarray(nats_b, np.float64)
    if nats_a.shape != nats_b.shape:
        raise ValueError(f"{nats_a.size} tokens of one model, {nats_b.size} of the other")
    impossible = np.isinf(nats_a) & np.isinf(nats_b)
    if impossible.any():
        raise ValueError(f"{impossible.sum()} tokens have probability zero in both models")
    better = nats_a < nats_b
    # The smaller of the two probabilities over the larger one: no overflow, and 0 for one of zero.
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
