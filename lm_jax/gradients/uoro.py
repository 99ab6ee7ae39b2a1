"""Unbiased online recurrent optimisation: RTRL's influence as one random product.

    s̃_t = ρ₀ (∂F/∂s) s̃_{t-1} + ρ₁ ν,   θ̃_t = θ̃_{t-1} / ρ₀ + (νᵀ ∂F/∂θ) / ρ₁

with signs ν drawn anew at each step. E[ν νᵀ] is the identity and E[ν] zero, so where E[s̃ θ̃ᵀ] is the
influence P before a step, it is (∂F/∂s) P + ∂F/∂θ after it, the influence then (Tallec & Ollivier,
2018, algorithm 1). So E[(∂J_t/∂s · s̃_t) θ̃_t] is the gradient of J_t that came through the state.

Any ρ will do that is not zero and does not change with the sign of ν; those that make the variance
smallest have both factors of each product of one length,

    ρ₀² = ‖θ̃‖ / ‖(∂F/∂s) s̃‖,   ρ₁² = ‖νᵀ ∂F/∂θ‖ / ‖ν‖,

here with a small ε added to all four norms, so that nothing is divided by zero.

Letters: B lanes; n numbers in a lane's state; P in the parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from lm_jax.gradients.bptt import Estimator
from lm_jax.gradients.rtrl import (
    Stepped,
    added,
    at_output,
    floating_lane,
    online,
    raveled,
    recurrent,
)
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.models.transition import KEY
from lm_jax.trees import norm

EPSILON = 1e-7


class RankOne(NamedTuple):
    """What UORO remembers."""

    carry: Carry
    """The model's own."""
    s: Float[Array, "B n"]
    """s̃."""
    theta: Params
    """θ̃: leaves [B, *leaf], for all parameters but the readout's."""
    draws: Int[Array, ""]
    """Steps for which signs were drawn so far: the number of the next draw."""


def uoro(model: LanguageModel, *, key: Array) -> Estimator:
    """Unbiased online recurrent optimisation (Tallec & Ollivier, 2018).

    Memory O(B (n + P)), whatever T is; time O(B P) a step, one jvp and one vjp. The gradient is
    that of RTRL in the mean over the draws. What is drawn depends on the key and the carry alone.
    A carry may also be the model's own, as for `rtrl`.

    Args:
      model: a recurrent language model, without noise.
      key: of all draws.

    Raises:
      UserError: the model has no recurrent state, one that is not floating-point, or dropout.
    """
    lane = floating_lane(model)
    _, unravel = ravel_pytree(lane.carry)

    def init_carry(batch_size: int) -> RankOne:
        carry = model.init_carry(batch_size)
        shapes = recurrent(jax.eval_shape(model.init, KEY))
        theta = jax.tree.map(lambda leaf: jnp.zeros((batch_size, *leaf.shape)), shapes)
        return RankOne(carry, jnp.zeros_like(raveled(carry)), theta, jnp.zeros((), jnp.int32))

    def step(params: Params, memory: RankOne, x: Array, y: Array, mask: Array) -> Stepped:
        def transition(theta: Params, s: Array, x: Array) -> Array:
            return ravel_pytree(lane.step({**params, **theta}, unravel(s), x))[0]

        def derivatives(s: Array, tangent: Array, signs: Array, x: Array) -> tuple:
            theta = recurrent(params)
            after, pushed = jax.jvp(lambda s: transition(theta, s, x), (s,), (tangent,))
            _, pull = jax.vjp(lambda theta: transition(theta, s, x), theta)
            return after, pushed, *pull(signs)

        s = raveled(memory.carry)
        signs = jax.random.rademacher(jax.random.fold_in(key, memory.draws), s.shape, s.dtype)
        after, pushed, pulled = jax.vmap(derivatives)(s, memory.s, signs, x)
        rho_0 = _ratio(memory.theta, pushed)
        rho_1 = _ratio(pulled, signs)
        s_tilde = _scaled(pushed, rho_0) + _scaled(signs, rho_1)
        theta = jax.tree.map(
            lambda old, new: _scaled(old, 1 / rho_0) + _scaled(new, 1 / rho_1),
            memory.theta,
            pulled,
        )
        carry = jax.vmap(unravel)(after)
        nats, grads, d_carry = at_output(model, params, carry, y, mask)
        along = jnp.sum(raveled(d_carry) * s_tilde, axis=1)
        through = jax.tree.map(lambda leaf: jnp.tensordot(along, leaf, 1), theta)
        return RankOne(carry, s_tilde, theta, memory.draws + 1), nats, added(grads, through)

    def redraw(carry: RankOne, number: int | Array) -> RankOne:
        return carry._replace(draws=jnp.asarray(number, jnp.int32))

    return online(model, RankOne, init_carry, step, redraw=redraw)


def _ratio(a: Params, b: Params) -> Float[Array, " B"]:
    """√(‖a‖ / ‖b‖) of each lane."""
    return jnp.sqrt((norm(a, kept=1) + EPSILON) / (norm(b, kept=1) + EPSILON))


def _scaled(leaf: Array, factor: Float[Array, " B"]) -> Array:
    return leaf * factor.reshape((-1,) + (1,) * (leaf.ndim - 1))
