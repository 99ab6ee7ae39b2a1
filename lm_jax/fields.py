"""Fields of settings classes: their types, marks and dotted paths.

The type of a field says what the field is:

- `Positive`, `PositiveFinite`, `UnitInterval`, `Probability`, `NonNegative`, `Count`,
  `PositiveCount`, `Seed`: a number that changes no shape. The number is a leaf of the config, so a
  function compiled by `jax.jit` takes the number as an argument: another value compiles nothing,
  and `jax.vmap` maps the function over stacked configs.
- Nested settings, and a tuple of settings: a subtree. A union of settings classes, marked
  `OneOf()`, holds alternatives; their field `kind` tells them apart.
- `Adjustable`: a field that may change when a run goes on; any other change makes another run. No
  compiled function reads the field, and the pytree leaves the field out.
- Any other field, and `None` in place of a number, is structure.
"""

import copy
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, Discriminator, Field, Tag

Settings = TypeVar("Settings")


class Mark(enum.Enum):
    """Role of a field in a run."""

    LEAF = "a number that changes no shape: a leaf of the pytree"
    ADJUSTABLE = "may change when a run goes on"


def _in_float32(value: float) -> float:
    if not 2.0**-126 <= value < 2.0**128:
        # A ValueError would be told without the field's name, as those of a whole class are.
        raise AssertionError("in float32 it is 0 or infinite")
    return value


Size = Annotated[int, Field(gt=0, lt=2**31)]
# Not strict, so that the string that JSON needs for an infinite threshold is read back.
Positive = Annotated[float, Mark.LEAF, Field(gt=0, strict=False)]
PositiveFinite = Annotated[
    float, Mark.LEAF, Field(gt=0, allow_inf_nan=False), AfterValidator(_in_float32)
]
UnitInterval = Annotated[float, Mark.LEAF, Field(ge=0, le=1)]
Probability = Annotated[float, Mark.LEAF, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Mark.LEAF, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Mark.LEAF, Field(ge=0, lt=2**31)]
PositiveCount = Annotated[int, Mark.LEAF, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Mark.LEAF, Field(ge=0, lt=2**32)]
Adjustable = Annotated[int, Mark.ADJUSTABLE, Field(gt=0, lt=2**31)]


CODE = "FILE.py:NAME"
"""Stands for the kinds of an alternative that names code of the user's own."""


