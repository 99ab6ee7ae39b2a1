"""The gradient by up to four routes that share little code, and the differences between them.

- the route of training: for a gated cell, explicit BPTT with a backward pass written by hand; for a
  cell that is linear in its state, autodiff of the parallel scan. Any other model is trained by the
  next route, and this route is left out;
- autodiff of the plain scan;
- RTRL, forward in time. If the influence is too large to hold, or a part of the state has no
  derivative, RTRL is replaced by forward mode along the directions d below: RTRL's recursion for
  P_t d instead of P_t;
- central differences, (J(θ + ε d) - J(θ - ε d)) / 2ε, along random directions d of length 1, in all
  parameters and in each block of parameters, compared with ⟨∂J/∂θ, d⟩.

The first three routes differ by rounding alone. Their difference is the largest ‖a - b‖ / ‖b‖ over
the blocks; ‖b‖ counts as at least a millionth of the whole gradient's norm.

A difference quotient has an error of order ε² from the curvature of J and an error of order 1/ε
from rounding. So several ε are tried, and the quotient nearest to the slope ⟨∂J/∂θ, d⟩ counts: a
wrong slope agrees with no quotient. The difference is relative to the root mean square of ⟨g, d⟩,
‖g‖ / √P if P numbers are moved. This root mean square counts as at least a hundredth of its value
for the whole gradient; the rounding of J hides smaller slopes.

All numbers are float64. A model that rounds on the way, as with `model.precision=bfloat16`, is
refused: rounding has no derivative, so even correct routes would differ.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Jaxpr, jaxprs_in_params
from jaxtyping import Array, Float

from lm_jax.data.batches import Batch
from lm_jax.gradients.bptt import Estimator, explicit_bptt, full_bptt
from lm_jax.gradients.rtrl import rtrl
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import NO_HOOK, Params
from lm_jax.models.blocks import BlockLayer
from lm_jax.models.cells import GatedCell
from lm_jax.models.layers import CellLayer
from lm_jax.models.linear_recurrences import LinearCell
from lm_jax.models.rnn import RNNModel
from lm_jax.settings import UserError
from lm_jax.trees import by_name, norm, normalise

EXACT = 1e-10  # relative; the rounding errors of T steps stay well below
APPROXIMATE = 1e-5  # relative; for a difference quotient
STEPS = (1e-2, 1e-3, 1e-4, 1e-5)
AUTODIFF = "autodiff"  # the route that all others are compared with
LARGEST = 2**28  # bytes; a larger influence is not held


class Check(NamedTuple):
    """Difference between two routes to the gradient."""

    route: str
    against: str
    difference: float
    """The largest relative difference."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        """True if the difference is within the tolerance; False if the difference is NaN."""
        return self.difference <= self.tolerance


def verify(
    model: LanguageModel,
    params: Params,
    batch: Batch,
    *,
    directions: int = 3,
    seed: int = 0,
    largest: int = LARGEST,
) -> list[Check]:
    """Compare the routes to the gradient of a batch, read from the model's initial carry.

    A model without recurrence has no RTRL. The route of training is left out if training uses
    autodiff of the plain scan (see `trained_by`).

    Args:
      model: the language model.
      params: the point at which the gradient is taken; converted to float64.
      batch: the tokens to read; a small batch is enough.
      directions: number of random directions of all parameters together; each block gets a further
        direction.
      seed: for the directions.
      largest: bytes that RTRL's influence may take; forward mode along the directions replaces a
        larger influence.

    Raises:
      UserError: float64 is switched off, the batch has no target, or the model rounds, as with
        `precision="bfloat16"`: verify a model of the same parameters with "float32".
    """
    if not jax.config.read("jax_enable_x64"):
        raise UserError("the proof needs float64: jax.config.update('jax_enable_x64', True)")
    if not jnp.any(batch.mask):
        raise UserError("the batch has no target, so its gradient is zero by any route")
    params = optax.tree.cast(params, jnp.float64)
    carry = model.init_carry(batch.x.shape[1])

    def mean_nats(params: Params) -> Float[Array, ""]:
        _, h = model.hidden(params, restart(model, carry, batch.start), batch.x, NO_HOOK)
        return model.loss(params, h, batch.y, batch.mask) / jnp.sum(batch.mask)

    if narrow := _rounded_to(jax.make_jaxpr(mean_nats)(params).jaxpr):
        raise UserError(
            f"the model rounds float64 to {' and '.join(sorted(narrow))}, which has no derivative "
            "to verify: make it with model.precision=float32, and let a cell of your own not round"
        )

    def gradient(estimator: Estimator) -> Params:
        return jax.device_get(jax.jit(estimator)(params, carry, batch)[2])

    grads = gradient(full_bptt(model))
    found = []
    if trained := trained_by(model):
        apart = _apart(gradient(explicit_bptt(model)), grads)
        found.append(Check(trained, AUTODIFF, apart, EXACT))
    blocks = list(by_name(grads))
    draw = jax.jit(_direction)
    keys = jax.random.split(jax.random.key(seed), directions + len(blocks))
    along = [draw(key, params, -1) for key in keys[:directions]]
    if isinstance(model, RNNModel):
        states = jax.tree.leaves(carry)
        floating = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in states)
        if floating and optax.tree.size(states) * optax.tree.size(params) * 8 <= largest:
            found.append(Check("RTRL", AUTODIFF, _apart(gradient(rtrl(model)), grads), EXACT))
        else:
            pushed = jax.jit(lambda d: jax.jvp(mean_nats, (params,), (d,))[1])
            apart = _worst([_off([pushed(d)], grads, d) for d in along])
            found.append(Check("RTRL along directions", AUTODIFF, apart, EXACT))
    nats = jax.jit(lambda distance, d: mean_nats(optax.tree.add_scale(params, distance, d)))

    def quotients(d: Params) -> list[Array]:
        return [(nats(size, d) - nats(-size, d)) / (2 * size) for size in STEPS]

    apart = _worst([_off(quotients(d), grads, d) for d in along])
    found.append(Check("finite differences", AUTODIFF, apart, APPROXIMATE))
    for place, block in enumerate(blocks):
        d = draw(keys[directions + place], params, place)
        apart = _off(quotients(d), grads, d)
        found.append(Check(f"finite differences of {block}", AUTODIFF, apart, APPROXIMATE))
    return found


def trained_by(model: LanguageModel) -> str | None:
    """Name of the route that `explicit_bptt` takes; None for autodiff of the plain scan."""
    layers = model.layers if isinstance(model, RNNModel) else ()
    inside = [layer.recurrence if isinstance(layer, BlockLayer) else layer for layer in layers]
    cells = [layer.cell for layer in inside if isinstance(layer, CellLayer)]
    if any(isinstance(cell, GatedCell) for cell in cells):
        return "explicit BPTT"
    return "parallel scan" if any(isinstance(cell, LinearCell) for cell in cells) else None


def _rounded_to(jaxpr: Jaxpr) -> set[str]:
    """Names of the floating-point types to which a program rounds wider types."""
    found = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "convert_element_type":
            avals: list[Any] = [var.aval for var in (*eqn.invars, *eqn.outvars)]
            old, new = (aval.dtype for aval in avals)
            floating = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (old, new))
            if floating and new.itemsize < old.itemsize:
                found.add(new.name)
        found.update(*map(_rounded_to, jaxprs_in_params(eqn.params)))
    return found


def _direction(key: Array, params: Params, block: int | Array) -> Params:
    """Random direction of length 1 in a block of the parameters; in all blocks if block < 0."""
    leaves, structure = jax.tree.flatten(optax.tree.random_like(key, params))
    kept = [jnp.where((block < 0) | (block == place), leaf, 0) for place, leaf in enumerate(leaves)]
    return normalise(structure.unflatten(kept))


def _apart(a: Params, b: Params) -> float:
    """Largest relative difference of a block between two gradients."""
    least = 1e-6 * _norm(b)
    ratios = [
        _over(_norm(x - y), max(_norm(y), least))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return _worst(ratios)


def _off(slopes: list[Array], grads: Params, d: Params) -> float:
    """Relative distance between the gradient's slope along d and the nearest of `slopes`."""
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(jax.device_get(d)), strict=True)
    moved = [(g, step) for g, step in pairs if np.any(step)]
    slope = sum(float(np.vdot(g, step)) for g, step in moved)
    usual = _norm([g for g, _ in moved]) / math.sqrt(optax.tree.size([g for g, _ in moved]))
    least = 1e-2 * _norm(grads) / math.sqrt(optax.tree.size(grads))
    off = [abs(float(found) - slope) for found in slopes]
    return _over(min(off, key=lambda value: (math.isnan(value), value)), max(usual, least))


def _worst(ratios: list[float]) -> float:
    """Largest of some numbers; NaN if any number is NaN."""
    return math.nan if any(map(math.isnan, ratios)) else max(ratios)


def _over(a: float, b: float) -> float:
    return a / b if b else a


def _norm(tree: Params) -> float:
    return float(norm(tree))
