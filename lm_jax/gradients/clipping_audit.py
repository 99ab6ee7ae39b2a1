"""An audit of clipping: how often gradients are cut, how much, how far they turn, and the cost.

A gradient is clipped by norm, by value (`lm_jax.gradients.clipping`) or by delta, within BPTT
(`clip_cotangent`). Clipping by norm never turns the gradient; the other two kinds do. The audit
keeps the parameters fixed and hands the carry from batch to batch. For the gradient g of each batch
and the clipped gradient g', the audit measures how much shorter g' is, how far g' is turned, and
the loss of the same batch after a step with g' beside the loss after a step with g.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lm_jax import trees
from lm_jax.data.batches import Batch
from lm_jax.gradients.bptt import clip_cotangent, explicit_bptt
from lm_jax.gradients.clipping import Threshold, by_norm, by_value, largest
from lm_jax.gradients.loss_surface import batch_loss
from lm_jax.gradients.validation import check_floating
from lm_jax.models.base import Carry, EdgeHook, LanguageModel, Params, restart
from lm_jax.models.rnn import RNNModel
from lm_jax.settings import UserError

Apply = Callable[[Params, Params], Params]
"""(params, grads) -> params: the step of an optimizer."""


class Clipped(NamedTuple):
    """Effect of one kind of clipping on the gradient of each update."""

    cut: Float[Array, " updates"]
    """By norm: 1 if the gradient was cut, else 0. By value: the share of entries cut. By delta: the
    share of δ_t cut in some layer, over all sequences and over all time steps t up to the last
    target of a sequence. NaN if g holds a NaN."""
    ratio: Float[Array, " updates"]
    """‖g'‖ / ‖g‖; NaN if g is zero, like `cosine` and `angle`."""
    cosine: Float[Array, " updates"]
    """Cosine of the angle between g' and g."""
    angle: Float[Array, " updates"]
    """Angle between g' and g, in degrees."""
    after: Float[Array, " updates"]
    """Loss of the same batch after a step with g', in nats per token."""


class ClipAudit(NamedTuple):
    """Effect of clipping on the gradients of a sequence of batches."""

    norm: Float[Array, " updates"]
    """‖g‖, before clipping."""
    before: Float[Array, " updates"]
    """Loss of each batch, in nats per token."""
    unclipped: Float[Array, " updates"]
    """Loss of the same batch after a step with the unclipped g, in nats per token."""
    kinds: dict[str, Clipped]
    """Results under the names norm, value and delta, for each kind with a threshold."""


class ClipSummary(NamedTuple):
    """Summary of one kind of clipping over all updates of an audit whose gradient is not 0."""

    often: Float[Array, ""]
    """Share of updates with a changed gradient."""
    share: Float[Array, ""]
    """Mean of `Clipped.cut`."""
    ratio: Float[Array, ""]
    """Mean of ‖g'‖ / ‖g‖."""
    least_ratio: Float[Array, ""]
    cosine: Float[Array, ""]
    """Mean of `Clipped.cosine`."""
    least_cosine: Float[Array, ""]
    angle: Float[Array, ""]
    """Mean of `Clipped.angle`, in degrees."""
    largest_angle: Float[Array, ""]
    before: Float[Array, ""]
    """Mean loss of the batches before a step, in nats per token."""
    after: Float[Array, ""]
    """Mean loss after a step with the clipped gradient, in nats per token."""
    unclipped: Float[Array, ""]
    """Mean loss after a step with the unclipped gradient, in nats per token."""


class Thresholds(NamedTuple):
    """Thresholds of the three kinds of clipping."""

    norm: Float[Array, ""]
    value: Float[Array, ""]
    delta: Float[Array, ""] | None
    """None if no state is recurrent."""


def sgd(learning_rate: float | Float[Array, ""]) -> Apply:
    """The step of plain gradient descent, a function (params, grads) -> params."""

    def apply(rate: Array, params: Params, grads: Params) -> Params:
        return optax.tree.add_scale(params, -rate, grads)

    return jax.tree_util.Partial(apply, jnp.asarray(learning_rate))


