"""Frozen, validated settings classes: pytrees with a JSON round trip, comparison and a digest.

A settings object is a JAX pytree. The type of each field says what the field is:

- `Positive`, `PositiveFinite`, `UnitInterval`, `Probability`, `NonNegative`, `Count`,
  `PositiveCount`, `Seed`: a number that changes no shape. The number is a leaf, so a function
  compiled by `jax.jit` takes the number as an argument: another value compiles nothing, and
  `jax.vmap` maps the function over stacked configs.
- Nested settings, and a tuple of settings: a subtree. A union of settings classes, marked
  `OneOf()`, holds alternatives; their field `kind` tells them apart.
- `Adjustable`: a field that may change when a run goes on; any other change makes another run. No
  compiled function reads the field, and the pytree leaves the field out.
- Any other field, and `None` in place of a number, is structure. Two configs share their compiled
  functions exactly if `jax.tree.structure(a) == jax.tree.structure(b)`.
"""

import copy
import dataclasses
import enum
import functools
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

import jax
import numpy as np
import pydantic
from pydantic import AfterValidator, Field
from pydantic_core import core_schema

from lm_jax.suggestions import as_fields, nearest_field, nearest_value
from lm_jax.synonyms import value_meant

VERSION = 2
MOST_SHOWN = 100  # characters of a refused value

Settings = TypeVar("Settings")


class UserError(ValueError):
    """A one-line message about a mistake in a flag, a config, a corpus or a run directory."""


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


@typing.dataclass_transform(frozen_default=True)
def settings(cls: type[Settings]) -> type[Settings]:
    """Make a class of settings: a frozen dataclass that refuses wrong types, values and names.

    A refusal is a `UserError` of one line that names the field. The class is a pytree.
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="strings")
    checked = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
    checking_init = checked.__init__

    @functools.wraps(checking_init)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            checking_init(self, *args, **values)
        except pydantic.ValidationError as error:
            raise UserError(explain(error, checked)) from None

    checked.__init__ = init
    _register(checked)
    return cast(type[Settings], checked)


def _register(kind: type) -> None:
    """Register a settings class as a pytree with the leaves named at the head of this module."""
    marks = {name: set(_marks(hint)) for name, hint in _hints(kind).items()}
    leaves = [
        name
        for name, hint in _hints(kind).items()
        if Mark.LEAF in marks[name] or any(_classes(hint))
    ]
    rest = [name for name in marks if name not in leaves]
    structure = [name for name in rest if Mark.ADJUSTABLE not in marks[name]]

    def flatten(config: Any) -> tuple[list[tuple[Any, Any]], tuple]:
        children = [(jax.tree_util.GetAttrKey(name), _typed(name, config)) for name in leaves]
        return children, tuple(getattr(config, name) for name in structure)

    def unflatten(fixed: tuple, children: Iterable[Any]) -> Any:
        # Past the validating constructor, which would refuse a tracer.
        config = object.__new__(kind)
        for name, value in [
            *((name, None) for name in rest),
            *zip(structure, fixed, strict=True),
            *zip(leaves, children, strict=True),
        ]:
            object.__setattr__(config, name, value)
        return config

    jax.tree_util.register_pytree_with_keys(kind, flatten, unflatten)


def _typed(name: str, config: Any) -> Any:
    """The value of a field; a Python number becomes a NumPy scalar, to have no weak type in JAX."""
    value = getattr(config, name)
    if type(value) is int:
        return np.uint32(value) if name == "seed" else np.int64(value)
    return np.float64(value) if type(value) is float else value


CODE = "FILE.py:NAME"
"""Stands for the kinds of an alternative that names code of the user's own."""


