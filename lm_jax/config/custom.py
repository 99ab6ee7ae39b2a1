"""Code of the user's own, named in a config: a cell, an optimizer.

A `Custom` names the code in either of two forms. FILE.py:NAME gives a path, relative to the working
directory. package.module:NAME gives a module, found like an import. The content of the file is part
of the config, by its SHA-256; the executed code is exactly the hashed content, and each content is
executed once. A module of Python or of an installed package (for example Flax) has no file in this
sense: the module does not change during a run, and its version belongs to the environment. For any
other module, only the file itself is hashed, not the imports in the file.

The parameters of the named function or class that have a number, a bool or a string as their
default are hyperparameters: fields of the config, and flags of the command line.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import jax
from pydantic import AfterValidator

from lm_jax import files
from lm_jax.files import reading
from lm_jax.settings import UserError, settings
from lm_jax.suggestions import nearest

INSTALLED = ("site-packages", "dist-packages")
HYPERPARAMETERS = (int, float, bool, str)


class Arguments(dict[str, Any]):
    """Hyperparameters by name; not to be changed, so that a config with them can be hashed."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(frozenset(self.items()))


@settings
class Custom:
    """Code of your own."""

    setting: ClassVar[str]
    """Path of the setting, for errors."""
    passed: ClassVar[tuple[str, ...]]
    """Parameters that lm_jax itself passes to the code."""

    kind: str
    """FILE.py:NAME or package.module:NAME."""
    sha256: str | None = None
    """SHA-256 of the file with the code: a changed file is another run; filled in."""
    arguments: Annotated[dict[str, int | float | bool | str], AfterValidator(Arguments)] = (
        Arguments()
    )
    """Hyperparameters of the code; those not given are filled in with their defaults."""

    def __str__(self) -> str:
        return f"{self.setting}={self.kind}"


Code = TypeVar("Code", bound=Custom)


def resolved(custom: Code) -> Code:
    """Fill in the SHA-256 and the hyperparameters.

    Raises:
      UserError: as `load`; the file has another SHA-256; the code has no parameter of a given name,
        or the parameter's default has another type than the given value.
    """
    code = code_of(custom)
    named, taken = load(custom), {}
    with contextlib.suppress(TypeError, ValueError):  # some functions in C have no signature
        # nnx.Module's metaclass hides the signature of its classes.
        made = named.__init__ if isinstance(named, type) else named
        taken = inspect.signature(made).parameters
    defaults = {
        name: one.default
        for name, one in taken.items()
        if type(one.default) in HYPERPARAMETERS and name not in custom.passed
    }
    for name in custom.arguments.keys() - taken.keys():
        raise UserError(f"{custom} has no parameter {name}{nearest(name, defaults)}")
    given = {
        name: float(value) if type(defaults.get(name)) is float and type(value) is int else value
        for name, value in custom.arguments.items()
    }
    for name, default in defaults.items():
        if name in given and type(given[name]) is not type(default):
            kind = type(default).__name__
            raise UserError(f"{custom.setting}.{name}={given[name]!r}: {custom} takes {kind} here")
    sha256 = None if code is None else files.sha256(code)
    return dataclasses.replace(custom, sha256=sha256, arguments=Arguments(defaults | given))


def load(custom: Custom) -> Any:
    """Return the object that a config names.

    Raises:
      UserError: there is no such file, module or name, the file has another SHA-256 than the
        config, or does not run.
    """
    file = file_of(custom)
    with blaming(custom):
        where, name = parts(custom)
        code = code_of(custom)
        if file is None or code is None:
            module = importlib.import_module(where)
        else:
            package = None if where.endswith(".py") else where
            if package and file.name != "__init__.py":
                package = package.rpartition(".")[0]
            module = _executed(file.absolute(), code, package)
        if not hasattr(module, name):
            known = [known for known in vars(module) if not known.startswith("_")]
            raise UserError(f"{custom}: {where} has no {name}{nearest(name, known)}")
        return getattr(module, name)


@functools.cache
def _executed(file: Path, code: bytes, package: str | None) -> types.ModuleType:
    """The module that results from executing a file's content."""
    module = types.ModuleType(f"own_{file.stem}_{files.sha256(code)[:12]}")
    module.__file__, module.__package__ = str(file), package
    if package:  # for its relative imports
        importlib.import_module(package)
    sys.modules[module.__name__] = module  # dataclasses look up their module here
    # The file's constants are arrays, even if the model is made during a trace.
    with jax.ensure_compile_time_eval():
        exec(compile(code, str(file), "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def blaming(custom: Custom) -> Iterator[None]:
    """Turn any error of the code into a one-line `UserError` with the line in the code's file."""
    try:
        yield
    except UserError as error:
        said = str(error)
        prefix = "" if said.startswith(custom.setting) else f"{custom}: "
        raise UserError(prefix + said) from None
    except Exception as error:
        file = file_of(custom)
        here = None if file is None else str(file.absolute())
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == here]
        if isinstance(error, SyntaxError) and error.filename == here:
            lines.append(error.lineno)
        line = f"{file}, line {lines[-1]}: " if lines else ""
        said = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{custom}: {line}{type(error).__name__}: {said}") from error


def parts(custom: Custom) -> tuple[str, str]:
    """Split the name of some code into FILE.py or package.module, and NAME.

    Raises:
      UserError: the name has another form.
    """
    where, _, name = custom.kind.rpartition(":")
    dotted = all(part.isidentifier() for part in where.split("."))
    if not name.isidentifier() or not (where.endswith(".py") or dotted):
        raise UserError(
            f"{custom.setting}={custom.kind!r} is not of the form FILE.py:NAME or "
            "package.module:NAME"
        )
    return where, name


def file_of(custom: Custom) -> Path | None:
    """Return the file with the code; None for an installed package.

    Raises:
      UserError: there is no such module. A missing file is refused where the file is read.
    """
    where, _ = parts(custom)
    if where.endswith(".py"):
        return Path(where)
    spec = _spec(where)
    if spec is None:
        raise UserError(f"{custom}: there is no module {where}")
    if spec.origin is None or not spec.has_location:
        return None
    file = Path(spec.origin)
    standard = Path(sysconfig.get_path("stdlib"))
    installed = any(name in file.parts for name in INSTALLED) or standard in file.parents
    return None if installed or file.suffix != ".py" else file


def code_of(custom: Custom) -> bytes | None:
    """Return the content of the file with the code; None for an installed package.

    Raises:
      UserError: the file or module is missing, or has another SHA-256 than the config.
    """
    file = file_of(custom)
    if file is None:
        files.refuse_changed(custom.setting, custom.kind, custom.sha256, None)
        return None
    with reading(file, str(custom)) as readable:
        code = readable.read()
    files.refuse_changed(custom.setting, custom.kind, custom.sha256, files.sha256(code))
    return code


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module without importing its packages, unlike `importlib.util.find_spec`."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__, a different module in every program
        return None
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        top = f"{top}.{name}"
        spec = importlib.machinery.PathFinder.find_spec(top, list(spec.submodule_search_locations))
    return spec
