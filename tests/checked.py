"""Checks of shapes in the tests, by jaxtyping's import hook and beartype."""

import functools
import inspect
from typing import Any

import beartype
import jaxtyping

check = beartype.beartype
_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Check arrays' types and shapes at each call of a function of `lm_jax` that names them.

    The hook wraps every function. Functions inside functions are made anew in every trace, and
    most others name no array: to wrap these, too, took a fifth of the time of the tests.
    """
    jaxtyping.jaxtyped = _of_arrays
    jaxtyping.install_import_hook("lm_jax", "checked.check")


def _of_arrays(function: Any = None, *, typechecker: Any) -> Any:
    if function is None:
        return functools.partial(_of_arrays, typechecker=typechecker)
    inner = inspect.unwrap(getattr(function, "__func__", getattr(function, "fget", function)))
    named = "<locals>" not in inner.__qualname__ and "[Array, " in str(inner.__annotations__)
    return _jaxtyped(function, typechecker=typechecker) if named else function
