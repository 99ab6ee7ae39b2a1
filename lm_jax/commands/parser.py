"""Parser of the command line."""

import contextlib
import functools
import io
import re
from collections.abc import Callable
from typing import Any

import tyro

from lm_jax.commands.flags import Flags, own_flags
from lm_jax.commands.mistakes import mistake, refused
from lm_jax.commands.probe import probe
from lm_jax.commands.sample import sample
from lm_jax.commands.score import score
from lm_jax.commands.sweep import sweep_command
from lm_jax.commands.train import train_command
from lm_jax.commands.verify import verify_command
from lm_jax.config import Config, with_kind
from lm_jax.experiment import load_experiment
from lm_jax.settings import UserError, alternatives, nearest
from lm_jax.synonyms import COMMANDS, name_meant

ABOUT = "Train, sweep, score, sample, probe and verify language models"


def parse(arguments: list[str], program: str) -> Callable[[], int]:
    """Parse the command line.

    Args:
      arguments: the words after the program.
      program: the program as it was started, `python run.py`.

    Returns:
      the command with all arguments bound, ready to call.

    Raises:
      UserError: there is no such command, flag, value or experiment.
      SystemExit: help was printed.
    """
    default, asked, given = Config(), None, []
    reads = arguments[:1] in (["train"], ["sweep"], ["verify"]) and len(arguments) > 1
    helped = {"-h", "--help"} & {*arguments}
    if reads and arguments[1].startswith("-") and not helped:
        # The flags change the experiment's settings: the experiment must be known first.
        raise UserError(
            f"{arguments[1]} comes before the experiment: "
            f"{program} {arguments[0]} EXPERIMENT [flags]"
        )
    if reads and not arguments[1].startswith("-"):
        asked = load_experiment(arguments[1])
        default = asked.config
        default, rest = _with_kinds(default, arguments[2:])
        given, arguments = arguments[1:], [*arguments[:2], *rest]
    commands = {
        "train": train_command(default),
        "sweep": sweep_command(default, asked, given, program),
        "score": score,
        "sample": sample,
        "probe": probe,
        "verify": verify_command(default),
    }
    name = arguments[0] if arguments else None
    if name is not None and name not in commands and not name.startswith("-"):
        near = name_meant(COMMANDS, name)
        said = f"; did you mean {near!r}?" if near else nearest(name, commands)
        raise UserError(f"there is no command {name}{said}")
    said, config = io.StringIO(), (tyro.conf.AvoidSubcommands,)
    try:
        with contextlib.redirect_stderr(said):
            if name in commands:  # the flags of all others would take as long again
                command = _deferred(commands[name])
                prog = f"{program} {name}"
                return tyro.cli(command, prog=prog, args=arguments[1:], config=config)
            return tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in commands.items()},
                prog=program,
                description=f"{ABOUT}: `{program} --help`.",
                args=arguments,
                config=config,
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        found = None
        if name in commands:
            flags = Flags(name, own_flags(commands[name]), default if reads else None)
            found = mistake(flags, arguments[1:])
        raise UserError(found or _in_one_line(said.getvalue())) from None


def _with_kinds(config: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """Apply the flags for kinds, `--model.kind window` or `--model window`, to a config.

    The kinds determine the other flags, and must therefore be known before the parser runs.

    Returns:
      the config, and the arguments without the flags for kinds.

    Raises:
      UserError: a kind is unknown.
    """
    rest, chosen = [], {}
    words = iter(arguments)
    for word in words:
        flag, equals, kind = word.partition("=")
        path = flag.removeprefix("--").removesuffix(".kind").replace("-", "_")
        known = alternatives(Config, path) if flag.startswith("--") else {}
        if not known:
            rest.append(word)
            continue
        kind = kind if equals else next(words, "")
        if said := refused(Flags("train", {}, config), flag, f"{path}.kind", kind):
            raise UserError(said)
        chosen[path] = kind
    return with_kind(config, chosen), rest


def _deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Wrap a command: a call only binds the arguments, and returns a function of no arguments."""

    @functools.wraps(command)
    def bound(*args: Any, **values: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **values)

    return bound


def _in_one_line(box: str) -> str:
    """Return the first sentence of the flag parser's framed message, as a single line."""
    rule = re.compile(r"\W*[─-]{5,}\W*")  # some terminals draw the frame in ASCII
    lines = ["" if rule.fullmatch(line) else line.strip("│| ") for line in box.splitlines()[1:]]
    message = " ".join("\n".join(lines).split("\n\n")[0].split())
    # A refused setting: `Error parsing (…).config.model: hidden_size=-3: …`.
    refused = re.match(r"Error parsing \S*?config\.?(\S*): (.*)", message)
    if refused:
        where, message = refused.groups()
        field = re.match(r"(\w+)=", message)
        if field:
            flag = "--" + f"{where}.{field[1]}".strip(".").replace("_", "-")
            message = flag + message[field.end() - 1 :]
    return message
