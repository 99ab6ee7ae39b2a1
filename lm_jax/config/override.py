"""Changes of a config at dotted paths: the short path chooses an alternative, the longer ones set.

override(config, {"model.cell": "lstm", "model.cell.forget_bias": 0.5})
"""

import json
from collections.abc import Mapping
from typing import Any

from lm_jax.config import custom
from lm_jax.config.config import Config, train_of
from lm_jax.config.optimizer import Group
from lm_jax.config.train import Train
from lm_jax.fields import CODE, alternatives, fields, paths, replace_at, types_at
from lm_jax.settings import VERSION, UserError, from_json, plain, to_json
from lm_jax.suggestions import nearest_field, nearest_value


def with_kinds(config: Config, kinds: Mapping[str, Any]) -> Config:
    """Choose other alternatives at some paths, {"model": "window"}, without checking the config.

    A new alternative has the default values; an alternative that was already chosen keeps its
    values. The n-gram model has `train` None, and any other model has a `Train`. At
    `train.groups`, the patterns of the groups are chosen.

    Raises:
      UserError: a path names no field with alternatives, or a kind is unknown.
    """
    # Shorter paths first: the model before its readout.
    for path, kind in sorted(kinds.items(), key=lambda item: item[0].count(".")):
        parent, _, name = path.rpartition(".")
        place = _at(config, parent)
        if not hasattr(place, name):
            raise UserError(f"there is no field {path}{read_with(config, path)}")
        there = getattr(place, name)
        if path == "train.groups":
            config = replace_at(config, path, _groups(there, kind))
        elif there is None or there.kind != kind:
            config = replace_at(config, path, _alternative(path, kind))
        if path == "model":
            train = None if kind == "ngram" else config.train or Train()
            config = replace_at(config, "train", train)
    return config


def _at(config: Any, path: str) -> Any:
    """The part of a config at a dotted path; None if there is none."""
    for name in filter(None, path.split(".")):
        if isinstance(config, tuple):
            config = {str(n): part for n, part in enumerate(config)}.get(name)
        else:
            config = getattr(config, name, None)
    return config


def _alternative(path: str, kind: Any) -> Any:
    """The alternative of a kind, with its default values."""
    known = alternatives(Config, path)
    if kind is None and type(None) in types_at(Config, path):
        return None
    if isinstance(kind, str) and ":" in kind and CODE in known:
        return custom.resolved(known[CODE](kind=kind))
    if not isinstance(kind, str) or kind not in known:
        near = nearest_value(path, kind, known)
        raise UserError(f"{path}={kind!r}: choose from {', '.join(known)}{near}")
    return known[kind]()


def _groups(there: tuple[Group, ...], patterns: Any) -> tuple[Group, ...]:
    if patterns is None:
        return ()
    if not isinstance(patterns, list | tuple) or not all(isinstance(one, str) for one in patterns):
        raise UserError(f"train.groups={patterns!r} must be a list of patterns")
    known = {group.pattern: group for group in there}
    return tuple(known.get(pattern, Group(pattern)) for pattern in patterns)


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Change a config at some dotted paths: {"model.cell": "lstm", "model.cell.forget_bias": 0.5}.

    The path of an alternative takes its kind, and a new kind first resets the other fields at its
    place to their defaults; the other changes follow. `train.groups` takes the groups' patterns.
    `None` switches a field off.

    Raises:
      UserError: a path names no field, or the values do not fit; names the field.
    """
    chosen = {path for path in changes if path == "train.groups" or alternatives(Config, path)}
    config = with_kinds(config, {path: changes[path] for path in chosen})
    values = json.loads(to_json(config))
    values.pop("version")
    for path, value in changes.items():
        if path in chosen:
            continue
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            if isinstance(place, list):
                place = dict(zip(map(str, range(len(place))), place, strict=True))
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict) and name not in place:
            place = place.get("arguments")  # of the user's own code
        if not isinstance(place, dict) or name not in place:
            known = [*paths(Config), *(path for path, _, _ in fields(config))]
            near = read_with(config, path) or nearest_field(path, known)
            raise UserError(f"there is no field {path}{near}")
        place[name] = plain(value)
    return from_json(Config, json.dumps({"version": VERSION, **values}), "the changed config")


def read_with(config: Config, path: str) -> str:
    """Name the alternatives that have a field missing from the config.

    Args:
      config: the config.
      path: dotted path of the field.

    Returns:
      a phrase for an error, empty if no alternative has the field:
      " with model=rnn: it is read with model=window or ngram".
    """
    found = paths(Config).get(path, ())
    there = {place: value for place, value, _ in fields(config)}
    if config.train is None and path.startswith("train."):
        return f" with model={config.model.kind}, which is not trained by gradients"
    if path.startswith("train.groups.") and _at(config, ".".join(path.split(".")[:3])) is None:
        return f": train.groups lists {len(train_of(config).groups)} patterns"
    for place in dict.fromkeys(place for needs in found for place, _ in needs):
        kinds = dict.fromkeys(kind for needs in found for at, kind in needs if at == place)
        if there.get(place) not in kinds:
            here = f" with {place}={there[place]}" if place in there else ""
            return f"{here}: it is read with {place}={' or '.join(kinds)}"
    return ""
