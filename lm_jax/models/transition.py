"""Recurrent cells as pure functions for a single example, and the layers made from these cells.

The recurrence can batch the matrix products of a `Cell`. Any other cell is a `Transition`: the
layer maps the functions over the sequences of a batch and runs step by step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Carry, EdgeHook, Params
from lm_jax.models.layers import Layer, apply_hook_and_tap
from lm_jax.settings import UserError

# Shape and type of a key, for tracing.
KEY = jax.ShapeDtypeStruct((), jax.eval_shape(jax.random.key, 0).dtype)


class Transition(NamedTuple):
    """A recurrent cell as pure functions for a single example."""

    init: Callable[[Array], Params]
    """key -> params: any tree of floating-point arrays."""
    carry: Carry
    """The carry before the first step: any tree of arrays."""
    step: Callable[[Params, Carry, Array], Carry]
    """(params, carry, x[inputs]) -> carry, of the same structure, shapes and types."""
    output: Callable[[Carry], Array] = lambda carry: carry
    """carry -> h[H]: the hidden state that the layer above or the readout sees."""


@dataclasses.dataclass(frozen=True, eq=False)  # a carry of arrays has no hash
class TransitionLayer(Layer):
    """A recurrent layer made from a transition; tokens at the input become one-hot vectors.

    Equal only to itself: `lm_jax.models.custom_cell` makes one layer for each cell and size.
    """

    transition: Transition
    inputs: int
    """Length of x, V for one-hot vectors."""

    def init(self, key: Array) -> Params:
        return _arrays(self.transition.init(key))

    def init_carry(self, batch_size: int) -> Carry:
        carry = _arrays(self.transition.carry)
        return optax.tree.batch_shape(carry, (batch_size,))

    def run(
        self,
        params: Params,
        carry: Carry,
        x: Float[Array, "T B inputs"] | Int[Array, "T B"],
        hook: EdgeHook | None = None,
        tap: Float[Array, "T B"] | None = None,
        kept: Float[Array, "T B K"] | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        def step(carry: Carry, at_t: tuple) -> tuple[Carry, Array]:
            x_t, kept_t, *edge = at_t
            if jnp.issubdtype(x_t.dtype, jnp.integer):
                x_t = jax.nn.one_hot(x_t, self.inputs, dtype=float)
            after = jax.vmap(self.transition.step, (None, 0, 0))(params, carry, x_t)
            if kept_t is not None:
                after = jax.vmap(optax.tree.where)(kept_t[:, 0] > 0, carry, after)
            return apply_hook_and_tap(after, self.output, hook, *edge)

        with jax.default_matmul_precision("highest"):  # as all products that do not round
            return jax.lax.scan(step, carry, (x, kept, hook and hook.at, tap))

    def output(self, carry: Carry) -> Float[Array, "B H"]:
        return jax.vmap(self.transition.output)(carry)


def check(cell: Transition, inputs: int, hidden_size: int) -> None:
    """Check that a cell has the types and shapes of a `Transition`, by tracing alone.

    Args:
      cell: functions for a single example.
      inputs: length of x.
      hidden_size: H, the length of h.

    Raises:
      UserError: `init`, `step` or `output` returns another type, structure or shape.
    """
    params = jax.eval_shape(lambda key: _arrays(cell.init(key)), KEY)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"init gives params{_at(path)} of type {leaf.dtype}, not floating-point"
            )
    x = jax.ShapeDtypeStruct((inputs,), jnp.zeros((), float).dtype)
    carry = jax.eval_shape(lambda: _arrays(cell.carry))
    after = jax.eval_shape(cell.step, params, carry, x)
    if jax.tree.structure(after) != jax.tree.structure(carry):
        raise UserError(
            "step changes the structure of the carry "
            f"from {jax.tree.structure(carry)} to {jax.tree.structure(after)}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(carry), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise UserError(f"step changes carry{_at(path)} from {_type(old)} to {_type(new)}")
    h = jax.eval_shape(cell.output, carry)
    if not isinstance(h, jax.ShapeDtypeStruct):
        raise UserError(
            f"output gives {jax.tree.structure(h)}, not an array of {hidden_size} numbers"
        )
    if h.shape != (hidden_size,) or not jnp.issubdtype(h.dtype, jnp.floating):
        raise UserError(
            f"output gives {_type(h)}, not the {hidden_size} floating-point numbers that "
            f"model.hidden_size={hidden_size} asks for"
        )


def _at(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _arrays(tree: Any) -> Any:
    """The tree with arrays for leaves; a Python number becomes an array of JAX's default type."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), tree)
