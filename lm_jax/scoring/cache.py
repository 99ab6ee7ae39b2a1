"""The continuous cache: a word is likelier if the word followed a similar hidden state before.

The cache keeps each of the last N hidden states h_i with the next token x_{i+1}, and

    p_cache(w) ∝ Σ_i 1{w = x_{i+1}} exp(θ h_t · h_i)
    p(w) = (1 - λ) p_model(w) + λ p_cache(w)

(Grave et al., 2017, section 3). With flatness θ = 0 the cache counts words. While the cache is
empty, p is p_model. λ = 0 is the unchanged model.

Letters: T tokens of a chunk, N states in the cache, B sequences, H units.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lm_jax.data.batches import Batch
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import Carry, Params
from lm_jax.scoring.scorer import Scorer
from lm_jax.settings import UserError

LARGEST = 100_000  # states in the cache
PRODUCTS = 1 << 22  # products h_t · h_i of one sequence in one call


class _CacheState(NamedTuple):
    carry: Carry
    h: Float[Array, "N B H"]
    """The states in the cache, oldest first."""
    y: Int[Array, "N B"]
    """The token after each state."""
    there: Bool[Array, "N B"]
    weight: Float[Array, ""]
    flatness: Float[Array, ""]


def cache(model: LanguageModel, *, size: int, weight: float, flatness: float) -> Scorer:
    """A scorer that mixes the model with a cache of the model's hidden states.

    Args:
      model: a language model with a floating-point hidden state for each token.
      size: N.
      weight: λ, from 0 to below 1.
      flatness: θ, 0 or more.

    Raises:
      UserError: a number is out of range; or, at the start of scoring, the model has no
        floating-point hidden state.
    """
    if not 1 <= size <= LARGEST:
        raise UserError(f"cache={size} must be from 1 to {LARGEST:,}")
    if not 0 <= weight < 1:
        raise UserError(f"cache-weight={weight} must be 0 or more and below 1")
    if not 0 <= flatness < float("inf"):
        raise UserError(f"cache-flatness={flatness} must be 0 or more, and finite")

    def init(params: Params, batch_size: int) -> _CacheState:
        carry = model.init_carry(batch_size)
        x = jax.ShapeDtypeStruct((1, batch_size), jnp.int32)
        _, h = jax.eval_shape(model.hidden, params, carry, x)
        shape = getattr(h, "shape", ())
        if len(shape) != 3 or not jnp.issubdtype(h.dtype, jnp.floating):
            raise UserError("--cache needs a model with hidden states, as a recurrent one has")
        share = jnp.asarray(weight, float)
        return _CacheState(
            carry,
            jnp.zeros((size, batch_size, shape[-1]), h.dtype),
            jnp.zeros((size, batch_size), jnp.int32),
            jnp.zeros((size, batch_size), bool),
            share,
            jnp.asarray(min(flatness, float(jnp.finfo(share.dtype).max)), float),
        )

    length = max(1, min(256, PRODUCTS // size))
    return Scorer(init, _rememberer(model), length)


@functools.lru_cache(maxsize=16)
def _rememberer(
    model: LanguageModel,
) -> Callable[[Params, _CacheState, Batch], tuple[_CacheState, Array]]:
    def read(params: Params, state: _CacheState, batch: Batch) -> tuple[_CacheState, Array]:
        carry, h = model.hidden(params, restart(model, state.carry, batch.start), batch.x)
        kept = state.h.shape[0]
        hs, ys = jnp.concatenate([state.h, h]), jnp.concatenate([state.y, batch.y])
        there = jnp.concatenate([state.there & ~batch.start[None], batch.mask])
        nats = model.nats(params, h, batch.y)
        time, place = jnp.arange(h.shape[0])[:, None], jnp.arange(hs.shape[0])[None]
        # State t is at position N + t; the N positions before are in the cache.
        near = (place >= time) & (place < kept + time)
        usable = near[:, None, :] & there.T[None]
        some = jnp.any(usable, axis=-1)
        products = jnp.einsum("tbh,nbh->tbn", h, hs, precision="highest")
        products = jnp.where(usable, products, -jnp.inf)
        # The maximum cancels between numerator and denominator. After the subtraction, products
        # with θ can overflow only to -inf, which is P = 0.
        most = jnp.where(some, jnp.max(products, axis=-1), 0)
        weights = jnp.where(usable, state.flatness * (products - most[..., None]), -jnp.inf)
        same = batch.y[:, :, None] == ys.T[None]
        whole = jnp.where(some, _log_sum(weights), 0)
        log_p = _log_sum(jnp.where(same, weights, -jnp.inf)) - whole
        mixed = jnp.logaddexp(jnp.log1p(-state.weight) - nats, jnp.log(state.weight) + log_p)
        state = _CacheState(carry, hs[-kept:], ys[-kept:], there[-kept:], *state[-2:])
        return state, jnp.where(some, -mixed, nats)

    return jax.jit(read, donate_argnums=1)


def _log_sum(values: Float[Array, "*shape N"]) -> Float[Array, "*shape"]:
    return jax.nn.logsumexp(values, axis=-1)
