"""A text scored as it is read, block by block, so that it may be longer than memory.

The text goes through one lane in chunks of the scorer's length, the state running on. Or line by
line: each line goes through one of many lanes from a fresh carry, and a lane whose line has ended
takes the next line at the next chunk. What is held is a chunk of every lane, what a file gives at
one reading (`lm_jax.data.text.BLOCK`), and, line by line, the lines that are being scored.
"""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lm_jax.data.batches import Batch
from lm_jax.data.text import Text
from lm_jax.data.vocabulary import Vocabulary, encoded
from lm_jax.inference.scorer import LOGITS_AT_ONCE, Scorer, reader
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.settings import UserError

LANES = 256  # lines scored side by side, fewer where the vocabulary is large
LINE_LENGTH = 16  # tokens of a line in one call
WAITING = 1 << 20  # tokens that may wait for an earlier line; more, and no new line is begun


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


@dataclass
class _Reading:
    """A line that goes through a lane."""

    piece: _Piece
    nats: np.ndarray
    read: int = 0
    """Tokens that have been sent through the lane."""
    scored: int = 0
    """Tokens whose nats are known."""


def line_blocks(
    model: LanguageModel, params: Params, vocabulary: Vocabulary, text: Text
) -> Iterator[Block]:
    """-ln P of each token of a text, a line at a time, each line by itself from a fresh carry.

    Args and Raises: as `blocks`; only the model as it is scores lines.
    """
    at_once = max(1, LOGITS_AT_ONCE // len(vocabulary))
    length = min(LINE_LENGTH, at_once)
    count = min(LANES, at_once // length)
    read, carry = reader(model), model.init_carry(count)
    lines = _cut(vocabulary, text, lambda held: np.flatnonzero(held == vocabulary.boundary) + 1)
    lanes: list[_Reading | None] = [None] * count
    order: deque[_Reading] = deque()  # lines that are begun and not yet handed on
    waiting = 0  # their tokens
    empty = np.zeros(0, np.int32)
    sent = None  # what the device is at while the host prepares the next chunk
    while True:
        for lane, line in enumerate(lanes):
            if line is None and waiting < WAITING and (piece := next(lines, None)) is not None:
                line = _Reading(piece, np.zeros(len(piece.tokens)))
                lanes[lane] = line
                order.append(line)
                waiting += len(piece.tokens)
        if not order:
            return
        before_it, sent = sent, None
        if any(lanes):
            rows, before, start = [], [], []
            for line in lanes:
                at = line.read if line else 0
                tokens = line.piece.tokens if line else empty
                rows.append(tokens[at : at + length])
                before.append(int(tokens[at - 1]) if at else vocabulary.boundary)
                start.append(at == 0)
            carry, nats = read(params, carry, _batch(rows, before, start, length))
            sent = nats, list(lanes), rows
            for lane, (line, row) in enumerate(zip(lanes, rows, strict=True)):
                if line:
                    line.read += len(row)
                    lanes[lane] = line if line.read < len(line.piece.tokens) else None
        if before_it:
            nats, those, rows = before_it
            found = np.asarray(nats).T
            for lane, (line, row) in enumerate(zip(those, rows, strict=True)):
                if line:
                    line.nats[line.scored : line.scored + len(row)] = found[lane, : len(row)]
                    line.scored += len(row)
        while order and order[0].scored == len(order[0].piece.tokens):
            piece, known = order[0].piece, order.popleft().nats
            waiting -= len(piece.tokens)
            yield Block(piece.tokens, known, piece.characters, piece.unknown)


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
    return Batch(*map(jnp.asarray, (x, y, mask, np.asarray(start))))
