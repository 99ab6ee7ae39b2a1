"""Unbiased truncated backpropagation: the gradient is cut at random, and scaled up if not cut.

On the way back from t + 1 to t, the gradient is cut with probability q and else divided by 1 - q,

    d_t = ∂J_t/∂s_t + ζ_t (∂s_{t+1}/∂s_t)ᵀ d_{t+1},   ζ_t = 0 with probability q, else 1 / (1 - q).

Here d_t is the gradient with respect to the state s_t of all layers.

E[ζ_t] is 1, and each path back in time crosses an edge once. The mean over the draws is therefore
the full gradient (ARTBP; Tallec & Ollivier, 2017, "Unbiasing truncated backpropagation through
time"; their q may change with t). A path over l edges is multiplied by (1 - q)^-l if no edge is
cut, so the variance grows with the reach of the gradient. The mean length between two cuts is 1/q.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.data.batches import Batch
from lm_jax.gradients.bptt import Estimate, Estimator, Info, per_token
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, EdgeHook, Params, restart
from lm_jax.trees import has_gradient


class RandomCuts(NamedTuple):
    """State of randomised truncation between batches."""

    carry: Carry
    """The model's carry."""
    draws: Int[Array, ""]
    """Number of batches with cuts drawn so far, which is the number of the next draw."""


def randomised_bptt(model: LanguageModel, *, rate: float | Array, key: Array) -> Estimator:
    """Backpropagation over a chunk, cut at random; its mean is full BPTT (ARTBP).

    Autodiff keeps the residuals of every step, as in full BPTT: O(T) memory and O(T) time. Every
    sequence has its own cuts, shared by all layers. The cuts depend on the key and the carry alone.
    The carry may also be the model's own carry.

    Args:
      model: the language model.
      rate: q, the probability of a cut between two steps.
      key: for all draws.

    Raises:
      ValueError: the rate is not from 0 to below 1.
    """
    if isinstance(rate, float | int) and not 0 <= rate < 1:
        raise ValueError(f"rate={rate} must be from 0 to below 1")

    def estimate(params: Params, carry: Carry, batch: Batch) -> Estimate:
        memory = (
            carry if isinstance(carry, RandomCuts) else RandomCuts(carry, jnp.zeros((), jnp.int32))
        )
        kept = 1 - jnp.asarray(rate, float)
        draw = jax.random.fold_in(key, memory.draws)
        factors = jax.random.bernoulli(draw, kept, batch.mask.shape) / kept
        hook = EdgeHook(scale_cotangent, factors, recurrent_only=True)

        def total_nats(params: Params) -> tuple[Array, Carry]:
            before = restart(model, memory.carry, batch.start)
            after, h = model.hidden(params, before, batch.x, hook)
            return model.loss(params, h, batch.y, batch.mask), after

        (nats, after), grads = jax.value_and_grad(total_nats, has_aux=True)(params)
        loss, grads = per_token(nats, grads, batch.mask)
        return loss, RandomCuts(after, memory.draws + 1), grads, Info()

    def init_carry(batch_size: int) -> RandomCuts:
        return RandomCuts(model.init_carry(batch_size), jnp.zeros((), jnp.int32))

    def model_carry(params: Params, carry: Carry) -> Carry:
        return carry.carry if isinstance(carry, RandomCuts) else carry

    def redraw(carry: RandomCuts, number: int | Array) -> RandomCuts:
        return carry._replace(draws=jnp.asarray(number, jnp.int32))

    return Estimator(init_carry, estimate, model_carry, redraw=redraw)


@jax.custom_vjp
def scale_cotangent(carry: Carry, factor: Float[Array, " B"]) -> Carry:
    """The identity; its backward pass multiplies the gradient of each sequence by a factor.

    Args:
      carry: leaves [B, ...]; integers have no gradient.
      factor: for each sequence; a factor of 0 gives a gradient of 0, even for NaN or ∞.
    """
    del factor
    return carry


def _backward(factor: Array, delta: Carry) -> tuple[Carry, Array]:
    def scaled(leaf: Array) -> Array:
        if not has_gradient(leaf):
            return leaf
        by = factor.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(by == 0, 0, leaf * by)

    return jax.tree.map(scaled, delta), jnp.zeros_like(factor)


scale_cotangent.defvjp(lambda carry, factor: (carry, factor), _backward)
