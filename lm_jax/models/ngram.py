"""The n-gram language model: counted, not trained.

Every estimator is a recursion from the longest context to the uniform distribution,

    p_k(w | c) = alpha_k(c w) + gamma_k(c) p_{k-1}(w | c'),    p_0(w) = 1 / V,

with a context c of k - 1 tokens and c' = c without the first token. alpha is 0 for an unseen
n-gram, and gamma is 1 for an unseen context. With the counts C(c w) and C(c) = Σ_w C(c w), the
estimators are:

- maximum likelihood: alpha = C(c w) / C(c), and gamma = 0 for a seen c; an unseen context backs off
  to the next shorter context.
- add-k (Lidstone; k = 1 is Laplace): p(w | c) = (C(c w) + k) / (C(c) + k V). Here gamma leads
  straight to 1 / V, past the shorter contexts.
- linear interpolation (Jelinek & Mercer, 1980): alpha = λ_k C(c w) / C(c), and gamma = 1 - λ_k for
  a seen c. Each order has a weight; EM finds the weights of maximum likelihood on held-out text.
- modified Kneser-Ney, interpolated (Chen & Goodman, 1998): alpha = (N(c w) - D) / Σ_w N(c w) and
  gamma = Σ_w D / Σ_w N(c w). N counts occurrences at order n and, at lower orders, the distinct
  tokens before the k-gram (`lm_jax.models.counts.continuations`). The discount D depends on N
  (`lm_jax.models.counts.discounts`). No cutoffs.

At the beginning of the text (or, with `sentence_boundaries`, of the sentence) contexts are shorter,
and the recursion starts at the order k that the context allows.

The parameters are a trie of int32 and floats. The h of this model are the nodes of the contexts of
1 to n - 1 tokens: -1 if the context would begin before the text or sentence, and the number after
the last node, a node without children, if the context was not seen. The carry is the last n - 2
tokens, as in `lm_jax.models.window`.

Letters: n order, N contexts at once, V tokens of the vocabulary, M nodes of a level. The constant
of add-k is called `add`, because k is the order of a level.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Carry, EdgeHook, LanguageModel, Params
from lm_jax.models.counts import Counts, continuations, discounts, locate
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest

SMOOTHINGS = ("none", "add-k", "interpolated", "kneser-ney")
CHILDREN_AT_ONCE = 128
CLOSE = 1e-9  # nats per token; EM is done when a round gains less


@dataclasses.dataclass(frozen=True)
class NGramModel(LanguageModel):
    """The n-gram language model; `fit` makes the parameters.

    The logits are log-probabilities. If P is 0, the logit is -inf and the nats are +inf.

    Raises:
      UserError: the order is below 1; from `init`, always, because parameters come from counts.
    """

    _: dataclasses.KW_ONLY
    order: int
    """n, at least 1; the model reads n - 1 tokens."""
    sentence_boundaries: bool = False
    """If True, contexts begin at the last boundary token."""

    def __post_init__(self) -> None:
        if self.order < 1:
            raise UserError(f"order={self.order} must be 1 or more")

    def init(self, key: Array) -> Params:
        del key
        raise UserError("an n-gram model has no initial parameters: count a text, then fit")

    def init_carry(self, batch_size: int) -> Int[Array, "B places"]:
        return jnp.full((batch_size, max(self.order - 2, 0)), -1, jnp.int32)

    def hidden(
        self,
        params: Params,
        carry: Carry,
        x: Int[Array, "T B"],
        hook: EdgeHook | None = None,
        tap: Array | None = None,
    ) -> tuple[Carry, Int[Array, "T B places"]]:
        del hook, tap  # tokens carry no gradient
        T = x.shape[0]
        tokens = jnp.concatenate([carry.T, x.astype(jnp.int32)])
        nodes, here = [], tokens
        for length in range(1, self.order):
            if length > 1:  # each context is a child of the context that ends a token earlier
                before, token = here[:-1], tokens[length - 1 :]
                none = before < 0
                if self.sentence_boundaries:
                    none |= token == params["boundary"]
                here = jnp.where(none, -1, _child(params["levels"][length - 2], before, token))
            nodes.append(here[here.shape[0] - T :])
        h = jnp.stack(nodes, -1) if nodes else jnp.zeros((*x.shape, 0), jnp.int32)
        return tokens[T:].T, h

    def logits(self, params: Params, h: Int[Array, "*shape places"]) -> Float[Array, "*shape V"]:
        return logits(params, h)

    def nats(
        self, params: Params, h: Int[Array, "*shape places"], y: Int[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return nats(params, h, y)


def nats(
    params: Params, h: Int[Array, "*shape places"], y: Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """-ln P(y | context) of each target, in nats; +inf if P is 0."""
    uniform = 1 / params["unigram"].shape[0]
    p = params["unigram"][y]
    for place, level in zip(range(h.shape[-1]), params["levels"], strict=True):
        node = h[..., place]
        alpha = level["alpha"][_child(level, node, y)]
        longer = alpha + level["gamma"][node] * jnp.where(params["chained"], p, uniform)
        p = jnp.where(node < 0, p, longer)
    return -jnp.log(p)


def logits(params: Params, h: Int[Array, "*shape places"]) -> Float[Array, "*shape V"]:
    """ln P of every token after each context; -inf if P is 0."""
    V = params["unigram"].shape[0]
    nodes = h.reshape(math.prod(h.shape[:-1]), h.shape[-1])
    p = jnp.broadcast_to(params["unigram"], (nodes.shape[0], V))
    for place, level in zip(range(h.shape[-1]), params["levels"], strict=True):
        node = nodes[:, place]
        lower = jnp.where(params["chained"], p, 1 / V)
        longer = _add_children(level, node, level["gamma"][node][:, None] * lower)
        p = jnp.where(node[:, None] < 0, p, longer)
    return jnp.log(p).reshape(*h.shape[:-1], V)


def _children(level: Params, node: Int[Array, "*s"]) -> tuple[Int[Array, "*s"], Int[Array, "*s"]]:
    """Begin and end of each node's children; an empty range if there is no node."""
    begin = level["begin"]
    node = jnp.where(node < 0, begin.shape[0] - 2, node)
    return begin[node], begin[node + 1]


