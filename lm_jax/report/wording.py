"""Settings in words, for tables and pages: the value, and the path in short."""

from collections.abc import Iterable
from typing import Any


def in_words(value: Any) -> str:
    """The text of a setting's value; None is "off"."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, "g") if isinstance(value, float) else str(value)


def short(path: str, others: Iterable[str]) -> str:
    """The shortest end of a path that is unique among `others`, in words with blanks."""
    path = path.removesuffix(".kind")
    others = [other.removesuffix(".kind") for other in others]
    parts = path.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in others) == 1:
            return end.replace("_", " ")
    return path.replace("_", " ")
