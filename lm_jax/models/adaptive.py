"""The adaptive softmax: frequent tokens first, the others in clusters (Grave et al., 2017).

Tokens are numbered by frequency. The head gives a probability to each of the first tokens, the
shortlist, and to each cluster of the other tokens; a cluster gives a probability to each token in
the cluster:

    p(y | h) = softmax(h W_hy + b_y)_y                              for y in the shortlist
    p(y | h) = softmax(h W_hy + b_y)_{s + i} softmax(h P_i W_i + b_i)_{y - c_i}   in cluster i

with the shortlist's size s = c_0. Cluster i = 0, 1, … holds the tokens from the cutoff c_i on. P_i
[H, H_i] with H_i = H / factor^(i + 1) (at least 1) makes a rare token cheap.

Few targets are in a cluster. Their number changes with every batch, while compiled shapes cannot
change. The code therefore moves the positions of a cluster to the front and reads them in blocks,
and skips a block without positions of the cluster (`lax.cond`). The result is exact for any number
of positions. The backward pass recomputes each block instead of keeping logits. Under `vmap`
nothing is skipped.

Letters: N positions, S = s + clusters columns of the head, K positions of a block.
"""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lm_jax.models.base import Params, scaled_normal
from lm_jax.models.matmul import Precision, matmul
from lm_jax.models.readout import Readout, cross_entropy, init_linear, linear_logits
from lm_jax.settings import UserError

BLOCK = 64


@dataclasses.dataclass(frozen=True)
class AdaptiveSoftmaxReadout(Readout):
    """The adaptive softmax; `logits` are normalised log-probabilities.

    Raises:
      UserError: the last cutoff is not below V.
    """

    vocab_size: int
    """V."""
    cutoffs: tuple[int, ...] = dataclasses.field(kw_only=True)
    """First token of each cluster, in rising order."""
    factor: int = dataclasses.field(default=4, kw_only=True)
    """Ratio of the input sizes of consecutive clusters; rarer clusters have fewer inputs."""
    precision: Precision = dataclasses.field(default="float32", kw_only=True)
    """Precision of the products, see `lm_jax.models.matmul`."""

    def __post_init__(self) -> None:
        V = self.vocab_size
        if self.cutoffs[-1] >= V:
            raise UserError(
                f"model.readout.cutoffs={self.cutoffs} must stay below V={V}: give lower ones, "
                f"such as {V // 9} {V // 3}, or take model.readout=softmax"
            )

    def init(self, key: Array, inputs: int) -> Params:
        head, *keys = jax.random.split(key, 1 + len(self.cutoffs))
        columns = self.cutoffs[0] + len(self.cutoffs)
        own = init_linear(head, inputs, columns, tied=False, bias=True)
        spans = pairwise([*self.cutoffs, self.vocab_size])
        clusters = [
            self._init_cluster(k, max(1, inputs // self.factor ** (i + 1)), inputs, end - start)
            for i, (k, (start, end)) in enumerate(zip(keys, spans, strict=True))
        ]
        return {**own, "clusters": clusters}

    def _init_cluster(self, key: Array, narrow: int, inputs: int, tokens: int) -> Params:
        first, second = jax.random.split(key)
        own = init_linear(second, narrow, tokens, tied=False, bias=True)
        return {**own, "P": scaled_normal(first, inputs, narrow)}

    def logits(self, params: Params, h: Float[Array, "*shape H"]) -> Float[Array, "*shape V"]:
        shortlist, precision = self.cutoffs[0], self.precision
        head = jax.nn.log_softmax(linear_logits(params, h, precision))
        parts = [head[..., :shortlist]]
        for i, own in enumerate(params["clusters"]):
            narrow = matmul(h, own["P"], precision)
            within = jax.nn.log_softmax(linear_logits(own, narrow, precision))
            parts.append(within + head[..., shortlist + i, None])
        return jnp.concatenate(parts, axis=-1)

    def nats(
        self, params: Params, h: Float[Array, "*shape H"], y: Int[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        flat, targets = h.reshape(-1, h.shape[-1]), y.reshape(-1)
        cluster = jnp.searchsorted(jnp.asarray(self.cutoffs), targets, side="right") - 1
        column = jnp.where(cluster < 0, targets, self.cutoffs[0] + cluster)
        result = cross_entropy(linear_logits(params, flat, self.precision), column)
        for i, own in enumerate(params["clusters"]):
            here = targets - self.cutoffs[i]
            result += _within(own, flat, here, cluster == i, self.precision)
        return result.reshape(y.shape)


def _within(
    params: Params,
    h: Float[Array, "N H"],
    y: Int[Array, " N"],
    member: Bool[Array, " N"],
    precision: Precision,
) -> Float[Array, " N"]:
    """-ln of each target's probability within a cluster; 0 for targets outside the cluster."""
    size = h.shape[0]
    blocks = -(-size // BLOCK)
    # Entries past the last member are invalid positions, no two of them the same.
    positions = jnp.nonzero(member, size=blocks * BLOCK, fill_value=size)[0]
    real = positions < size
    positions = jnp.where(real, positions, size + jnp.arange(positions.size))

    def picked(values: Array) -> Array:
        return values.at[positions].get(mode="fill", fill_value=0, unique_indices=True)

    @jax.checkpoint
    def block(h: Array, y: Array, real: Array) -> Array:
        z = linear_logits(params, matmul(h, params["P"], precision), precision)
        return jnp.where(real, cross_entropy(z, y), 0)

    def read(_: None, xs: tuple[Array, Array, Array]) -> tuple[None, Array]:
        # Members come first: a block has a member if its first entry is a member.
        skipped = jnp.zeros(BLOCK, h.dtype)
        return None, jax.lax.cond(xs[2][0], block, lambda *_: skipped, *xs)

    shape = (blocks, BLOCK)
    xs = (
        picked(h).reshape(*shape, -1),
        picked(y).reshape(shape),
        real.reshape(shape),
    )
    _, nats = jax.lax.scan(read, None, xs)
    zeros = jnp.zeros(size, h.dtype)
    return zeros.at[positions].set(nats.reshape(-1), mode="drop", unique_indices=True)