class OneOf:
    """Mark of a union of settings classes: alternatives, told apart by their field `kind`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        choices = {_kind(member): handler.generate_schema(member) for member in _classes(source)}

        def chosen(value: Any) -> Any:
            word = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
            return CODE if CODE in choices and ":" in str(word) else word

        union = core_schema.tagged_union_schema(choices, chosen)
        optional = type(None) in typing.get_args(source)
        return core_schema.nullable_schema(union) if optional else union


def alternatives(kind: type, path: str) -> dict[str, type]:
    """The alternative classes at a dotted path of a settings class, by `kind`.

    Empty if the path names no field, or a field without alternatives.
    """
    hints = _hints_at(kind, path)
    return {
        word: member
        for hint in hints
        for member in _classes(hint)
        if (word := _kind(member)) is not None
    }


def _kind(member: type) -> str | None:
    """The word that chooses a settings class; None for a class that is no alternative."""
    return getattr(member, "kind", CODE) if "kind" in _hints(member) else None


def _classes(hint: Any) -> Iterator[type]:
    """The settings classes in a type."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for member in typing.get_args(hint):
        yield from _classes(member)


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, frozenset[Mark]]]:
    """Dotted path, value and marks of every field of a config, nested fields included.

    The `kind` of an alternative has the path of the alternative: `model.cell` is "lstm".
    """
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = prefix.removesuffix(".") if field.name == "kind" else prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from fields(value, path + ".")
        elif isinstance(value, Mapping):
            yield from ((f"{prefix}{name}", own, frozenset()) for name, own in value.items())
        elif any(_classes(hints[field.name])) and isinstance(value, tuple):
            for number, own in enumerate(value):
                yield from fields(own, f"{path}.{number}.")
        else:
            yield path, value, frozenset(_marks(hints[field.name]))


def _marks(hint: Any) -> Iterator[Mark]:
    if typing.get_origin(hint) is Annotated:
        yield from (extra for extra in hint.__metadata__ if isinstance(extra, Mark))
        yield from _marks(hint.__origin__)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _marks(member)


def marks_at(kind: type, path: str) -> frozenset[Mark] | None:
    """The marks of the field at a dotted path, common to all alternatives at the path.

    None if no alternative has a field there.
    """
    found = [frozenset(_marks(hint)) for hint in _hints_at(kind, path)]
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
    *parents, name = [part for part in path.split(".") if not part.isdigit()]
    classes = [kind]
    for parent in parents:
        hints = [_hints(member).get(parent) for member in classes]
        classes = [member for hint in hints for member in _classes(hint)]
    return [hints[name] for hints in map(_hints, classes) if name in hints]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
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


def digest(config: Any) -> str:
    """A short name of the run: hex digits from all fields except the adjustable ones."""
    kept = {
        path: repr(value) for path, value, marks in fields(config) if Mark.ADJUSTABLE not in marks
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def to_json(config: Any) -> str:
    """Settings as indented JSON with a version; `from_json` gives the equal settings back.

    JSON has no infinite numbers: infinity becomes the string "Infinity".
    """
    values = json.loads(pydantic.TypeAdapter(type(config)).dump_json(config))
    return json.dumps({"version": VERSION, **values}, indent=2) + "\n"


def from_json(kind: type[Settings], text: str, name: str) -> Settings:
    """The settings in a text written by `to_json`.

    Args:
      kind: the class of settings.
      text: JSON.
      name: name of the text in an error message, such as a file's path.

    Raises:
      UserError: the text holds no such settings, or of another version; names the key.
    """
    values = parsed(text, name, Any)
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise UserError(f"{name} does not hold settings of version {VERSION}")
    try:
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(values))
    except pydantic.ValidationError as error:
        raise UserError(f"{name}: {explain(error, kind)}") from None


def parsed(text: str | bytes, name: str, kind: Any = dict[str, Any]) -> Any:
    """The value of a JSON text.

    Args:
      text: JSON, bytes in UTF-8.
      name: name of the text in an error message, such as a file's path.
      kind: the type that the value must have, as pydantic checks it.

    Raises:
      UserError: the text is not JSON, is nested more than 200 deep, holds an integer of thousands
        of digits, or is of another type.
    """
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"]
        if first["type"] == "json_invalid":
            raise UserError(
                f"{name} is not JSON: {message.removeprefix('Invalid JSON: ')}"
            ) from None
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{name}: {where}{message[0].lower()}{message[1:]}") from None


