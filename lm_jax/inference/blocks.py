"""A text scored as it is read, block by block, so that it may be longer than memory.

The text goes through one lane in chunks of the scorer's length, the state running on. Or line by
line: each line goes through one of many lanes from a fresh carry, and a lane whose line has ended
takes another at the next chunk. What is held is a chunk of every lane, what a file gives at one
reading (`lm_jax.data.text.BLOCK`), and, line by line, some lines that are being scored.
"""

import heapq
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Array

from lm_jax.data.batches import Batch
from lm_jax.data.text import Text
from lm_jax.data.vocabulary import Vocabulary, encoded
from lm_jax.inference.scorer import LOGITS_AT_ONCE, Scorer, reader
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.settings import UserError

LANES = 512  # lines scored side by side, fewer where the vocabulary is large
LINE_LENGTH = 4  # tokens of a line in one call
LINES_AT_ONCE = 1 << 18  # tokens of the lines that are dealt out to the lanes together
LINES_AT_FIRST = 1 << 10  # of the first of them, so that the first line need not wait for so many


class Block(NamedTuple):
    """A stretch of a text, scored."""

    tokens: np.ndarray
    """[n] numbers of its tokens."""
    nats: np.ndarray
    """[n] -ln P of each, given what was read before it."""
    characters: int
    """Characters read from the text since the block before; their sum is that of the text."""
    unknown: int
    """Tokens read since then that the vocabulary lacks."""


SHOWN = 60  # tokens of a line's beginning that are kept to show it


class Line(NamedTuple):
    """A line of a text, scored."""

    number: int
    """Counted from 1."""
    tokens: int
    """Its tokens, the line's end among them."""
    nats: float
    """-ln P of the line."""
    beginning: np.ndarray
    """Numbers of its first tokens, `SHOWN` at most."""


class _Piece(NamedTuple):
    """A stretch of a text, not yet scored; the fields are those of `Block`."""

    tokens: np.ndarray
    characters: int
    unknown: int


def blocks(scorer: Scorer, params: Params, vocabulary: Vocabulary, text: Text) -> Iterator[Block]:
    """-ln P of each token of a text, a chunk at a time, the state running on throughout.

    Args:
      scorer: how; `lm_jax.inference.static(model, length)` is the model as it is.
      params: the model's parameters.
      vocabulary: the model's vocabulary.
      text: what to score; tokens that the vocabulary lacks count as `<unk>`.

    Raises:
      UserError: when it is come to: the text is empty, or not UTF-8.
    """
    state, sent = scorer.init(params, 1), None

    def block(piece: _Piece, nats: Array) -> Block:
        found = np.asarray(nats)[: len(piece.tokens), 0]
        return Block(piece.tokens, found, piece.characters, piece.unknown)

    for piece, batch in batches(vocabulary, text, scorer.length):
        before_it, (state, nats) = sent, scorer.read(params, state, batch)
        # The device is at this chunk while the host looks at the last one.
        sent = piece, nats
        if before_it:
            yield block(*before_it)
    if sent:
        yield block(*sent)


