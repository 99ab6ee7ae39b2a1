"""Where text comes from: CPython's documentation, files, memory, a Markov chain.

(`lm_jax.data.tfds` has one more.) A `Text` is bytes of UTF-8 that can be read again from the start,
in blocks, so that a corpus larger than memory passes through. A byte-order mark at its head is no
part of it. `splits` finds the three texts that a config names. A single text is cut 90 / 5 / 5 into
training, validation and test, at the first whole character past each mark. Where tokens are words,
it is cut at the first line past each mark, or, where that leaves a part empty, as in a text that is
one long line, at the first word.
"""

import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lm_jax.config import Data, Markov
from lm_jax.data import markov
from lm_jax.data.formats import BOM, HEAD, other_format
from lm_jax.files import reading
from lm_jax.settings import UserError

BLOCK = 1 << 22  # bytes
SPLITS = ("train", "validation", "test")
CUTS = (0.9, 0.95)  # where a single text is cut, as shares of its bytes
# What stands before each place where a text may be cut. A word is cut off with the white space
# behind it, for a newline at the head of a part would be a blank line more.
_BEFORE = {"lines": rb"\n", "words": rb"\s(?=\S)", "characters": rb"(?s).(?=[^\x80-\xbf])"}


class Text(NamedTuple):
    """A text before it is tokenised."""

    name: str
    """What an error calls it: a path, or a data set and its split."""
    digest: str
    """Hex digits that change when the content changes."""
    blocks: Callable[[], Iterator[bytes]]
    """Its UTF-8 from the beginning, at most a few megabytes at a time."""
    start: int = 0
    """Bytes of its file that stand before it, a byte-order mark among them: the place that an error
    names counts from the first byte of the file."""


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
    units = ("lines", "words") if data.tokenizer == "word" else ("characters",)
    if data.origin == "builtin":
        return _cut(in_memory("builtin", _documentation()), *units)
    if data.origin == "memory":
        if memory is None:
            raise UserError("data.source=memory takes its text from lm_jax.train(..., text=...)")
        if isinstance(memory, str):
            return _cut(in_memory("text", memory), *units)
        if len(memory) != len(SPLITS):
            raise UserError(f"text holds {len(memory)} texts: give one, or {', '.join(SPLITS)}")
        return {split: in_memory(split, text) for split, text in zip(SPLITS, memory, strict=True)}
    if isinstance(data.task, Markov):
        return _cut(in_memory("data.task=markov", markov.text(data.task)), *units)
    paths = {split: getattr(data, split) for split in SPLITS}
    if data.train and data.validation is None and os.path.isdir(data.train):
        paths = _in_folder(data.train)
    any_bytes = data.tokenizer == "byte"
    files = {
        split: file_text(path, f"data.{split}={path}", any_bytes=any_bytes)
        for split, path in paths.items()
        if path
    }
    return files if len(files) > 1 else _cut(files["train"], *units)


NAMES = {"train": {"train"}, "validation": {"valid", "validation", "val", "dev"}, "test": {"test"}}
ASIDE = re.compile(r"\..*|#.*#|.*(~|\.bak|\.orig|\.sw[op])")
"""Names of hidden files, and of what editors leave beside a file."""


def _in_folder(folder: str) -> dict[str, str]:
    """The three files of a folder whose names say which they are: `wiki.train.tokens`."""
    try:
        files = sorted(file.name for file in os.scandir(folder) if file.is_file())
    except OSError as error:
        raise UserError(f"data.train={folder}: {error.strerror}") from None
    files = [file for file in files if not ASIDE.fullmatch(file)]
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
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: a lone surrogate at character {error.start}") from None
    start = _mark_length(content)
    if len(content) == start:
        raise UserError(f"{name}: the text is empty")

    def blocks() -> Iterator[bytes]:
        for first in range(start, len(content), BLOCK):
            yield content[first : first + BLOCK]

    return Text(name, hashlib.sha256(content[start:]).hexdigest(), blocks, start)


def file_text(path: str, name: str, *, any_bytes: bool = False) -> Text:
    """A file as a text; `name` is what an error calls it.

    Args:
      path: the file.
      name: for errors.
      any_bytes: take a file of any format, for the tokeniser `byte`.

    Raises:
      UserError: it is missing, empty, a directory, or cannot be read; or its first bytes show that
        it is no UTF-8 text with lines that end in a newline.
    """
    with reading(path, name) as file:
        head = file.read(HEAD)
        if not any_bytes and (said := other_format(head)):
            raise UserError(f"{name}: {said}; data.tokenizer=byte reads any bytes")
        start = _mark_length(head)
        file.seek(start)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if len(head) == start:
        raise UserError(f"{name}: the file is empty")

    def blocks() -> Iterator[bytes]:
        with open(path, "rb") as file:
            file.seek(start)
            while block := file.read(BLOCK):
                yield block

    return Text(name, digest, blocks, start)


def _mark_length(head: bytes) -> int:
    """How many bytes of a text's head are its byte-order mark."""
    mark = BOM.encode()
    return len(mark) if head.startswith(mark) else 0


def _cut(text: Text, unit: str, *others: str) -> dict[str, Text]:
    """The three parts of a text, cut by the first of the units that leaves none of them empty."""
    size = sum(len(block) for block in text.blocks())
    places = [0, *(_beginning(text, int(size * cut), unit) for cut in CUTS), size]
    ranges = dict(zip(SPLITS, itertools.pairwise(places), strict=True))
    empty = [split for split, (start, stop) in ranges.items() if start == stop]
    if empty and others:
        return _cut(text, *others)
    if empty:
        raise UserError(
            f"{text.name}: {size:,} bytes hold too few {unit} to cut into {', '.join(SPLITS)}: "
            f"nothing is left for {empty[0]}"
        )
    parts = {}
    for split, (start, stop) in ranges.items():
        digest = hashlib.sha256(f"{text.digest} {start} {stop}".encode()).hexdigest()
        blocks = _range(text, start, stop)
        parts[split] = Text(f"{text.name} [{split}]", digest, blocks, text.start + start)
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


def _beginning(text: Text, mark: int, unit: str) -> int:
    """The first place at or after `mark` where a line, a word or a character begins."""
    if mark == 0:
        return 0
    before, position = b"", mark - 1
    for block in _range(text, position, sys.maxsize)():
        window = before + block
        if found := re.search(_BEFORE[unit], window):
            return position + found.end()
        before = window[-1:]
        position += len(window) - 1
    return position + 1
