"""The type checker of the tests, for jaxtyping's import hook."""

from collections.abc import Callable

import beartype


def checked(function: Callable) -> Callable:
    """Check arguments and results, but not of functions inside functions.

    Every trace would make and check these anew, which took a sixth of the time of the tests.
    """
    return function if "<locals>" in function.__qualname__ else beartype.beartype(function)
