"""Frozen, validated settings classes: pytrees with a JSON round trip and a digest.

A settings object is a JAX pytree: the types of the fields (`lm_jax.fields`) say which fields are
leaves and which are structure. Two configs share their compiled functions exactly if
`jax.tree.structure(a) == jax.tree.structure(b)`.
"""

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Iterable
from typing import Any, cast

import jax
import numpy as np
import pydantic

from lm_jax.fields import (
    Mark,
    Settings,
    alternatives,
    classes_in,
    fields,
    hints_of,
    kind_of,
    marks_of,
    paths,
    plain_types,
    words_at,
)
from lm_jax.suggestions import as_fields, nearest_field, nearest_value
from lm_jax.synonyms import value_meant

VERSION = 4
MOST_SHOWN = 100  # characters of a refused value


class UserError(ValueError):
    """A one-line message about a mistake in a flag, a config, a corpus or a run directory."""


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
    """Register a settings class as a pytree; the head of `lm_jax.fields` says what is a leaf."""
    marks = {name: set(marks_of(hint)) for name, hint in hints_of(kind).items()}
    leaves = [
        name
        for name, hint in hints_of(kind).items()
        if Mark.LEAF in marks[name] or any(classes_in(hint))
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
        parts = [str(part) for part in first["loc"]]
        where = "".join(
            f"{p if p.isprintable() else ascii(p)}: " for p in parts
        )  # keys of the text
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
    errors = error.errors(include_url=False)
    *above, _ = errors[0]["loc"] or (None,)
    # Of a number or a list of numbers, the error about an entry is the nearest.
    near = [found for found in errors if list(found["loc"][: len(above)]) == above]
    first = max(near, key=lambda found: len(found["loc"]))
    where = _where(first["loc"], kind)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not where or first["type"] == "value_error":
        return message
    if first["type"] == "unexpected_keyword_argument":
        return f"there is no field {where}{nearest_field(where, paths(kind))}"
    value = first["input"]
    kinds = alternatives(kind, where)
    untold = first["type"] == "union_tag_not_found"
    if isinstance(value, str) and value in kinds:
        return f"{where}={value!r} is {kinds[value].__name__}() in a program"
    if first["type"].startswith("union_tag"):
        value = value.get("kind") if isinstance(value, dict) else value
        members = [f"{member.__name__}()" for member in kinds.values()]
        message = f"choose from {', '.join(members if untold else kinds)}"
    if isinstance(value, str) and kinds:
        meant = value_meant(where, value, kinds)
        if meant is not None and meant[0][0] == where and untold:
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
            classes, tagged = [member for member in classes if kind_of(member) == part], False
            continue
        found.append(str(part))
        hints = [hints[str(part)] for hints in map(hints_of, classes) if part in hints]
        if any(typing.get_origin(plain) is dict for hint in hints for plain in plain_types(hint)):
            # Hyperparameters are fields where their code is.
            return ".".join([*found[:-1], *map(str, location[place + 1 : place + 2] or [part])])
        if hints:
            classes = [member for hint in hints for member in classes_in(hint)]
            plain = {kind for hint in hints for kind in plain_types(hint)} - {type(None)}
            tagged = any(map(kind_of, classes)) or (not classes and len(plain) > 1)
    return ".".join(found)


def _shown(value: Any) -> str:
    """A refused value for an error message, shortened if long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deep list
        text = f"({type(value).__name__})"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
