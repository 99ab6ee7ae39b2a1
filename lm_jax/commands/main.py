"""Entry point of the command line: `run.py`, `python -m lm_jax` and `lm-jax`."""

import io
import os
import platform
import signal
import sys
import warnings
from typing import NoReturn

import jax

from lm_jax.commands.parser import parse
from lm_jax.data.corpus import cache_folder
from lm_jax.report.lines import silence
from lm_jax.settings import UserError
from lm_jax.training.cluster import LostProcess

INTERRUPTED = 130


def start(program: str = "lm-jax") -> NoReturn:
    """Run the command line of this process; `program` names the program in help and hints."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set by run.py for the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    set_up()
    status = main(sys.argv[1:], program)
    if status == INTERRUPTED:
        # Everything is saved and closed. An interrupt during JAX's tracing leaves objects behind
        # that crash Python's own exit, which would change the status.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments: list[str], program: str) -> int:
    """Run a command, and return the exit status; arguments as of `parse`."""
    try:
        return parse(arguments, program)()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        silence()
        return 0
    except LostProcess as error:
        print(f"error: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # JAX's own exit would wait for the process that has ended
    except OSError as error:  # not the user's mistake, but a traceback would not help either
        print(f"error: {error}", file=sys.stderr)
        return 1


def set_up() -> None:
    """Apply settings of the whole process; for use as a program, not as a library."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stdout may be ASCII; samples may not
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    # A persistent compilation cache per machine: a compiled program suits only its processor.
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla" / platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
