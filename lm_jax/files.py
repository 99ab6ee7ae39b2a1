"""Reading the files of users, and writing files safely in lm_jax's own directories.

A run, a sweep and the cache write only below their own directories. A symbolic link at the path of
an output file is replaced or refused; the target of the link never changes.
"""

import contextlib
import io
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lm_jax.settings import UserError


@contextlib.contextmanager
def reading(path: str | Path, name: str) -> Iterator[io.BufferedReader]:
    """Open a file named by a user, to read bytes.

    A pipe is refused, because files are read twice: for the SHA-256 and for the content. The check
    comes before the opening, because opening a pipe would wait for a writer.

    Args:
      path: path of the file.
      name: name of the file in errors.

    Raises:
      UserError: the file is missing, not a regular file, or cannot be read, at once or while the
        context lasts.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise UserError(f"{name}: is no file that can be read twice, such as a pipe")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a directory, not a file") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None


def remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link; do nothing if the path is missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def created(path: Path, mode: str, **how: Any) -> IO[Any]:
    """Open a new file, mode "w" or "wb", in place of an existing file or link."""
    path.unlink(missing_ok=True)
    return path.open(mode.replace("w", "x"), **how)  # mode "x" follows no link


def write_whole(path: Path, content: str) -> None:
    """Write a file atomically: after a crash the path holds the old or the new content."""
    partial = path.with_name(f"{path.name}.partial")
    with created(partial, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def as_json(row: Mapping[str, Any]) -> str:
    """Format a row as a line of strict JSON; NaN and infinities become null."""
    return json.dumps(finite(row), allow_nan=False)


def finite(value: Any) -> Any:
    """Replace NaN and infinities in a nested value by None, because JSON has neither."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def opened(path: Path, mode: str, **how: Any) -> IO[Any]:
    """Open a file for appending, mode "a" or "a+b"; create a missing file.

    Raises:
      UserError: the path is a symbolic link.
    """
    refuse_links(path)
    return open(path, mode, opener=_not_followed, **how)


def _not_followed(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def refuse_links(*paths: Path) -> None:
    """Refuse symbolic links among some paths.

    Raises:
      UserError: names the first link and its target.
    """
    for path in paths:
        if path.is_symlink():
            raise UserError(
                f"{path} is a link to {os.readlink(path)}: what is written there must be in the "
                "directory itself"
            )
