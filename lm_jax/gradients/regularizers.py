"""Regularizers against vanishing and exploding gradients: penalties added to the loss.

Ω penalises a change of the gradient's norm on the way back:

    Ω = Σ_k Ω_k,   Ω_k = (‖(∂E/∂x_{k+1}) (∂x_{k+1}/∂x_k)‖ / ‖∂E/∂x_{k+1}‖ - 1)²

(Pascanu, Mikolov & Bengio, 2013, equation 9). x_k is the carry of all layers together that step k
hands to step k + 1. ∂E/∂x_k, written d_k below, is the whole gradient at x_k, from the loss of step
k and from all later losses. Ω asks each step to preserve the norm of the gradient it receives;
norms in other directions do not matter.

Only the immediate derivative of Ω is taken (equation 10): the parameters vary in ∂x_{k+1}/∂x_k, the
Jacobian of the step, while x_k and d_{k+1} stay constant. In the paper the carry is the
pre-activation, whose Jacobian depends on W_hh alone. The Jacobian of another carry, such as
h = tanh(z), may depend on the parameters through f'(z), too; here this dependence counts.

If a step receives no gradient, d_{k+1} = 0, Ω_k is not defined and counts as 0.

Gradient flossing (Engelken, 2023) pushes the largest Lyapunov exponents along the batch towards
zero (`lm_jax.gradients.lyapunov.flossing`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from lm_jax import trees
from lm_jax.data.batches import Batch
from lm_jax.gradients.bptt import Estimate, Estimator
from lm_jax.gradients.example import Step, StepLoss, single_example
from lm_jax.gradients.lyapunov import flossing
from lm_jax.gradients.validation import check_losses
from lm_jax.models.base import Carry, LanguageModel, Params, restart
from lm_jax.settings import UserError


class Way(NamedTuple):
    """The constants of Ω at each step of a single example; leaves [T, ...]."""

    carry: Carry
    """The carry before the step."""
    x: Any
    direction: Carry
    """d / ‖d‖ after the step; zero if d is zero."""
    counts: Bool[Array, " T"]
    """True if d is not zero."""


def omega(
    step: Step,
    loss: StepLoss,
    params: Params,
    carry: Carry,
    xs: Any,
    ys: Any,
    *,
    mask: Bool[Array, "*"] | None = None,
) -> tuple[Float[Array, ""], Params]:
    """Ω of a single example, and the immediate gradient of Ω.

    Args:
      step: (params, carry, x) -> carry, any transition with a carry of floating-point arrays.
      loss: (params, carry, y) -> [], nats of a step; E is the sum over the steps.
      params: the parameters of the gradient.
      carry: before the first step.
      xs: inputs, a tree of arrays [T, ...].
      ys: targets, a tree of arrays [T, ...].
      mask: [T], True for a step with a loss; None: all steps.

    Returns:
      (Ω, gradient): Ω is a sum over the T steps, the gradient has the shape of `params`. A NaN in
      the trajectory gives NaN.

    Raises:
      UserError: as `lm_jax.gradients.validation.check_losses`, or the mask does not have T steps.
    """
    steps = check_losses(step, loss, params, carry, xs, ys)
    mask = jnp.ones(steps, bool) if mask is None else mask
    if mask.shape != (steps,):
        raise UserError(f"mask is of shape {list(mask.shape)}, and xs has T={steps} steps")
    way = _way(step, loss, params, carry, xs, ys, mask)
    return jax.value_and_grad(lambda params: jnp.sum(_terms(step, params, way)))(params)


def with_omega(estimator: Estimator, model: LanguageModel, weight: float | Array) -> Estimator:
    """Estimator of the gradient of the loss plus weight × Ω.

    Ω is averaged over the steps and sequences of a batch that receive a gradient, so the weight
    does not depend on T. The program of the paper's authors does the same
    (github.com/pascanur/trainingRNNs; its ratio has the squares of both norms). As in the program,
    Ω changes the gradient of W_hh only. The reported loss does not include Ω.

    Every step of the model runs forwards and backwards a second time, and each step's carry is
    kept.

    Args:
      estimator: of the gradient of the loss.
      model: a recurrent model, without dropout.
      weight: of Ω, in nats.

    Raises:
      UserError: the model has no recurrent state, or dropout.
    """
    example = single_example(model)

    def more(params: Params, before: Carry, batch: Batch) -> Params:
        ways = jax.vmap(
            lambda carry, x, y, mask: _way(example.step, example.loss, params, carry, x, y, mask),
            in_axes=(0, 1, 1, 1),
        )(before, batch.x, batch.y, batch.mask)

        def mean_omega(params: Params) -> Array:
            params = jax.tree.map_with_path(recurrent_only, params)
            terms = jax.vmap(lambda way: _terms(example.step, params, way))(ways)
            return jnp.sum(terms) / jnp.maximum(jnp.sum(ways.counts), 1)

        return jax.tree.map(lambda g: weight * g, jax.grad(mean_omega)(params))

    def recurrent_only(path: tuple, leaf: Array) -> Array:
        recurrent = getattr(path[-1], "key", None) == "W_hh"
        return leaf if recurrent else jax.lax.stop_gradient(leaf)

    return _with(estimator, model, more)


def with_flossing(
    estimator: Estimator, model: LanguageModel, weight: float | Array, count: int
) -> Estimator:
    """Estimator of the gradient of the loss plus weight × the penalty of gradient flossing.

    The penalty is `flossing` along the batch, averaged over the sequences. The reported loss does
    not include the penalty. The cost: `count` tangent vectors for each sequence are pushed through
    the transition, and the gradient is taken through these tangents.

    Args:
      estimator: of the gradient of the loss.
      model: a recurrent model, without dropout.
      weight: of the penalty, in steps per nat.
      count: number of exponents, the largest first.

    Raises:
      UserError: the model has no recurrent state, or dropout.
    """
    example = single_example(model)

    def more(params: Params, before: Carry, batch: Batch) -> Params:
        def penalty(params: Params) -> Array:
            def of_sequence(carry: Carry, xs: Array) -> Array:
                return flossing(example.step, params, carry, xs, count)

            return weight * jnp.mean(jax.vmap(of_sequence, (0, 1))(before, batch.x))

        return jax.grad(penalty)(params)

    return _with(estimator, model, more)


def _with(
    estimator: Estimator,
    model: LanguageModel,
    more: Callable[[Params, Carry, Batch], Params],
) -> Estimator:
    """The estimator with more(params, the model's carry before the batch, batch) added."""

    def estimate(params: Params, carry: Carry, batch: Batch) -> Estimate:
        loss, after, grads, info = estimator(params, carry, batch)
        before = restart(model, estimator.model_carry(params, carry), batch.start)
        grads = jax.tree.map(jnp.add, grads, more(params, before, batch))
        return loss, after, grads, info

    return Estimator(estimator.init_carry, estimate, estimator.model_carry, redraw=estimator.redraw)


def _way(
    step: Step, loss: StepLoss, params: Params, carry: Carry, xs: Any, ys: Any, mask: Array
) -> Way:
    """Run an example forwards, then d backwards."""

    def forward(carry: Carry, x: Any) -> tuple[Carry, Carry]:
        return step(params, carry, x), carry

    def backward(returned: Carry, at_t: tuple) -> tuple[Carry, tuple]:
        before, x, y, asked = at_t
        after, back = jax.vjp(lambda carry: step(params, carry, x), before)
        own = jax.grad(lambda carry: loss(params, carry, y))(after)
        delta = jax.tree.map(lambda r, d: r + jnp.where(asked, d, 0), returned, own)
        return back(delta)[0], _direction(delta)

    last, before = jax.lax.scan(forward, carry, xs)
    none = optax.tree.zeros_like(last)
    _, (direction, counts) = jax.lax.scan(backward, none, (before, xs, ys, mask), reverse=True)
    return Way(before, xs, direction, counts)


def _direction(delta: Carry) -> tuple[Carry, Bool[Array, ""]]:
    """(δ / ‖δ‖, True), or (zero, False) if δ is zero."""
    counts = trees.norm(delta) != 0
    unit = trees.normalise(delta)
    return jax.tree.map(lambda leaf: jnp.where(counts, leaf, 0), unit), counts


def _terms(step: Step, params: Params, way: Way) -> Float[Array, " T"]:
    """Ω_k at every step."""

    def term(carry: Carry, x: Any, direction: Carry, counts: Array) -> Array:
        _, back = jax.vjp(lambda carry: step(params, carry, x), carry)
        returned = back(direction)[0]
        # ‖r‖ = u·r, with u = r / ‖r‖ held constant, has the derivative of the norm. If r is 0, the
        # derivative is 0, and Ω_k = 1 for any parameters.
        unit, _ = _direction(jax.lax.stop_gradient(returned))
        norm = trees.dot(unit, returned)
        return jnp.where(counts, (norm - 1) ** 2, 0)

    return jax.vmap(term)(*way)
