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
  (`lm_jax.models.counts.discounts`).

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
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Carry, EdgeHook, LanguageModel, Params
from lm_jax.settings import UserError

CHILDREN_AT_ONCE = 128


@dataclasses.dataclass(frozen=True)
class NGramModel(LanguageModel):
    """The n-gram language model; `lm_jax.models.smoothing.fit` makes the parameters.

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
                here = jnp.where(none, -1, child_of(params["levels"][length - 2], before, token))
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
        alpha = level["alpha"][child_of(level, node, y)]
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
        longer = with_children(level, node, level["gamma"][node][:, None] * lower)
        p = jnp.where(node[:, None] < 0, p, longer)
    return jnp.log(p).reshape(*h.shape[:-1], V)


def _children(level: Params, node: Int[Array, "*s"]) -> tuple[Int[Array, "*s"], Int[Array, "*s"]]:
    """Begin and end of each node's children; an empty range if there is no node."""
    begin = level["begin"]
    node = jnp.where(node < 0, begin.shape[0] - 2, node)
    return begin[node], begin[node + 1]


def child_of(level: Params, node: Int[Array, "*s"], token: Int[Array, "*s"]) -> Int[Array, "*s"]:
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


def with_children(
    level: Params, node: Int[Array, " N"], p: Float[Array, "N V"], *, replace: bool = False
) -> Float[Array, "N V"]:
    """p + alpha of each context's children, or alpha in place of p if `replace` is True.

    The children are read in batches, because few contexts have many children.
    """
    size, V = level["token"].shape[0], p.shape[1]
    begin, end = _children(level, node)
    row, step = jnp.arange(p.shape[0])[:, None], jnp.arange(CHILDREN_AT_ONCE)[None, :]

    def add(state: tuple[Array, Array]) -> tuple[Array, Array]:
        at, p = state
        child = at[:, None] + step
        child = jnp.where(child < end[:, None], child, size)
        token = jnp.where(child < size, level["token"][child], V)  # V is out of bounds: dropped
        place, alpha = p.at[row, token], level["alpha"][child]
        put = place.set if replace else place.add
        return at + CHILDREN_AT_ONCE, put(alpha, mode="drop")

    return jax.lax.while_loop(lambda state: jnp.any(state[0] < end), add, (begin, p))[1]


def structure(order: int, leaf: Any) -> Params:
    """A tree like the parameters of a model of this order, with the same leaf everywhere."""
    level = {"token": leaf, "alpha": leaf, "begin": leaf, "gamma": leaf}
    named = {"unigram": leaf, "chained": leaf, "boundary": leaf}
    return {**named, "levels": [dict(level) for _ in range(order - 1)]}
