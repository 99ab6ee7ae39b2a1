"""The Optax optimizer of a config, gradient clipping, and the schedules."""

import functools
from collections.abc import Hashable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Bool, Float, Int

from lm_jax import config as configs
from lm_jax.config.custom import blaming, load
from lm_jax.gradients.clipping import by_norm, by_value
from lm_jax.models.base import Params
from lm_jax.settings import UserError
from lm_jax.trees import by_name, matching, norm

REST = -1  # number of the parameters without a group
WITHOUT_SQUARES = (configs.SGD, configs.ASGD, configs.Momentum, configs.Lion)


def clip(
    train: configs.Train, grads: Params, grad_norm: Float[Array, ""]
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
    train: configs.Train,
    rate: float | Float[Array, ""],
    clipped_norm: float | Float[Array, ""] = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a step, weight decay and groups of parameters included.

    Args:
      train: the config; numbers may be tracers.
      rate: the learning rate of this step.
      clipped_norm: the norm of this step's gradient after clipping. If the square of the norm is
        not finite, an optimizer with squared gradients makes the parameters NaN. Otherwise the
        optimizer would divide by ∞ and leave the parameters unchanged for the rest of the run.

    Raises:
      UserError: when the optimizer is initialized: a group has no parameters; an optimizer of the
        user's own is none.
    """

    def with_decay(
        config: configs.Optimizer, rate: Any, decay: Any
    ) -> optax.GradientTransformation:
        if not isinstance(config, WITHOUT_SQUARES):
            rate = jnp.where(jnp.isfinite(jnp.square(clipped_norm)), rate, jnp.nan)
        rule = _rule(config, rate)
        return rule if decay is None else optax.chain(optax.add_decayed_weights(decay), rule)

    rest = with_decay(train.optimizer, rate, train.weight_decay)
    if not train.groups:
        return optax.with_extra_args_support(rest)
    rules: dict[Hashable, optax.GradientTransformation] = {REST: rest}
    for number, group in enumerate(train.groups):
        group_rate = rate
        if group.learning_rate is not None:
            group_rate = rate * (group.learning_rate / train.learning_rate)
        decay = train.weight_decay if group.weight_decay is None else group.weight_decay
        rules[number] = with_decay(group.optimizer or train.optimizer, group_rate, decay)
    return optax.partition(rules, functools.partial(_groups, [g.pattern for g in train.groups]))


def _groups(patterns: Sequence[str], params: Params) -> Any:
    """The number of each parameter's group, or `REST`, in the structure of `params`."""
    names = list(by_name(params))
    groups = [
        next((n for n, pattern in enumerate(patterns) if matching(name, [pattern])), REST)
        for name in names
    ]
    for number, pattern in enumerate(patterns):
        if number not in groups:
            raise UserError(
                f"train.groups.{number}.pattern={pattern!r} leaves no parameter for the group: the "
                f"parameters are {', '.join(names)}"
            )
    return jax.tree.unflatten(jax.tree.structure(params), groups)


def _rule(config: configs.Optimizer, rate: Any) -> optax.GradientTransformation:
    match config:
        case configs.SGD() | configs.ASGD():
            return optax.sgd(rate)
        case configs.Momentum():
            return optax.sgd(rate, momentum=config.momentum, nesterov=config.nesterov)
        case configs.Adam():
            return optax.adam(rate, b1=config.beta1, b2=config.beta2, eps=config.eps)
        case configs.AdamW():
            return optax.adamw(
                rate,
                b1=config.beta1,
                b2=config.beta2,
                eps=config.eps,
                weight_decay=config.weight_decay,
            )
        case configs.RMSprop():
            return optax.rmsprop(rate, decay=config.decay, eps=config.eps)
        case configs.Adan():
            return optax.adan(
                rate,
                b1=config.beta1,
                b2=config.beta2,
                b3=config.beta3,
                eps=config.eps,
                weight_decay=config.weight_decay,
            )
        case configs.Adafactor():
            return optax.adafactor(
                rate,
                min_dim_size_to_factor=config.factor_from,
                decay_rate=config.decay,
                multiply_by_parameter_scale=config.relative,
                clipping_threshold=config.clip,
                momentum=config.momentum,
                dtype_momentum=jnp.zeros(()).dtype,
            )
        case configs.Lion():
            return optax.lion(
                rate, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay
            )
        case configs.Muon():
            return optax.contrib.muon(
                rate,
                ns_steps=config.iterations,
                beta=config.beta,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                adam_b1=config.beta1,
                adam_b2=config.beta2,
                muon_weight_dimension_numbers=_hidden_matrices,
            )
        case configs.CustomOptimizer():
            return _custom(config, rate)


def _hidden_matrices(params: Params) -> Any:
    """Mark the matrices of the hidden layers, for Muon; None for every other parameter."""

    def mark(path: Sequence[Any], leaf: Array) -> Any:
        outside = path[0].key in ("embedding", "readout")
        return None if outside or leaf.ndim != 2 else optax.contrib.MuonDimensionNumbers()

    return jax.tree.map_with_path(mark, params)


def _custom(config: configs.CustomOptimizer, rate: Any) -> optax.GradientTransformation:
    named = load(config)
    with blaming(config):
        made = named(rate, **config.arguments)
        if not isinstance(made, optax.GradientTransformation):
            raise UserError("it gives no optax.GradientTransformation")
        return made


def learning_rate(
    train: configs.Train,
    step: Int[Array, ""],
    epoch: Int[Array, ""],
    lr_scale: Float[Array, ""],
) -> Float[Array, ""]:
    """The learning rate of a step.

    Args:
      train: the resolved config; numbers may be tracers.
      step: number of updates made.
      epoch: number of epochs completed.
      lr_scale: the product of all cuts, of the plateau schedule and after a divergence.
    """
    schedule = train.schedule
    share, now = 1.0, jnp.asarray(step, float)
    if isinstance(schedule, configs.Cosine):
        total = cast(Array, schedule.steps)  # a resolved config's is not None
        warm = jnp.minimum(1, (now + 1) / jnp.maximum(schedule.warmup_steps, 1))
        past = (now - schedule.warmup_steps) / jnp.maximum(total - schedule.warmup_steps, 1)
        down = (1 + jnp.cos(jnp.pi * jnp.clip(past, 0, 1))) / 2
        share = warm * (schedule.final + (1 - schedule.final) * down)
    elif isinstance(schedule, configs.Epochs):
        share = schedule.factor ** jnp.maximum(epoch - schedule.constant_epochs + 1, 0)
    return train.learning_rate * share * lr_scale


def own_share(feeding: configs.ScheduledSampling, step: Int[Array, ""]) -> Float[Array, ""]:
    """The share of inputs drawn from the model at a step (Bengio et al., 2015, section 2.4).

    The curve is a line, 1 - exp(-5 s), or the logistic function of 12 s - 6, as in the paper. Here
    s is `step` divided by the config's `steps`, at most 1. Each curve is shifted and scaled to go
    from `start` to `end`.

    Args:
      feeding: the resolved config; numbers may be tracers.
      step: number of updates made.
    """
    total = cast(Array, feeding.steps)  # a resolved config's is not None
    way = jnp.clip(jnp.asarray(step, float) / jnp.maximum(total, 1), 0, 1)
    if feeding.curve == "exponential":
        way = (1 - jnp.exp(-5 * way)) / (1 - jnp.exp(-5.0))
    elif feeding.curve == "sigmoid":
        low, high = jax.nn.sigmoid(-6.0), jax.nn.sigmoid(6.0)
        way = (jax.nn.sigmoid(12 * way - 6) - low) / (high - low)
    return feeding.start + (feeding.end - feeding.start) * way
