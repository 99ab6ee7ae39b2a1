"""Parser of the command line."""

import collections
import contextlib
import functools
import io
import re
from collections.abc import Callable
from typing import Annotated, Any

import tyro

import lm_jax
from lm_jax.commands.completion import completion_command
from lm_jax.commands.export import export
from lm_jax.commands.flags import Flags, is_flag, own_flags
from lm_jax.commands.help import overview, short_help
from lm_jax.commands.import_ import import_
from lm_jax.commands.lecture import lecture
from lm_jax.commands.lists import compare, list_experiments
from lm_jax.commands.mistakes import mistake, refused
from lm_jax.commands.probe import probe
from lm_jax.commands.report import report
from lm_jax.commands.sample import sample
from lm_jax.commands.score import score
from lm_jax.commands.sweep import sweep_command
from lm_jax.commands.train import train_command
from lm_jax.commands.verify import verify_command
from lm_jax.config import Config, Custom, with_kinds
from lm_jax.experiment import load_experiment, notes
from lm_jax.fields import alternatives, paths
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest
from lm_jax.synonyms import COMMANDS, name_meant

KINDS = "Each has flags of its own."


def parse(arguments: list[str], program: str) -> Callable[[], int]:
    """Parse the command line.

    Args:
      arguments: the words after the program.
      program: the program as it was started, `python run.py`.

    Returns:
      the command with all arguments bound, ready to call.

    Raises:
      UserError: there is no such command, flag, value or experiment.
      SystemExit: the help of --help-all was printed.
    """
    default, asked, given = Config(), None, arguments[1:]
    reads = arguments[:1] in (["train"], ["sweep"], ["verify"]) and len(arguments) > 1
    helped = {"-h", "--help", "--help-all"} & {*arguments}
    if reads and arguments[1].startswith("-") and not helped:
        # The flags change the experiment's settings: the experiment must be known first.
        raise UserError(
            f"{arguments[1]} comes before the experiment: "
            f"{program} {arguments[0]} EXPERIMENT [flags]"
        )
    if reads and not arguments[1].startswith("-"):
        asked = load_experiment(arguments[1])
        default, rest = _with_kinds(asked.config, arguments[2:])
        arguments = [*arguments[:2], *rest]
    claim = notes(asked.about).get("Claim", "") if asked else ""
    commands: dict[str, Callable[..., int]] = {
        "train": train_command(default, given, program, claim),
        "sweep": sweep_command(default, asked, given, program),
        "verify": verify_command(default),
        "score": score,
        "sample": sample,
        "probe": probe,
        "export": export,
        "import": import_,
        "report": report,
        "lecture": lecture,
        "list": list_experiments,
        "compare": compare,
    }
    commands["completion"] = completion_command(commands)
    name = arguments[0] if arguments else None
    if name == "--version":
        return lambda: print(f"lm_jax {lm_jax.__version__}") or 0
    if name in ("-h", "--help", "--help-all"):
        return lambda: print(overview(commands, program), end="") or 0
    if name not in commands:
        if name is None:
            raise UserError(f"a command is missing: {', '.join(commands)}; see {program} --help")
        near = name_meant(COMMANDS, name)
        said = f"; did you mean {near!r}?" if near else nearest(name, commands)
        what = "flag" if name.startswith("-") else "command"
        raise UserError(f"there is no {what} {name}{said}")
    settings = default if name in ("train", "sweep", "verify") else None
    if helped and "--help-all" not in helped:
        named = (arguments[1], asked) if asked else None
        text = short_help(name, commands[name], program, settings, named)
        return lambda: print(text, end="") or 0
    if not helped:  # before the parser of all flags, which takes long to make
        flags = Flags(name, own_flags(commands[name]), default if reads else None)
        if found := mistake(flags, arguments[1:]):
            raise UserError(found)
    words = ["--help" if word == "--help-all" else word for word in arguments[1:]]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), NONE_AS_WORD:
            return tyro.cli(
                _deferred(commands[name]),
                prog=f"{program} {name}",
                args=words,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UserError(_in_one_line(said.getvalue())) from None


def _with_kinds(config: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """Apply the flags for alternatives and groups to a config: `--model window`.

    These values determine the other flags, and must therefore be known before the parser runs.

    Returns:
      the config, and the arguments without these flags.

    Raises:
      UserError: a kind is unknown.
    """
    rest, chosen = [], {}
    words = collections.deque(arguments)
    while words:
        word = words.popleft()
        flag, equals, kind = word.partition("=")
        path = flag.removeprefix("--").replace("-", "_")
        groups = flag == "--train.groups"
        if not flag.startswith("--") or not (groups or alternatives(Config, path)):
            rest.append(word)
            continue
        given = [kind] if equals else []
        while words and not is_flag(words[0]) and (groups or not given):
            given.append(words.popleft())
        if groups:
            chosen[path] = [] if given == ["None"] else given
            continue
        if said := refused(Flags("train", {}, config), flag, path, "".join(given)):
            raise UserError(said)
        chosen[path] = None if given == ["None"] else "".join(given)
    return with_kinds(config, chosen), rest


NONE_AS_WORD = tyro.constructors.ConstructorRegistry()
"""Lets the parser's help call a value that may be left out None|INT, not {None}|INT."""


@NONE_AS_WORD.primitive_rule
def _none(
    found: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    if found.type is not type(None):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="None",
        choices=("None",),
        instance_from_str=lambda words: None,
        is_instance=lambda value: value is None,
        str_from_instance=lambda value: ["None"],
    )


def _name_kinds() -> None:
    """Let the help of each flag that chooses an alternative list the alternatives."""
    for path in reversed(paths(Config)):  # of a class in two unions, the larger comes first
        known = alternatives(Config, path)
        for member in known.values():
            named = tyro.conf.arg(name="", metavar=f"{{{','.join(known)}}}", help=KINDS)
            member.__annotations__["kind"] = Annotated[str, named]
            if issubclass(member, Custom):
                unnamed = tyro.conf.arg(name="")
                member.__annotations__["arguments"] = Annotated[dict[str, Any], unnamed]


_name_kinds()


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
        field = re.match(r"(\w+)(\.\d+)?=", message)  # of several values, with the place of one
        if field:
            flag = "--" + f"{where}.{field[1]}".strip(".").replace("_", "-")
            message = flag + message[field.end() - 1 :]
    # A word in place of a number. The help below shows the form: `--model.projection None|INT`.
    unfit = re.match(
        r"Error parsing (--\S+): .*(?:from|arguments:|base 10:|to float:) (.*?)\.?$", message
    )
    form = unfit and re.search(rf"^ *{re.escape(unfit[1])} (.*)$", "\n".join(lines), re.MULTILINE)
    if unfit and form:
        kind = "whole number" if "INT" in form[1] else "number"
        taken = f"{kind}s" if "[" in form[1] else f"a {kind}"
        none = "None or " if form[1].startswith("None|") else ""
        typed = re.sub(r"[\[\]',\"]", "", unfit[2])
        message = f"{unfit[1]} {typed}: the flag takes {none}{taken}"
    return message
