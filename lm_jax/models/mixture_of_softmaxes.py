"""The mixture of softmaxes (Yang et al., 2018, Breaking the softmax bottleneck).

The logits of a softmax are a matrix of rank H or less over all contexts and tokens. A mixture of K
softmaxes has no such bound:

    π = softmax(h W_π),   h_k = tanh(h W_k + b_k),   p(y | h) = Σ_k π_k softmax(h_k W_hy + b_y)_y

One W_hy serves all components. The logarithms are summed one component after another, and the
backward pass computes each component again: the logits of one component are held at a time.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lm_jax.models.base import Params, affine, scaled_normal, total
from lm_jax.models.matmul import matmul
from lm_jax.models.readout import LinearReadout, cross_entropy, init_linear, linear_logits


@dataclasses.dataclass(frozen=True)
class MixtureOfSoftmaxesReadout(LinearReadout):
    """A mixture of K softmaxes over all V tokens."""

    _: dataclasses.KW_ONLY
    components: int
    """K."""
    size: int
    """D, length of each h_k."""

    def init(self, key: Array, inputs: int) -> Params:
        prior, latent, out = jax.random.split(key, 3)
        K, D = self.components, self.size
        return {
            "W_pi": scaled_normal(prior, inputs, K),
            "W_k": scaled_normal(latent, inputs, K * D),
            "b_k": jnp.zeros(K * D),
            **init_linear(out, D, self.vocab_size, tied=self.tied, bias=self.bias),
        }

    def logits(self, params: Params, h: Float[Array, "*shape H"]) -> Float[Array, "*shape V"]:
        """ln p of each token."""

        def log_p(h_k: Array) -> Array:
            return jax.nn.log_softmax(linear_logits(params, h_k, self.precision), axis=-1)

        return self._mixed(params, h, log_p, (*h.shape[:-1], self.vocab_size))

    def nats(self, params: Params, h: Array, y: Shaped[Array, "*shape"]) -> Array:
        def log_p(h_k: Array) -> Array:
            return -cross_entropy(linear_logits(params, h_k, self.precision), y)

        return -self._mixed(params, h, log_p, h.shape[:-1])

    def total_nats(self, params: Params, h: Array, y: Array, mask: Array) -> Array:
        return total(self.nats(params, h, y), mask)

    def _mixed(self, params: Params, h: Array, log_p: Callable, shape: tuple[int, ...]) -> Array:
        """ln Σ_k π_k p_k, for a function from h_k to ln p_k of this shape."""
        log_pi = jax.nn.log_softmax(matmul(h, params["W_pi"], self.precision), axis=-1)
        latent = jnp.tanh(affine(h, params["W_k"], params["b_k"], self.precision))
        latent = latent.reshape(*h.shape[:-1], self.components, self.size)
        missing = (1,) * (len(shape) - (h.ndim - 1))

        @jax.checkpoint
        def add(so_far: Array, component: tuple[Array, Array]) -> tuple[Array, None]:
            log_pi_k, h_k = component
            share = log_pi_k.reshape(*log_pi_k.shape, *missing)
            return jnp.logaddexp(so_far, jnp.broadcast_to(share, shape) + log_p(h_k)), None

        each = jnp.moveaxis(log_pi, -1, 0), jnp.moveaxis(latent, -2, 0)
        log_sum, _ = jax.lax.scan(add, jnp.full(shape, -jnp.inf, h.dtype), each)
        return log_sum