def clip_audit(
    model: LanguageModel,
    params: Params,
    carry: Carry,
    batches: Sequence[Batch],
    *,
    norm: Threshold | None = None,
    value: Threshold | None = None,
    delta: Threshold | None = None,
    apply: Apply,
) -> ClipAudit:
    """Measure the effect of each kind of clipping, by itself, on the gradients of some batches.

    Thresholds may be tracers: `jax.jit` compiles the audit once for all thresholds.

    Args:
      model, params: the model, without dropout.
      carry: the model's own carry before the first batch; handed on from batch to batch.
      batches: batches of equal shape.
      norm: threshold of the gradient's norm, in nats per token per unit of the parameters; None
        leaves this kind out.
      value: threshold of each |g_i|, in the same unit; None leaves this kind out.
      delta: threshold of each ‖δ_t‖, see `clip_cotangent`; None leaves this kind out.
      apply: the step, (params, grads) -> params, for example `sgd(0.1)`.

    Raises:
      UserError: no threshold is given, there is no batch, the batches differ in shape, a parameter
        is not floating-point, or delta is given and no state of the model is recurrent.
    """
    if norm is None and value is None and delta is None:
        raise UserError("there is nothing to audit: give a threshold, norm, value or delta")
    if delta is not None and not isinstance(model, RNNModel):
        raise UserError(
            "the model has no recurrent state whose gradient delta could clip: this needs model=rnn"
        )
    check_floating(params)

    def update(carry: Carry, batch: Batch) -> tuple[Carry, ClipAudit]:
        loss = batch_loss(model, carry, batch)
        before, after, grads, _ = explicit_bptt(model)(params, carry, batch)
        length = trees.norm(grads)

        def seen(cut: Array, clipped: Params) -> Clipped:
            return Clipped(
                cut=jnp.where(jnp.isnan(length), jnp.nan, cut.astype(before.dtype)),
                ratio=trees.norm(clipped) / length,
                cosine=trees.cosine(clipped, grads),
                angle=trees.angle(clipped, grads),
                after=loss(apply(params, clipped)),
            )

        kinds = {}
        if norm is not None:
            clipped, changed = by_norm(grads, norm)
            kinds["norm"] = seen(changed, clipped)
        if value is not None:
            clipped, _ = by_value(grads, value)
            kinds["value"] = seen(_share_beyond(grads, value), clipped)
        if delta is not None:
            clipped, cuts = _by_delta(model, params, carry, batch, delta)
            kinds["delta"] = seen(cuts, clipped)
        return after, ClipAudit(length, before, loss(apply(params, grads)), kinds)

    return jax.lax.scan(update, carry, _stacked(batches))[1]


def clip_summary(audit: ClipAudit) -> dict[str, ClipSummary]:
    """Summary of each kind of clipping in an audit, under the name of the kind."""
    there = audit.norm != 0  # true of NaN, which stays visible in the means

    def mean(values: Array) -> Array:
        return jnp.mean(values, where=there)

    def least(values: Array) -> Array:
        found = jnp.min(values, where=there, initial=jnp.inf)
        return jnp.where(jnp.any(there), found, jnp.nan)

    return {
        kind: ClipSummary(
            often=mean(jnp.where(jnp.isnan(clipped.cut), jnp.nan, clipped.cut > 0)),
            share=mean(clipped.cut),
            ratio=mean(clipped.ratio),
            least_ratio=least(clipped.ratio),
            cosine=mean(clipped.cosine),
            least_cosine=least(clipped.cosine),
            angle=mean(clipped.angle),
            largest_angle=-least(-clipped.angle),
            before=mean(audit.before),
            after=mean(clipped.after),
            unclipped=mean(audit.unclipped),
        )
        for kind, clipped in audit.kinds.items()
    }


