"""Reading the files of users, and writing files safely in lm_jax's own directories.

A run, a sweep and the cache write only below their own directories. A symbolic link at the path of
an output file is replaced or refused; the target of the link never changes.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lm_jax.settings import UserError, parsed

Row = dict[str, Any]
"""A JSON object, in a file with an object per line."""


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


def discard(folder: Path, successor: Path | None = None) -> None:
    """Remove a folder, if there is one, and rename `successor` to take the folder's place.

    The folder is renamed before the removal: a crash leaves no half-removed folder under its name.
    After a power cut the folder, or the successor under either name, is there.
    """
    trash = folder.with_name(f"{folder.name}.trash")
    remove(trash)
    if folder.exists():
        if successor is not None:
            names_to_disk(successor.parent)
        folder.rename(trash)
    if successor is not None:
        successor.rename(folder)
    names_to_disk(folder.parent)
    shutil.rmtree(trash, ignore_errors=True)


def restore(folder: Path) -> None:
    """Rename a folder back, if a crash came between the two renames of a `discard`."""
    trash = folder.with_name(f"{folder.name}.trash")
    if trash.is_dir() and not trash.is_symlink() and not folder.exists():
        trash.rename(folder)
        names_to_disk(folder.parent)


def created(path: Path, mode: str, **how: Any) -> IO[Any]:
    """Open a new file, mode "w" or "wb", in place of an existing file or link."""
    path.unlink(missing_ok=True)
    return path.open(mode.replace("w", "x"), **how)  # mode "x" follows no link


def to_disk(file: IO[Any]) -> None:
    """Wait until all that was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def names_to_disk(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: new, renamed and removed files."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, and wait until their names are on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        names_to_disk(path.parent)


def tree_to_disk(folder: Path) -> None:
    """Wait until all files below a folder, and their names, are on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(Path(place) / name, "rb") as file:
                os.fsync(file.fileno())
        names_to_disk(Path(place))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield another name for a folder to be filled, and rename the folder once it is complete.

    Raises:
      UserError: the path is a file or a link, or a folder with files.
    """
    refuse_used(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        remove(partial)  # left by a killed process
        make_folder(partial)
        yield partial
        tree_to_disk(partial)
        partial.rename(folder)
        names_to_disk(folder.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(partial)
        raise


def refuse_used(folder: Path) -> None:
    """Refuse the name of a new folder if a file has this name, or the folder holds files.

    Raises:
      UserError: names the folder.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()) or not folder.name:
        raise UserError(f"{folder} cannot be a new directory: there is something of that name")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files: name a new directory")


def ask_for_room(folder: Path, size: int) -> None:
    """Check that a folder has room for files of a size, in bytes.

    Raises:
      OSError: the disk, or the user's share of it, is full.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size))


def free_name(path: Path, sign: str) -> Path:
    """The first of `path.sign-1`, `path.sign-2`, … that does not exist."""
    names = (path.with_name(f"{path.name}.{sign}-{n}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def keep_damaged(path: Path) -> Path:
    """Copy a damaged file to `path.damaged-N` before it is written anew; return the copy.

    The copy is on the disk when the function returns.
    """
    kept = free_name(path, "damaged")
    shutil.copyfile(path, kept, follow_symlinks=False)
    if not kept.is_symlink():
        with kept.open("rb") as file:
            to_disk(file)
    names_to_disk(path.parent)
    return kept


def write_whole(path: Path, content: str) -> None:
    """Write a file atomically: after a crash the path holds the old or the new content."""
    partial = path.with_name(f"{path.name}.partial")
    with created(partial, "w", encoding="utf-8") as file:
        file.write(content)
        to_disk(file)
    partial.replace(path)
    names_to_disk(path.parent)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as JSON (`as_json`), atomically."""
    write_whole(path, as_json(value, indent) + "\n")


def read_json(path: Path, kind: Any = Row) -> Any:
    """Read a JSON file, in which the value must have a type, as pydantic checks it.

    Raises:
      UserError: the content is not JSON, or of another type; names the file.
      OSError: the file is missing or cannot be read.
    """
    return parsed(path.read_bytes(), str(path), kind)


_SEAL = re.compile(r',(\s*)"seal": "([0-9a-f]{16})"(\s*\}\s*)\Z')


def sealed(text: str) -> str:
    """The JSON text of an object with a last entry `seal`, made of a hash of the text."""
    head = text.rpartition("}")[0].rstrip()
    tail = text[len(head) :]
    space = "\n  " if tail.startswith("\n") else " "
    return f'{head},{space}"seal": "{sha256(text)[:16]}"{tail}'


def seal_of(text: str) -> str | None:
    """The seal of a text from `sealed`, unchecked; None if there is no seal."""
    found = _SEAL.search(text, max(0, len(text) - 100))
    return found and found[2]


def unsealed(text: str, name: str) -> str:
    """The text that `sealed` was given.

    Raises:
      UserError: the text has changed since, or has no seal; begins with `name`.
    """
    found = _SEAL.search(text, max(0, len(text) - 100))
    if found is None:
        raise UserError(f"{name} is damaged, or of another version of lm_jax: it has no seal")
    content = text[: found.start()] + found[3]
    if sha256(content)[:16] != found[2]:
        raise UserError(f"{name} is damaged: its content does not match its seal")
    return content


def write_sealed(path: Path, value: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write an object as JSON with a seal, atomically."""
    write_whole(path, sealed(as_json(value, indent) + "\n"))


def read_sealed(path: Path, kind: Any = Row) -> Any:
    """Read a file of `write_sealed`; arguments and errors as in `read_json`."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return parsed(unsealed(text, str(path)), str(path), kind)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a file with a sealed JSON object per line, atomically."""
    write_whole(path, "".join(map(line_of, rows)))


def line_of(row: Row) -> str:
    """The line of a row, with a seal."""
    return sealed(as_json(row) + "\n")


def read_row(line: bytes, name: str) -> Row:
    """The row of a line from `line_of`.

    Raises:
      UserError: the line is damaged; begins with `name`.
    """
    try:
        return parsed(unsealed(line.decode(), name), name)
    except UnicodeDecodeError:
        raise UserError(f"{name} is damaged: it is not UTF-8") from None


def as_json(value: Any, indent: int | None = None) -> str:
    """Format a value as strict JSON, on a line without `indent`; NaN and ∞ become null."""
    return json.dumps(finite(value), allow_nan=False, indent=indent)


def finite(value: Any) -> Any:
    """Replace NaN and infinities in a nested value by None, because JSON has neither."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(content: str | bytes) -> str:
    """SHA-256 of some bytes, or of a text in UTF-8, in hex digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_of_file(path: str | Path, name: str) -> str:
    """SHA-256 of a file named by a user, in hex digits; arguments and errors as in `reading`."""
    with reading(path, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: str | Path, start: int = 0) -> str:
    """SHA-256 of a file from byte `start` on, computed once for each state of the file."""
    status = os.stat(path)
    return _sha256_of(str(path), start, (status.st_ino, status.st_size, status.st_ctime_ns))


@functools.lru_cache(maxsize=1 << 14)  # shards of a text
def _sha256_of(path: str, start: int, state: tuple[int, ...]) -> str:
    del state  # a part of the cache's key
    with open(path, "rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_changed(setting: str, value: str, then: str | None, now: str | None) -> None:
    """Refuse a file named by a setting that has changed since the run began.

    Args:
      setting: path of the setting.
      value: name of the file.
      then: the SHA-256 in the config; None: accept any content.
      now: the SHA-256 of the file.

    Raises:
      UserError: names the setting and both hashes.
    """
    if then not in (None, now):
        raise UserError(
            f"{setting}={value} is not what its sha256 says: its file has changed since (SHA-256 "
            f"{then[:12]}… then, {str(now)[:12]}… now)"
        )


@contextlib.contextmanager
def locked(path: Path, mode: str = "a+", *, wait: bool = True) -> Iterator[IO[Any]]:
    """Open a file as `opened` does, and lock the file against other processes.

    The operating system releases the lock when the process dies, even after kill -9.

    Args:
      path: the file; its content is the caller's.
      mode: "a", "a+" or "a+b".
      wait: if True, wait until no other process holds the lock.

    Raises:
      UserError: the path is a symbolic link.
      BlockingIOError: another process holds the lock, and `wait` is False.
    """
    with opened(path, mode) as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file


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
