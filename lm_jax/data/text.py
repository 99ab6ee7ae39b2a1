"""A text before it is tokenised: UTF-8 in blocks, from memory or from a file.

A `Text` is read in blocks, any number of times and from any byte on; a text may be larger than the
memory. A file that gzip, xz or zstd has packed is unpacked from its beginning at each reading
(`lm_jax.data.packed`); its size is unknown before. A byte-order mark at the head is not part of the
text. `lm_jax.data.shards` joins the texts of several files, and `lm_jax.data.sources` finds the
three texts of a config.

`cut` cuts a single text 90 / 5 / 5 into training, validation and test, at the first whole character
after 90 % and 95 % of the bytes. If tokens are words, the cuts are at the first line after each
mark. If a part would then be empty, as in a text of a single long line, the cuts are at the first
word after each mark.
"""

import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from lm_jax.data import json_lines, table_files
from lm_jax.data.formats import BOM, HEAD, other_format
from lm_jax.data.packed import unpacked
from lm_jax.files import reading, sha256, sha256_once
from lm_jax.settings import UserError

BLOCK = 1 << 22  # bytes
SPLITS = ("train", "validation", "test")
CUTS = (0.9, 0.95)  # the marks of a single text, as shares of its bytes
# The text before a place where a cut is allowed. A cut at a word comes after all white space,
# because a newline at the head of a part would add a blank line.
_BEFORE = {
    "lines": rb"\n",
    "words": rb"\s(?=\S)",
    "characters": rb"(?s).(?=[^\x80-\xbf])",
    "bytes": rb"(?s).",
}


DIVISIONS = {
    (True, True): ("train", "validation", "test"),
    (False, True): ("train[:95%]", "train[95%:]", "test"),
    (True, False): ("train", "validation[:50%]", "validation[50%:]"),
    (False, False): ("train[:90%]", "train[90%:95%]", "train[95%:]"),
}
"""The parts of a data set of documents that become training, validation and test text, by (has
validation, has test)."""


class Shard(NamedTuple):
    """A file of a text that is stored in several."""

    name: str
    """Name of the file in errors."""
    digest: str
    """Hex digits that change when the content changes."""
    offset: int | None
    """Offset of the first byte in the joined text; None: unknown."""
    start: int
    """Length of the byte-order mark in bytes, or 0."""


class Text(NamedTuple):
    """A text before it is tokenised."""

    name: str
    """Name in error messages: a path, or a data set and its split."""
    digest: str
    """Hex digits that change when the content changes."""
    blocks: Callable[..., Iterator[bytes]]
    """blocks(first=0) returns the UTF-8 from byte `first` on, a few megabytes at a time. A text of
    a data set is read from the beginning only."""
    start: int = 0
    """Offset of the text in its file, in bytes, including a byte-order mark. Errors count places
    from the first byte of the file."""
    size: int | None = None
    """Length in bytes; None: unknown before the text is read."""
    shards: tuple[Shard, ...] = ()
    """The files of a text that is stored in several; `start` is then the offset in the joined
    text."""

    def place(self, position: int) -> tuple[str, int]:
        """Return the name of the file with byte `position` of the text, and the byte's number."""
        position += self.start
        for shard in reversed(self.shards):
            if shard.offset is not None and shard.offset <= position:
                return shard.name, position - shard.offset + shard.start
        return self.name, position


def changed(before: Text, after: Text) -> str | None:
    """Return the name of the text, or of the first shard, whose content differs; None: none."""
    if before.digest == after.digest:
        return None
    then, now = ({shard.name: shard.digest for shard in text.shards} for text in (before, after))
    return next((name for name in {**then, **now} if then.get(name) != now.get(name)), after.name)


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

    def blocks(first: int = 0) -> Iterator[bytes]:
        for place in range(start + first, len(content), BLOCK):
            yield content[place : place + BLOCK]

    return Text(name, sha256(content[start:]), blocks, start, len(content) - start)