def quantile_thresholds(
    model: LanguageModel,
    params: Params,
    carry: Carry,
    batches: Sequence[Batch],
    *,
    share: float = 0.1,
) -> Thresholds:
    """Thresholds that would cut a given share of the updates, for a run trained without clipping.

    The thresholds are quantiles over the batches: of ‖g‖, of the largest |g_i|, and of the largest
    ‖δ_t‖ of any layer.

    Args:
      model, params, carry, batches: as for `clip_audit`.
      share: share of updates to be cut, from 0 to 1.

    Raises:
      UserError: the share is not from 0 to 1; or as for `clip_audit`.
    """
    if not 0 <= share <= 1:
        raise UserError(f"share={share} must be from 0 to 1")
    check_floating(params)

    def update(carry: Carry, batch: Batch) -> tuple[Carry, tuple[Array, Array, Array]]:
        tap = model.empty_tap(batch.mask)
        after, grads, deltas = _watched(model, params, carry, batch, tap, lambda tap: (None, tap))
        return after, (trees.norm(grads), largest(grads), jnp.max(deltas, initial=0))

    recurrent = isinstance(model, RNNModel)
    _, found = jax.lax.scan(update, carry, _stacked(batches))
    norm, value, delta = (jnp.quantile(values, 1 - share) for values in found)
    return Thresholds(norm, value, delta if recurrent else None)


def _by_delta(
    model: LanguageModel, params: Params, carry: Carry, batch: Batch, threshold: Threshold
) -> tuple[Params, Array]:
    """The gradient with each δ_t clipped, and the share of steps and sequences with a cut δ_t.

    Only steps up to the last target of each sequence count: δ_t is 0 after the last target.
    """

    def clipping(tally: Array) -> tuple[EdgeHook]:
        return (EdgeHook(lambda carry, at_t: clip_cotangent(carry, threshold, at_t), tally),)

    tally = jnp.zeros(batch.mask.shape)
    _, grads, cuts = _watched(model, params, carry, batch, tally, clipping)
    reached = jax.lax.cummax(batch.mask.astype(jnp.int32), axis=0, reverse=True) > 0
    return grads, jnp.sum((cuts > 0) & reached) / jnp.maximum(jnp.sum(reached), 1)


def _watched(
    model: LanguageModel,
    params: Params,
    carry: Carry,
    batch: Batch,
    watched: Array,
    hooks: Callable[[Array], tuple],
) -> tuple[Carry, Params, Array]:
    """The carry after a batch, the gradient of the mean nats, and the gradient of `watched`.

    Args:
      watched: an array of zeros; the gradient with respect to `watched` is that of the *sum* of
        nats, not divided by the tokens.
      hooks: watched -> the arguments of `model.hidden` after x.
    """

    def nats(params: Params, watched: Array) -> tuple[Array, Carry]:
        before = restart(model, carry, batch.start)
        after, h = model.hidden(params, before, batch.x, *hooks(watched))
        return model.loss(params, h, batch.y, batch.mask), after

    (grads, seen), after = jax.grad(nats, argnums=(0, 1), has_aux=True)(params, watched)
    tokens = jnp.maximum(jnp.sum(batch.mask), 1)
    return after, jax.tree.map(lambda g: g / tokens, grads), seen


def _share_beyond(grads: Params, threshold: Threshold) -> Array:
    leaves = jax.tree.leaves(grads)
    beyond = sum(jnp.sum(jnp.abs(leaf) > threshold) for leaf in leaves)
    return jnp.asarray(beyond / optax.tree.size(leaves))


def _stacked(batches: Sequence[Batch]) -> Batch:
    if not batches:
        raise UserError("there is no batch to audit")
    first, *rest = [batch.mask.shape for batch in batches]
    for number, shape in enumerate(rest, 1):
        if shape != first:
            raise UserError(
                f"batch {number} has [T, B]={list(shape)} and batch 0 {list(first)}: "
                "the batches must be of one shape"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
