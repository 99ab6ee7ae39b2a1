"""Checks of the arguments of a figure: the message of an error names the argument.

A number that is missing or not finite leaves a gap in a figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

AXES = {1: "one axis", 2: "two axes"}


def numbers(values: Any, name: str, axes: int = 1) -> np.ndarray:
    """An array of floats, with NaN for None and for a number that is not finite.

    Args:
      values: the numbers.
      name: name of the argument.
      axes: number of axes.

    Raises:
      ValueError: there are no numbers, no real numbers, rows of several lengths, or other axes.
    """
    try:
        given = np.asarray(values)
        if np.iscomplexobj(given):
            raise TypeError("complex numbers")
        found = given.astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no array of numbers: {error}") from None
    if found.ndim != axes:
        raise ValueError(f"{name} must have {AXES[axes]}, not the shape {list(found.shape)}")
    if not found.size:
        raise ValueError(f"{name} holds no numbers")
    return np.where(np.isfinite(found), found, np.nan)


def complex_numbers(values: Any, name: str) -> np.ndarray:
    """An array of complex numbers with one axis; see `numbers`."""
    try:
        given = np.asarray(values, dtype=complex)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no array of complex numbers: {error}") from None
    return numbers(np.real(given), name) + 1j * numbers(np.imag(given), name)


def alike(**arrays: Any) -> None:
    """Check that sequences have the same length.

    Raises:
      ValueError: two lengths differ.
    """
    (first, one), *others = ((name, len(array)) for name, array in arrays.items())
    for name, other in others:
        if other != one:
            raise ValueError(f"{name} has the length {other}, {first} the length {one}")


def named(values: Any, name: str) -> dict[Any, Any]:
    """A dict with at least one entry.

    Raises:
      ValueError: `values` is no mapping, or is empty.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must be a dict from names to numbers, not {values!r:.60}")
    if not values:
        raise ValueError(f"{name} holds no numbers")
    return dict(values)


def named_numbers(values: Any, name: str) -> dict[str, np.ndarray]:
    """`numbers` of each entry, with one axis."""
    return {key: numbers(one, f"{name}[{key!r}]") for key, one in named(values, name).items()}


def pairs(values: Any, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two arrays of the same length for each entry: places, and the numbers there.

    Raises:
      ValueError: an entry is no pair, or its arrays are not as `numbers` takes them.
    """
    return {key: pair(two, f"{name}[{key!r}]") for key, two in named(values, name).items()}


def pair(two: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of the same length.

    Raises:
      ValueError: `two` is no pair, or its arrays are not as `numbers` takes them.
    """
    if not isinstance(two, tuple | list) or len(two) != 2:
        raise ValueError(f"{name} must be a pair of arrays, not {two!r:.60}")
    places, found = (numbers(one, f"{name}[{k}]") for k, one in enumerate(two))
    alike(**{f"{name}[0]": places, f"{name}[1]": found})
    return places, found


def words_of(values: Any, name: str, count: int, other: str) -> list[Any]:
    """A list of `count` entries, as many as the argument `other` has.

    Raises:
      ValueError: `values` is no sequence, or has another length.
    """
    if not isinstance(values, Sequence | np.ndarray):
        raise ValueError(f"{name} must be a sequence of {count}, not {values!r:.60}")
    if len(values) != count:
        raise ValueError(f"{name} has the length {len(values)}, {other} the length {count}")
    return list(values)


def marks(values: Any, name: str) -> dict[str, float]:
    """The finite numbers of a mapping, which may be empty.

    Raises:
      ValueError: `values` is no mapping of numbers.
    """
    if not values:
        return {}
    given = named(values, name)
    found = numbers(list(given.values()), name)
    return {key: float(at) for key, at in zip(given, found, strict=True) if np.isfinite(at)}


def levels(level: Any) -> dict[str, float]:
    """The `marks` of the argument `level`."""
    return marks(level, "level")