def file_text(
    path: str, name: str, *, any_bytes: bool = False, text_key: str | None = None
) -> Text:
    """Turn a file into a `Text`: plain text or JSON lines, as they are or packed, or a table.

    Args:
      path: the file.
      name: name of the file in errors.
      any_bytes: take a file of any format but a damaged table, for the tokeniser `byte`.
      text_key: the key of JSON lines (`lm_jax.data.json_lines`), None: `text`; or the column of a
        table (`lm_jax.data.table_files`), None: the only column of text, or `text`.

    Raises:
      UserError: the file is missing, empty, a directory, damaged, or cannot be read; or the first
        bytes are not UTF-8 text with newlines; or text_key is given for another file.
    """
    if table_files.is_table(path):
        with reading(path, name):
            key, digest = table_files.text_column(path, name, text_key), sha256_once(path)
        return Text(name, sha256(f"{digest} {key}"), partial(_rows, path, name, key))
    rows = json_lines.is_json_lines(path)
    if text_key is not None and not rows:
        raise UserError(
            f"{name}: data.source.text_key is read of files named as JSON lines or a table: "
            f".jsonl, {', '.join(table_files.ENDINGS)}"
        )
    with unpacked(path, name) as (file, packed):
        head = file.read(HEAD)
        if not any_bytes and (said := other_format(head)):
            raise UserError(f"{name}: {said}; data.tokenizer=byte reads any bytes")
        start = 0 if rows else _mark_length(head)
        if len(head) == start:
            raise UserError(f"{name}: the file is empty")
    with reading(path, name) as file:
        digest = sha256_once(path, 0 if packed else start)
        size = os.fstat(file.fileno()).st_size - start
    if rows:
        key = text_key or json_lines.KEY
        return Text(name, sha256(f"{digest} {key}"), partial(_documents, path, name, key))

    def blocks(first: int = 0) -> Iterator[bytes]:
        with unpacked(path, name) as (file, packed):
            if packed:
                yield from skipping(_blocks(file), start + first)
            else:
                file.seek(start + first)
                yield from _blocks(file)

    return Text(name, digest, blocks, start, None if packed else size)


def _blocks(file: io.BufferedReader) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _documents(path: str, name: str, key: str, first: int = 0) -> Iterator[bytes]:
    with unpacked(path, name) as (file, _):
        yield from skipping(joined_documents(json_lines.documents(file, key, name)), first)


def _rows(path: str, name: str, key: str, first: int = 0) -> Iterator[bytes]:
    yield from skipping(joined_documents(table_files.documents(path, name, key)), first)


def skipping(blocks: Iterable[bytes], first: int) -> Iterator[bytes]:
    """Yield the bytes of some blocks from byte `first` on."""
    for block in blocks:
        if first < len(block):
            yield block[first:]
        first = max(0, first - len(block))


def measured(text: Text) -> Text:
    """Return the text with its size, for which a text of unknown size is read once."""
    if text.size is not None:
        return text
    return text._replace(size=sum(map(len, text.blocks())))


def joined_documents(documents: Iterable[bytes], size: int = 1 << 21) -> Iterator[bytes]:
    """Join documents by newlines, in blocks that end with a document.

    Args:
      documents: the documents, one after another.
      size: least length of a block in bytes, except the last.
    """
    block = bytearray()
    for number, document in enumerate(documents):
        block += b"\n" if number else b""
        block += document
        if len(block) >= size:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def cut_anew(parts: Iterable[str], last_place: Callable[[str], int]) -> Iterator[str]:
    """Cut a text into other parts.

    Args:
      parts: of the text.
      last_place: the last place of a part at which a cut is allowed; 0 for none.
    """
    held: list[str] = []
    for part in parts:
        cut = last_place(part)
        if cut:
            yield "".join([*held, part[:cut]])
            held = []
        held.append(part[cut:])
    if rest := "".join(held):
        yield rest


def _mark_length(head: bytes) -> int:
    """Length of a text's byte-order mark in bytes, 0 without a mark."""
    mark = BOM.encode()
    return len(mark) if head.startswith(mark) else 0


def cut(text: Text, tokenizer: str, *, at_bytes: bool = False) -> dict[str, Text]:
    """Cut a text into training, validation and test text; a packed text is read for its size.

    Args:
      text: the text.
      tokenizer: char, byte, word or bpe.
      at_bytes: if True, cut at the marks themselves, even within a character.

    Raises:
      UserError: the text is too short, and a part would be empty.
    """
    units = ("lines", "words") if tokenizer == "word" else ("characters",)
    return _cut(measured(text), *(("bytes",) if at_bytes else units))


def _cut(text: Text, unit: str, *others: str) -> dict[str, Text]:
    """Cut a text into three parts, at the first of the units that leaves no part empty."""
    assert text.size is not None
    size = text.size
    places = [0, *(_beginning(text, int(size * share), unit) for share in CUTS), size]
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
        parts[split] = Text(
            f"{text.name} [{split}]",
            digest,
            _range(text, start, stop),
            text.start + start,
            stop - start,
            text.shards,
        )
    return parts


def _range(text: Text, start: int, stop: int) -> Callable[..., Iterator[bytes]]:
    def blocks(first: int = 0) -> Iterator[bytes]:
        position = start + first
        if position >= stop:
            return
        for block in text.blocks(position):
            yield block[: stop - position]
            position += len(block)
            if position >= stop:
                return

    return blocks


def _beginning(text: Text, mark: int, unit: str) -> int:
    """Return the first place at or after `mark` at which a line, a word or a character begins."""
    if mark == 0:
        return 0
    before, position = b"", mark - 1
    for block in text.blocks(position):
        window = before + block
        if found := re.search(_BEFORE[unit], window):
            return position + found.end()
        before = window[-1:]
        position += len(window) - 1
    return position + 1
