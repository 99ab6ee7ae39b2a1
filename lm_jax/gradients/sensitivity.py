"""Sensitivity: how strongly the state at each time depends on the parameters, ‖∂h_t/∂θ‖_F.

The derivative of the state with respect to a block θ of the parameters, through all steps so far,

    S_t = (∂h_t/∂h_{t-1}) S_{t-1} + ∂h_t/∂θ (immediate),     S before the first step: 0,

is a factor of every gradient, ∂J_t/∂θ = (∂J_t/∂h_t) S_t. With a long memory S_t grows with t even
if no Jacobian explodes, since the same parameters act again at every step (Zucchet & Orvieto, 2024,
"Recurrent neural networks: vanishing and exploding gradients are not the end of the story").

`sensitivity` is exact: S is carried forward as in real-time recurrent learning, with n P numbers
for a state of n numbers and P parameters, and n² P multiplications per step. For larger models,
`sensitivity_by_probes` draws ξ, standard normal on the block and 0 elsewhere. Then

    E ‖S_t ξ‖² = ‖S_t‖_F²,

and a single forward-mode pass in the direction ξ gives S_t ξ at all t, for the cost of about two
runs.

h_t is the whole carry after step t; in an LSTM, h_t contains c. A state with a NaN has a
sensitivity of NaN. Letters: T steps, n numbers in a carry, P in the parameters, K probes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from lm_jax.gradients.validation import Step, check_transition, exact_products
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError
from lm_jax.trees import blocks, norm


class Probed(NamedTuple):
    """A norm estimated from random probes."""

    norm: Float[Array, " T"]
    """Root of the mean square; the mean square is unbiased."""
    standard_error: Float[Array, " T"]
    """Standard error of the norm, to first order in the error of the mean square."""


@exact_products
def sensitivity(
    step: Step, params: Params, carry: Carry, xs: Any, *, depth: int | None = 1
) -> dict[str, Float[Array, " T"]]:
    """Exact ‖∂h_t/∂θ‖_F at every step, for each block of the parameters.

    Args:
      step: (params, carry, x) -> carry, for one example.
      params: a tree of floating-point arrays.
      carry: before the first step, a constant; a tree of floating-point arrays.
      xs: a tree of arrays [T, ...].
      depth: level of the tree that defines the blocks, see `lm_jax.trees.blocks`: 1, the top level;
        None, every leaf.

    Returns:
      name of the block -> [T].

    Raises:
      UserError: T = 0, params or carry are not floating-point, or the step changes the carry's
        structure, shapes or types.
    """
    check_transition(step, params, carry, xs)
    h, unravel = ravel_pytree(carry)
    leaves, structure = _arrays(params)
    members = blocks(params, depth)

    def flat(leaves: list[Array], h: Array, x: Any) -> Array:
        return ravel_pytree(step(structure.unflatten(leaves), unravel(h), x))[0]

    def advance(
        state: tuple[Array, list[Array]], x: Any
    ) -> tuple[tuple[Array, list[Array]], dict[str, Array]]:
        h, S = state
        immediate, J = jax.jacrev(flat, (0, 1))(leaves, h, x)
        h = flat(leaves, h, x)
        S = [
            jnp.tensordot(J, before, 1, precision="highest") + now
            for before, now in zip(S, immediate, strict=True)
        ]
        S = _spoiled(S, h)
        sizes = {name: norm([S[i] for i in members[name]]) for name in members}
        return (h, S), sizes

    types = [jnp.promote_types(h.dtype, leaf.dtype) for leaf in leaves]
    zero = [jnp.zeros((h.size, *leaf.shape), t) for leaf, t in zip(leaves, types, strict=True)]
    return jax.lax.scan(advance, (h, zero), xs)[1]


@exact_products
def sensitivity_by_probes(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    *,
    key: Array,
    probes: int,
    depth: int | None = 1,
) -> dict[str, Probed]:
    """Estimate ‖∂h_t/∂θ‖_F at every step, for each block of the parameters, from random probes.

    The relative standard error of a norm is at most 1 / √(2 K), and less if S_t has several
    singular values of about the same size. The step must be differentiable in forward mode.

    Args:
      step, params, carry, xs, depth: as for `sensitivity`.
      key: for the random directions.
      probes: K, at least 2; the probes of a block are run side by side.

    Returns:
      name of the block -> norm and standard error, [T] each.

    Raises:
      UserError: probes is below 2; and as `sensitivity`.
    """
    check_transition(step, params, carry, xs)
    if probes < 2:
        raise UserError(f"probes={probes} must be 2 or more, to tell a standard error")
    leaves, structure = _arrays(params)

    def carries(leaves: list[Array]) -> Carry:
        def advance(carry: Carry, x: Any) -> tuple[Carry, Carry]:
            carry = step(structure.unflatten(leaves), carry, x)
            return carry, carry

        return jax.lax.scan(advance, carry, xs)[1]

    def probed(numbers: list[int], key: Array) -> Probed:
        def size(key: Array) -> Array:
            keys = jax.random.split(key, len(leaves))
            direction = [
                jax.random.normal(k, leaf.shape, leaf.dtype)
                if number in numbers
                else jnp.zeros_like(leaf)
                for number, (k, leaf) in enumerate(zip(keys, leaves, strict=True))
            ]
            after, change = jax.jvp(carries, (leaves,), (direction,))
            return norm(jax.vmap(_spoiled)(change, after), kept=1)

        return _mean_square(jax.vmap(size)(jax.random.split(key, probes)))

    members = blocks(params, depth)
    keys = jax.random.split(key, len(members))
    return {name: probed(members[name], k) for name, k in zip(members, keys, strict=True)}


def _arrays(params: Params) -> tuple[list[Array], Any]:
    """The leaves as arrays, bare numbers included, and the structure of the tree."""
    leaves, structure = jax.tree.flatten(params)
    return [jnp.asarray(leaf) for leaf in leaves], structure


def _mean_square(sizes: Float[Array, "K T"]) -> Probed:
    """The root mean square of norms of any scale, and the standard error."""
    largest = jnp.max(sizes, axis=0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = jnp.square(sizes / scale[None])
    mean = jnp.mean(squares, axis=0)
    error = jnp.std(squares, axis=0, ddof=1) / jnp.sqrt(sizes.shape[0])
    root = jnp.sqrt(mean)
    # If all probes give 0, the error is 0; the first-order formula gives 0 / 0.
    return Probed(scale * root, scale * error / jnp.where(mean == 0, 1, 2 * root))


def _spoiled(derivative: Any, state: Any) -> Any:
    """The derivative of a state; NaN if the state contains a NaN (autodiff may give 0)."""
    bad = jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(state)]))
    return jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), derivative)
