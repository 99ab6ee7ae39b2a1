"""The gradient split over time by the lag from loss to weight.

For the mean J = (1/T) Σ_t J_t of the losses of T steps, the lecture's double sum is

    ∂J/∂W = (1/T) Σ_t Σ_{k ≤ t} (∂J_t/∂h_t) (∂h_t/∂h_k) (∂h_k/∂W),

with h_k the carry after step k and ∂h_k/∂W the immediate derivative of step k. This module splits
the sum by the lag l = t - k; `lm_jax.gradients.credit` splits the sum by the pair of t and k. The
terms of a lag come from the rows

    a^l_k = (∂J_{k+l}/∂h_{k+l}) (∂h_{k+l}/∂h_k),     a^{l+1}_k = a^l_{k+1} (∂h_{k+1}/∂h_k),

one row for each k. The Jacobian of step k + 1 is the same at every lag. The transition is therefore
linearised once, at all T steps. A single vector-Jacobian product of all T steps together takes the
rows to the next lag, and gives the lag's weight gradient Σ_k a^l_k (∂h_k/∂W) as a single product
over all steps: the gradient of a single step is never held. Lag l needs only the rows k < T - l;
the array of rows is cut short a few times on the way.

The memory is that of the rows, T n numbers for a carry of n, and of the linearisation, T times the
residuals of one step. The time is about that of max_lag + 1 backward passes without their
recurrence, each a product of T (or T B) rows at once.

If a carry holds a NaN, the gradient is NaN at every lag, even if autodiff would give 0 (as behind
a relu).

Letters: T steps, B sequences, n numbers in a carry, l a lag; k and t count from 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm_jax.gradients.validation import Step, StepLoss, check_length, check_losses, exact_products
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError

# Parts of the loop over lags, each with fewer rows than the part before. 4 parts do 5/8 of the work
# of a single part; more parts take longer to compile.
CUTS = 4


@exact_products
def gradient_by_lag(
    step: Step,
    loss: StepLoss,
    params: Params,
    carry: Carry,
    xs: Any,
    ys: Any,
    max_lag: int,
    *,
    batched: bool = False,
) -> Params:
    """The gradient through the transition, split by the lag l = t - k from loss to weight.

    Entry l is (1/T) Σ_t (∂J_t/∂h_t) (∂h_t/∂h_{t-l}) (∂h_{t-l}/∂W). With max_lag = T - 1 the lags
    sum to the gradient of the mean loss through the transition, without the direct derivative of
    the loss with respect to params (a readout's weights). The first k2 lags sum to the gradient
    truncated to k2 steps back from every loss, BPTT(1, k2) of `lm_jax.gradients.truncated_bptt`.

    Args:
      step: (params, carry, x) -> carry, for one example.
      loss: (params, carry, y) -> nats of one step, for one example.
      params: a tree of floating-point arrays.
      carry: the carry before the first step, a constant; a tree of floating-point arrays.
      xs, ys: trees of arrays [T, ...].
      max_lag: the largest l, at most T - 1.
      batched: if True, carry is [B, ...], and xs and ys are [T, B, ...]. The mean is then over
        sequences, too, and a single product gives the weight gradient of all sequences.

    Returns:
      params' tree with a first axis of max_lag + 1 lags, in nats per unit of the weight.

    Raises:
      UserError: xs and ys differ in T, T = 0, B differs between arrays, B = 0, max_lag is not
        0 … T - 1, params or carry are not floating-point, the step changes the structure, shapes or
        dtypes of the carry, or the loss is no scalar.
    """
    steps, width = _check(step, loss, params, carry, xs, ys, batched)
    if max_lag < 0:
        raise UserError(f"max_lag={max_lag} must be 0 or more")
    if max_lag >= steps:
        raise UserError(f"max_lag={max_lag} is longer than T={steps} steps allow, {steps - 1}")
    carry, xs, ys = jax.tree.map(jnp.asarray, (carry, xs, ys))
    if not batched:
        carry = jax.tree.map(lambda leaf: leaf[None], carry)
        xs, ys = jax.tree.map(lambda leaf: leaf[:, None], (xs, ys))

    def advance(carry: Carry, x: Any) -> tuple[Carry, tuple[Carry, Carry]]:
        after = jax.vmap(step, (None, 0, 0))(params, carry, x)
        return after, (carry, after)

    _, trajectory = jax.lax.scan(advance, carry, xs)
    # Steps and sequences as one axis: contracting two axes is several times slower on a CPU.
    (before, after), xs, ys = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (trajectory, xs, ys)
    )
    a = jax.vmap(jax.grad(loss, 1), (None, 0, 0))(params, after, ys)

    def earlier(leaf: Array) -> Array:
        """Shift rows back by a step: the product leaves a^{l+1}_k at the place of step k + 1."""
        return jnp.concatenate([leaf[width:], jnp.zeros_like(leaf[:width])])

    parts = []
    firsts = sorted({(max_lag + 1) * part // CUTS for part in range(CUTS)})
    for first, last in zip(firsts, [*firsts[1:], max_lag + 1], strict=True):
        here = slice((steps - first) * width)
        a, before, xs = jax.tree.map(lambda leaf, here=here: leaf[here], (a, before, xs))

        def moved(params: Params, before: Carry, xs: Any = xs) -> Carry:
            return jax.vmap(step, (None, 0, 0))(params, before, xs)

        _, back = jax.vjp(moved, params, before)

        def lag(a: Carry, _: None, back: Any = back) -> tuple[Carry, Params]:
            weights, a = back(a)
            return jax.tree.map(earlier, a), weights

        a, part = jax.lax.scan(lag, a, length=last - first)
        parts.append(part)
    grads = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    # At every lag some path from loss to weight leads through a NaN in a carry.
    spoiled = jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(after)])
    scale = jnp.where(jnp.any(spoiled), jnp.nan, 1 / (steps * width))
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), grads)


def _check(
    step: Step, loss: StepLoss, params: Params, carry: Carry, xs: Any, ys: Any, batched: bool
) -> tuple[int, int]:
    """Check the arguments of `gradient_by_lag`; return T and B."""
    if not batched:
        return check_losses(step, loss, params, carry, xs, ys), 1
    check_length(xs, "xs")
    check_length(ys, "ys")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(carry)]
    shapes += [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves((xs, ys))]
    widths = {shape[:1] for shape in shapes}
    if len(widths) > 1 or () in widths:
        found = ", ".join(sorted(str(*width) or "no such axis" for width in widths))
        raise UserError(f"carry [B, ...], xs and ys [T, B, ...] must share B, which is {found}")
    ((width,),) = widths
    if not width:
        raise UserError("there are B=0 sequences")

    def first_example(carry: Carry, xs: Any, ys: Any) -> tuple[Carry, Any, Any]:
        example = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, 0], (xs, ys))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], carry), *example

    return check_losses(step, loss, params, *jax.eval_shape(first_example, carry, xs, ys)), width