class OneOf:
    """Mark of a union of settings classes: alternatives, told apart by their field `kind`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        members = {cast(str, kind_of(member)): member for member in classes_in(source)}

        def chosen(value: Any) -> Any:
            word = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
            return CODE if CODE in members and ":" in str(word) else word

        tagged = [Annotated[member, Tag(word)] for word, member in members.items()]
        union: Any = Annotated[typing.Union[tuple(tagged)], Discriminator(chosen)]  # noqa: UP007
        optional = type(None) in typing.get_args(source)
        return handler.generate_schema(union | None if optional else union)


def alternatives(kind: type, path: str) -> dict[str, type]:
    """The alternative classes at a dotted path of a settings class, by `kind`.

    Empty if the path names no field, or a field without alternatives.
    """
    hints = _hints_at(kind, path)
    return {
        word: member
        for hint in hints
        for member in classes_in(hint)
        if (word := kind_of(member)) is not None
    }


def kind_of(member: type) -> str | None:
    """The word that chooses a settings class; None for a class that is no alternative."""
    return getattr(member, "kind", CODE) if "kind" in hints_of(member) else None


def classes_in(hint: Any) -> Iterator[type]:
    """The settings classes in a type."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for member in typing.get_args(hint):
        yield from classes_in(member)


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, frozenset[Mark]]]:
    """Dotted path, value and marks of every field of a config, nested fields included.

    The `kind` of an alternative has the path of the alternative: `model.cell` is "lstm".
    """
    hints = hints_of(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = prefix.removesuffix(".") if field.name == "kind" else prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from fields(value, path + ".")
        elif isinstance(value, Mapping):
            yield from ((f"{prefix}{name}", own, frozenset()) for name, own in value.items())
        elif any(classes_in(hints[field.name])) and isinstance(value, tuple):
            for number, own in enumerate(value):
                yield from fields(own, f"{path}.{number}.")
        else:
            yield path, value, frozenset(marks_of(hints[field.name]))


def marks_of(hint: Any) -> Iterator[Mark]:
    if typing.get_origin(hint) is Annotated:
        yield from (extra for extra in hint.__metadata__ if isinstance(extra, Mark))
        yield from marks_of(hint.__origin__)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from marks_of(member)


def marks_at(kind: type, path: str) -> frozenset[Mark] | None:
    """The marks of the field at a dotted path, common to all alternatives at the path.

    None if no alternative has a field there.
    """
    found = [frozenset(marks_of(hint)) for hint in _hints_at(kind, path)]
    return frozenset.intersection(*found) if found else None


def words_at(kind: type, path: str) -> list[str]:
    """The words accepted by the field at a dotted path, without None; empty if any word will do.

    A bool accepts True and False.
    """
    return list(dict.fromkeys(word for hint in _hints_at(kind, path) for word in words_of(hint)))


def types_at(kind: type, path: str) -> set[Any]:
    """The plain types accepted by the field at a dotted path, perhaps with `type(None)`."""
    return {plain for hint in _hints_at(kind, path) for plain in plain_types(hint)}


def plain_types(hint: Any) -> Iterator[Any]:
    """The members of a union, without annotations."""
    if typing.get_origin(hint) is Annotated:
        yield from plain_types(hint.__origin__)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from plain_types(member)
    else:
        yield hint


def words_of(hint: Any) -> Iterator[str]:
    """The words of a literal type, without None."""
    if hint is bool:
        yield from ("True", "False")
    elif typing.get_origin(hint) is Literal:
        yield from map(str, typing.get_args(hint))
    else:
        for member in typing.get_args(hint):
            yield from words_of(member)


def _hints_at(kind: type, path: str) -> list[Any]:
    """The types of the field at a dotted path, for all alternatives at the path."""
    names = [part for part in path.split(".") if not part.isdigit()]
    if not names:  # a path of digits alone
        return []
    *parents, name = names
    classes = [kind]
    for parent in parents:
        hints = [hints_of(member).get(parent) for member in classes]
        classes = [member for hint in hints for member in classes_in(hint)]
    return [hints[name] for hints in map(hints_of, classes) if name in hints]


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def replace_at(config: Settings, path: str, value: Any) -> Settings:
    """The config with another value at a dotted path, unchecked."""
    name, _, rest = path.partition(".")
    if isinstance(config, tuple):
        own = replace_at(config[int(name)], rest, value) if rest else value
        return cast(Settings, (*config[: int(name)], own, *config[int(name) + 1 :]))
    changed = copy.copy(config)
    value = replace_at(getattr(config, name), rest, value) if rest else value
    object.__setattr__(changed, name, value)
    return changed


def differences(old: Any, new: Any, *, adjustable: bool = True) -> list[str]:
    """A line for each field that differs between two configs: `train.steps: 100 -> 200`.

    With `adjustable=False`, without the fields marked `Mark.ADJUSTABLE`.
    """
    before = {path: value for path, value, _ in fields(old)}
    after = {path: value for path, value, _ in fields(new)}
    marks = {path: marks for config in (old, new) for path, _, marks in fields(config)}
    absent = "(no such field)"
    return [
        f"{path}: {before.get(path, absent)} -> {after.get(path, absent)}"
        for path in marks
        if before.get(path, absent) != after.get(path, absent)
        and (adjustable or Mark.ADJUSTABLE not in marks[path])
    ]


Needs = tuple[tuple[str, str], ...]
"""Pairs (path, kind) of the alternatives to choose, from the top down."""


def paths(kind: type) -> dict[str, list[Needs]]:
    """Every dotted path of a settings class, with the choices that give the path a field."""
    found: dict[str, list[Needs]] = {}
    _collect(kind, "", (), found)
    return found


def _collect(kind: type, prefix: str, needs: Needs, found: dict[str, list[Needs]]) -> None:
    for field in dataclasses.fields(kind):
        path, hint = prefix + field.name, hints_of(kind)[field.name]
        classes = list(classes_in(hint))
        several = typing.get_origin(hint) is tuple
        if (not classes and field.name != "kind") or any(map(kind_of, classes)) or several:
            found.setdefault(path, []).append(needs)
        below = f"{path}.0." if several else f"{path}."
        for member in classes:
            word = kind_of(member)
            _collect(member, below, needs if word is None else (*needs, (path, word)), found)
