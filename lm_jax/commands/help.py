"""Short help of the commands: flags, the alternatives of the settings, and examples.

`--help-all` is the flag parser's own help, with every setting.
"""

import inspect
import re
import shlex
import textwrap
import typing
from collections.abc import Callable, Mapping
from typing import Any

import docstring_parser

from lm_jax.commands.flags import is_switch, own_flags
from lm_jax.config import Config
from lm_jax.experiment import Experiment, notes
from lm_jax.fields import alternatives, fields, plain_types, words_of

WIDTH, INDENT = 79, 22
COMMON = (
    "train.steps",
    "train.learning_rate",
    "train.clip_norm",
    "model.order",
    "model.hidden_size",
    "model.layers",
    "data.batch_size",
    "data.length",
    "seed",
)
"""Settings that people type most often."""
SETTINGS = "settings, [as they are]; --help-all lists the flags of each choice:"
EXAMPLES = {
    "train": (
        "train {experiment} --train.learning-rate 0.01 --seed 1",
        "train {experiment} --model.cell lstm --train.probe live",
        "train {experiment} --data.source file --data.source.train book.txt",
    ),
    "sweep": (
        "sweep {experiment} --dry-run",
        "sweep {experiment} --executor processes --workers 2",
        "sweep {experiment} --halving-first 200",
    ),
    "verify": (
        "verify {experiment}",
        "verify {experiment} --model.cell lstm --model.layers 2",
        "verify {experiment} --model.cell own.py:cell",
    ),
    "score": (
        "score RUN_DIR book.txt --by sentence",
        "score RUN_DIR book.txt --dynamic rms --json",
        "score RUN_DIR book.txt --mix OTHER_RUN_DIR",
    ),
    "sample": (
        'sample RUN_DIR --prompt "The " --temperature 0.7',
        "sample RUN_DIR --top-p 0.9 --count 5",
        "sample RUN_DIR --beam 8 --length 40",
    ),
    "probe": (
        "probe RUN_DIR",
        "probe RUN_DIR --only lags by_lag",
        'probe RUN_DIR --step spike --sentence "the cat"',
    ),
    "export": (
        "export RUN_DIR model.safetensors --layout word_language_model",
        "export RUN_DIR model.arpa.gz",
        "export RUN_DIR served",
    ),
    "import": (
        "import model.safetensors runs/imported --vocabulary words.txt",
        "import model.arpa runs/arpa",
        "import mine.safetensors runs/mine --modules embed lstm fc --vocabulary words.txt",
    ),
    "report": ("report RUN_DIR", "report SWEEP_DIR", "report RUN_DIR OTHER_RUN_DIR"),
    "lecture": ("lecture", "lecture eigenvalue clipping"),
    "compare": ("compare runs/*",),
    "completion": ("completion bash >> ~/.bashrc",),
}


def overview(commands: Mapping[str, Callable[..., Any]], program: str) -> str:
    """The help of the program, a line for each command."""
    rows = [(_usage(name, own), inspect.getdoc(own) or "") for name, own in commands.items()]
    lines = [
        f"usage: {program} COMMAND",
        "",
        "Language models and their gradients through time.",
        "",
    ]
    for usage, doc in rows:
        lines += _row(usage, doc.splitlines()[0])
    lines += _row("--version", "Print the version of lm_jax.")
    lines += ["", "examples:", f"  {program} train quickstart", f"  {program} train --help"]
    return "\n".join([*lines, f"  {program} train quickstart --help"]) + "\n"


def short_help(
    name: str,
    command: Callable[..., Any],
    program: str,
    config: Config | None,
    asked: tuple[str, Experiment] | None,
) -> str:
    """The help of a command, short enough for a screen.

    Args:
      name: name of the command.
      command: function of the command.
      program: name of the program as typed, `python run.py`.
      config: the config whose settings are flags; None: no settings are flags.
      asked: name of an experiment and the experiment, whose docstring is shown.
    """
    doc = docstring_parser.parse(inspect.getdoc(command) or "")
    about = {one.arg_name: " ".join((one.description or "").split()) for one in doc.params}
    lines = [f"usage: {program} {_usage(name, command)} [flags]", ""]
    lines += _wrap(doc.short_description or "")
    lines += ["", *(_experiment(asked[1].about) if asked else _wrap(doc.long_description or ""))]
    flags = own_flags(command)
    if flags:
        lines += ["", "flags:"]
    for flag, kind in flags.items():
        value = "" if is_switch(kind) else f" {_value(kind)}"
        said = about[flag] if config is None else re.split(r"[.;] ", about[flag])[0].rstrip(".")
        lines += _row(f"{_flag(flag)}{value}", said)
    if config is not None:
        lines += ["", SETTINGS, *_settings(config)]
    lines += ["", "examples:"]
    experiment = shlex.quote(asked[0]) if asked else "quickstart"
    for example in EXAMPLES.get(name, (name,)):
        lines.append(f"  {program} {example.format(experiment=experiment)}")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)) + "\n"


def _experiment(about: str) -> list[str]:
    """The title, the claim and the time in an experiment's docstring."""
    told = notes(about)
    lines = [told["title"], ""]
    for name in ("Claim", "Time"):
        lines += _wrap(f"{name:<10}{told[name]}" if name in told else "", hanging=10)
    return lines


def _wrap(text: str, hanging: int = 0) -> list[str]:
    text = " ".join(text.split()) if not hanging else text
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * hanging, break_on_hyphens=False)


def _settings(config: Config) -> list[str]:
    """The alternatives of each union, and the settings typed most often."""
    lines = []
    values = {path: value for path, value, _ in fields(config)}
    for path in sorted(values):
        if known := alternatives(Config, path):
            value = values[path]  # of code of the user's own, the place of the code
            words = [*known] if value in known else [value, *known]
            listed = " ".join(f"[{word}]" if word == value else word for word in words)
            lines += _row(_flag(path), listed)
    typed = [f"{_flag(path)}\xa0[{values[path]}]" for path in COMMON if path in values]
    settings = textwrap.wrap("  ".join(typed), WIDTH - 2, break_on_hyphens=False)
    lines += [f"  {line}" for line in settings]
    return [line.replace("\xa0", " ") for line in lines]


def _flag(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def _row(left: str, right: str) -> list[str]:
    """Two columns; after a long left column, the right column begins on the next line."""
    lines = textwrap.wrap(right, WIDTH - INDENT - 2, break_on_hyphens=False)
    if len(left) < INDENT:
        first, *rest = lines or [""]
        return [f"  {left:<{INDENT}}{first}", *(f"  {'':<{INDENT}}{line}" for line in rest)]
    return [f"  {left}", *(f"  {'':<{INDENT}}{line}" for line in lines)]


def _usage(name: str, command: Callable[..., Any]) -> str:
    """The name of a command, and the arguments: `score RUN_DIR TEXT`."""
    found = inspect.signature(command).parameters.values()
    given = [one for one in found if one.default is one.empty]
    return " ".join([name, *(_metavar(one.annotation) for one in given)])


def _metavar(hint: Any) -> str:
    """The word for an argument, from `tyro.conf.arg(metavar=…)`."""
    return "".join(getattr(extra, "metavar", None) or "" for extra in hint.__metadata__)


def _value(kind: Any) -> str:
    """The value of a flag, for people: INT, PATH, {a,b}."""
    if typing.get_origin(kind) is tuple:
        return "…"
    if words := list(words_of(kind)):
        return "{" + ",".join(words) + "}"
    first = next(one.__name__ for one in plain_types(kind) if one is not type(None))
    return "TEXT" if first == "str" else first.upper()
