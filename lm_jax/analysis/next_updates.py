"""Effects of the next updates of a run on the loss.

The parameters stay fixed, and the batches are the next batches of the run. Four measurements look
at the same gradients: the part that clipping cuts off; the results of other gradient estimators;
the slope and curvature of the loss; and the change of the gradient if the model reads its own
tokens.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lm_jax.data.batches import Batch, first_sequences
from lm_jax.generation.scheduled_sampling import sample_inputs
from lm_jax.gradients.artbp import randomised_bptt
from lm_jax.gradients.bptt import Estimator, explicit_bptt, truncated_bptt
from lm_jax.gradients.cliffs import Cliff, cliff
from lm_jax.gradients.clipping import Threshold
from lm_jax.gradients.clipping_audit import (
    Apply,
    ClipSummary,
    Thresholds,
    clip_audit,
    clip_summary,
    quantile_thresholds,
)
from lm_jax.gradients.compare import Comparison, compare
from lm_jax.gradients.exposure_bias import ExposureCosines, exposure_cosines
from lm_jax.gradients.loss_surface import batch_loss
from lm_jax.gradients.proof import LARGEST
from lm_jax.gradients.rtrl import rtrl
from lm_jax.gradients.snap import snap1
from lm_jax.gradients.uoro import uoro
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.models.layers import CellLayer
from lm_jax.models.rnn import RNNModel
from lm_jax.trees import norm

REACH = 10  # lengths of an update to each side of a slice through the loss
PLACES = 41  # points of a slice
SEQUENCES, READ, DRAWS = 4, 4, 4  # sequences, batches and draws to compare estimators on
SHARE = 0.1  # share of updates that the suggested thresholds would cut


PARTS = ("estimators", "clipping", "cliff", "exposure")


class Updates(NamedTuple):
    """Effects of the next updates. A part is None if not asked for."""

    thresholds: Thresholds | None = None
    """Thresholds of the audited clipping."""
    suggested: Thresholds | None = None
    """Thresholds that would cut about a tenth of the updates."""
    clipping: dict[str, ClipSummary] | None = None
    """Summary of each kind of clipping: norm, value, delta."""
    estimators: dict[str, Comparison] | None = None
    """Comparison of each estimator with full BPTT, on some sequences of the first batches."""
    length: float | None = None
    """Length ‖θ' - θ‖ of the first update, taken without clipping; measured with the cliff."""
    cliff: Cliff | None = None
    """Slope and curvature of the first batch's loss."""
    exposure: ExposureCosines | None = None
    """Gradient on the first batch, with the text's tokens as inputs or the model's own; None for a
    task, because the model does not read its answers."""


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
    only: Collection[str] = PARTS,
) -> Updates:
    """Measure the effects of some updates on the loss of a recurrent model, without dropout.

    Args:
      model, params: the model.
      carry: the model's carry before the first batch.
      batches: the next batches, all of the same shape.
      thresholds: of the run's clipping by norm, by value and within BPTT; None is replaced by the
        threshold of `quantile_thresholds`.
      apply: (params, grads) -> params, the run's optimizer, as a `jax.tree_util.Partial`.
      text: True if the batches are of a text; the model can then read its own tokens.
      seed: for the model's own tokens and the start of the search for the sharpest direction.
      only: the parts to measure.

    Raises:
      UserError: there are no batches, or the parameters are not floating-point.
    """
    key = jax.random.key(seed)
    found = Updates()
    if "clipping" in only:
        found = _clipping(model, params, carry, batches, thresholds, apply)
    if "estimators" in only:
        few = [first_sequences(batch, SEQUENCES) for batch in batches[:READ]]
        made = estimators(model, params, steps=len(batches[0].x), batch_size=SEQUENCES, key=key)
        compared = compare(made, explicit_bptt(model), params, few, draws=DRAWS)
        found = found._replace(estimators=compared)

    @jax.jit
    def first(apply: Apply, params: Params, carry: Carry, batch: Batch) -> tuple:
        length = surroundings = exposure = None
        if "cliff" in only:
            loss_fn = batch_loss(model, carry, batch)
            _, _, grads, _ = explicit_bptt(model)(params, carry, batch)
            length = norm(optax.tree.sub(apply(params, grads), params))
            distances = length * jnp.linspace(-REACH, REACH, PLACES)
            surroundings = cliff(loss_fn, params, key, distances=distances)
        if text and "exposure" in only:
            own = sample_inputs(model, params, carry, batch, key, jnp.ones(()))
            exposure = exposure_cosines(model, params, carry, batch, own)
        return length, surroundings, exposure

    length, *measured = first(apply, params, carry, batches[0])
    surroundings, exposure = jax.tree.map(np.asarray, measured)
    if length is not None:
        found = found._replace(length=float(length), cliff=surroundings)
    return found._replace(exposure=exposure)


def _clipping(
    model: LanguageModel,
    params: Params,
    carry: Carry,
    batches: Sequence[Batch],
    thresholds: tuple[Threshold | None, Threshold | None, Threshold | None],
    apply: Apply,
) -> Updates:
    """Audit clipping at the given thresholds, or at the suggested threshold for None."""
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
    return Updates(chosen, suggested, clip_summary(audit))


def estimators(
    model: LanguageModel, params: Params, *, steps: int, batch_size: int, key: Array
) -> dict[str, Estimator]:
    """The estimators that a model's size and cells allow, by name.

    RTRL is left out if its influence, B × n × P numbers, takes more than 256 MiB. SnAp-1 is
    left out if a cell has no separate units.

    Args:
      model, params: a recurrent model.
      steps: T; the truncated estimators have k1 = k2 equal to the three largest proper divisors of
        T, and the parameters stay fixed from block to block.
      batch_size: B.
      key: for all draws.
    """
    lengths = [k for k in range(1, steps) if steps % k == 0][-3:]
    made = {f"truncated, k1=k2={k}": truncated_bptt(model, k1=k, k2=k) for k in lengths}
    rate = min(0.5, 4 / steps)
    made[f"randomised, rate {rate:g}"] = randomised_bptt(model, rate=rate, key=key)
    made["UORO"] = uoro(model, key=key)
    if isinstance(model, RNNModel) and all(
        isinstance(layer, CellLayer) and layer.cell.units is not None for layer in model.layers
    ):
        made["SnAp-1"] = snap1(model)
    state = optax.tree.size(model.init_carry(1))
    if batch_size * state * optax.tree.size(params) * 4 <= LARGEST:
        made["RTRL"] = rtrl(model)
    return made