def fits(value: Any, kind: Any) -> bool:
    """True if a value from JSON has a type, checked by pydantic."""
    try:
        _adapter(kind).validate_python(value, strict=True)
    except pydantic.ValidationError:
        return False
    return True


_adapter = functools.lru_cache(pydantic.TypeAdapter)


def plain(value: Any) -> Any:
    """The value with lists for tuples and Python numbers for NumPy numbers, as in JSON."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def explain(error: pydantic.ValidationError, kind: type) -> str:
    """The one-line message for refused settings: the first wrong field, and why."""
    first = error.errors(include_url=False)[0]
    where = _where(first["loc"], kind)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not where or first["type"] == "value_error":
        return message
    if first["type"] == "unexpected_keyword_argument":
        return f"there is no field {where}{nearest_field(where, paths(kind))}"
    value = first["input"]
    if first["type"] == "union_tag_invalid":
        value = value.get("kind")
        message = f"choose from {first.get('ctx', {}).get('expected_tags')}"
    kinds = alternatives(kind, where)
    if kinds and first["type"] == "union_tag_not_found":
        message = f"choose from {', '.join(f'{member.__name__}()' for member in kinds.values())}"
    if isinstance(value, str) and kinds:
        meant = value_meant(where, value, kinds)
        if meant is not None and meant[0][0] == where and first["type"] == "union_tag_not_found":
            near = f"; did you mean {kinds[str(meant[0][1])].__name__}()?"
        else:
            near = "" if meant is None else f"; did you mean {as_fields(meant)}?"
    else:
        near = nearest_value(where, value, words_at(kind, where))
    return f"{where}={_shown(value)}: {message[0].lower()}{message[1:]}{near}"


def _where(location: tuple[int | str, ...], kind: type) -> str:
    """The dotted path of an error; pydantic's location also names the alternatives on the way."""
    found, classes, tagged = [], [kind], False
    for place, part in enumerate(location):
        if isinstance(part, int) and not found:  # an argument without its name
            part = dataclasses.fields(kind)[part].name
        if tagged:
            classes, tagged = [member for member in classes if _kind(member) == part], False
            continue
        found.append(str(part))
        hints = [hints[str(part)] for hints in map(_hints, classes) if part in hints]
        if any(typing.get_origin(plain) is dict for hint in hints for plain in plain_types(hint)):
            # Hyperparameters are fields where their code is.
            return ".".join([*found[:-1], *map(str, location[place + 1 : place + 2] or [part])])
        if hints:
            classes = [member for hint in hints for member in _classes(hint)]
            tagged = any(map(_kind, classes))
    return ".".join(found)


def _shown(value: Any) -> str:
    """A refused value for an error message, shortened if long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deep list
        text = f"({type(value).__name__})"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


Needs = tuple[tuple[str, str], ...]
"""Pairs (path, kind) of the alternatives to choose, from the top down."""


def paths(kind: type) -> dict[str, list[Needs]]:
    """Every dotted path of a settings class, with the choices that give the path a field."""
    found: dict[str, list[Needs]] = {}
    _collect(kind, "", (), found)
    return found


def _collect(kind: type, prefix: str, needs: Needs, found: dict[str, list[Needs]]) -> None:
    for field in dataclasses.fields(kind):
        path, hint = prefix + field.name, _hints(kind)[field.name]
        classes = list(_classes(hint))
        several = typing.get_origin(hint) is tuple
        if (not classes and field.name != "kind") or any(map(_kind, classes)) or several:
            found.setdefault(path, []).append(needs)
        below = f"{path}.0." if several else f"{path}."
        for member in classes:
            word = _kind(member)
            _collect(member, below, needs if word is None else (*needs, (path, word)), found)
