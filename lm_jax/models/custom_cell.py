"""Custom cells: three lines of a user's Python become a layer of a language model.

`model.cell` names the cell, FILE.py:NAME or package.module:NAME. The named object may be

- a function (inputs, hidden_size) -> `Transition`, linen cell or nnx cell; a function that makes an
  nnx cell may take `rngs` as well;
- a linen cell class of Flax, called with features=hidden_size;
- an nnx cell class of Flax, called with (inputs, hidden_size, rngs=rngs).

A parameter with a number, a bool or a string as its default is a hyperparameter
(`lm_jax.config.custom`): `--model.cell cells.py:mlstm --model.cell.heads 4` passes heads=4 as well.

Each becomes a `Transition`, pure functions for a single example; the layer maps the functions over
the sequences of a batch. Only this module uses Flax, and imports Flax only for a cell that is not a
`Transition`.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm_jax.config.cell import CustomCell
from lm_jax.config.custom import Arguments, blaming, load
from lm_jax.models import transition
from lm_jax.models.base import Carry, Params
from lm_jax.models.layers import Layer
from lm_jax.models.transition import KEY, Transition, TransitionLayer
from lm_jax.settings import UserError


def layer(cell: CustomCell, inputs: int, hidden_size: int) -> Layer:
    """A recurrent layer made from a custom cell.

    Args:
      cell: the config of the cell.
      inputs: length of x, V for one-hot vectors.
      hidden_size: H.

    Raises:
      UserError: there is no cell with this name, the file has another hash or does not run, or the
        cell breaks the contract of `Transition`.
    """
    named = load(cell)
    with blaming(cell):
        x64 = bool(jax.config.read("jax_enable_x64"))
        return _layer(named, inputs, hidden_size, Arguments(cell.arguments), x64)


@functools.lru_cache(maxsize=64)
def _layer(named: Any, inputs: int, hidden_size: int, arguments: Arguments, x64: bool) -> Layer:
    """The same layer each time, so that models with this layer are equal."""
    del x64  # the type of the cell's arrays
    # The carry's arrays are made here, even if the model is made during a trace.
    with jax.ensure_compile_time_eval():
        made = _made(named, inputs, hidden_size, arguments)
    transition.check(made, inputs, hidden_size)
    return TransitionLayer(made, inputs)


def _made(named: Any, inputs: int, hidden_size: int, arguments: Arguments) -> Transition:
    """The transition made from a named object."""
    if not callable(named):
        raise UserError(f"it is a {type(named).__name__}, no cell and no function that makes one")
    create, kind, made = cast(Callable, named), cast(type, named), None
    is_class = isinstance(named, type)
    takes_rngs = not is_class and _rngs(create)
    if not is_class and not takes_rngs:
        made = create(inputs, hidden_size, **arguments)
        if isinstance(made, Transition):
            return made
    from flax import linen, nnx  # imported late: takes most of a second

    if takes_rngs or (is_class and issubclass(kind, nnx.Module)):
        return _of_nnx(lambda rngs: create(inputs, hidden_size, rngs=rngs, **arguments), inputs)
    if is_class and issubclass(kind, linen.Module):
        made = create(features=hidden_size, **arguments)
    if isinstance(made, nnx.Module):
        return _of_nnx(lambda rngs: create(inputs, hidden_size, **arguments), inputs)
    if isinstance(made, linen.Module):
        return _of_linen(made, inputs)
    what = "a class" if is_class else f"a function that gives a {_kind(made)}"
    raise UserError(f"it is {what}, no Transition and no cell of Flax")


def _rngs(function: Callable) -> bool:
    """True if a function takes `rngs`."""
    try:
        return "rngs" in inspect.signature(function).parameters
    except ValueError:  # some functions written in C have no signature
        return False


def _kind(thing: Any) -> str:
    return type(thing).__name__


def _of_linen(cell: Any, inputs: int) -> Transition:
    _see_a_cell(cell)
    x = jnp.zeros(inputs)
    first = _default_floats(cell.initialize_carry(jax.random.key(0), (inputs,)))

    def init(key: Array) -> Params:
        variables = cell.init(key, first, x)
        _see_nothing_but_params(variables.keys() - {"params"})
        return _default_floats(variables.get("params", {}))

    return _of_flax(init, first, lambda params, *seen: cell.apply({"params": params}, *seen), x)


def _of_nnx(make: Callable[[Any], Any], inputs: int) -> Transition:
    """The transition of an nnx cell, given a function rngs -> cell."""
    from flax import nnx

    graph: Any = None

    def init(key: Array) -> Params:
        nonlocal graph
        cell = make(nnx.Rngs(key))
        if not isinstance(cell, nnx.Module):
            raise UserError(f"it takes rngs and gives a {_kind(cell)}, no nnx cell")
        graph, params, other = nnx.split(cell, nnx.Param, ...)
        paths = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(other))
        _see_nothing_but_params({jax.tree_util.keystr(path) for path, _ in paths})
        return _default_floats(nnx.to_pure_dict(params))

    def first() -> Carry:
        cell = make(nnx.Rngs(0))
        _see_a_cell(cell)
        return _default_floats(cell.initialize_carry((inputs,), nnx.Rngs(0)))

    def call(params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        return nnx.merge(graph, params)(carry, x)

    jax.eval_shape(init, KEY)  # sets `graph`
    # Compiled: XLA then drops the draws of parameters, which the carry does not need.
    return _of_flax(init, jax.jit(first)(), call, jnp.zeros(inputs))


def _of_flax(
    init: Callable[[Array], Params],
    first: Carry,
    call: Callable[[Params, Carry, Array], tuple[Carry, Array]],
    x: Array,
) -> Transition:
    """The transition of a Flax cell, which returns (carry, output).

    If the output is an array of the carry, as in Flax's own cells, the output is read from the
    carry. Otherwise the output is stored in the carry.
    """
    place: int | None = None

    def look(params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        nonlocal place
        carry, h = call(params, carry, x)
        same = [n for n, leaf in enumerate(jax.tree.leaves(carry)) if leaf is h]
        place = same[0] if same else None
        return carry, h

    _, h = jax.eval_shape(look, jax.eval_shape(init, KEY), first, x)
    found = place
    if found is None:
        kept = (first, jnp.zeros(h.shape, h.dtype))
        return Transition(
            init, kept, lambda params, kept, x: call(params, kept[0], x), lambda kept: kept[1]
        )
    return Transition(
        init,
        first,
        lambda params, carry, x: call(params, carry, x)[0],
        lambda carry: jax.tree.leaves(carry)[found],
    )


def _see_a_cell(made: Any) -> None:
    if not hasattr(made, "initialize_carry"):
        raise UserError(f"{_kind(made)} has no initialize_carry, so it is no cell")


def _see_nothing_but_params(others: Collection[str]) -> None:
    if others:
        raise UserError(f"it keeps more than parameters: {', '.join(sorted(others))}")


def _default_floats(tree: Any) -> Any:
    """Cast float32 leaves, Flax's default, to JAX's default floating-point type."""

    def cast_leaf(leaf: Array) -> Array:
        return leaf.astype(float) if leaf.dtype == jnp.float32 else leaf

    return jax.tree.map(cast_leaf, tree)
