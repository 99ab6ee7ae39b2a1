"""Bias and variance of gradient estimators against a reference, on any text and any parameters.

The parameters are held and the batches read one after another, each estimator with its own carry.
Let g be the reference's gradient and ĝ an estimate of it, both as one long vector. For each update

    cosine = ⟨ĝ, g⟩ / (‖ĝ‖ ‖g‖),   norm ratio = ‖ĝ‖ / ‖g‖.

Where an estimator draws, it reads all batches R times, each time with other draws. With ḡ_r the
mean of its gradients over the batches in one such reading, m the mean of the ḡ_r and g the mean of
the reference's,

    relative bias = ‖m - g‖ / ‖g‖,   variance = Σ_r ‖ḡ_r - m‖² / (R - 1),

and of an unbiased estimator ‖m - g‖ has a root mean square of √(variance / R): a relative bias that
is not well above its standard error, √(variance / R) / ‖g‖, is none that can be seen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax import trees
from lm_jax.data.batches import Batch
from lm_jax.gradients.bptt import Estimator
from lm_jax.models.base import Params


class Comparison(NamedTuple):
    """What one estimator has to the reference; plain numbers, NaN where there is none."""

    cosine: list[float]
    """By update, of the first draws."""
    norm_ratio: list[float]
    """By update, of the first draws."""
    mean_cosine: float
    """Of the mean over batches and draws."""
    relative_bias: float
    """Of the mean over batches and draws."""
    standard_error: float
    """Of the relative bias, which chance alone makes this large; 0 where nothing is drawn."""
    relative_variance: float
    """Of the mean over batches, over ‖g‖²; NaN where there is one draw of many that could be."""
    draws: int
    """Readings of the batches."""


def compare(
    estimators: Mapping[str, Estimator],
    reference: Estimator,
    params: Params,
    batches: Sequence[Batch],
    *,
    draws: int = 1,
) -> dict[str, Comparison]:
    """How far estimators are from a reference, update by update and in the mean over draws.

    It holds a few gradients at a time, whatever the number of batches and draws.

    Args:
      estimators: by the names of the result.
      reference: as a rule `full_bptt`, which is the gradient of each batch by itself. RTRL reaches
        back before the batch, and differs from it by that where a text goes on.
      params: held for all batches.
      batches: of one shape, in the order of the text; the first one starts it.
      draws: R, readings with other draws, of those estimators that draw.

    Raises:
      ValueError: there is no batch, batches differ in shape, or draws is not positive.
    """
    shapes = {batch.x.shape for batch in batches}
    if len(shapes) != 1:
        raise ValueError(f"batches of one shape [T, B] are needed, not of {sorted(shapes)}")
    if draws < 1:
        raise ValueError(f"draws={draws} must be 1 or more")
    text = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    return {
        name: _compared(_reading(estimator, reference, params, text), estimator, text, draws)
        for name, estimator in estimators.items()
    }


Reading = tuple[Float[Array, " U"], Float[Array, " U"], Params, Params]
"""Of all batches: cosines, norm ratios, the estimator's mean gradient and the reference's."""


def _reading(
    estimator: Estimator, reference: Estimator, params: Params, text: Batch
) -> Callable[[Int[Array, ""]], Reading]:
    """The function from the number of the first draw to a reading, compiled."""
    updates, _, lanes = text.mask.shape

    def read(first: Array, params: Params, text: Batch) -> Reading:
        carry = estimator.init_carry(lanes)
        if estimator.redraw is not None:
            carry = estimator.redraw(carry, first)

        def update(sums: tuple, batch: Batch) -> tuple[tuple, tuple]:
            carry, true_carry, mean, true_mean = sums
            _, carry, grads = estimator(params, carry, batch)
            _, true_carry, true = reference(params, true_carry, batch)
            seen = trees.cosine(grads, true), trees.norm(grads) / trees.norm(true)
            mean, true_mean = _plus(mean, grads, updates), _plus(true_mean, true, updates)
            return (carry, true_carry, mean, true_mean), seen

        none = jax.tree.map(jnp.zeros_like, params)
        start = carry, reference.init_carry(lanes), none, none
        (_, _, mean, true_mean), (cosines, ratios) = jax.lax.scan(update, start, text)
        return cosines, ratios, mean, true_mean

    compiled = jax.jit(read)
    return lambda first: compiled(first, params, text)


def _plus(mean: Params, grads: Params, count: int) -> Params:
    return jax.tree.map(lambda a, b: a + b / count, mean, grads)


def _compared(
    read: Callable[[Array], Reading], estimator: Estimator, text: Batch, draws: int
) -> Comparison:
    many = draws if estimator.redraw is not None else 1
    updates, steps, _ = text.mask.shape
    cosines, ratios, mean, true = read(jnp.int32(0))
    size = jnp.where(trees.norm(true) > 0, trees.norm(true), jnp.nan)
    spread = jnp.zeros(())  # Σ ‖ḡ_r - m‖² / ‖g‖² of the readings so far (Welford, 1962)
    for reading in range(1, many):
        _, _, new, _ = read(jnp.int32(reading * updates * steps))
        mean, spread = _with_one_more(mean, spread, new, reading + 1, size)
    if estimator.redraw is None:
        variance = 0.0
    else:
        variance = float(spread) / (many - 1) if many > 1 else math.nan
    return Comparison(
        cosine=[float(value) for value in cosines],
        norm_ratio=[float(value) for value in ratios],
        mean_cosine=float(trees.cosine(mean, true)),
        relative_bias=float(trees.norm(jax.tree.map(jnp.subtract, mean, true)) / size),
        standard_error=math.sqrt(variance / many),
        relative_variance=variance,
        draws=many,
    )


@jax.jit
def _with_one_more(
    mean: Params, spread: Array, new: Params, count: Int[Array, ""], size: Float[Array, ""]
) -> tuple[Params, Array]:
    off = jax.tree.map(jnp.subtract, new, mean)
    mean = jax.tree.map(lambda m, d: m + d / count, mean, off)
    left = jax.tree.map(jnp.subtract, new, mean)
    relative = (jax.tree.map(lambda leaf: leaf / size, tree) for tree in (off, left))
    return mean, spread + trees.dot(*relative)
