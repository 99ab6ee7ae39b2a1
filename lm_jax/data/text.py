"""Sources of text: CPython's documentation, files, memory, a Markov chain.

`lm_jax.data.tfds` adds the data sets of TFDS. A `Text` is UTF-8, read in blocks and any number of
times; a corpus may be larger than the memory. A byte-order mark at the head is not part of the
text.

`splits` finds the three texts of a config. A single text is cut 90 / 5 / 5 into training,
validation and test, at the first whole character after 90 % and 95 % of the bytes. If tokens are
words, the cuts are at the first line after each mark. If a part would then be empty, as in a text
of a single long line, the cuts are at the first word after each mark.
"""

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lm_jax.config import File, Markov, Memory
from lm_jax.config.data import DataSource
from lm_jax.data import markov
from lm_jax.data.formats import BOM, HEAD, other_format
from lm_jax.files import reading, sha256, sha256_once
from lm_jax.settings import UserError

BLOCK = 1 << 22  # bytes
SPLITS = ("train", "validation", "test")
CUTS = (0.9, 0.95)  # the marks of a single text, as shares of its bytes
# The text before a place where a cut is allowed. A cut at a word comes after all white space,
# because a newline at the head of a part would add a blank line.
_BEFORE = {"lines": rb"\n", "words": rb"\s(?=\S)", "characters": rb"(?s).(?=[^\x80-\xbf])"}


class Text(NamedTuple):
    """A text before it is tokenised."""

    name: str
    """Name in error messages: a path, or a data set and its split."""
    digest: str
    """Hex digits that change when the content changes."""
    blocks: Callable[[], Iterator[bytes]]
    """Returns the UTF-8 from the beginning, a few megabytes at a time."""
    start: int = 0
    """Offset of the text in its file, in bytes, including a byte-order mark. Errors count places
    from the first byte of the file."""


def splits(
    source: DataSource, tokenizer: str, memory: str | Sequence[str] | None = None
) -> dict[str, Text]:
    """Return the training, validation and test text of a source.

    Args:
      source: the config; any source but tfds and generated tasks.
      tokenizer: char, byte, word or bpe.
      memory: for `data.source="memory"`, one text, or three.

    Raises:
      UserError: a file is missing, empty, unreadable or a directory; or `memory` is given, but the
        config has another source.
    """
    if memory is not None and not isinstance(source, Memory):
        raise UserError(f"text is read only with data.source=memory, not {source.kind}")
    units = ("lines", "words") if tokenizer == "word" else ("characters",)
    if isinstance(source, Memory):
        if memory is None:
            raise UserError("data.source=memory takes its text from lm_jax.train(..., text=...)")
        if isinstance(memory, str):
            return _cut(in_memory("text", memory), *units)
        if len(memory) != len(SPLITS):
            raise UserError(f"text holds {len(memory)} texts: give one, or {', '.join(SPLITS)}")
        return {split: in_memory(split, text) for split, text in zip(SPLITS, memory, strict=True)}
    if isinstance(source, Markov):
        return _cut(in_memory("data.source=markov", markov.text(source)), *units)
    if not isinstance(source, File):
        return _cut(in_memory("builtin", _documentation()), *units)
    paths = {split: getattr(source, split) for split in SPLITS}
    if source.train and source.validation is None and os.path.isdir(source.train):
        paths = _in_folder(source.train)
    any_bytes = tokenizer == "byte"
    files = {
        split: file_text(path, f"data.source.{split}={path}", any_bytes=any_bytes)
        for split, path in paths.items()
        if path
    }
    return files if len(files) > 1 else _cut(files["train"], *units)


NAMES = {"train": {"train"}, "validation": {"valid", "validation", "val", "dev"}, "test": {"test"}}
ASIDE = re.compile(r"\..*|#.*#|.*(~|\.bak|\.orig|\.sw[op])")
"""Names of hidden files, and of backups that editors leave beside a file."""


def _in_folder(folder: str) -> dict[str, str]:
    """Return the paths of the three splits, found by file names such as `wiki.train.tokens`."""
    try:
        files = sorted(file.name for file in os.scandir(folder) if file.is_file())
    except OSError as error:
        raise UserError(f"data.source.train={folder}: {error.strerror}") from None
    files = [file for file in files if not ASIDE.fullmatch(file)]
    paths = {}
    for split, names in NAMES.items():
        found = [file for file in files if names & set(re.split(r"[._-]", file.lower()))]
        if len(found) != 1:
            what = "no file" if not found else f"{len(found)} files, {' and '.join(found[:2])},"
            raise UserError(
                f"data.source.train={folder}: the folder has {what} named after {split}; "
                "give data.source.train, data.source.validation and data.source.test instead"
            )
        paths[split] = os.path.join(folder, found[0])
    return paths


def _documentation() -> str:
    # In every CPython, with small changes from version to version.
    from pydoc_data.topics import topics

    return "".join(topics[topic] for topic in sorted(topics))


def in_memory(name: str, text: str) -> Text:
    """Turn a string into a `Text`; errors call the text `name`.

    Raises:
      UserError: the string is empty, or holds a lone surrogate.
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

    return Text(name, sha256(content[start:]), blocks, start)


def file_text(path: str, name: str, *, any_bytes: bool = False) -> Text:
    """Turn a file into a `Text`.

    Args:
      path: the file.
      name: name of the file in errors.
      any_bytes: take a file of any format, for the tokeniser `byte`.

    Raises:
      UserError: the file is missing, empty, a directory, or cannot be read; or the first bytes are
        not UTF-8 text with newlines.
    """
    with reading(path, name) as file:
        head = file.read(HEAD)
        if not any_bytes and (said := other_format(head)):
            raise UserError(f"{name}: {said}; data.tokenizer=byte reads any bytes")
        start = _mark_length(head)
        digest = sha256_once(path, start)
    if len(head) == start:
        raise UserError(f"{name}: the file is empty")

    def blocks() -> Iterator[bytes]:
        with reading(path, name) as file:
            file.seek(start)
            while block := file.read(BLOCK):
                yield block

    return Text(name, digest, blocks, start)


def _mark_length(head: bytes) -> int:
    """Length of a text's byte-order mark in bytes, 0 without a mark."""
    mark = BOM.encode()
    return len(mark) if head.startswith(mark) else 0


def _cut(text: Text, unit: str, *others: str) -> dict[str, Text]:
    """Cut a text into three parts, at the first of the units that leaves no part empty."""
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
        digest = sha256(f"{text.digest} {start} {stop}")
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
    """Return the first place at or after `mark` at which a line, a word or a character begins."""
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
