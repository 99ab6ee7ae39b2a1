"""Unbiased online recurrent optimisation: RTRL's influence as a random rank-one product.

    s̃_t = ρ₀ (∂F/∂s) s̃_{t-1} + ρ₁ ν,   θ̃_t = θ̃_{t-1} / ρ₀ + (νᵀ ∂F/∂θ) / ρ₁

with random signs ν, drawn anew at each step. E[ν νᵀ] is the identity and E[ν] is zero. If E[s̃ θ̃ᵀ]
is the influence P before a step, then E[s̃ θ̃ᵀ] after the step is (∂F/∂s) P + ∂F/∂θ, the new
influence (Tallec & Ollivier, 2018, algorithm 1). By induction, E[(∂J_t/∂s · s̃_t) θ̃_t] is the part
of the gradient of J_t that comes through the state.

The mean is right for any nonzero ρ that does not change with the sign of ν. The variance is
smallest if both factors of each product have the same length,

    ρ₀² = ‖θ̃‖ / ‖(∂F/∂s) s̃‖,   ρ₁² = ‖νᵀ ∂F/∂θ‖ / ‖ν‖.

A small ε is added to all four norms to avoid division by zero.

Letters: B sequences; n numbers in the state of a sequence; P in the parameters.
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
    floating_example,
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
    """State of UORO between steps."""

    carry: Carry
    """The model's carry."""
    s: Float[Array, "B n"]
    """s̃."""
    theta: Params
    """θ̃: leaves [B, *leaf], for all parameters except the readout's."""
    draws: Int[Array, ""]
    """Number of steps with signs drawn so far, which is the number of the next draw."""


def uoro(model: LanguageModel, *, key: Array) -> Estimator:
    """Unbiased online recurrent optimisation (Tallec & Ollivier, 2018).

    Memory O(B (n + P)) for any T; time O(B P) per step, a jvp and a vjp. The mean over the draws is
    the gradient of RTRL. The draws depend on the key and the carry alone. The carry may also be the
    model's own carry, as for `rtrl`.

    Args:
      model: a recurrent language model, without dropout.
      key: for all draws.

    Raises:
      UserError: the model has no recurrent state, has a state that is not floating-point, or has
        dropout.
    """
    example = floating_example(model)
    _, unravel = ravel_pytree(example.carry)

    def init_carry(batch_size: int) -> RankOne:
        carry = model.init_carry(batch_size)
        shapes = recurrent(jax.eval_shape(model.init, KEY))
        theta = jax.tree.map(lambda leaf: jnp.zeros((batch_size, *leaf.shape)), shapes)
        return RankOne(carry, jnp.zeros_like(raveled(carry)), theta, jnp.zeros((), jnp.int32))

    def step(params: Params, memory: RankOne, x: Array, y: Array, mask: Array) -> Stepped:
        def transition(theta: Params, s: Array, x: Array) -> Array:
            return ravel_pytree(example.step({**params, **theta}, unravel(s), x))[0]

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
        times_s = lambda leaf: jnp.tensordot(along, leaf, 1, precision="highest")  # noqa: E731
        through = jax.tree.map(times_s, theta)
        return RankOne(carry, s_tilde, theta, memory.draws + 1), nats, added(grads, through)

    def redraw(carry: RankOne, number: int | Array) -> RankOne:
        return carry._replace(draws=jnp.asarray(number, jnp.int32))

    return online(model, RankOne, init_carry, step, redraw=redraw)


def _ratio(a: Params, b: Params) -> Float[Array, " B"]:
    """√(‖a‖ / ‖b‖) for each sequence."""
    return jnp.sqrt((norm(a, kept=1) + EPSILON) / (norm(b, kept=1) + EPSILON))


def _scaled(leaf: Array, factor: Float[Array, " B"]) -> Array:
    return leaf * factor.reshape((-1,) + (1,) * (leaf.ndim - 1))