def _child(level: Params, node: Int[Array, "*s"], token: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """The node of each (context, token), by binary search; M, after the last node, if unseen."""
    tokens = level["token"]
    begin, end = _children(level, node)

    def search(span: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = span
        middle = low + (high - low) // 2
        searching, right = low < high, tokens[middle] < token
        return (
            jnp.where(searching & right, middle + 1, low),
            jnp.where(searching & ~right, middle, high),
        )

    low, _ = jax.lax.while_loop(lambda span: jnp.any(span[0] < span[1]), search, (begin, end))
    return jnp.where((low < end) & (tokens[low] == token), low, tokens.shape[0])


def _add_children(
    level: Params, node: Int[Array, " N"], p: Float[Array, "N V"]
) -> Float[Array, "N V"]:
    """p + alpha of each context's children, in batches, because few contexts have many children."""
    size, V = level["token"].shape[0], p.shape[1]
    begin, end = _children(level, node)
    row, step = jnp.arange(p.shape[0])[:, None], jnp.arange(CHILDREN_AT_ONCE)[None, :]

    def add(state: tuple[Array, Array]) -> tuple[Array, Array]:
        at, p = state
        child = at[:, None] + step
        child = jnp.where(child < end[:, None], child, size)
        token = jnp.where(child < size, level["token"][child], V)  # V is out of bounds: dropped
        return at + CHILDREN_AT_ONCE, p.at[row, token].add(level["alpha"][child], mode="drop")

    return jax.lax.while_loop(lambda state: jnp.any(state[0] < end), add, (begin, p))[1]


def fit(
    counts: Counts,
    *,
    smoothing: str = "kneser-ney",
    add: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    """The parameters of an n-gram model.

    {"unigram": p_1 [V], "chained": True if gamma leads to the order below, "boundary": the token
    that ends a line, "levels": [...]}. Level k = 2 … n, of M k-grams and M' contexts, is
    {"token": [M], "alpha": [M + 1], "begin": [M' + 2], "gamma": [M' + 1]}. The children of context
    c are begin[c] … begin[c + 1] - 1; the last entries represent unseen k-grams and contexts.

    Args:
      counts: of the training text (`lm_jax.models.counts.count`).
      smoothing: none (maximum likelihood), add-k, interpolated or kneser-ney.
      add: for add-k: the constant added to each count, above 0.
      weights: for interpolated: λ_1 … λ_n, each from 0 to 1, for example from `held_out_weights`.

    Raises:
      UserError: the smoothing is unknown, or the numbers for the smoothing are missing or out of
        range.
    """
    n, V = len(counts.levels), counts.vocab_size
    if smoothing == "none":
        parts = [_interpolated(counts, k, 1.0) for k in range(1, n + 1)]
    elif smoothing == "add-k":
        if not 0 < add < float("inf"):
            raise UserError(f"add={add} must be above 0, and finite")
        parts = [_add(counts, k, add) for k in range(1, n + 1)]
    elif smoothing == "interpolated":
        if weights is None or len(weights) != n:
            given = "none" if weights is None else len(weights)
            raise UserError(f"smoothing=interpolated of order={n} takes {n} weights; got {given}")
        if not all(0 <= weight <= 1 for weight in weights):
            raise UserError(f"weights={list(weights)} must be from 0 to 1")
        parts = [_interpolated(counts, k, weight) for k, weight in enumerate(weights, 1)]
    elif smoothing == "kneser-ney":
        parts = [_kneser_ney(counts, k) for k in range(1, n + 1)]
    else:
        raise UserError(f"smoothing={smoothing!r}: there is none{nearest(smoothing, SMOOTHINGS)}")
    alpha, gamma = parts[0]
    return {
        "unigram": jnp.asarray(alpha + gamma / V, float),
        "chained": jnp.asarray(smoothing != "add-k"),
        "boundary": jnp.asarray(counts.boundary, jnp.int32),
        "levels": [
            {
                "token": jnp.asarray(level.token, jnp.int32),
                "alpha": jnp.asarray(np.append(alpha, 0.0), float),
                "begin": jnp.asarray(
                    np.searchsorted(level.context, np.arange(counts.contexts(k) + 2)), jnp.int32
                ),
                "gamma": jnp.asarray(np.append(gamma, 1.0), float),
            }
            for k, (level, (alpha, gamma)) in enumerate(
                zip(counts.levels[1:], parts[1:], strict=True), 2
            )
        ],
    }


def held_out_weights(counts: Counts, held_out: np.ndarray) -> tuple[float, ...]:
    """The weights λ_1 … λ_n of linear interpolation with maximum held-out likelihood, by EM.

    The generative model: from order n down, draw a token by order k's relative frequencies with
    probability λ_k, else pass to the order below; pass over an order with an unseen context. The
    E-step computes the probability that each order drew each token. The M-step sets λ_k to the
    share drawn by order k, among the tokens passed down to order k. EM starts from weights of 1/2
    and stops when a round gains less than 1e-9 nats per token.

    Args:
      counts: of the training text.
      held_out: [N] tokens of a text outside the training text.

    Raises:
      UserError: the held-out text is empty, or a token is not below V.
    """
    drawn, asked = [], []  # [N] for each order: P by relative frequencies; context was seen
    for k, found in enumerate(locate(counts, held_out), 1):
        frequency, unseen = _interpolated(counts, k, 1.0)
        p, seen = np.zeros(len(held_out)), np.zeros(len(held_out), bool)
        p[found.places] = np.append(frequency, 0.0)[found.nodes]
        seen[found.places] = np.append(unseen, 1.0)[found.contexts] == 0
        drawn.append(p)
        asked.append(seen)
    weights = np.full(len(drawn), 0.5)
    last = np.inf
    while True:
        below = [np.full(len(held_out), 1 / counts.vocab_size)]
        for weight, p, seen in zip(weights, drawn, asked, strict=True):
            below.append(np.where(seen, weight * p + (1 - weight) * below[-1], below[-1]))
        loss = -float(np.mean(np.log(below[-1])))
        if last - loss < CLOSE:
            return tuple(map(float, weights))
        last = loss
        came = np.ones(len(held_out))  # the share passed down to order k
        for k in reversed(range(len(drawn))):
            stays = np.where(asked[k], came * weights[k] * drawn[k] / below[k + 1], 0.0)
            arrived = np.sum(came[asked[k]])
            # Rounding may push the share above 1, or the rest below 0.
            weights[k] = min(np.sum(stays) / arrived, 1.0) if arrived > 0 else weights[k]
            came = np.maximum(came - stays, 0.0)


def _interpolated(counts: Counts, order: int, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """alpha [M] and gamma [M'] of an order; a weight of 1 is maximum likelihood."""
    level = counts.levels[order - 1]
    total = np.bincount(level.context, level.occurrences, counts.contexts(order))
    alpha = weight * level.occurrences / total[level.context]
    return alpha, np.where(total > 0, 1 - weight, 1.0)


def _add(counts: Counts, order: int, add: float) -> tuple[np.ndarray, np.ndarray]:
    level = counts.levels[order - 1]
    total = np.bincount(level.context, level.occurrences, counts.contexts(order))
    total += add * counts.vocab_size
    return level.occurrences / total[level.context], add * counts.vocab_size / total


def _kneser_ney(counts: Counts, order: int) -> tuple[np.ndarray, np.ndarray]:
    level, adjusted = counts.levels[order - 1], continuations(counts, order)
    total = np.bincount(level.context, adjusted, counts.contexts(order))
    lost = discounts(adjusted)[np.minimum(adjusted, 3)]
    left = np.bincount(level.context, lost, counts.contexts(order))
    gamma = np.divide(left, total, out=np.ones_like(left), where=total > 0)
    return (adjusted - lost) / total[level.context], gamma


def structure(order: int, leaf: Any) -> Params:
    """A tree like the parameters of a model of this order, with the same leaf everywhere."""
    level = {"token": leaf, "alpha": leaf, "begin": leaf, "gamma": leaf}
    named = {"unigram": leaf, "chained": leaf, "boundary": leaf}
    return {**named, "levels": [dict(level) for _ in range(order - 1)]}
