"""Bias and variance of gradient estimators against a reference, on any text and any parameters.

The parameters are fixed. Each estimator reads the batches in order, with a carry of its own. Let g
be the reference's gradient and ĝ an estimate of g, each as one long vector. For each update

    cosine = ⟨ĝ, g⟩ / (‖ĝ‖ ‖g‖),   norm ratio = ‖ĝ‖ / ‖g‖.

An estimator with random draws reads all batches R times, each time with new draws. Let ḡ_r be the
mean of the estimator's gradients over the batches in reading r, m the mean of the ḡ_r, and g the
mean of the reference's gradients. Then

    relative bias = ‖m - g‖ / ‖g‖,   variance = Σ_r ‖ḡ_r - m‖² / (R - 1).

For an unbiased estimator, ‖m - g‖ has a root mean square of √(variance / R). A relative bias is
therefore visible only if well above its standard error, √(variance / R) / ‖g‖.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lm_jax import trees
from lm_jax.data.batches import Batch
from lm_jax.gradients.bptt import Estimator
from lm_jax.gradients.validation import exact_products
from lm_jax.models.base import Params


class Comparison(NamedTuple):
    """Comparison of one estimator with the reference, in plain numbers; NaN if undefined."""

    cosine: list[float]
    """Cosine of each update, with the first draws."""
    norm_ratio: list[float]
    """Norm ratio of each update, with the first draws."""
    mean_cosine: float
    """Cosine of the mean gradient over batches and draws."""
    relative_bias: float
    """Relative bias of the mean gradient over batches and draws."""
    standard_error: float
    """Standard error of the relative bias: the size due to chance alone; 0 without draws."""
    relative_variance: float
    """Variance of the mean gradient over batches, divided by ‖g‖². 0 for an estimator without
    random draws; NaN for an estimator with random draws, if R = 1."""
    draws: int
    """Number of readings of the batches."""


@exact_products
def compare(
    estimators: Mapping[str, Estimator],
    reference: Estimator,
    params: Params,
    batches: Sequence[Batch],
    *,
    draws: int = 1,
) -> dict[str, Comparison]:
    """Compare estimators with a reference, update by update and in the mean over draws.

    Memory holds a few gradients at a time, for any number of batches and draws.

    Args:
      estimators: the estimators, under the names to be used in the result.
      reference: as a rule `full_bptt`, the gradient of each batch by itself. RTRL reaches back
        before the batch, and differs from `full_bptt` if a text goes on from batch to batch.
      params: the parameters, the same for all batches.
      batches: batches of equal shape, in the order of the text, from the start of the text.
      draws: R, the number of readings by estimators with random draws.

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


Estimates = tuple[Float[Array, " U"], Float[Array, " U"], Params, Params]
"""Over all batches: cosines, norm ratios, mean gradients of the estimator and of the reference."""


def _reading(
    estimator: Estimator, reference: Estimator, params: Params, text: Batch
) -> Callable[[Int[Array, ""]], Estimates]:
    """Compiled function from the number of the first draw to a reading."""
    updates, _, batch_size = text.mask.shape

    def read(first: Array, params: Params, text: Batch) -> Estimates:
        carry = estimator.init_carry(batch_size)
        if estimator.redraw is not None:
            carry = estimator.redraw(carry, first)

        def update(sums: tuple, batch: Batch) -> tuple[tuple, tuple]:
            carry, true_carry, mean, true_mean = sums
            _, carry, grads, _ = estimator(params, carry, batch)
            _, true_carry, true, _ = reference(params, true_carry, batch)
            seen = trees.cosine(grads, true), trees.norm(grads) / trees.norm(true)
            mean, true_mean = _plus(mean, grads, updates), _plus(true_mean, true, updates)
            return (carry, true_carry, mean, true_mean), seen

        none = optax.tree.zeros_like(params)
        start = carry, reference.init_carry(batch_size), none, none
        (_, _, mean, true_mean), (cosines, ratios) = jax.lax.scan(update, start, text)
        return cosines, ratios, mean, true_mean

    compiled = jax.jit(read)
    return lambda first: compiled(first, params, text)


def _plus(mean: Params, grads: Params, count: int) -> Params:
    return jax.tree.map(lambda a, b: a + b / count, mean, grads)


def _compared(
    read: Callable[[Array], Estimates], estimator: Estimator, text: Batch, draws: int
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
        relative_bias=float(trees.norm(optax.tree.sub(mean, true)) / size),
        standard_error=math.sqrt(variance / many),
        relative_variance=variance,
        draws=many,
    )


@jax.jit
def _with_one_more(
    mean: Params, spread: Array, new: Params, count: Int[Array, ""], size: Float[Array, ""]
) -> tuple[Params, Array]:
    off = optax.tree.sub(new, mean)
    mean = jax.tree.map(lambda m, d: m + d / count, mean, off)
    left = optax.tree.sub(new, mean)
    relative = (jax.tree.map(lambda leaf: leaf / size, tree) for tree in (off, left))
    return mean, spread + trees.dot(*relative)
