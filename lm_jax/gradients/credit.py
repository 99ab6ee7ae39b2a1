"""The gradient split over time: which step of the past each loss sends its gradient to.

The lecture's double sum, for the mean J = (1/T) Σ_t J_t of the losses of T steps,

    ∂J/∂W = (1/T) Σ_t Σ_{k ≤ t} (∂J_t/∂h_t) (∂h_t/∂h_k) (∂h_k/∂W),

where h_k is the carry after step k and ∂h_k/∂W the immediate derivative of the step that made it,
is taken apart by the lag l = t - k (`gradient_by_lag`) or by the pair (t, k) (`credit_map`). Both
come from the rows

    a^l_k = (∂J_{k+l}/∂h_{k+l}) (∂h_{k+l}/∂h_k),     a^{l+1}_k = a^l_{k+1} (∂h_{k+1}/∂h_k),

one for each k. The Jacobian of step k + 1 is the same at every lag, so the transition is linearised
once at all T steps, and one vector-Jacobian product of all of them together takes the rows one lag
further and gives the lag's weight gradient Σ_k a^l_k (∂h_k/∂W) as one product over all steps: no
gradient of a single step is ever held. With the lag the rows become fewer, k < T - l; they are cut
short a few times on the way.

The memory is that of the rows, T n numbers for a carry of n, and of the linearisation, T times what
one step saves. The time is about that of max_lag + 1 backward passes without their recurrence,
every one a product of T (or T B) rows at once.

Where some h_j, k ≤ j ≤ t, holds a NaN, ∂J_t/∂h_k is NaN, also where autodiff would call it 0 (as it
does behind a relu), and so is the gradient at lag t - k.

Each function traces anew at every call; wrap it in `jax.jit` where it is called often.

Letters: T steps, B lanes, n numbers in a carry, l a lag; k and t count from 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lm_jax.gradients.checks import Step, check_length, check_transition
from lm_jax.gradients.norms import norm
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError

Loss = Callable[[Params, Carry, Any], Array]
"""(params, carry, y) -> nats of one step, a scalar; the carry is that after the step."""

# How often the rows are cut short: 4 leaves 5/8 of the work of never, and each cut is compiled.
CUTS = 4


def gradient_by_lag(
    step: Step,
    loss: Loss,
    params: Params,
    carry: Carry,
    xs: Any,
    ys: Any,
    max_lag: int,
    *,
    lanes: bool = False,
) -> Params:
    """The gradient through the transition, split over the lag l = t - k from loss to weight.

    Entry l is (1/T) Σ_t (∂J_t/∂h_t) (∂h_t/∂h_{t-l}) (∂h_{t-l}/∂W). With max_lag = T - 1 the lags
    sum to the gradient of the mean loss through the transition: what the loss owes to params by
    itself (a readout's weights) is not in it. The first k2 lags sum to the gradient truncated to k2
    steps back from every loss, BPTT(1, k2) of `lm_jax.gradients.truncated_bptt`.

    Args:
      step: (params, carry, x) -> carry, for one example.
      loss: (params, carry, y) -> nats of one step, for one example.
      params: a tree of floating-point arrays.
      carry: before the first step, a constant; a tree of floating-point arrays.
      xs, ys: trees of arrays [T, ...].
      max_lag: the largest l, at most T - 1.
      lanes: whether carry is [B, ...] and xs and ys [T, B, ...]; the mean is then over lanes, too,
        and their weight gradients are one product.

    Returns:
      params' tree with a first axis of max_lag + 1 lags, in nats per unit of the weight.

    Raises:
      UserError: xs and ys differ in T, T = 0, lanes differ in B, max_lag is not 0 … T - 1, params
        or carry are not floating-point, the step changes the carry's structure, shapes or types,
        or the loss is no scalar.
    """
    if not lanes:
        carry, xs, ys = _one_lane(carry, xs, ys)
    steps, width = _check(step, loss, params, carry, xs, ys)
    if max_lag < 0:
        raise UserError(f"max_lag={max_lag} must be 0 or more")
    if max_lag >= steps:
        raise UserError(f"max_lag={max_lag} is longer than T={steps} steps allow, {steps - 1}")

    def pull(before: Carry, xs: Any) -> Callable[[Carry], tuple[Params, Carry]]:
        return jax.vjp(lambda p, c: jax.vmap(step, (None, 0, 0))(p, c, xs), params, before)[1]

    parts, spoiled = _over_lags(step, loss, params, carry, xs, ys, max_lag + 1, pull)
    grads = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    # At every lag some path from loss to weight leads through the NaN.
    scale = jnp.where(jnp.any(spoiled), jnp.nan, 1 / (steps * width))
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), grads)


def credit_map(
    step: Step, loss: Loss, params: Params, carry: Carry, xs: Any, ys: Any
) -> Float[Array, "T T"]:
    """How much each loss changes with each earlier carry: ‖∂J_t/∂carry_k‖₂ in row t, column k.

    Both indices count the steps: carry_k is the carry after step k, which J_t with t = k reads, so
    the diagonal is the gradient that the loss gives to its own carry.

    Args:
      step, loss, params, carry, xs, ys: as for `gradient_by_lag`; one example.

    Returns:
      [T, T], in nats per unit of the carry; 0 where k > t.

    Raises:
      UserError: as `gradient_by_lag`.
    """
    carry, xs, ys = _one_lane(carry, xs, ys)
    steps, _ = _check(step, loss, params, carry, xs, ys)

    def pull(before: Carry, xs: Any) -> Callable[[Carry], tuple[Array, Carry]]:
        _, back = jax.vjp(lambda c: jax.vmap(step, (None, 0, 0))(params, c, xs), before)

        def measured(a: Carry) -> tuple[Array, Carry]:
            return norm(a, kept=1), back(a)[0]

        return measured

    parts, spoiled = _over_lags(step, loss, params, carry, xs, ys, steps, pull)
    by_lag = jnp.concatenate(
        [jnp.pad(part, ((0, 0), (0, steps - part.shape[1]))) for part in parts]
    )
    t, k = jnp.arange(steps)[:, None], jnp.arange(steps)[None, :]
    norms = by_lag[jnp.maximum(t - k, 0), jnp.broadcast_to(k, (steps, steps))]
    bad = jnp.cumsum(spoiled)
    through_nan = bad[:, None] > (bad - spoiled)[None, :]
    return jnp.where(t >= k, jnp.where(through_nan, jnp.nan, norms), 0)


def _over_lags(
    step: Step,
    loss: Loss,
    params: Params,
    carry: Carry,
    xs: Any,
    ys: Any,
    count: int,
    pull: Callable[[Carry, Any], Callable[[Carry], tuple[Any, Carry]]],
) -> tuple[list[Any], Bool[Array, " rows"]]:
    """What a pull-back reports of the rows a^l at each of the first lags.

    Args:
      carry, xs, ys: with lanes.
      count: how many lags.
      pull: (carries before the steps, their inputs) -> the function of a^l that gives what is to be
        reported of them, and ∂J/∂(carries before).

    Returns:
      the reports, lags first, in parts of fewer and fewer rows; whether each carry after a step
      holds a NaN. Steps and lanes are one axis, for XLA contracts two axes at once several times
      more slowly on a CPU.
    """

    def advance(carry: Carry, x: Any) -> tuple[Carry, tuple[Carry, Carry]]:
        after = jax.vmap(step, (None, 0, 0))(params, carry, x)
        return after, (carry, after)

    _, trajectory = jax.lax.scan(advance, carry, xs)
    width = jax.tree.leaves(carry)[0].shape[0]
    (before, after), xs, ys = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (trajectory, xs, ys)
    )
    a = jax.vmap(jax.grad(loss, 1), (None, 0, 0))(params, after, ys)
    rows = jax.tree.leaves(a)[0].shape[0]

    def earlier(leaf: Array) -> Array:
        """a^{l+1}_k stands with step k, where the product has left it with step k + 1."""
        return jnp.concatenate([leaf[width:], jnp.zeros_like(leaf[:width])])

    reports = []
    firsts = sorted({count * part // CUTS for part in range(CUTS)})
    for first, last in zip(firsts, [*firsts[1:], count], strict=True):
        here = slice(rows - first * width)
        a, before, xs = jax.tree.map(lambda leaf, here=here: leaf[here], (a, before, xs))
        back = pull(before, xs)

        def lag(a: Carry, _: None, back: Callable = back) -> tuple[Carry, Any]:
            report, a = back(a)
            return jax.tree.map(earlier, a), report

        a, report = jax.lax.scan(lag, a, length=last - first)
        reports.append(report)
    spoiled = jnp.any(
        jnp.stack(
            [jnp.any(jnp.isnan(leaf.reshape(rows, -1)), axis=1) for leaf in jax.tree.leaves(after)]
        ),
        axis=0,
    )
    return reports, spoiled


def _one_lane(carry: Carry, xs: Any, ys: Any) -> tuple[Carry, Any, Any]:
    """One example as a batch of one lane."""
    check_length(xs, "xs")
    check_length(ys, "ys")
    carry = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], carry)
    xs, ys = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], (xs, ys))
    return carry, xs, ys


def _check(
    step: Step, loss: Loss, params: Params, carry: Carry, xs: Any, ys: Any
) -> tuple[int, int]:
    """T and B of data with lanes, seen to be what `gradient_by_lag` says."""
    steps, targets = check_length(xs, "xs"), check_length(ys, "ys")
    if steps != targets:
        raise UserError(f"xs has T={steps} steps, ys has T={targets}")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(carry)]
    shapes += [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves((xs, ys))]
    widths = {shape[:1] for shape in shapes}
    if len(widths) > 1 or () in widths:
        found = ", ".join(sorted(str(*width) or "no such axis" for width in widths))
        raise UserError(f"carry [B, ...], xs and ys [T, B, ...] must share B, which is {found}")
    ((width,),) = widths
    if not width:
        raise UserError("there are B=0 lanes")
    one = jax.tree.map(lambda leaf: _without(leaf, 0), carry)
    check_transition(step, params, one, jax.tree.map(lambda leaf: _without(leaf, 1), xs))
    y = jax.tree.map(lambda leaf: _without(_without(leaf, 1), 0), ys)
    nats = jax.eval_shape(loss, params, one, y)
    if not isinstance(nats, jax.ShapeDtypeStruct):
        raise UserError(f"loss gives {jax.tree.structure(nats)}, not a number")
    if nats.shape or not jnp.issubdtype(nats.dtype, jnp.floating):
        raise UserError(
            f"loss gives {nats.dtype}{list(nats.shape)}, not one floating-point number a step"
        )
    return steps, width


def _without(leaf: Any, axis: int) -> jax.ShapeDtypeStruct:
    """The shape and type of one entry along an axis."""
    shape = jnp.shape(leaf)
    return jax.ShapeDtypeStruct(shape[:axis] + shape[axis + 1 :], jnp.result_type(leaf))
