"""The gradient split over time by the pair of loss and carry: the credit of each past step.

Row t of the map follows the gradient of J_t back from carry to carry,

    ∂J_t/∂h_{k-1} = (∂J_t/∂h_k) (∂h_k/∂h_{k-1}),     k = t, t - 1, …,

with h_k the carry from step k to step k + 1, of all layers together. The path from a layer to the
layer above within step k is part of step k: a layer's δ_k
(`lm_jax.gradients.bptt.Info`) includes the path, ∂J_t/∂h_k does not. The Jacobian of
step k is the same for every row, and rows go through step k together, as a single vector-Jacobian
product. To have many rows at every step, and no row of zeros, the sequence is halved. Each half
first gets its own map, and its rows go back to the beginning of the half. The rows of the later
half then go on through the steps of the earlier half,

    map = [ earlier    0   ]
          [ across   later ],

All halves of one size do so side by side: T / 2 rows go through T / 2 steps, in another round
through T / 4 steps, and so on, together as many numbers as the map has. The smallest halves are
blocks of a few steps, and a block takes all its rows through at once.

A step is linearised once, in the forward pass. The memory is that of the map, of the rows, T n
numbers for a carry of n, and of the linearisation, T times the residuals of one step. The time is
about that of one backward pass of T / 2 sequences.

If some h_j, k ≤ j ≤ t, holds a NaN, ∂J_t/∂h_k is NaN, even if autodiff would give 0 (as behind a
relu).

Letters: T steps, n numbers in a carry; k and t count from 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal
from jaxtyping import Array, Float

from lm_jax.gradients.validation import Step, StepLoss, check_losses, exact_products
from lm_jax.models.base import Carry, Params
from lm_jax.trees import norm

# Largest number of steps of a block. Half of a block's rows are 0, but each round of halving takes
# time to compile.
BLOCK = 8


@exact_products
def credit_map(
    step: Step, loss: StepLoss, params: Params, carry: Carry, xs: Any, ys: Any
) -> Float[Array, "T T"]:
    """Gradient norm of each loss with respect to each carry: ‖∂J_t/∂carry_k‖₂ in row t, column k.

    Both indices count the steps. carry_k is the carry after step k, and J_k reads carry_k: the
    diagonal is the gradient of each loss with respect to its own carry. Traces anew at every call;
    wrap in `jax.jit` if called often.

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

    count = 1
    while count * BLOCK < steps:
        count *= 2
    size = -(-steps // count)

    def blocks(leaf: Array) -> Array:
        """[T, ...] -> [blocks, size, ...]; `found` below drops the padding behind T."""
        behind = [(0, count * size - steps), *[(0, 0)] * (leaf.ndim - 1)]
        return jnp.pad(leaf, behind, mode="edge").reshape(count, size, *leaf.shape[1:])

    def by_step(leaf: Array) -> Array:
        return jnp.swapaxes(leaf, 0, 1)

    own, saved = jax.tree.map(blocks, (own, saved))
    through = jax.vmap(jax.vmap(pull, (None, 0)))  # each block its own step, each row of the block

    def within(rows: Carry, at: tuple[Array, Carry, list[Array]]) -> tuple[Carry, Array]:
        new, delta, saved = at
        rows = jax.tree.map(lambda leaf, one: leaf.at[:, new].set(one), rows, delta)
        return through(saved, rows), norm(rows, kept=2)

    def across(rows: Carry, saved: list[Array]) -> tuple[Carry, Array]:
        return through(saved, rows), norm(rows, kept=2)

    at = jnp.arange(size), *jax.tree.map(by_step, (own, saved))
    rows, norms = jax.lax.scan(within, optax.tree.zeros_like(own), at, reverse=True)
    maps = jnp.moveaxis(norms, 0, -1)  # [blocks, t, k]
    while len(maps) > 1:
        earlier, later = (jax.tree.map(lambda leaf, n=n: leaf[n::2], (rows, maps)) for n in (0, 1))
        hook = jax.tree.map(lambda leaf: by_step(leaf[::2]), saved)
        # The scan needs a length: a linear step may have no residuals to scan over.
        back, norms = jax.lax.scan(across, later[0], hook, maps.shape[-1], reverse=True)
        below = jnp.concatenate([jnp.moveaxis(norms, 0, -1), later[1]], axis=-1)
        above = jnp.pad(earlier[1], [(0, 0), (0, 0), (0, earlier[1].shape[-1])])
        maps = jnp.concatenate([above, below], axis=1)
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), earlier[0], back)
        saved = jax.tree.map(
            lambda leaf: leaf.reshape(-1, 2 * leaf.shape[1], *leaf.shape[2:]), saved
        )
    found = maps[0, :steps, :steps]
    bad = jnp.stack(
        [jnp.any(jnp.isnan(leaf.reshape(steps, -1)), axis=1) for leaf in jax.tree.leaves(after)]
    )
    bad = jnp.any(bad, axis=0)
    up_to = jnp.cumsum(bad)
    through_nan = up_to[:, None] > (up_to - bad)[None, :]
    return jnp.tril(jnp.where(through_nan, jnp.nan, found))


def _linearised(
    step: Step, params: Params, carry: Carry, xs: Any
) -> tuple[Carry, list[Array], Callable[[list[Array], Carry], Carry]]:
    """The trajectory, and the transition linearised at every step of the trajectory.

    Returns:
      the carries after the steps, leaves [T, ...]; the residuals of the linearisations, [T, ...];
      and a function (residuals of one step, ∂J/∂carry after the step) -> ∂J/∂carry before the step.
      Residuals equal at all steps (the weights) are stored once, within the function.
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
    # Sliced from the front: without residuals, [-num_leaves:] would take every output.
    leaves = traced.jaxpr.outvars[len(traced.jaxpr.outvars) - form.num_leaves :]
    kept = [not isinstance(v, Literal) and v in varies for v in leaves]

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
