"""Suggestions at the end of an error: "; did you mean …?"."""

import difflib
from collections.abc import Iterable
from typing import Any

from lm_jax.synonyms import plainly, setting_meant, value_meant


def last_of(path: str) -> str:
    """The last part of a path; a `kind` is chosen by the part before it."""
    return path.removesuffix(".kind").rpartition(".")[2]


def named_so(name: str, known: Iterable[str]) -> str | None:
    """The shortest path with the given last part."""
    same = [path for path in known if last_of(path) == name]
    return min(same, key=lambda path: path.count("."), default=None)


def nearest_field(typed: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the field closest to a wrong name, or nothing."""
    known, last = list(known), plainly(last_of(typed))
    if meant := setting_meant(last):
        own = {path for path in known if f".{meant[-1][0]}".endswith(f".{path}")}
        return f"; did you mean {as_fields([(min(own), None)] if own else meant)}?"
    found = named_so(last, known)
    if found is None or found == typed:
        others = [path for path in known if path != typed]
        lasts = {last_of(path): path for path in reversed(others)}
        close = difflib.get_close_matches(typed, others, n=1) or [
            lasts[name] for name in difflib.get_close_matches(last, list(lasts), n=1)
        ]
        found = close[0] if close else None
    return "" if found is None else f"; did you mean {found!r}?"


def nearest_value(path: str, value: Any, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with a known synonym of a wrong value, or nothing."""
    meant = value_meant(path, value, known) if isinstance(value, str) else None
    if meant is None:
        return ""
    said = repr(meant[0][1]) if meant[0][0] == path and len(meant) == 1 else as_fields(meant)
    return f"; did you mean {said}?"


def as_fields(meant: Iterable[tuple[str, str | None]]) -> str:
    """Settings as a program writes them: `model.cell='lstm'`."""
    said = [
        repr(path) if value is None else f"{path}={value if value.isdigit() else repr(value)}"
        for path, value in meant
    ]
    return ", ".join(said)


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the known name closest to a wrong name, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
