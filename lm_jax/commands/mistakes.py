"""One-line messages for wrong flags and values, with suggestions (`lm_jax.synonyms`)."""

import difflib
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence

from lm_jax.commands.flags import Flags, is_flag
from lm_jax.config import Config, read_with
from lm_jax.fields import CODE, paths
from lm_jax.suggestions import last_of, named_so
from lm_jax.synonyms import (
    FLAGS,
    NOTES,
    SETTINGS,
    Meant,
    assigned,
    name_meant,
    plainly,
    setting_meant,
    value_meant,
)

ON, OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def mistake(flags: Flags, words: Sequence[str]) -> str | None:
    """Return an error message for the first wrong flag or value; None if all are right."""
    for place, word in enumerate(words, 1):
        flag, equals, value = word.partition("=")
        if not is_flag(flag):
            continue
        following = itertools.takewhile(lambda other: not is_flag(other), words[place:])
        given = [value] if equals else list(following)
        path = flag.removeprefix("--").replace("-", "_")
        if not flags.has(path):
            first = given[0] if given else None
            return f"there is no flag {flag}{_instead(flags, plainly(flag.lstrip('-')), first)}"
        for value in given if flags.takes_many(path) else given[:1]:
            if said := refused(flags, flag, path, value):
                return said
    return None


def refused(flags: Flags, flag: str, path: str, value: str) -> str | None:
    """Return an error message if a flag does not take a value; None if the flag does.

    Args:
      flag: the flag as typed.
      path: dotted path of the flag's setting, or the name of the command's own flag with _.
      value: the value as typed.
    """
    if flags.stands_alone(path) and value.lower() in ON + OFF:
        return f"{flag} takes no value{_near(flags, ((path, None),), value)}"
    known = flags.words(path)
    off = value == "None" and type(None) in flags.types(path)
    if not known or value in known or off or (CODE in known and ":" in value):
        return None
    near = _near(flags, value_meant(path, value, known))
    return f"{flag}={value}: choose from {', '.join(known)}{near}"


def _instead(flags: Flags, name: str, value: str | None) -> str:
    """Return the rest of the sentence after "there is no flag …"."""
    last = last_of(name)
    own = last if last in flags.own else name_meant(FLAGS[flags.command], last)
    if own is not None:
        return _near(flags, assigned(own), value)
    if note := name_meant(NOTES[flags.command], last):
        return f": {note}"
    if flags.config is not None:
        group = name.rpartition(".")[0]
        below = [path for path in flags.settings if group and path.startswith(f"{group}.")]
        inner = named_so(last, below)
        if inner is None and (said := read_with(flags.config, name)):
            return said
        negated = name.startswith("no_") or last.startswith("no_")
        meant = _setting(flags, last.removeprefix("no_"), None if negated else value)
        if inner is None and meant and meant[1:] == () and meant[0][1] is None:
            inner = named_so(last_of(meant[0][0]), below)
        if inner is not None:
            meant = assigned(inner)
        if meant:
            if negated:
                value = OFF[0] if flags.stands_alone(meant[0][0]) else "None"
            return _near(flags, meant, value)
    return _near(flags, _by_letters(flags, name, value), value)


def _setting(flags: Flags, last: str, value: str | None) -> Meant | None:
    """Return the entry in `SETTINGS`, else the setting of this name that takes the value."""
    if meant := setting_meant(last):
        return meant
    taken = [path for path in (*flags.settings, *paths(Config)) if flags.takes(path, value)]
    path = named_so(last, taken)
    return None if path is None else assigned(path)


def _by_letters(flags: Flags, name: str, value: str | None) -> Meant | None:
    """Return the flag, or the entry of a table, with the spelling closest to a name."""
    known = {path: path for path in (*flags.settings, *flags.own)}
    for table in (FLAGS[flags.command], SETTINGS if flags.config is not None else {}):
        known |= {other: meant for meant, names in table.items() for other in names.split()}
    known = {
        other: meant
        for other, meant in known.items()
        if assigned(meant)[-1][1] or flags.takes(assigned(meant)[-1][0], value)
    }
    lasts = {last_of(other): meant for other, meant in known.items()}
    for typed, among in ((name, known), (last_of(name), lasts)):
        if close := difflib.get_close_matches(typed, list(among), n=1, cutoff=0.82):
            return assigned(among[close[0]])
    return None


def _near(flags: Flags, meant: Meant | None, value: str | None = None) -> str:
    if meant is None:
        return ""
    path = meant[0][0]
    if flags.config is not None and flags.config.train is None and path.startswith("train."):
        return read_with(flags.config, path)
    return f"; did you mean {_typed(flags, meant, value)}?"


def _typed(flags: Flags, meant: Meant, value: str | None) -> str:
    """Return flags ready to type; the last flag takes the typed value if it lacks a value."""
    path, own = meant[-1]
    known = flags.words(path)
    if own is None and value is not None and known and value not in known:
        meant = (*meant[:-1], *(value_meant(path, value, known) or ((path, None),)))
        value = None
    elif not flags.takes(path, value):
        value = None
    chosen = {path: own for path, own in meant if own is not None}
    return shlex.join(
        word for path, own in meant for word in _flag(flags, path, own or value, chosen)
    )


def _flag(flags: Flags, path: str, value: str | None, chosen: Mapping[str, str]) -> Iterator[str]:
    for place, kind in flags.missing(path, chosen):
        yield from (_dashed(place), kind)
    if not flags.stands_alone(path):
        yield from (_dashed(path), *(() if value is None else (value,)))
    elif value is not None and value.lower() in OFF and path not in flags.own:
        group, _, last = path.rpartition(".")
        yield _dashed(f"{group}.no_{last}")
    else:
        yield _dashed(path)


def _dashed(path: str) -> str:
    return f"--{path.replace('_', '-')}"
