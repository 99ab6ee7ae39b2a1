"""Flags of a command, and the values that they take."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_origin

from lm_jax.config import Config
from lm_jax.fields import alternatives, fields, paths, plain_types, types_at, words_at, words_of

FLAG = re.compile(r"--?[A-Za-z]")
OF_THE_PARSER = ("help", "_h", "help_all")


class Flags:
    """Flags of a command: its own flags and, if the command reads a config, the settings."""

    def __init__(self, command: str, own: Mapping[str, Any], config: Config | None = None):
        """Hold the flags.

        Args:
          command: name of the command.
          own: the types of the command's own flags, by name, with _ for -.
          config: a config with settings that are flags, too; None: no settings are flags.
        """
        self.command, self.own, self.config = command, own, config
        self.settings = [] if config is None else [path for path, _, _ in fields(config)]

    def has(self, path: str) -> bool:
        """Return True if there is a flag of this path, or of this path after `no_`."""
        if path in (*OF_THE_PARSER, *self.own, *self.settings):
            return True
        group, dot, last = path.rpartition(".")
        switch = f"{group}{dot}{last.removeprefix('no_')}"
        return switch in self.settings and self.stands_alone(switch)

    def words(self, path: str) -> list[str]:
        """Return the words that a flag takes; empty if a flag takes any value, or no value."""
        return [] if self.stands_alone(path) else self._all_words(path)

    def stands_alone(self, path: str) -> bool:
        """Return True if the flag takes no value."""
        return "True" in self._all_words(path)

    def takes_many(self, path: str) -> bool:
        """Return True if a flag of the command's own takes several values."""
        return path in self.own and takes_several(self.own[path])

    def _all_words(self, path: str) -> list[str]:
        if path in self.own:
            return list(words_of(self.own[path]))
        return words_at(Config, path) or list(alternatives(Config, path))

    def types(self, path: str) -> set[Any]:
        """Return the types that a flag takes, perhaps with `type(None)`."""
        return {*plain_types(self.own[path])} if path in self.own else types_at(Config, path)

    def takes(self, path: str, value: str | None) -> bool:
        """Return False if the setting takes only numbers and the value is not a number."""
        kinds = self.types(path)
        if value in (None, "None") or not kinds or not kinds <= {int, float, type(None)}:
            return True
        return _is_number(cast(str, value), float if float in kinds else int)

    def missing(self, path: str, chosen: Mapping[str, str]) -> Sequence[tuple[str, str]]:
        """Return the alternatives still to choose before a setting exists, besides `chosen`."""
        there_already = path in self.settings and not chosen
        if self.config is None or path in self.own or there_already:
            return ()
        there = {**{place: value for place, value, _ in fields(self.config)}, **chosen}
        options = [
            [(place, kind) for place, kind in needs if there.get(place) != kind]
            for needs in paths(Config).get(path, [()])
        ]
        return min(options, key=len)


def own_flags(command: Callable[..., int]) -> dict[str, Any]:
    """Types of a command's own flags, by name: the flags other than settings."""
    found = inspect.signature(command).parameters.values()
    return {
        one.name: one.annotation
        for one in found
        if one.name != "config" and one.default is not one.empty
    }


def takes_several(kind: Any) -> bool:
    """Return True if a flag of this type takes several values."""
    return any(get_origin(one) is tuple for one in plain_types(kind))


def is_switch(kind: Any) -> bool:
    """Return True if a flag of this type stands alone, without a value."""
    return "True" in words_of(kind)


def is_flag(word: str) -> bool:
    """Return True for a word like `--flag` or `-f`; False for a number like `-3` or `-inf`."""
    return bool(FLAG.match(word)) and not _is_number(word, float)


def _is_number(word: str, kind: type) -> bool:
    try:
        kind(word)
    except ValueError:
        return False
    return True
