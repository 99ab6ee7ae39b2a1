"""The back-off n-gram language model (Katz, 1987): the model of an ARPA file.

    p_k(w | c) = P(c w) if the model has the k-gram c w, else bow(c) p_{k-1}(w | c')

with a context c of k - 1 tokens and c' = c without the first token; bow(c) is 1 if the model has no
c. The parameters are the trie of `lm_jax.models.ngram` with natural logarithms: `unigram` and
`alpha` are ln P, and `gamma` is ln bow. Sums of logarithms neither underflow nor cancel, so a score
is exactly the sum of the file's numbers.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Params
from lm_jax.models.ngram import NGramModel, child_of, with_children


@dataclasses.dataclass(frozen=True)
class BackoffModel(NGramModel):
    """The back-off n-gram model; a pruned model or an ARPA file gives the parameters."""

    def logits(self, params: Params, h: Int[Array, "*shape places"]) -> Float[Array, "*shape V"]:
        nodes = h.reshape(math.prod(h.shape[:-1]), h.shape[-1])
        log_p = jnp.broadcast_to(params["unigram"], (nodes.shape[0], len(params["unigram"])))
        for place, level in zip(range(h.shape[-1]), params["levels"], strict=True):
            node = nodes[:, place]
            longer = level["gamma"][node][:, None] + log_p
            longer = with_children(level, node, longer, replace=True)
            log_p = jnp.where(node[:, None] < 0, log_p, longer)
        return log_p.reshape(*h.shape[:-1], log_p.shape[-1])

    def nats(
        self, params: Params, h: Int[Array, "*shape places"], y: Int[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        log_p = params["unigram"][y]
        for place, level in zip(range(h.shape[-1]), params["levels"], strict=True):
            node = h[..., place]
            child = child_of(level, node, y)
            seen = child < level["token"].shape[0]
            longer = jnp.where(seen, level["alpha"][child], level["gamma"][node] + log_p)
            log_p = jnp.where(node < 0, log_p, longer)
        return -log_p
