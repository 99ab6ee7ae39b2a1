"""Files in a directory of ours that users and their tools can reach, too.

A run, a sweep and the cache write only below their own directories: a symbolic link that stands
where they write is replaced or refused, and what it points to stays as it is.
"""

import os
import shutil
from pathlib import Path
from typing import IO, Any

from lm_jax.settings import UserError


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
