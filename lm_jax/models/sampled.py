"""Readouts trained on a few drawn tokens instead of all V, and evaluated as a softmax.

Tokens are numbered by frequency. The tokens of an update are drawn by Zipf's law, the log-uniform
distribution of TensorFlow's samplers, once for all targets of the update:

    q(k) = ln((k + 2) / (k + 1)) / ln(V + 1),   k = 0 … V - 1

**Sampled softmax** (Jean et al., 2015, for machine translation) is the softmax over the target and
K drawn tokens. The tokens are drawn without replacement, as the K largest of ln q + Gumbel noise
(Kool et al., 2019). With κ the next largest, token k is drawn with probability

    π(k) = P(ln q(k) + Gumbel > κ) = 1 - exp(-q(k) e^{-κ}).

This is TensorFlow's expected count with e^{-κ} as the number of tries. ln π is subtracted from
every logit, including the target's. A drawn token equal to the target is left out. If the model is
right, P(y | h) ∝ e^z, the mean gradient is then zero for every K, up to an effect of the fixed
number of draws. Otherwise the mean gradient is near the softmax's for large K, and equal for K = V.

**Noise-contrastive estimation** (Gutmann & Hyvärinen, 2010; Mnih & Teh, 2012) learns to distinguish
the target from K tokens drawn from q, with replacement. The normalising constant is not computed
but fixed at V: e^z / V is taken as the probability. (The paper fixes the constant at 1, the same
model with every bias lower by ln V. V is near the true constant if logits begin near zero, with
biases or without.) A token is classified as data with probability σ(s):

    s(k) = z_k - ln V - ln K q(k),    loss = -ln σ(s(y)) - Σ_{k drawn} ln σ(-s(k))

For targets from P the mean gradient with respect to z_k is

    (e^{z_k} / V - P(k)) w_k,    w_k = K q(k) / (K q(k) + e^{z_k} / V).

The mean gradient is zero if the model is right. For K → ∞, w → 1, and the mean gradient is the
likelihood's.

The training loss is computed from drawn tokens and is not in nats; `nats` and `logits` are the
softmax's. The loss reads the columns of W_hy for the drawn tokens and the targets in a single
gather, because the backward pass of each gather makes a dense gradient.
"""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Params
from lm_jax.models.matmul import Precision, columns, matmul, rows
from lm_jax.models.readout import LinearReadout


@dataclasses.dataclass(frozen=True)
class SampledReadout(LinearReadout):
    """The softmax readout with a training loss from K drawn tokens."""

    _: dataclasses.KW_ONLY
    samples: int
    """K, drawn tokens, the same for all targets of an update."""

    def loss(
        self,
        params: Params,
        h: Float[Array, "*shape H"],
        y: Int[Array, "*shape"],
        key: Array | None,
    ) -> Float[Array, "*shape"]:
        if key is None:
            return self.nats(params, h, y)
        flat, targets = h.reshape(-1, h.shape[-1]), y.reshape(-1)
        return self.sampled_loss(params, flat, targets, key).reshape(y.shape)

    @abc.abstractmethod
    def sampled_loss(
        self, params: Params, h: Float[Array, "N H"], y: Int[Array, " N"], key: Array
    ) -> Float[Array, " N"]:
        """The training loss of each target, from tokens drawn with the key."""


@dataclasses.dataclass(frozen=True)
class SampledSoftmaxReadout(SampledReadout):
    """The sampled softmax; K = V is the softmax itself."""

    def sampled_loss(self, params: Params, h: Array, y: Array, key: Array) -> Array:
        drawn, log_count = draw_distinct(key, self.vocab_size, self.samples)
        z, z_y = _columns(params, h, drawn, y, self.precision)
        z -= log_count(drawn)[None]
        z_y -= log_count(y)
        z = jnp.where(drawn[None] == y[:, None], -jnp.inf, z)
        return jax.nn.logsumexp(jnp.concatenate([z, z_y[:, None]], axis=1), axis=1) - z_y


@dataclasses.dataclass(frozen=True)
class NoiseContrastiveReadout(SampledReadout):
    """Noise-contrastive estimation with K noise tokens."""

    def sampled_loss(self, params: Params, h: Array, y: Array, key: Array) -> Array:
        noise = draw(key, self.vocab_size, self.samples)
        z, z_y = _columns(params, h, noise, y, self.precision)
        constant = jnp.log(self.vocab_size) + jnp.log(self.samples)
        z -= (constant + log_zipf(noise, self.vocab_size))[None]
        z_y -= constant + log_zipf(y, self.vocab_size)
        return jax.nn.softplus(-z_y) + jnp.sum(jax.nn.softplus(z), axis=1)


def log_zipf(tokens: Int[Array, "*shape"], vocab_size: int) -> Float[Array, "*shape"]:
    """ln q(token), the log-probability of each token under Zipf's law."""
    return jnp.log(jnp.log1p(1 / (tokens + 1.0))) - jnp.log(jnp.log(vocab_size + 1.0))


def draw(key: Array, vocab_size: int, samples: int) -> Int[Array, " K"]:
    """Tokens drawn from q, with replacement."""
    # Inverse of the distribution function P(token < k) = ln(k + 1) / ln(V + 1).
    edge = jnp.exp(jax.random.uniform(key, (samples,)) * jnp.log(vocab_size + 1.0))
    return jnp.clip(edge.astype(jnp.int32) - 1, 0, vocab_size - 1)


def draw_distinct(
    key: Array, vocab_size: int, samples: int
) -> tuple[Int[Array, " K"], Callable[[Array], Array]]:
    """Tokens drawn from q without replacement, and tokens -> ln π for the κ of this draw."""
    every = jnp.arange(vocab_size)
    if samples == vocab_size:
        return every, lambda tokens: jnp.zeros(tokens.shape)
    noisy = log_zipf(every, vocab_size) + jax.random.gumbel(key, (vocab_size,))
    # Without the barrier XLA fuses the slices below with the top-k, no longer recognises the top-k,
    # and sorts all V.
    largest, drawn = jax.lax.optimization_barrier(jax.lax.top_k(noisy, samples + 1))

    def log_count(tokens: Array) -> Array:
        return jnp.log(-jnp.expm1(-jnp.exp(log_zipf(tokens, vocab_size) - largest[-1])))

    return drawn[:-1], log_count


def _columns(
    params: Params,
    h: Float[Array, "N H"],
    drawn: Int[Array, " K"],
    y: Int[Array, " N"],
    precision: Precision,
) -> tuple[Float[Array, "N K"], Float[Array, " N"]]:
    """The logits of the drawn tokens at every position, and the logit of each position's target."""
    tokens = jnp.concatenate([drawn, y])
    tied = "C" in params
    W = rows(params["C"], tokens).T if tied else columns(params["W_hy"], tokens)
    cut = drawn.shape[0]
    z, z_y = matmul(h, W[:, :cut], precision), jnp.sum(h * W[:, cut:].T, axis=1)
    if "b_y" in params:
        b = rows(params["b_y"][:, None], tokens)[:, 0]
        z, z_y = z + jnp.broadcast_to(b[:cut], z.shape), z_y + b[cut:]
    return z, z_y
