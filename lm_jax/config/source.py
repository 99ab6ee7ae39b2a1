"""The files that a config names, and their SHA-256: what is in them is part of what a run is.

`model.cell` names the file of a cell of one's own as FILE.py:NAME, the path as the process sees it,
or as package.module:NAME, found as an import would find it, though nothing is imported here.
Modules of Python and of installed packages, Flax's say, have no file in this sense: they do not
change under a run, and their version is the environment's business. Of any other module only the
file itself is looked at, not what it imports. `model.vectors` names a file of pretrained vectors.
"""

import hashlib
import importlib.machinery
import importlib.util
import sysconfig
from pathlib import Path

from lm_jax.files import reading
from lm_jax.settings import UserError

INSTALLED = ("site-packages", "dist-packages")


def parts(cell: str) -> tuple[str, str]:
    """FILE.py or package.module, and NAME.

    Raises:
      UserError: the cell is not of that form.
    """
    where, _, name = cell.rpartition(":")
    dotted = all(part.isidentifier() for part in where.split("."))
    if not name.isidentifier() or not (where.endswith(".py") or dotted):
        raise UserError(
            f"model.cell={cell!r} is not of the form FILE.py:NAME or package.module:NAME"
        )
    return where, name


def file_of(cell: str) -> Path | None:
    """The file that a cell stands in; None in an installed package.

    Raises:
      UserError: there is no such file or module.
    """
    where, _ = parts(cell)
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise UserError(f"model.cell={cell}: there is no file {where}")
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
    """The content of the file that a cell stands in; None in an installed package.

    Args:
      cell: its name.
      sha256: of the content; None: it may be any.

    Raises:
      UserError: there is no such file or module, or it is not of that SHA-256.
    """
    file = file_of(cell)
    code = None
    if file is not None:
        with reading(file, f"model.cell={cell}") as readable:
            code = readable.read()
    found = None if code is None else hashlib.sha256(code).hexdigest()
    if sha256 not in (None, found):
        raise UserError(
            f"model.cell={cell} is not what model.cell_sha256 says: its file has changed since "
            f"(SHA-256 {sha256[:12]}… then, {str(found)[:12]}… now)"
        )
    return code


def sha256_of(cell: str, sha256: str | None = None) -> str | None:
    """The SHA-256 of what `code_of` gives."""
    code = code_of(cell, sha256)
    return None if code is None else hashlib.sha256(code).hexdigest()


def sha256_of_vectors(path: str, sha256: str | None = None) -> str:
    """The SHA-256 of a file of pretrained vectors.

    Raises:
      UserError: it cannot be read, or is not of the SHA-256 that is given.
    """
    with reading(path, f"model.vectors={path}") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 not in (None, found):
        raise UserError(
            f"model.vectors={path} is not what model.vectors_sha256 says: it has changed since "
            f"(SHA-256 {sha256[:12]}… then, {found[:12]}… now)"
        )
    return found


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module is. `importlib.util.find_spec` would import the packages that it is in."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__, which is another one in every program
        return None
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        top = f"{top}.{name}"
        spec = importlib.machinery.PathFinder.find_spec(top, list(spec.submodule_search_locations))
    return spec
