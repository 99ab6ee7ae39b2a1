"""A text in several files, its *shards*: which files, in which order, and how they are joined.

The files of a text come from a pattern such as `texts/train-*.txt`, from a folder of their own, or
from a folder of all three splits, by names such as `train-00000-of-00010.txt`. The order is the
natural order of the paths, in which numbers count as numbers: `train-2.txt` is before
`train-10.txt`. A newline is put between two files if the first does not end in one. The last line
of a file thus stays apart from the first line of the next file. A file is cut neither within a
character nor within a line, and each has a byte-order mark of its own, or none.
"""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from lm_jax.data import text as texts
from lm_jax.data.text import SPLITS, Shard, Text, file_text
from lm_jax.files import sha256
from lm_jax.settings import UserError

NAMES = {"train": {"train"}, "validation": {"valid", "validation", "val", "dev"}, "test": {"test"}}
ASIDE = re.compile(r"\..*|#.*#|.*(~|\.bak|\.orig|\.sw[op])")
"""Names of hidden files, and of backups that editors leave beside a file."""
_OF = re.compile(r"(\d+)(-of-(\d+))", re.ASCII)


def files_text(
    path: str, flag: str, *, any_bytes: bool = False, text_key: str | None = None
) -> Text:
    """Turn a file, the files of a pattern, or the files in a folder into a `Text`.

    Args:
      path: the file, the pattern or the folder.
      flag: the setting, with which errors begin.
      any_bytes, text_key: as for `file_text`.

    Raises:
      UserError: no file matches; the files of a folder are of several kinds, or one is missing; or
        as `file_text`, for one of the files.
    """
    name = f"{flag}={path}"
    paths = _in_folder(path, name) if os.path.isdir(path) else _matching(path, name)
    return read_files(name, paths, flag, any_bytes=any_bytes, text_key=text_key)


def folder_texts(
    folder: str, flag: str, *, any_bytes: bool = False, text_key: str | None = None
) -> dict[str, Text]:
    """Turn the files of a folder, named after the splits, into the texts of the three splits.

    A split without a file of its name may be a folder of its name.

    Args:
      folder: the folder.
      flag: the setting, with which errors begin.
      any_bytes, text_key: as for `file_text`.

    Raises:
      UserError: a split has no files, or files with names that differ in more than numbers; or as
        `files_text`.
    """
    name = f"{flag}={folder}"
    paths = {split: _named_after(split, folder, name) for split in SPLITS}
    return {
        split: read_files(
            f"{flag}={folder} [{split}]", paths[split], flag, any_bytes=any_bytes, text_key=text_key
        )
        for split in SPLITS
    }


def natural(path: str) -> tuple[list[str | int], str]:
    """Key of the natural order, in which a sequence of digits counts as a number."""
    parts = re.split(r"(\d+)", path, flags=re.ASCII)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path


def read_files(
    name: str, paths: Sequence[str], flag: str, *, any_bytes: bool, text_key: str | None
) -> Text:
    """Turn files into one `Text`, in the order of their paths.

    Args:
      name: name of the text in errors.
      paths: the files.
      flag: the setting, with which errors of a single file begin.
      any_bytes, text_key: as for `file_text`.
    """

    def one(path: str) -> Text:
        return file_text(path, f"{flag}={path}", any_bytes=any_bytes, text_key=text_key)

    if len(paths) == 1:
        return one(paths[0])
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads, because hashing takes the time
        return joined(name, list(pool.map(one, paths)))


def joined(name: str, parts: Sequence[Text]) -> Text:
    """Join texts; put a newline after each that does not end in one, but the last."""
    digest = sha256(" ".join(part.digest for part in parts))
    if any(part.size is None for part in parts):
        unplaced = tuple(Shard(part.name, part.digest, None, part.start) for part in parts)
        return Text(name, digest, partial(_in_turn, parts), shards=unplaced)
    ends = [b"" if _last_byte(part) == b"\n" else b"\n" for part in parts[:-1]] + [b""]
    sizes = [(part.size or 0) + len(end) for part, end in zip(parts, ends, strict=True)]
    offsets = [0, *itertools.accumulate(sizes)]
    shards = tuple(
        Shard(part.name, part.digest, offset, part.start)
        for part, offset in zip(parts, offsets, strict=False)
    )

    def pieces(first: int) -> Iterator[bytes]:
        for part, end, offset, size in zip(parts, ends, offsets, sizes, strict=False):
            if offset + size > first:
                yield from part.blocks(max(0, first - offset))
                if end:
                    yield end

    return Text(name, digest, _gathered(pieces), 0, offsets[-1], shards)


