"""From a config to Optax: the optimizer, its clipping, and what follows a schedule."""

from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from lm_jax import config as settings
from lm_jax.gradients.clipping import by_norm, by_value
from lm_jax.models.base import Params
from lm_jax.trees import norm

Optimizer = (
    settings.SGD
    | settings.ASGD
    | settings.Momentum
    | settings.Adam
    | settings.AdamW
    | settings.RMSprop
)

SQUARES = (settings.Adam, settings.AdamW, settings.RMSprop)


def clip(
    train: settings.Train, grads: Params, length: Float[Array, ""]
) -> tuple[Params, Bool[Array, ""], Float[Array, ""]]:
    """What is done to the whole gradient before the optimizer sees it: by norm, then by value.

    Args:
      train: the config; its numbers may be tracers.
      grads: the gradient.
      length: its norm.

    Returns:
      the gradient, whether it was changed, and its norm now.
    """
    changed = jnp.zeros((), bool)
    if train.clip_norm is not None:
        grads, cut = by_norm(grads, train.clip_norm)
        changed |= cut
        length = jnp.where(jnp.isinf(length), jnp.nan, jnp.minimum(length, train.clip_norm))
    if train.clip_value is not None:
        value = train.clip_value
        length = norm(grads, change=lambda leaf: by_value(leaf, value)[0])
        grads, cut = by_value(grads, value)
        changed |= cut
    return grads, changed, length


def optimizer(
    train: settings.Train,
    learning_rate: float | Float[Array, ""],
    length: float | Float[Array, ""] = 0.0,
) -> optax.GradientTransformation:
    """The optimizer of one step, weight decay included.

    Args:
      train: the config; its numbers may be tracers.
      learning_rate: of this step.
      length: norm of the gradient of this step. If its square is beyond the largest float, an
        optimizer that squares makes the parameters NaN: divided by ∞, they would stand still for
        good.
    """
    if isinstance(train.optimizer, SQUARES):
        learning_rate = jnp.where(jnp.isinf(jnp.square(length)), jnp.nan, learning_rate)
    rule = _rule(train.optimizer, learning_rate)
    if train.weight_decay is None:
        return rule
    return optax.chain(optax.add_decayed_weights(train.weight_decay), rule)


def _rule(config: Optimizer, learning_rate: float | Array) -> optax.GradientTransformation:
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
    cut: Float[Array, ""],
) -> Float[Array, ""]:
    """The learning rate of a step.

    Args:
      train: the config, resolved; its numbers may be tracers.
      step: updates made so far.
      epoch: epochs completed so far.
      cut: the product of a plateau's cuts so far; 1 with any other schedule.
    """
    schedule = train.schedule
    share, steps = cut, jnp.asarray(step, float)
    if isinstance(schedule, settings.Cosine):
        total = cast(Array, schedule.steps)  # a resolved config's is not None
        warm = jnp.minimum(1, (steps + 1) / jnp.maximum(schedule.warmup_steps, 1))
        past = (steps - schedule.warmup_steps) / jnp.maximum(total - schedule.warmup_steps, 1)
        down = (1 + jnp.cos(jnp.pi * jnp.clip(past, 0, 1))) / 2
        share = warm * (schedule.final + (1 - schedule.final) * down)
    elif isinstance(schedule, settings.Epochs):
        share = schedule.factor ** jnp.maximum(epoch - schedule.constant_epochs + 1, 0)
    return train.learning_rate * share


def own_share(feeding: settings.OwnTokens, step: Int[Array, ""]) -> Float[Array, ""]:
    """The share of inputs that are the model's own tokens at a step (Bengio et al., 2015, 2.4).

    The paper's three curves, each shifted and scaled so that it goes from `start` to `end`: a line,
    1 - exp(-5 s), and the logistic function of 12 s - 6, where s is the share of `steps` made.

    Args:
      feeding: the config, resolved; its numbers may be tracers.
      step: updates made so far.
    """
    steps = cast(Array, feeding.steps)  # a resolved config's is not None
    way = jnp.clip(jnp.asarray(step, float) / jnp.maximum(steps, 1), 0, 1)
    if feeding.curve == "exponential":
        way = (1 - jnp.exp(-5 * way)) / (1 - jnp.exp(-5.0))
    elif feeding.curve == "sigmoid":
        low, high = jax.nn.sigmoid(-6.0), jax.nn.sigmoid(6.0)
        way = (jax.nn.sigmoid(12 * way - 6) - low) / (high - low)
    return feeding.start + (feeding.end - feeding.start) * way
