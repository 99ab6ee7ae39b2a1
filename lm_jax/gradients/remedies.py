"""Remedies for gradients that vanish or explode: penalties whose gradient joins the loss's.

Ω keeps the norm of the gradient on its way back:

    Ω = Σ_k Ω_k,   Ω_k = (‖(∂E/∂x_{k+1}) (∂x_{k+1}/∂x_k)‖ / ‖∂E/∂x_{k+1}‖ - 1)²

(Pascanu, Mikolov & Bengio, 2013, equation 9). x_k is the carry that step k hands to step k + 1, of
all layers together, and ∂E/∂x_k, below d_k, all that reaches it, from its own loss and from later
ones. Ω asks each step to hand back as much as it gets, in the direction that counts.

Only the immediate derivative of Ω is taken (equation 10): the parameters move in ∂x_{k+1}/∂x_k, the
step's own Jacobian, while x_k and d_{k+1} stay as they are. In the paper the carry is the
pre-activation, whose Jacobian depends on W_hh alone; that of another carry, such as h = tanh(z),
may depend on the parameters through f'(z), too, and here that counts.

A step to which no gradient comes back, d_{k+1} = 0, has no Ω_k: it counts as 0.

Gradient flossing (Engelken, 2023) pushes the largest Lyapunov exponents along the batch towards
zero (`lm_jax.gradients.lyapunov.flossing`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lm_jax import trees
from lm_jax.data.batches import Batch
from lm_jax.gradients.bptt import Estimator
from lm_jax.gradients.checks import check_losses
from lm_jax.gradients.lane import Loss, Step, one_lane
from lm_jax.gradients.lyapunov import flossing
from lm_jax.models.base import Carry, LanguageModel, Params, restart
from lm_jax.settings import UserError


class Way(NamedTuple):
    """Of each step of one example what Ω holds constant; leaves [T, ...]."""

    carry: Carry
    """Before the step."""
    x: Any
    direction: Carry
    """d / ‖d‖ after the step; zero where d is."""
    counts: Bool[Array, " T"]
    """Whether d is not zero."""


def omega(
    step: Step,
    loss: Loss,
    params: Params,
    carry: Carry,
    xs: Any,
    ys: Any,
    *,
    mask: Bool[Array, "*"] | None = None,
) -> tuple[Float[Array, ""], Params]:
    """Ω of one example, and its immediate gradient.

    Args:
      step: (params, carry, x) -> carry, any transition; its carry is of floating-point arrays.
      loss: (params, carry, y) -> [], nats of one step; E is their sum.
      params: what the gradient is with respect to.
      carry: before the first step.
      xs: inputs, a tree of arrays [T, ...].
      ys: targets, a tree of arrays [T, ...].
      mask: [T] which steps have a loss; None: all.

    Returns:
      Ω, a sum over the T steps, and its gradient, shaped as `params`. NaN in a trajectory gives
      NaN.

    Raises:
      UserError: as `lm_jax.gradients.checks.check_losses`, or the mask is not of T steps.
    """
    steps = check_losses(step, loss, params, carry, xs, ys)
    mask = jnp.ones(steps, bool) if mask is None else mask
    if mask.shape != (steps,):
        raise UserError(f"mask is of shape {list(mask.shape)}, and xs has T={steps} steps")
    way = _way(step, loss, params, carry, xs, ys, mask)
    return jax.value_and_grad(lambda params: jnp.sum(_terms(step, params, way)))(params)


def with_omega(estimator: Estimator, model: LanguageModel, weight: float | Array) -> Estimator:
    """The estimator whose gradient is that of the loss and of Ω times a weight.

    Ω is averaged over the steps and lanes of a batch to which a gradient comes back, as in the
    program of the paper's authors (github.com/pascanur/trainingRNNs, which has the squares of both
    norms in the ratio), so its weight does not depend on T. As there, only W_hh moves with it. The
    loss that is reported is the loss alone.

    It runs every step of the model forwards and backwards once more, and keeps each step's carry.

    Args:
      estimator: of the loss's gradient.
      model: a recurrent model, without dropout.
      weight: of Ω, in nats.

    Raises:
      UserError: the model has no recurrent state, or dropout.
    """
    lane = one_lane(model)

    def more(params: Params, before: Carry, batch: Batch) -> Params:
        ways = jax.vmap(
            lambda carry, x, y, mask: _way(lane.step, lane.loss, params, carry, x, y, mask),
            in_axes=(0, 1, 1, 1),
        )(before, batch.x, batch.y, batch.mask)

        def mean_omega(params: Params) -> Array:
            terms = jax.vmap(lambda way: _terms(lane.step, params, way))(ways)
            return jnp.sum(terms) / jnp.maximum(jnp.sum(ways.counts), 1)

        return jax.tree.map_with_path(recurrent_only, jax.grad(mean_omega)(params))

    def recurrent_only(path: tuple, g: Array) -> Array:
        return weight * g if getattr(path[-1], "key", None) == "W_hh" else jnp.zeros_like(g)

    return _with(estimator, model, more)


def with_flossing(
    estimator: Estimator, model: LanguageModel, weight: float | Array, count: int
) -> Estimator:
    """The estimator whose gradient is that of the loss and of gradient flossing times a weight.

    The penalty is the mean over lanes of `flossing` along the batch. The loss that is reported is
    the loss alone. It takes the transition's tangent and the gradient through it, `count` tangent
    vectors in each lane.

    Args:
      estimator: of the loss's gradient.
      model: a recurrent model, without dropout.
      weight: of the penalty, in steps per nat.
      count: exponents, the largest ones.

    Raises:
      UserError: the model has no recurrent state, or dropout.
    """
    lane = one_lane(model)

    def more(params: Params, before: Carry, batch: Batch) -> Params:
        def penalty(params: Params) -> Array:
            def of_lane(carry: Carry, xs: Array) -> Array:
                return flossing(lane.step, params, carry, xs, count)

            return weight * jnp.mean(jax.vmap(of_lane, (0, 1))(before, batch.x))

        return jax.grad(penalty)(params)

    return _with(estimator, model, more)


def _with(
    estimator: Estimator,
    model: LanguageModel,
    more: Callable[[Params, Carry, Batch], Params],
) -> Estimator:
    """The estimator with a gradient added: of (params, the model's carry before, batch)."""

    def added(found: tuple, params: Params, carry: Carry, batch: Batch) -> tuple:
        loss, after, grads = found
        before = restart(model, estimator.model_carry(params, carry), batch.start)
        return loss, after, jax.tree.map(jnp.add, grads, more(params, before, batch))

    def watched(params: Params, carry: Carry, batch: Batch) -> tuple[tuple, Array]:
        assert estimator.watched is not None
        found, norms = estimator.watched(params, carry, batch)
        return added(found, params, carry, batch), norms

    return Estimator(
        estimator.init_carry,
        lambda params, carry, batch: added(estimator(params, carry, batch), params, carry, batch),
        estimator.model_carry,
        watched=None if estimator.watched is None else watched,
        redraw=estimator.redraw,
    )


def _way(
    step: Step, loss: Loss, params: Params, carry: Carry, xs: Any, ys: Any, mask: Array
) -> Way:
    """Runs an example forwards, and d back along it."""

    def forward(carry: Carry, x: Any) -> tuple[Carry, Carry]:
        return step(params, carry, x), carry

    def backward(returned: Carry, at_t: tuple) -> tuple[Carry, tuple]:
        before, x, y, asked = at_t
        after, back = jax.vjp(lambda carry: step(params, carry, x), before)
        own = jax.grad(lambda carry: loss(params, carry, y))(after)
        delta = jax.tree.map(lambda r, d: r + jnp.where(asked, d, 0), returned, own)
        return back(delta)[0], _direction(delta)

    last, before = jax.lax.scan(forward, carry, xs)
    none = jax.tree.map(jnp.zeros_like, last)
    _, (direction, counts) = jax.lax.scan(backward, none, (before, xs, ys, mask), reverse=True)
    return Way(before, xs, direction, counts)


def _direction(delta: Carry) -> tuple[Carry, Bool[Array, ""]]:
    """δ / ‖δ‖, or zero if δ is; and whether it is not."""
    counts = trees.norm(delta) != 0
    unit = trees.normalise(delta)
    return jax.tree.map(lambda leaf: jnp.where(counts, leaf, 0), unit), counts


def _terms(step: Step, params: Params, way: Way) -> Float[Array, " T"]:
    """Ω_k of every step."""

    def term(carry: Carry, x: Any, direction: Carry, counts: Array) -> Array:
        _, back = jax.vjp(lambda carry: step(params, carry, x), carry)
        returned = back(direction)[0]
        # ‖r‖ = r·r / ‖r‖, whose derivative, r / ‖r‖ held still, is the norm's, and 0 where r is 0:
        # Ω_k = 1 there, whichever way the parameters go.
        unit, _ = _direction(jax.lax.stop_gradient(returned))
        norm = trees.dot(unit, returned)
        return jnp.where(counts, (norm - 1) ** 2, 0)

    return jax.vmap(term)(*way)