def _in_turn(parts: Sequence[Text], first: int = 0) -> Iterator[bytes]:
    """Yield the blocks of joined texts, of which some are packed, from byte `first` on."""

    def pieces() -> Iterator[bytes]:
        last = b"\n"
        for part in parts:
            if last != b"\n":
                yield b"\n"
            for block in part.blocks():
                yield block
                last = block[-1:]

    return texts.skipping(pieces(), first)


def _last_byte(text: Text) -> bytes:
    assert text.size is not None
    return b"".join(text.blocks(text.size - 1))


def _gathered(pieces: Callable[[int], Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
    """Return a function that joins short pieces into blocks."""

    def blocks(first: int = 0) -> Iterator[bytes]:
        held: list[bytes] = []
        size = 0
        for piece in pieces(first):
            held.append(piece)
            size += len(piece)
            if size >= texts.BLOCK:
                yield b"".join(held)
                held, size = [], 0
        if rest := b"".join(held):
            yield rest

    return blocks


def _matching(path: str, name: str) -> list[str]:
    """Return the path of a file, or the paths that match a pattern."""
    if os.path.lexists(path) or not re.search(r"[*?[]", path):
        return [path]
    found = [
        one
        for one in glob.glob(path, recursive=True)
        if os.path.isfile(one) and not ASIDE.fullmatch(os.path.basename(one))
    ]
    if not found:
        raise UserError(f"{name}: no file matches the pattern")
    return sorted(found, key=natural)


def _in_folder(folder: str, name: str) -> list[str]:
    """Return the paths of all files in a folder, which must be of one kind by their names."""
    found = names_in(folder, name)
    if not found:
        raise UserError(f"{name}: the folder holds no files")
    kinds = {_blurred(os.path.splitext(file)[1]): file for file in reversed(found)}
    if len(kinds) > 1:
        one, other = sorted(kinds.values(), key=natural)[:2]
        raise UserError(
            f"{name}: the folder holds files of several kinds, {one} and {other}: choose by a "
            f"pattern, such as {os.path.join(folder, '*' + os.path.splitext(one)[1])}"
        )
    return whole_set(folder, found, name)


def _named_after(split: str, folder: str, name: str) -> list[str]:
    """Return the paths of a split, found by names such as `wiki.train.tokens`."""
    found = [file for file in names_in(folder, name) if says(split, file)]
    kinds = {_blurred(file): file for file in reversed(found)}
    if len(kinds) == 1:
        return whole_set(folder, found, name)
    if not kinds:
        for inner in names_in(folder, name, folders=True):
            if inner.lower() in NAMES[split] and names_in(os.path.join(folder, inner), name):
                return _in_folder(os.path.join(folder, inner), name)
    examples = " and ".join(sorted(kinds.values(), key=natural)[:2])
    what = f"{len(found)} files, {examples}," if kinds else "no file"
    raise UserError(
        f"{name}: the folder has {what} named after {split}; "
        "give data.source.train, data.source.validation and data.source.test instead"
    )


def says(split: str, file: str) -> bool:
    """Return True if a file, such as `wiki.valid.tokens`, is named after a split."""
    return bool(NAMES[split] & set(re.split(r"[._-]", file.lower())))


def _blurred(file: str) -> str:
    """The name of a file without its numbers, the same for all shards of a text."""
    return re.sub(r"\d+", "#", file)


def names_in(folder: str, name: str, *, folders: bool = False) -> list[str]:
    """Return the names of the files, or of the folders, in a folder, in natural order.

    Args:
      folder: the folder.
      name: name of the folder in errors.
      folders: if True, return the folders.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        entries = [one.name for one in os.scandir(folder) if one.is_dir() == folders]
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
    return sorted((one for one in entries if not ASIDE.fullmatch(one)), key=natural)


def whole_set(folder: str, files: list[str], name: str) -> list[str]:
    """Return the paths of a text's files.

    Args:
      folder: the folder.
      files: names of the files.
      name: name of the folder in errors.

    Raises:
      UserError: a file is missing, as names such as `00003-of-00010` show.
    """
    counted = [found for file in files if (found := _OF.search(file))]
    if len(counted) == len(files):
        totals = sorted({found[3] for found in counted}, key=natural)
        if len(totals) > 1:
            raise UserError(
                f"{name}: the folder holds shards of several sets, of {totals[0]} and of "
                f"{totals[1]}"
            )
        total, numbers = int(totals[0]), {int(found[1]) for found in counted}
        first = 0 if 0 in numbers else 1
        missing = sorted({*range(first, first + total)} - numbers)
        if missing:
            digits = f"{missing[0]:0{len(counted[0][1])}d}"
            lacking = _OF.sub(rf"{digits}\2", files[0], count=1)
            raise UserError(
                f"{name}: {lacking} is missing, of {total} shards {len(files)} are there"
            )
    return [os.path.join(folder, file) for file in files]
