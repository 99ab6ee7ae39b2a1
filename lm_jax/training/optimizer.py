"""The Optax optimizer of a config, gradient clipping, and the schedules."""

from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from lm_jax import config as settings
from lm_jax.gradients.clipping import by_norm, by_value
from lm_jax.models.base import Params
from lm_jax.trees import norm

SQUARES = (settings.Adam, settings.AdamW, settings.RMSprop)


def clip(
    train: settings.Train, grads: Params, grad_norm: Float[Array, ""]
) -> tuple[Params, Bool[Array, ""], Float[Array, ""]]:
    """Clip the whole gradient, by norm and then by value.

    Args:
      train: the config; numbers may be tracers.
      grads: the gradient.
      grad_norm: the norm of `grads`.

    Returns:
      the clipped gradient, True if clipping changed the gradient, and the norm of the clipped
      gradient.
    """
    changed = jnp.zeros((), bool)
    if train.clip_norm is not None:
        grads, cut = by_norm(grads, train.clip_norm)
        changed |= cut
        limited = jnp.minimum(grad_norm, train.clip_norm)
        grad_norm = jnp.where(jnp.isinf(grad_norm), jnp.nan, limited)
    if train.clip_value is not None:
        value = train.clip_value
        grad_norm = norm(grads, change=lambda leaf: by_value(leaf, value)[0])
        grads, cut = by_value(grads, value)
        changed |= cut
    return grads, changed, grad_norm


def optimizer(
    train: settings.Train,
    learning_rate: float | Float[Array, ""],
    grad_norm: float | Float[Array, ""] = 0.0,
) -> optax.GradientTransformation:
    """The optimizer of a step, weight decay included.

    Args:
      train: the config; numbers may be tracers.
      learning_rate: the learning rate of this step.
      grad_norm: the norm of this step's gradient. If the square of the norm overflows, an optimizer
        with squared gradients makes the parameters NaN. Otherwise the optimizer would divide by ∞
        and leave the parameters unchanged for the rest of the run.
    """
    if isinstance(train.optimizer, SQUARES):
        learning_rate = jnp.where(jnp.isinf(jnp.square(grad_norm)), jnp.nan, learning_rate)
    rule = _rule(train.optimizer, learning_rate)
    if train.weight_decay is None:
        return rule
    return optax.chain(optax.add_decayed_weights(train.weight_decay), rule)


def _rule(config: settings.Optimizer, learning_rate: float | Array) -> optax.GradientTransformation:
    if isinstance(config, (settings.SGD, settings.ASGD)):
        return optax.sgd(learning_rate)
    if isinstance(config, settings.Momentum):
        return optax.sgd(learning_rate, momentum=config.momentum, nesterov=config.nesterov)
    if isinstance(config, settings.Adam):
        return optax.adam(learning_rate, b1=config.b1, b2=config.b2, eps=config.eps)
    if isinstance(config, settings.AdamW):
        return optax.adamw(
            learning_rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    return optax.rmsprop(learning_rate, decay=config.decay, eps=config.eps)


def learning_rate(
    train: settings.Train,
    step: Int[Array, ""],
    epoch: Int[Array, ""],
    lr_scale: Float[Array, ""],
) -> Float[Array, ""]:
    """The learning rate of a step.

    Args:
      train: the resolved config; numbers may be tracers.
      step: number of updates made.
      epoch: number of epochs completed.
      lr_scale: the product of the plateau schedule's cuts; 1 with any other schedule.
    """
    schedule = train.schedule
    share, steps = lr_scale, jnp.asarray(step, float)
    if isinstance(schedule, settings.Cosine):
        total = cast(Array, schedule.steps)  # a resolved config's is not None
        warm = jnp.minimum(1, (steps + 1) / jnp.maximum(schedule.warmup_steps, 1))
        past = (steps - schedule.warmup_steps) / jnp.maximum(total - schedule.warmup_steps, 1)
        down = (1 + jnp.cos(jnp.pi * jnp.clip(past, 0, 1))) / 2
        share = warm * (schedule.final + (1 - schedule.final) * down)
    elif isinstance(schedule, settings.Epochs):
        share = schedule.factor ** jnp.maximum(epoch - schedule.constant_epochs + 1, 0)
    return train.learning_rate * share


def own_share(feeding: settings.ScheduledSampling, step: Int[Array, ""]) -> Float[Array, ""]:
    """The share of inputs drawn from the model at a step (Bengio et al., 2015, section 2.4).

    The curve is a line, 1 - exp(-5 s), or the logistic function of 12 s - 6, as in the paper. Here
    s is `step` divided by the config's `steps`, at most 1. Each curve is shifted and scaled to go
    from `start` to `end`.

    Args:
      feeding: the resolved config; numbers may be tracers.
      step: number of updates made.
    """
    steps = cast(Array, feeding.steps)  # a resolved config's is not None
    way = jnp.clip(jnp.asarray(step, float) / jnp.maximum(steps, 1), 0, 1)
    if feeding.curve == "exponential":
        way = (1 - jnp.exp(-5 * way)) / (1 - jnp.exp(-5.0))
    elif feeding.curve == "sigmoid":
        low, high = jax.nn.sigmoid(-6.0), jax.nn.sigmoid(6.0)
        way = (jax.nn.sigmoid(12 * way - 6) - low) / (high - low)
    return feeding.start + (feeding.end - feeding.start) * way
