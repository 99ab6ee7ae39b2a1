"""The command `completion`: a script for completing commands, flags and values in a shell."""

import argparse
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lm_jax.commands.flags import Flags, own_flags
from lm_jax.config import Config
from lm_jax.experiment import experiments
from lm_jax.fields import paths

PROGRAM = "lm-jax"
Shell = Annotated[
    tyro.conf.Positional[Literal["bash", "zsh", "fish"]], tyro.conf.arg(metavar="{bash,zsh,fish}")
]
SETTINGS = ("train", "sweep", "verify")  # the commands with settings as flags


def completion_command(commands: Mapping[str, Callable[..., Any]]) -> Callable[..., int]:
    """Make the command `completion` for the other commands."""

    def completion(shell: Shell) -> int:
        """Print a script for completing commands, flags and experiments in a shell.

        Args:
          shell: the shell; the script is for the installed program, lm-jax.
        """
        import shtab

        print(shtab.complete(_parser(commands, shtab.FILE, shtab.DIRECTORY), shell))
        return 0

    return completion


def _parser(
    commands: Mapping[str, Callable[..., Any]], file: dict[str, Any], folder: dict[str, Any]
) -> argparse.ArgumentParser:
    """The command line for argparse, with the flags of all alternatives.

    Args:
      commands: the functions of the commands, by name.
      file, folder: shtab's completers of files and of folders.
    """
    parser = argparse.ArgumentParser(PROGRAM)
    parser.add_argument("--version", action="store_true")
    parsers = parser.add_subparsers()
    for name, command in commands.items():
        about = (inspect.getdoc(command) or "").partition("\n")[0]
        own = parsers.add_parser(name, help=about)  # shtab leaves out a parser without help
        own.add_argument("--help-all", action="store_true")
        arguments = inspect.signature(command).parameters.values()
        for one in (one for one in arguments if one.default is one.empty):
            if one.name == "experiment":
                own.add_argument(one.name, choices=list(experiments()))
            else:
                action = own.add_argument(one.name)
                action.complete = file if one.name == "file" else folder  # pyright: ignore
        flags = Flags(name, own_flags(command), Config())
        for path in [*flags.own, *(paths(Config) if name in SETTINGS else ())]:
            flag = f"--{path.removesuffix('.kind').replace('_', '-')}"
            if flags.stands_alone(path):
                own.add_argument(flag, action="store_true")
                if path not in flags.own:
                    group, dot, last = path.rpartition(".")
                    no = f"--{group}{dot}no-{last}".replace("_", "-")
                    own.add_argument(no, action="store_true")
                continue
            action = own.add_argument(flag, choices=flags.words(path) or None)
            if Path in flags.types(path):
                action.complete = folder if path.endswith("dir") else file  # pyright: ignore
    return parser
