"""The gradient split over time by the pair of loss and carry: which step of the past is to blame.

Row t of the map follows the gradient of J_t back from carry to carry,

    δ_t = ∂J_t/∂h_t,     ∂J_t/∂h_{k-1} = (∂J_t/∂h_k) (∂h_k/∂h_{k-1}),

h_k being the carry after step k. The Jacobian of step k is the same for every row, so all rows with
t ≥ k go through it together, as one vector-Jacobian product of t - k + 1 rows: the backward pass of
one sequence, with a row more at every step. A step is linearised once, on the way forwards; the
rows grow a few times on the way back and are 0 before their own loss.

The memory is that of the map, of the rows, T n numbers for a carry of n, and of the linearisation,
T times what one step saves. The time is about that of one backward pass of T / 2 lanes.

Where some h_j, k ≤ j ≤ t, holds a NaN, ∂J_t/∂h_k is NaN, also where autodiff would call it 0 (as it
does behind a relu).

Letters: T steps, n numbers in a carry; k and t count from 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float

from lm_jax.gradients.checks import Loss, Step, check_losses
from lm_jax.gradients.norms import norm
from lm_jax.models.base import Carry, Params

# How often the rows grow: 8 leaves 9/16 of the work of T rows throughout, and each is compiled.
PARTS = 8


def credit_map(
    step: Step, loss: Loss, params: Params, carry: Carry, xs: Any, ys: Any
) -> Float[Array, "T T"]:
    """How much each loss changes with each earlier carry: ‖∂J_t/∂carry_k‖₂ in row t, column k.

    Both indices count the steps: carry_k is the carry after step k, which J_t with t = k reads, so
    the diagonal is the gradient that the loss gives to its own carry. Traces anew at every call;
    wrap it in `jax.jit` where it is called often.

    Args:
      step, loss, params, carry, xs, ys: as for `lm_jax.gradients.gradient_by_lag`; one example.

    Returns:
      [T, T], in nats per unit of the carry; 0 where k > t.

    Raises:
      UserError: as `gradient_by_lag`.
    """
    steps = check_losses(step, loss, params, carry, xs, ys)
    carry, xs, ys = jax.tree.map(jnp.asarray, (carry, xs, ys))
    after, saved, pull = _linearised(step, params, carry, xs)
    own = jax.vmap(jax.grad(loss, 1), (None, 0, 0))(params, after, ys)

    def back(rows: Carry, at: tuple[Array, Carry, Any]) -> tuple[Carry, Array]:
        new, delta, saved = at
        rows = jax.tree.map(lambda leaf, one: leaf.at[new].set(one), rows, delta)
        return jax.vmap(lambda row: pull(saved, row))(rows), norm(rows, kept=1)

    rows = jax.tree.map(lambda leaf: leaf[:0], own)
    columns = []
    firsts = sorted({steps * part // PARTS for part in range(PARTS)})
    for first, last in reversed(list(zip(firsts, [*firsts[1:], steps], strict=True))):
        more = last - first
        rows = jax.tree.map(
            lambda leaf, more=more: jnp.pad(leaf, [(more, 0), *[(0, 0)] * (leaf.ndim - 1)]), rows
        )
        here = slice(first, last)
        at = jax.tree.map(lambda leaf, here=here: leaf[here], (own, saved))
        rows, norms = jax.lax.scan(back, rows, (jnp.arange(more), *at), reverse=True)
        columns.insert(0, jnp.pad(norms, ((0, 0), (first, 0))))
    bad = jnp.stack(
        [jnp.any(jnp.isnan(leaf.reshape(steps, -1)), axis=1) for leaf in jax.tree.leaves(after)]
    )
    bad = jnp.any(bad, axis=0)
    up_to = jnp.cumsum(bad)
    through_nan = up_to[:, None] > (up_to - bad)[None, :]
    return jnp.tril(jnp.where(through_nan, jnp.nan, jnp.concatenate(columns).T))


def _linearised(
    step: Step, params: Params, carry: Carry, xs: Any
) -> tuple[Carry, list[Array], Callable[[list[Array], Carry], Carry]]:
    """The trajectory, and the transition linearised at every step of it.

    Returns:
      the carries after the steps, leaves [T, ...]; what the linearisations keep, [T, ...]; and the
      function of one step's share of it and of ∂J/∂carry after the step that gives ∂J/∂carry
      before. What is the same at all steps (the weights) is kept once.
    """

    def linearised(carry: Carry, x: Any) -> tuple[Carry, Any]:
        return jax.vjp(lambda before: step(params, before, x), carry)

    first = jax.tree.map(lambda leaf: leaf[0], xs)
    traced, (_, shape) = jax.make_jaxpr(linearised, return_shape=True)(carry, first)
    varies = set(traced.jaxpr.invars)
    for equation in traced.jaxpr.eqns:
        if any(not isinstance(v, Literal) and v in varies for v in equation.invars):
            varies.update(equation.outvars)
    form = jax.tree.structure(shape)
    kept = [
        not isinstance(v, Literal) and v in varies for v in traced.jaxpr.outvars[-form.num_leaves :]
    ]

    def advance(carry: Carry, x: Any) -> tuple[Carry, tuple[Carry, list[Array]]]:
        after, back = linearised(carry, x)
        leaves = zip(jax.tree.leaves(back), kept, strict=True)
        return after, (after, [leaf for leaf, changes in leaves if changes])

    _, (after, saved) = jax.lax.scan(advance, carry, xs)
    common = jax.tree.leaves(linearised(carry, first)[1])

    def pull(saved: list[Array], delta: Carry) -> Carry:
        own = iter(saved)
        leaves = [
            next(own) if changes else leaf for leaf, changes in zip(common, kept, strict=True)
        ]
        return jax.tree.unflatten(form, leaves)(delta)[0]

    return after, saved, pull
