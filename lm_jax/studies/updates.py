"""What the next updates of a run would do to its loss: clipped or not, along the gradient or not.

The parameters are held still and the batches are those that the run would read next. What clipping
cuts off, what other estimators would give in the gradient's place, how steep and how sharply curved
the loss is there, and how the gradient would differ if the model read its own tokens, are four
looks at the same gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lm_jax.data.batches import Batch, first_lanes
from lm_jax.gradients.audit import (
    Apply,
    ClipSummary,
    Thresholds,
    clip_audit,
    clip_summary,
    quantile_thresholds,
)
from lm_jax.gradients.bptt import Estimator, explicit_bptt, truncated_bptt
from lm_jax.gradients.cliffs import Cliff, cliff
from lm_jax.gradients.clipping import Threshold
from lm_jax.gradients.compare import Comparison, compare
from lm_jax.gradients.exposed import ExposureCosines, exposure_cosines
from lm_jax.gradients.proof import LARGEST
from lm_jax.gradients.randomised import randomised_bptt
from lm_jax.gradients.rtrl import rtrl
from lm_jax.gradients.snap import snap1
from lm_jax.gradients.surface import batch_loss
from lm_jax.gradients.uoro import uoro
from lm_jax.inference.feeding import fed
from lm_jax.models import LanguageModel, count
from lm_jax.models.base import Carry, Params
from lm_jax.trees import norm

REACH = 10  # updates' lengths to each side of a slice through the loss
PLACES = 41  # of a slice
LANES, READ, DRAWS = 4, 4, 4  # of the batches that estimators are compared on
SHARE = 0.1  # of updates that thresholds would cut where a run has none


class Updates(NamedTuple):
    """What the next updates would do."""

    thresholds: Thresholds
    """Of the clipping that is audited."""
    suggested: Thresholds
    """Those that would cut about a tenth of the updates."""
    clipping: dict[str, ClipSummary]
    """By kind: norm, value, delta."""
    estimators: dict[str, Comparison]
    """By name, against full backpropagation through time, on some lanes of the first batches."""
    length: float
    """Of the first update, clipped as the run clips it not at all: ‖θ' - θ‖."""
    cliff: Cliff
    """Of the first batch's loss."""
    exposure: ExposureCosines | None
    """Of the first batch: the text's tokens against the model's own; None of a task, whose answers
    are not read."""


def updates(
    model: LanguageModel,
    params: Params,
    carry: Carry,
    batches: Sequence[Batch],
    *,
    thresholds: tuple[Threshold | None, Threshold | None, Threshold | None],
    apply: Apply,
    text: bool = True,
    seed: int = 0,
) -> Updates:
    """What some updates would do to the loss of a recurrent model, its dropout left out.

    Args:
      model, params: the model.
      carry: the model's, before the first batch.
      batches: that come next, of one shape.
      thresholds: of the run's clipping by norm, by value and within BPTT; one that is None is taken
        from `quantile_thresholds`.
      apply: (params, grads) -> params, the run's optimizer, as a `jax.tree_util.Partial`.
      text: whether the batches are of a text, of which the model could read its own.
      seed: of the model's own tokens and of the first direction that is tried.

    Raises:
      UserError: there are no batches, or the parameters are not floating-point.
    """
    key = jax.random.key(seed)
    suggested = quantile_thresholds(model, params, carry, batches, share=SHARE)
    by_norm, value, delta = (
        own if given is None else jnp.asarray(given, float)
        for given, own in zip(thresholds, suggested, strict=True)
    )
    assert by_norm is not None
    assert value is not None
    chosen = Thresholds(by_norm, value, delta)
    audit = jax.jit(clip_audit, static_argnames="model")(
        model,
        params,
        carry,
        list(batches),
        norm=chosen.norm,
        value=chosen.value,
        delta=chosen.delta,
        apply=apply,
    )

    @jax.jit
    def first(apply: Apply, params: Params, carry: Carry, batch: Batch) -> tuple:
        loss_fn = batch_loss(model, carry, batch)
        _, _, grads = explicit_bptt(model)(params, carry, batch)
        length = norm(jax.tree.map(jnp.subtract, apply(params, grads), params))
        distances = length * jnp.linspace(-REACH, REACH, PLACES)
        exposure = None
        if text:
            own = fed(model, params, carry, batch, key, jnp.ones(()))
            exposure = exposure_cosines(model, params, carry, batch, own)
        return length, cliff(loss_fn, params, key, distances=distances), exposure

    lanes = [first_lanes(batch, LANES) for batch in batches[:READ]]
    steps = len(batches[0].x)
    made = estimators(model, params, steps=steps, lanes=LANES, key=key)
    compared = compare(made, explicit_bptt(model), params, lanes, draws=DRAWS)
    length, surroundings, exposure = first(apply, params, carry, batches[0])
    return Updates(
        chosen,
        suggested,
        clip_summary(audit),
        compared,
        float(length),
        *jax.tree.map(np.asarray, (surroundings, exposure)),
    )


def estimators(
    model: LanguageModel, params: Params, *, steps: int, lanes: int, key: Array
) -> dict[str, Estimator]:
    """The estimators that a model's size and cells allow, by name.

    RTRL is left out where its influence, lanes × n × P numbers, would take more than 256 MiB, and
    SnAp-1 where a cell has no separate units.

    Args:
      model, params: a recurrent model.
      steps: T; truncation is to blocks of its three largest proper divisors, each an update of
        its own but for the parameters, which stay as they are.
      lanes: B.
      key: of what is drawn.
    """
    lengths = [k for k in range(1, steps) if steps % k == 0][-3:]
    made = {f"truncated, k1=k2={k}": truncated_bptt(model, k1=k, k2=k) for k in lengths}
    rate = min(0.5, 4 / steps)
    made[f"randomised, rate {rate:g}"] = randomised_bptt(model, rate=rate, key=key)
    made["UORO"] = uoro(model, key=key)
    cells = [layer.cell for layer in model.stack.layers] if model.stack else [None]
    if all(cell is not None and cell.units is not None for cell in cells):
        made["SnAp-1"] = snap1(model)
    state = sum(leaf.size for leaf in jax.tree.leaves(model.init_carry(1)))
    if lanes * state * count(params) * 4 <= LARGEST:
        made["RTRL"] = rtrl(model)
    return made