def batches(vocabulary: Vocabulary, text: Text, length: int) -> Iterator[tuple[_Piece, Batch]]:
    """A text in one lane, a batch [T, 1] at a time, each with the tokens that are its targets.

    Args:
      vocabulary: makes tokens of it.
      text: any text.
      length: T.

    Raises:
      UserError: as `blocks`.
    """
    before, start = vocabulary.boundary, True
    every = range(length, sys.maxsize, length)
    for piece in _cut(vocabulary, text, lambda held: every[: len(held) // length]):
        yield piece, _batch([piece.tokens], [before], [start], length)
        if len(piece.tokens):
            before, start = int(piece.tokens[-1]), False


def line_blocks(
    model: LanguageModel, params: Params, vocabulary: Vocabulary, text: Text
) -> Iterator[Block]:
    """-ln P of each token of a text, a line at a time, each line by itself from a fresh carry.

    Args and Raises: as `blocks`; only the model as it is scores lines.
    """
    at_once = max(1, LOGITS_AT_ONCE // len(vocabulary))
    length = min(LINE_LENGTH, at_once)
    count = min(LANES, at_once // length)
    read, sent, first = reader(model), None, True

    def scored(lines: list[_Piece], found: list[tuple]) -> Iterator[Block]:
        nats = np.zeros(sum(len(line.tokens) for line in lines))
        for places, mask, of_round in found:
            nats[places[mask]] = np.asarray(of_round)[mask]
        end = 0
        for line in lines:
            first, end = end, end + len(line.tokens)
            yield Block(line.tokens, nats[first:end], line.characters, line.unknown)

    for lines in _groups(_lines(vocabulary, text), LINES_AT_ONCE):
        carry, found = model.init_carry(count), []
        for places, mask, batch in _rounds(lines, vocabulary.boundary, count, length):
            carry, nats = read(params, carry, batch)
            found.append((places, mask, nats))
        # The device is at these lines while the host looks at those before; the first ones, which
        # are few, wait for no others.
        if sent:
            yield from scored(*sent)
        sent = lines, found
        if first:
            yield from scored(*sent)
            first, sent = False, None
    if sent:
        yield from scored(*sent)


def _lines(vocabulary: Vocabulary, text: Text) -> Iterator[_Piece]:
    return _cut(vocabulary, text, lambda held: np.flatnonzero(held == vocabulary.boundary) + 1)


def _groups(lines: Iterator[_Piece], tokens: int) -> Iterator[list[_Piece]]:
    """Lines until they have so many tokens, or more by the last of them; at first a few."""
    group, held, enough = [], 0, min(tokens, LINES_AT_FIRST)
    for line in lines:
        group.append(line)
        held += len(line.tokens)
        if held >= enough:
            yield group
            group, held, enough = [], 0, tokens
    if group:
        yield group


def _rounds(
    lines: list[_Piece], boundary: int, count: int, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Batch]]:
    """Lines side by side in lanes, T tokens of each at a time, longest lines first.

    Args:
      lines: to be read.
      boundary: what stands before a line.
      count: B, lanes; one that has come to the end of its line takes another.
      length: T.

    Returns:
      for each round the places of its targets among the lines' tokens [T, B], whether there are
      any, and the batch.
    """
    flat = np.concatenate([line.tokens for line in lines])
    sizes = np.array([len(line.tokens) for line in lines])
    offsets = np.cumsum(sizes) - sizes
    free = [(0, lane) for lane in range(count)]  # when each lane is free
    begins: dict[int, list[tuple[int, int]]] = {}
    for line in np.argsort(-sizes, kind="stable").tolist():
        first, lane = free[0]
        begins.setdefault(first, []).append((lane, line))
        heapq.heapreplace(free, (first + -(-int(sizes[line]) // length), lane))
    # Of each lane's line: where its next token stands, and how many are left.
    place, left, start = np.zeros(count, int), np.zeros(count, int), np.zeros(count, bool)
    steps = np.arange(length)[:, None]
    for number in range(max(when for when, _ in free)):
        start[:] = False
        for lane, line in begins.get(number, ()):
            place[lane], left[lane], start[lane] = offsets[line], sizes[line], True
        mask = steps < left[None, :]
        places = np.where(mask, place[None, :] + steps, 0)
        x = flat[places - 1]
        x[0] = np.where(start, boundary, x[0])
        yield places, mask, Batch(*cast(Any, (x, flat[places], mask, start.copy())))
        place, left = place + length, left - length


def lines(vocabulary: Vocabulary, blocks: Iterable[Block]) -> Iterator[Line]:
    """The same figures by line, each up to and with its boundary token."""
    number, tokens, nats = 1, 0, 0.0
    beginning = np.zeros(0, np.int32)
    for block in blocks:
        ends = np.flatnonzero(block.tokens == vocabulary.boundary) + 1
        for first, end in itertools.pairwise([0, *ends.tolist(), len(block.tokens)]):
            tokens += end - first
            nats += float(np.sum(block.nats[first:end], dtype=np.float64))
            room = SHOWN - len(beginning)
            beginning = np.append(beginning, block.tokens[first : min(end, first + room)])
            if end > first and block.tokens[end - 1] == vocabulary.boundary:
                yield Line(number, tokens, nats, beginning)
                number, tokens, nats, beginning = number + 1, 0, 0.0, beginning[:0]
    if tokens:
        yield Line(number, tokens, nats, beginning)


def _cut(
    vocabulary: Vocabulary, text: Text, edges: Callable[[np.ndarray], Sequence[int] | np.ndarray]
) -> Iterator[_Piece]:
    """A text's tokens, cut where `edges(tokens)` says that pieces end."""
    held, characters, unknown, total = np.zeros(0, np.int32), 0, 0, 0
    for numbers, more_characters, more_unknown in encoded(vocabulary, text):
        held = np.append(held, numbers)
        characters, unknown = characters + more_characters, unknown + more_unknown
        first = 0
        for end in edges(held):
            yield _Piece(held[first:end], characters, unknown)
            first, characters, unknown = end, 0, 0
        held = held[first:]
        total += len(numbers)
    if not total:
        raise UserError(f"{text.name}: the text is empty")
    if len(held) or characters:
        yield _Piece(held, characters, unknown)


def _batch(
    rows: Sequence[np.ndarray], before: Sequence[int], start: Sequence[bool], length: int
) -> Batch:
    """Rows of at most T targets side by side, each with the token that stands before it."""
    x, y = np.zeros((2, length, len(rows)), np.int32)
    mask = np.zeros((length, len(rows)), bool)
    for lane, (row, token) in enumerate(zip(rows, before, strict=True)):
        x[0, lane] = token
        x[1 : len(row), lane] = row[:-1]
        y[: len(row), lane] = row
        mask[: len(row), lane] = True
    # As NumPy's arrays: to make JAX's of them is a computation, which waits for those before.
    return Batch(*cast(Any, (x, y, mask, np.asarray(start))))
