"""Errors for wrong flags and values on a command line, with suggestions (`lm_jax.synonyms`)."""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from lm_jax.config import Config, read_with
from lm_jax.config.model import CELLS
from lm_jax.settings import (
    alternatives,
    fields,
    last_of,
    named_so,
    paths,
    plain_types,
    types_at,
    words_at,
    words_of,
)
from lm_jax.synonyms import (
    FLAGS,
    NEEDED,
    NOTES,
    SETTINGS,
    Meant,
    assigned,
    name_meant,
    plainly,
    setting_meant,
    value_meant,
)

FLAG = re.compile(r"--?[A-Za-z]")
OF_THE_PARSER = ("help", "_h", "tyro_print_completion", "tyro_write_completion")
ON, OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Flags:
    """The flags of a command, with error messages for wrong flags and values."""

    def __init__(self, command: str, own: Mapping[str, Any], config: Config | None = None):
        """Hold the flags.

        Args:
          command: name of the command.
          own: the types of the command's own flags, by name, with _ for -.
          config: a config with settings that are flags, too; None: no settings are flags.
        """
        self._command, self._own, self._config = command, own, config
        self._settings = [] if config is None else [path for path, _, _ in fields(config)]

    def mistake(self, words: Sequence[str]) -> str | None:
        """Return an error message for the first wrong flag or value; None if all are right."""
        for word, following in zip(words, [*words[1:], "--end"], strict=False):
            flag, equals, value = word.partition("=")
            if not _is_flag(flag):
                continue
            if equals:
                given = value
            else:
                given = None if _is_flag(following) else following
            path = flag.removeprefix("--").replace("-", "_")
            if not self._has(path):
                return f"there is no flag {flag}{self._instead(plainly(flag.lstrip('-')), given)}"
            if given is not None and (said := self.refused(flag, path, given)):
                return said
        return None

    def refused(self, flag: str, path: str, value: str) -> str | None:
        """Return an error message if a flag does not take a value; None if the flag does.

        Args:
          flag: the flag as typed.
          path: dotted path of the flag's setting, or the name of the command's own flag with _.
          value: the value as typed.
        """
        if self._stands_alone(path) and value.lower() in ON + OFF:
            return f"{flag} takes no value{self._near(((path, None),), value)}"
        known = self._words(path)
        off = value == "None" and not path.endswith(".kind")
        own = ", or name one of your own as FILE.py:NAME" if path == "model.cell" else ""
        if not known or value in known or off or (own and ":" in value):
            return None
        near = self._near(value_meant(path, value, known))
        return f"{flag}={value}: choose from {', '.join(known)}{own}{near}"

    def _has(self, path: str) -> bool:
        if path in (*OF_THE_PARSER, *self._own, *self._settings):
            return True
        group, dot, last = path.rpartition(".")
        switch = f"{group}{dot}{last.removeprefix('no_')}"
        return switch in self._settings and self._stands_alone(switch)

    def _words(self, path: str) -> list[str]:
        """Return the words that a flag takes; empty if a flag takes any value, or no value."""
        if path == "model.cell":
            return list(CELLS)
        return [] if self._stands_alone(path) else self._all_words(path)

    def _stands_alone(self, path: str) -> bool:
        return "True" in self._all_words(path)

    def _all_words(self, path: str) -> list[str]:
        if path in self._own:
            return list(words_of(self._own[path]))
        return words_at(Config, path) or list(alternatives(Config, path))

    def _instead(self, name: str, value: str | None) -> str:
        """Return the rest of the sentence after "there is no flag …"."""
        last = last_of(name)
        own = last if last in self._own else name_meant(FLAGS[self._command], last)
        if own is not None:
            return self._near(assigned(own), value)
        if note := name_meant(NOTES[self._command], last):
            return f": {note}"
        if self._config is not None:
            if said := read_with(self._config, name):
                return said
            negated = name.startswith("no_") or last.startswith("no_")
            if meant := self._setting(last.removeprefix("no_"), None if negated else value):
                if negated:
                    value = OFF[0] if self._stands_alone(meant[0][0]) else "None"
                return self._near(meant, value)
        return self._near(self._by_letters(name, value), value)

    def _setting(self, last: str, value: str | None) -> Meant | None:
        """Return the setting of this name that takes the value, else the entry in `SETTINGS`."""
        taken = [path for path in (*self._settings, *paths(Config)) if self._takes(path, value)]
        path = named_so(last, taken)
        return setting_meant(last) if path is None else assigned(path)

    def _takes(self, path: str, value: str | None) -> bool:
        """Return False if the setting takes only numbers and the value is not a number."""
        kinds = {*plain_types(self._own[path])} if path in self._own else types_at(Config, path)
        if value in (None, "None") or not kinds or not kinds <= {int, float, type(None)}:
            return True
        return _is_number(cast(str, value), float if float in kinds else int)

    def _by_letters(self, name: str, value: str | None) -> Meant | None:
        """Return the flag, or the entry of a table, with the spelling closest to a name."""
        known = {path: path for path in (*self._settings, *self._own)}
        for table in (FLAGS[self._command], SETTINGS if self._config is not None else {}):
            known |= {other: meant for meant, names in table.items() for other in names.split()}
        known = {
            other: meant
            for other, meant in known.items()
            if assigned(meant)[-1][1] or self._takes(assigned(meant)[-1][0], value)
        }
        lasts = {last_of(other): meant for other, meant in known.items()}
        for typed, among in ((name, known), (last_of(name), lasts)):
            if close := difflib.get_close_matches(typed, list(among), n=1, cutoff=0.82):
                return assigned(among[close[0]])
        return None

    def _near(self, meant: Meant | None, value: str | None = None) -> str:
        if meant is None:
            return ""
        path = meant[0][0]
        if self._config is not None and self._config.train is None and path.startswith("train."):
            return read_with(self._config, path)
        return f"; did you mean {self._typed(meant, value)}?"

    def _typed(self, meant: Meant, value: str | None) -> str:
        """Return flags ready to type; the last flag takes the typed value if it lacks a value."""
        path, own = meant[-1]
        known = self._words(path)
        if own is None and value is not None and known and value not in known:
            meant = (*meant[:-1], *(value_meant(path, value, known) or ((path, None),)))
            value = None
        elif not self._takes(path, value):
            value = None
        chosen = {path: own for path, own in meant if own is not None}
        return shlex.join(
            word for path, own in meant for word in self._flag(path, own or value, chosen)
        )

    def _flag(self, path: str, value: str | None, chosen: Mapping[str, str]) -> Iterator[str]:
        for place, kind in self._missing(path, chosen):
            yield from (_dashed(place), kind)
        if not self._stands_alone(path):
            yield from (_dashed(path), *(() if value is None else (value,)))
        elif value is not None and value.lower() in OFF and path not in self._own:
            group, _, last = path.rpartition(".")
            yield _dashed(f"{group}.no_{last}")
        else:
            yield _dashed(path)

    def _missing(self, path: str, chosen: Mapping[str, str]) -> Sequence[tuple[str, str]]:
        """Return the alternatives still to choose before a setting exists, besides `chosen`."""
        if self._config is None or path in self._own:
            return ()
        there = {**{place: value for place, value, _ in fields(self._config)}, **chosen}
        if (needed := NEEDED.get(path)) and path in there:
            return [
                (place, cast(str, kind))
                for place, kind in assigned(needed)
                if there.get(place) not in (None, kind)
            ]
        group = path.removesuffix(".kind")
        options = [
            [
                (place, kind)
                for place, kind in needs
                if place != group and there.get(f"{place}.kind") != kind
            ]
            for needs in paths(Config).get(path, [()])
        ]
        return min(options, key=len)


def _is_flag(word: str) -> bool:
    return bool(FLAG.match(word)) and not _is_number(word, float)  # -inf is a number


def _is_number(word: str, kind: type) -> bool:
    try:
        kind(word)
    except ValueError:
        return False
    return True


def _dashed(path: str) -> str:
    return f"--{path.removesuffix('.kind').replace('_', '-')}"
