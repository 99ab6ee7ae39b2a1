"""Where text comes from: CPython's documentation, files, memory, a Markov chain.

(`lm_jax.data.tfds` has one more.) A `Text` is bytes of UTF-8 that can be read again from the start,
in blocks, so that a corpus larger than memory passes through. `splits` finds the three texts that a
config names. A single text is cut 90 / 5 / 5 into training, validation and test, at the first
line's end past each mark where tokens are words, else at the first whole character.
"""

import hashlib
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lm_jax.config import Data, Markov
from lm_jax.data import markov
from lm_jax.settings import UserError

BLOCK = 1 << 22  # bytes
SPLITS = ("train", "validation", "test")
CUTS = (0.9, 0.95)  # where a single text is cut, as shares of its bytes


class Text(NamedTuple):
    """A text before it is tokenised."""

    name: str
    """What an error calls it: a path, or a data set and its split."""
    digest: str
    """Hex digits that change when the content changes."""
    blocks: Callable[[], Iterator[bytes]]
    """Its UTF-8 from the beginning, at most a few megabytes at a time."""
    start: int = 0
    """Where it begins in what it was cut from: the byte that an error names counts from there."""


def splits(data: Data, memory: str | Sequence[str] | None = None) -> dict[str, Text]:
    """The training, validation and test text that a config names.

    Args:
      data: the config; its source is none but those of this module.
      memory: for `data.source="memory"`, one text, or three.

    Raises:
      UserError: a file is missing, empty, unreadable or a directory; a text is handed over that
        the config does not ask for.
    """
    if memory is not None and data.origin != "memory":
        raise UserError(f"text is read only with data.source=memory, not {data.origin}")
    by_line = data.tokenizer == "word"
    if data.origin == "builtin":
        return _cut(in_memory("builtin", _documentation()), by_line)
    if data.origin == "memory":
        if memory is None:
            raise UserError("data.source=memory takes its text from lm_jax.train(..., text=...)")
        if isinstance(memory, str):
            return _cut(in_memory("text", memory), by_line)
        if len(memory) != len(SPLITS):
            raise UserError(f"text holds {len(memory)} texts: give one, or {', '.join(SPLITS)}")
        return {split: in_memory(split, text) for split, text in zip(SPLITS, memory, strict=True)}
    if isinstance(data.task, Markov):
        return _cut(in_memory("data.task=markov", markov.text(data.task)), by_line)
    paths = {split: getattr(data, split) for split in SPLITS}
    if data.train and data.validation is None and os.path.isdir(data.train):
        paths = _in_folder(data.train)
    files = {
        split: file_text(path, f"data.{split}={path}") for split, path in paths.items() if path
    }
    return files if len(files) > 1 else _cut(files["train"], by_line)


NAMES = {"train": {"train"}, "validation": {"valid", "validation", "val", "dev"}, "test": {"test"}}


def _in_folder(folder: str) -> dict[str, str]:
    """The three files of a folder whose names say which they are: `wiki.train.tokens`."""
    try:
        files = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"data.train={folder}: {error.strerror}") from None
    paths = {}
    for split, names in NAMES.items():
        found = [file for file in files if names & set(re.split(r"[._-]", file.lower()))]
        if len(found) != 1:
            what = "no file" if not found else f"{len(found)} files, {' and '.join(found[:2])},"
            raise UserError(
                f"data.train={folder}: the folder has {what} named after {split}; "
                "give data.train, data.validation and data.test instead"
            )
        paths[split] = os.path.join(folder, found[0])
    return paths


def _documentation() -> str:
    # It says "Python" and a version in every CPython, with small changes between versions.
    from pydoc_data.topics import topics

    return "".join(topics[topic] for topic in sorted(topics))


def in_memory(name: str, text: str) -> Text:
    """A string as a text; `name` is what an error calls it.

    Raises:
      UserError: it is empty, or no Unicode.
    """
    if not text:
        raise UserError(f"{name}: the text is empty")
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: a lone surrogate at character {error.start}") from None

    def blocks() -> Iterator[bytes]:
        for start in range(0, len(content), BLOCK):
            yield content[start : start + BLOCK]

    return Text(name, hashlib.sha256(content).hexdigest(), blocks)


def file_text(path: str, name: str) -> Text:
    """A file as a text; `name` is what an error calls it.

    Raises:
      UserError: it is missing, empty, a directory, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UserError(f"{name}: is no file that can be read twice, such as a pipe")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a directory, not a file") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
    if about.st_size == 0:
        raise UserError(f"{name}: the file is empty")

    def blocks() -> Iterator[bytes]:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block

    return Text(name, digest, blocks)


def _cut(text: Text, by_line: bool) -> dict[str, Text]:
    size = sum(len(block) for block in text.blocks())
    marks = [0, *(_boundary(text, int(size * cut), by_line) for cut in CUTS), size]
    parts = {}
    for split, (start, stop) in zip(SPLITS, itertools.pairwise(marks), strict=True):
        if start == stop:
            raise UserError(
                f"{text.name}: {size:,} bytes hold too few {'lines' if by_line else 'characters'} "
                f"to cut into {', '.join(SPLITS)}: nothing is left for {split}"
            )
        digest = hashlib.sha256(f"{text.digest} {start} {stop}".encode()).hexdigest()
        parts[split] = Text(f"{text.name} [{split}]", digest, _range(text, start, stop), start)
    return parts


def _range(text: Text, start: int, stop: int) -> Callable[[], Iterator[bytes]]:
    def blocks() -> Iterator[bytes]:
        position = 0
        for block in text.blocks():
            part = block[max(0, start - position) : max(0, stop - position)]
            position += len(block)
            if part:
                yield part
            if position >= stop:
                return

    return blocks


def _boundary(text: Text, mark: int, by_line: bool) -> int:
    """The first place at or after `mark` where a line, or a character, begins."""
    if mark == 0:
        return 0
    position = mark - 1
    for block in _range(text, position, 1 << 62)():
        if by_line:
            end = block.find(b"\n")
            if end >= 0:
                return position + end + 1
        else:
            for offset, byte in enumerate(block):
                # 10xxxxxx continues a character of UTF-8.
                if position + offset >= mark and byte & 0xC0 != 0x80:
                    return position + offset
        position += len(block)
    return position
