"""Checks of a transition and the data, from shapes and dtypes alone.

A transition is step(params, carry, x) -> carry for one example; xs is a tree of arrays of T steps,
with time on the first axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError

Step = Callable[[Params, Carry, Any], Carry]
"""(params, carry, x) -> carry, for one example."""
exact_products = jax.default_matmul_precision("highest")
"""Decorator of a function that runs a user's own step: on a GPU or TPU, too, products are in full
float32. JAX's default would round their factors to 11 or 8 significant bits."""

StepLoss = Callable[[Params, Carry, Any], jax.Array]
"""(params, carry, y) -> nats of one step, a scalar; `carry` is the carry after the step."""


def check_transition(step: Step, params: Params, carry: Carry, xs: Any) -> int:
    """Check, without computing anything, that `step` runs over xs and can be differentiated.

    Args:
      step: (params, carry, x) -> carry.
      params, carry: trees of floating-point arrays.
      xs: a tree of arrays [T, ...].

    Returns:
      T, the number of steps.

    Raises:
      UserError: T is 0 or differs within xs, params or carry hold a leaf that is not
        floating-point, the carry is empty, or the step changes the structure, a shape or a dtype of
        the carry.
    """
    steps = check_length(xs, "xs")
    for name, tree in (("params", params), ("carry", carry)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(_types(tree)):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise UserError(f"{name}{_at(path)} is of type {leaf.dtype}, not floating-point")
    before = _types(carry)
    if not sum(leaf.size for leaf in jax.tree.leaves(before)):
        raise UserError("the carry holds no numbers")
    after = jax.eval_shape(lambda p, c, x: step(p, c, jax.tree.map(_first, x)), params, carry, xs)
    if jax.tree.structure(after) != jax.tree.structure(before):
        raise UserError(
            "step changes the structure of the carry "
            f"from {jax.tree.structure(before)} to {jax.tree.structure(after)}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise UserError(f"step changes carry{_at(path)} from {_type(old)} to {_type(new)}")
    return steps


def check_losses(step: Step, loss: StepLoss, params: Params, carry: Carry, xs: Any, ys: Any) -> int:
    """Check, without computing anything, that each step of a transition has a scalar loss.

    Args:
      step, params, carry, xs: as for `check_transition`.
      loss: (params, carry, y) -> nats.
      ys: a tree of arrays [T, ...].

    Returns:
      T.

    Raises:
      UserError: as `check_transition`; xs and ys differ in T, or the loss is no floating-point
        scalar.
    """
    steps, targets = check_length(xs, "xs"), check_length(ys, "ys")
    if steps != targets:
        raise UserError(f"xs has T={steps} steps, ys has T={targets}")
    check_transition(step, params, carry, xs)
    nats = jax.eval_shape(lambda p, c, y: loss(p, c, jax.tree.map(_first, y)), params, carry, ys)
    if not isinstance(nats, jax.ShapeDtypeStruct):
        raise UserError(f"loss gives {jax.tree.structure(nats)}, not a number")
    if nats.shape or not jnp.issubdtype(nats.dtype, jnp.floating):
        raise UserError(
            f"loss gives {nats.dtype}{list(nats.shape)}, not one floating-point number a step"
        )
    return steps


def check_length(xs: Any, name: str) -> int:
    """Length T of the first axis, shared by all leaves.

    Args:
      xs: a tree of arrays [T, ...].
      name: name of xs in error messages.

    Raises:
      UserError: there is no leaf, a leaf has no axis, T differs between leaves, or T is 0.
    """
    leaves = jax.tree_util.tree_leaves_with_path(_types(xs))
    if not leaves:
        raise UserError(f"{name} holds no array, and so no time step")
    for path, leaf in leaves:
        if not leaf.shape:
            raise UserError(f"{name}{_at(path)} is a single number, without an axis of time")
        if leaf.shape[0] != leaves[0][1].shape[0]:
            raise UserError(
                f"{name}{_at(path)} has T={leaf.shape[0]} steps, "
                f"{name}{_at(leaves[0][0])} has T={leaves[0][1].shape[0]}"
            )
    if not leaves[0][1].shape[0]:
        raise UserError(f"{name} holds T=0 time steps")
    return leaves[0][1].shape[0]


def check_floating(params: Params) -> None:
    """Check that a model has parameters, all floating-point, so that there is a gradient.

    Raises:
      UserError: the parameters hold no numbers, or a leaf is not floating-point; the message names
        the leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(jnp.size(leaf) for _, leaf in leaves):
        raise UserError("params hold no numbers, and so have no gradient")
    for path, leaf in leaves:
        kind = jnp.asarray(leaf).dtype
        if not jnp.issubdtype(kind, jnp.floating):
            where = _at(path)
            raise UserError(
                f"params{where} is of type {kind}, not floating-point: a model that is counted, "
                "not a model that learns by gradient descent"
            )


def check_max_lag(max_lag: int, steps: int) -> None:
    """Check that the largest lag is at least 0 and at most the number of steps.

    Raises:
      UserError: max_lag is negative or longer than T.
    """
    if max_lag < 0:
        raise UserError(f"max_lag={max_lag} must be 0 or more")
    if max_lag > steps:
        raise UserError(f"max_lag={max_lag} is longer than the sequence, T={steps}")


def _types(tree: Any) -> Any:
    return jax.eval_shape(lambda t: jax.tree.map(jnp.asarray, t), tree)


def _first(leaf: Any) -> Any:
    return jnp.asarray(leaf)[0]


def _at(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
