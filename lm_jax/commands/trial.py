"""Command line that trains a single trial of a sweep."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lm_jax.commands.flags import is_switch
from lm_jax.config import Config
from lm_jax.fields import alternatives, fields
from lm_jax.sweeps import Point, flags


def command_line(
    program: str, given: Sequence[str], own: Mapping[str, Any], config: Config, point: Point
) -> str:
    """Return the command line that trains a single trial of a sweep.

    Args:
      program: the program as it was started, `python run.py`.
      given: the words after the command `sweep`.
      own: the types of the sweep's own flags (`own_flags`), which do not apply to a trial.
      config: the experiment's config after these words.
      point: the trial's changes to the config. If a change selects another kind, flags for the old
        kind's fields are left out.
    """
    there = {path: value for path, value, _ in fields(config)}
    gone = [
        path
        for path, value in point.items()
        if alternatives(Config, path) and there.get(path) != value
    ]
    if point.get("model") == "ngram":
        gone.append("train")
    kept, keeps = [], True
    for word in _of_a_trial(given, own):
        if word.startswith("--"):
            path = word[2:].partition("=")[0].replace("-", "_") + "."
            keeps = not any(path.startswith(place + ".") for place in gone)
        if keeps:
            kept.append(word)
    return f"{program} train {shlex.join(kept)} {flags(point)}".rstrip()


def _of_a_trial(words: Sequence[str], own: Mapping[str, Any]) -> list[str]:
    """Return the words without the sweep's own flags and their values."""
    kept, skip = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        is_own = not skip and flag.startswith("--") and name in own
        if not skip and not is_own:
            kept.append(word)
        skip = is_own and not equals and not is_switch(own[name])
    return kept
