"""Files that users name, and files in directories of ours that they can reach, too.

A run, a sweep and the cache write only below their own directories: a symbolic link that stands
where they write is replaced or refused, and what it points to stays as it is.
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
    """Open a file that a user has named, to read its bytes.

    A pipe is refused before it is opened, which would wait for somebody to write into it: files are
    read twice, for their SHA-256 and for their content.

    Args:
      path: of the file.
      name: for errors.

    Raises:
      UserError: it is missing, no file, or cannot be read, here or while the context lasts.
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
    """Removes a file, a folder with all that is in it, or a link; does nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def created(path: Path, mode: str, **how: Any) -> IO[Any]:
    """Opens a new file, mode "w" or "wb", in place of a file or a link that stands there."""
    path.unlink(missing_ok=True)
    return path.open(mode.replace("w", "x"), **how)  # which follows no link


def write_whole(path: Path, content: str) -> None:
    """Writes a file so that it is there whole, or is as it was before."""
    partial = path.with_name(f"{path.name}.partial")
    with created(partial, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def as_json(row: Mapping[str, Any]) -> str:
    """One line of strict JSON."""
    return json.dumps(finite(row), allow_nan=False)


def finite(value: Any) -> Any:
    """A value with None for every number that is not finite, of which JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def opened(path: Path, mode: str, **how: Any) -> IO[Any]:
    """Opens a file to write into it, mode "a" or "a+b"; makes it if it is not there.

    Raises:
      UserError: it is a link.
    """
    refuse_links(path)
    return open(path, mode, opener=_not_followed, **how)


def _not_followed(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def refuse_links(*paths: Path) -> None:
    """Returns if none of the paths is a symbolic link.

    Raises:
      UserError: names the first link and what it points to.
    """
    for path in paths:
        if path.is_symlink():
            raise UserError(
                f"{path} is a link to {os.readlink(path)}: what is written there must be in the "
                "directory itself"
            )
