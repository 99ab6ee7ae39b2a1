"""Scores of a text computed during reading, block by block; the text may be larger than memory.

`blocks` reads the text as one sequence, in chunks of the scorer's length, and carries the state
from chunk to chunk. `line_blocks` scores each line from a fresh carry, many lines in a batch; when
a line ends, the next chunk starts another line in the same place of the batch. Memory holds one
chunk of each sequence, one block of the file (`lm_jax.data.text.BLOCK`), and in `line_blocks` some
lines waiting for scores.
"""

import heapq
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Array

from lm_jax.data.batches import Batch
from lm_jax.data.encoding import encoded, unknown_pieces
from lm_jax.data.sizes import TextSize
from lm_jax.data.text import Text
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.scoring.scorer import LOGITS_AT_ONCE, Scorer, reader
from lm_jax.settings import UserError

LINES_TOGETHER = 512  # lines scored together, fewer if the vocabulary is large
LINE_LENGTH = 4  # tokens of a line in one call
LINES_AT_ONCE = 1 << 18  # tokens of a group of lines to distribute over the batch
LINES_AT_FIRST = 1 << 10  # tokens of the first group, for an early first result


class Block(NamedTuple):
    """A scored part of a text."""

    tokens: np.ndarray
    """[n], token numbers."""
    nats: np.ndarray
    """[n], -ln P of each token, given all earlier tokens."""
    size: TextSize
    """Sizes of what was read since the previous block; the sum over blocks is the text's."""
    written: list[str]
    """The words, or characters, of the block's `<unk>` tokens as the text has them, in order."""


SHOWN = 60  # tokens of a line's beginning to keep for display


class Line(NamedTuple):
    """A scored line of a text."""

    number: int
    """Line number, from 1."""
    tokens: int
    """Number of tokens, including the line end."""
    nats: float
    """-ln P of the line."""
    beginning: np.ndarray
    """Token numbers of the beginning of the line, at most `SHOWN`."""
    written: list[str]
    """The words, or characters, of the beginning's `<unk>` tokens as the text has them."""


class _Piece(NamedTuple):
    """A part of a text before scoring, with the fields of `Block` except `nats`."""

    tokens: np.ndarray
    size: TextSize
    written: list[str]


def blocks(scorer: Scorer, params: Params, vocabulary: Vocabulary, text: Text) -> Iterator[Block]:
    """Score a text chunk by chunk: -ln P of each token, with the state carried through the text.

    Args:
      scorer: the scorer; `lm_jax.scoring.parallel(model, length)` for the unchanged model.
      params: the model's parameters.
      vocabulary: the model's vocabulary.
      text: the text to score; tokens missing from the vocabulary count as `<unk>`.

    Raises:
      UserError: during the iteration, if the text is empty or not UTF-8.
    """
    state, sent = scorer.init(params, 1), None

    def block(piece: _Piece, nats: Array) -> Block:
        found = np.asarray(nats)[: len(piece.tokens), 0]
        return Block(piece.tokens, found, piece.size, piece.written)

    for piece, batch in batches(vocabulary, text, scorer.length):
        before_it, (state, nats) = sent, scorer.score_chunk(params, state, batch)
        # The device computes this chunk while the host handles the last chunk.
        sent = piece, nats
        if before_it:
            yield block(*before_it)
    if sent:
        yield block(*sent)


