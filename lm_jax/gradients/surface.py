"""The loss of a batch as a surface over the parameters, and lengths and angles on it.

All parameters together are one point of a Euclidean space, and a gradient or a direction is a tree
shaped as they are. Its largest number is divided out before anything is squared: in float32 a
gradient of 1e-23 would have length 0 otherwise, and one of 1e20 an infinite one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.data.batches import Batch
from lm_jax.gradients.norms import norm
from lm_jax.models.base import Carry, LanguageModel, Params, restart, total
from lm_jax.settings import UserError

LossFn = Callable[[Params], Array]
"""params -> [], nats per token."""


def batch_loss(model: LanguageModel, carry: Carry, batch: Batch) -> LossFn:
    """The mean nats of a batch's real tokens, as a function of the parameters alone.

    Args:
      model: the language model.
      carry: the model's, before the batch; made fresh where the batch's text starts.
      batch: T tokens of B lanes.
    """

    def loss(params: Params) -> Float[Array, ""]:
        _, h = model.hidden(params, restart(model, carry, batch.start), batch.x)
        nats = total(model.nats(params, h, batch.y), batch.mask)
        return nats / jnp.maximum(jnp.sum(batch.mask), 1)

    return loss


def refuse_integers(params: Params) -> None:
    """Returns if all parameters are floating-point.

    Raises:
      UserError: there is none, or one is not; names it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(jnp.size(leaf) for _, leaf in leaves):
        raise UserError("params hold no numbers, and so have no gradient")
    for path, leaf in leaves:
        kind = jnp.asarray(leaf).dtype
        if not jnp.issubdtype(kind, jnp.floating):
            where = jax.tree_util.keystr(path)
            raise UserError(
                f"params{where} is of type {kind}, not floating-point: a model that is counted, "
                "not trained, has no gradient"
            )


def dot(a: Params, b: Params) -> Float[Array, ""]:
    """The inner product over all leaves."""
    products: list[Array] = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
    return sum(products[1:], products[0])


def unit(a: Params) -> Params:
    """The direction of a, at length 1; NaN where a is zero or not finite."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(a)]))
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    scaled = jax.tree.map(lambda leaf: leaf / safe, a)
    length = norm(scaled)
    return jax.tree.map(lambda leaf: leaf / length, scaled)


def cosine(a: Params, b: Params) -> Float[Array, ""]:
    """The cosine of the angle between two directions; NaN where one is zero or not finite."""
    return jnp.clip(dot(unit(a), unit(b)), -1, 1)


def angle(a: Params, b: Params) -> Float[Array, ""]:
    """The angle between two directions in degrees, 0 to 180; NaN where one is not to be had.

    2 atan2(‖a/‖a‖ - b/‖b‖‖, ‖a/‖a‖ + b/‖b‖‖), which keeps its digits at small angles, where the
    cosine is flat.
    """
    a, b = unit(a), unit(b)
    apart, along = (norm(jax.tree.map(f, a, b)) for f in (jnp.subtract, jnp.add))
    return jnp.degrees(2 * jnp.arctan2(apart, along))


def moved(params: Params, direction: Params, distance: float | Array) -> Params:
    """The parameters, `distance` times the direction away."""
    return jax.tree.map(lambda p, d: p + distance * d, params, direction)
