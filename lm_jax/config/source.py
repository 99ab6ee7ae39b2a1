"""SHA-256 of the files that a config names; their content is part of the config.

`model.cell` names a custom cell in either of two forms. FILE.py:NAME gives a path, relative to the
working directory. package.module:NAME gives a module, found like an import but not imported here.
A module of Python or of an installed package (for example Flax) has no file in this sense: the
module does not change during a run, and its version belongs to the environment. For any other
module, only the file itself is hashed, not the imports in the file.

`model.vectors` names a file of pretrained vectors.
"""

import hashlib
import importlib.machinery
import importlib.util
import sysconfig
from pathlib import Path

from lm_jax import files
from lm_jax.files import reading
from lm_jax.settings import UserError

INSTALLED = ("site-packages", "dist-packages")


def parts(cell: str) -> tuple[str, str]:
    """Split a cell's name into FILE.py or package.module, and NAME.

    Raises:
      UserError: the name has another form.
    """
    where, _, name = cell.rpartition(":")
    dotted = all(part.isidentifier() for part in where.split("."))
    if not name.isidentifier() or not (where.endswith(".py") or dotted):
        raise UserError(
            f"model.cell={cell!r} is not of the form FILE.py:NAME or package.module:NAME"
        )
    return where, name


def file_of(cell: str) -> Path | None:
    """Return the file with a cell's code; None for an installed package.

    Raises:
      UserError: there is no such module. A missing file is refused where the file is read.
    """
    where, _ = parts(cell)
    if where.endswith(".py"):
        return Path(where)
    spec = _spec(where)
    if spec is None:
        raise UserError(f"model.cell={cell}: there is no module {where}")
    if spec.origin is None or not spec.has_location:
        return None
    file = Path(spec.origin)
    standard = Path(sysconfig.get_path("stdlib"))
    installed = any(name in file.parts for name in INSTALLED) or standard in file.parents
    return None if installed or file.suffix != ".py" else file


def code_of(cell: str, sha256: str | None = None) -> bytes | None:
    """Return the content of the file with a cell's code; None for an installed package.

    Args:
      cell: name of the cell.
      sha256: required SHA-256 of the content; None: accept any content.

    Raises:
      UserError: the file or module is missing, or has another SHA-256.
    """
    file = file_of(cell)
    if file is None:
        _refuse_other("model.cell", cell, sha256, None)
        return None
    with reading(file, f"model.cell={cell}") as readable:
        code = readable.read()
    _refuse_other("model.cell", cell, sha256, files.sha256(code))
    return code


def sha256_of(cell: str, sha256: str | None = None) -> str | None:
    """Return the SHA-256 of a cell's file in hex digits; arguments and errors as in `code_of`."""
    code = code_of(cell, sha256)
    return None if code is None else files.sha256(code)


def sha256_of_vectors(path: str, sha256: str | None = None) -> str:
    """Return the SHA-256 of a file of pretrained vectors, in hex digits.

    Args:
      path: the file.
      sha256: required SHA-256; None: accept any content.

    Raises:
      UserError: the file cannot be read, or has another SHA-256.
    """
    with reading(path, f"model.vectors={path}") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _refuse_other("model.vectors", path, sha256, found)
    return found


def _refuse_other(setting: str, value: str, then: str | None, now: str | None) -> None:
    if then not in (None, now):
        raise UserError(
            f"{setting}={value} is not what {setting}_sha256 says: its file has changed since "
            f"(SHA-256 {then[:12]}… then, {str(now)[:12]}… now)"
        )


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