def batches(vocabulary: Vocabulary, text: Text, length: int) -> Iterator[tuple[_Piece, Batch]]:
    """Batches [T, 1] of a text read as a single sequence, each with the part of the text scored.

    Args:
      vocabulary: the vocabulary for encoding the text.
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
    """Score a text line by line: -ln P of each token, with a fresh carry for each line.

    Args and Raises: as `blocks`; lines are always scored by the unchanged model.
    """
    at_once = max(1, LOGITS_AT_ONCE // len(vocabulary))
    length = min(LINE_LENGTH, at_once)
    count = min(LINES_TOGETHER, at_once // length)
    read, sent, first = reader(model), None, True

    def scored(lines: list[_Piece], found: list[tuple]) -> Iterator[Block]:
        nats = np.zeros(sum(len(line.tokens) for line in lines))
        for places, mask, of_round in found:
            nats[places[mask]] = np.asarray(of_round)[mask]
        end = 0
        for line in lines:
            first, end = end, end + len(line.tokens)
            yield Block(line.tokens, nats[first:end], line.size, line.written)

    for lines in _groups(_lines(vocabulary, text), LINES_AT_ONCE):
        carry, found = model.init_carry(count), []
        for places, mask, batch in _rounds(lines, vocabulary.boundary, count, length):
            carry, nats = read(params, carry, batch)
            found.append((places, mask, nats))
        # The device computes these lines while the host handles the previous group. The first
        # group is small and is yielded at once.
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
    """Groups of lines with `tokens` tokens or slightly more; the first group is smaller."""
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
    """Batches of B lines, T tokens of each at a time, longest lines first.

    Args:
      lines: the lines to read.
      boundary: the token before a line.
      count: B; when a line ends, the next batch starts another line in the same column.
      length: T.

    Yields:
      for each batch: positions of the targets among the tokens of all lines [T, B]; the mask
      [T, B], True for a target; and the batch.
    """
    flat = np.concatenate([line.tokens for line in lines])
    sizes = np.array([len(line.tokens) for line in lines])
    offsets = np.cumsum(sizes) - sizes
    free = [(0, column) for column in range(count)]  # the round at which each column is free
    begins: dict[int, list[tuple[int, int]]] = {}
    for line in np.argsort(-sizes, kind="stable").tolist():
        first, column = free[0]
        begins.setdefault(first, []).append((column, line))
        heapq.heapreplace(free, (first + -(-int(sizes[line]) // length), column))
    # For the line in each column: position of the next token, and number of tokens left.
    place, left, start = np.zeros(count, int), np.zeros(count, int), np.zeros(count, bool)
    steps = np.arange(length)[:, None]
    for number in range(max(when for when, _ in free)):
        start[:] = False
        for column, line in begins.get(number, ()):
            place[column], left[column], start[column] = offsets[line], sizes[line], True
        mask = steps < left[None, :]
        places = np.where(mask, place[None, :] + steps, 0)
        x = flat[places - 1]
        x[0] = np.where(start, boundary, x[0])
        yield places, mask, Batch(*cast(Any, (x, flat[places], mask, start.copy())))
        place, left = place + length, left - length


def lines(vocabulary: Vocabulary, blocks: Iterable[Block]) -> Iterator[Line]:
    """Sum the scores of blocks by line; each line includes the boundary token at its end."""
    number, tokens, nats = 1, 0, 0.0
    beginning, written = np.zeros(0, np.int32), []
    for block in blocks:
        unread = iter(block.written)
        ends = np.flatnonzero(block.tokens == vocabulary.boundary) + 1
        for first, end in itertools.pairwise([0, *ends.tolist(), len(block.tokens)]):
            tokens += end - first
            nats += float(np.sum(block.nats[first:end], dtype=np.float64))
            room = SHOWN - len(beginning)
            beginning = np.append(beginning, block.tokens[first : min(end, first + room)])
            written += itertools.islice(unread, _unknown(vocabulary, block.tokens[first:end]))
            if end > first and block.tokens[end - 1] == vocabulary.boundary:
                yield Line(number, tokens, nats, beginning, written)
                number, tokens, nats, beginning, written = number + 1, 0, 0.0, beginning[:0], []
            del written[SHOWN:]
    if tokens:
        yield Line(number, tokens, nats, beginning, written)


def _cut(
    vocabulary: Vocabulary, text: Text, edges: Callable[[np.ndarray], Sequence[int] | np.ndarray]
) -> Iterator[_Piece]:
    """Pieces of a text's tokens, cut at the positions `edges(tokens)`."""
    held, size, total = np.zeros(0, np.int32), TextSize(), 0
    # The text is read for a second time, up to its last unknown token.
    unknown = unknown_pieces(vocabulary, text)

    def piece(tokens: np.ndarray, size: TextSize) -> _Piece:
        written = itertools.islice(unknown, _unknown(vocabulary, tokens))
        return _Piece(tokens, size, list(written))

    for numbers, more in encoded(vocabulary, text):
        held, size = np.append(held, numbers), size.plus(more)
        first = 0
        for end in edges(held):
            yield piece(held[first:end], size)
            first, size = end, TextSize()
        held = held[first:]
        total += len(numbers)
    if not total:
        raise UserError(f"{text.name}: the text is empty")
    if len(held) or size.characters:
        yield piece(held, size)


def _unknown(vocabulary: Vocabulary, tokens: np.ndarray) -> int:
    """Number of `<unk>` among some tokens."""
    return 0 if vocabulary.unknown is None else int(np.sum(tokens == vocabulary.unknown))


def _batch(
    rows: Sequence[np.ndarray], before: Sequence[int], start: Sequence[bool], length: int
) -> Batch:
    """A batch of rows of at most T targets each, with the token before each row."""
    x, y = np.zeros((2, length, len(rows)), np.int32)
    mask = np.zeros((length, len(rows)), bool)
    for column, (row, token) in enumerate(zip(rows, before, strict=True)):
        x[0, column] = token
        x[1 : len(row), column] = row[:-1]
        y[: len(row), column] = row
        mask[: len(row), column] = True
    # NumPy arrays: the conversion to JAX arrays would wait for earlier computations.
    return Batch(*cast(Any, (x, y, mask, np.asarray(start))))
