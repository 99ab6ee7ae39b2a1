"""Batches as functions of the step; a checkpoint need not store the position in the text.

A text of N tokens s_1 … s_N is read in either of two ways. In both, each token is a target exactly
once an epoch.

- As *streams*: the text is cut into B contiguous sequences of L = ⌈N / B⌉ tokens. Update `step`
  reads the next T tokens of every sequence. The carry passes from chunk to chunk until the
  sequences start again.
- As *sentences*: each sequence of the batch is a line of the text and starts from a fresh carry.
  Every epoch draws a new order of the lines.

Streams larger than the memory are read in *windows*; a window holds the tokens of some consecutive
updates (`lm_jax.data.windows`). A task reads no text: every update *generates* new sequences
(`lm_jax.data.tasks`).

The input before s_1 is the boundary token s_0 (see `lm_jax.data.vocabulary`). Past the end of a
sequence the mask is False and the tokens mean nothing. Chunks of random lengths (`jitter`) have the
input -1, no token, after their end.

Letters: B sequences, T time steps, L targets of a stream's sequence, N tokens, S sentences. Arrays
are time-major, [T, B], as `lax.scan` reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm_jax.settings import UserError


class Batch(NamedTuple):
    """Inputs and targets of an update."""

    x: Int[Array, "T B"] | Float[Array, "T B I"]
    """Input tokens; for some tasks, I real numbers a step."""
    y: Int[Array, "T B"] | Float[Array, "T B"]
    """Targets: the token after each input; for a task, the answer."""
    mask: Bool[Array, "T B"]
    """True at each step with a target."""
    start: Bool[Array, " B"]
    """True if the sequence starts here from a fresh carry."""


class Streams(NamedTuple):
    """A text cut into B contiguous sequences."""

    tokens: Int[Array, "L+1 B"]
    """Column b holds s_{bL} … s_{bL + L}; the last of them is the next column's first."""
    lengths: Int[Array, " B"]
    """Targets in each sequence: L, or fewer at the end of the text."""


@jax.tree_util.register_static
class Epoch(int):
    """Updates of an epoch, as a compile-time constant."""


class StreamWindow(NamedTuple):
    """Part of some streams, read by W consecutive updates of the same epoch."""

    tokens: Int[Array, "W*T+1 B"]
    """Rows of `Streams.tokens`. Past the end of the streams, the last row repeats."""
    lengths: Int[Array, " B"]
    """Targets in each sequence of the window."""
    first: Int[Array, ""]
    """Number of the first update in its epoch, from 0."""
    epoch: Epoch
    """Updates of an epoch of the streams."""


class Sentences(NamedTuple):
    """Lines of a text in rows of B; empty sentences fill up the last row."""

    tokens: Int[Array, " N+1"]
    """s_0 … s_N."""
    starts: Int[Array, "S/B B"]
    """Index in `tokens` of each sentence's first input."""
    lengths: Int[Array, "S/B B"]
    """Targets in each sentence, including the end of the line."""


@jax.tree_util.register_static  # no arrays inside: a compile-time constant
@dataclass(frozen=True, eq=False)
class Generated:
    """Sequences that are drawn when an update reads them."""

    batch: Callable[..., Batch]
    """(key, step, length) -> the batch of update `step`, every sequence from a fresh carry. A
    sequence has `length` steps; by default it fills all T steps."""
    epoch: int
    """Updates of an epoch, by definition."""


Source = Streams | StreamWindow | Sentences | Generated


def streams(tokens: np.ndarray, boundary: int, batch_size: int) -> Streams:
    """Cut a text into B contiguous sequences.

    Args:
      tokens: [N] token numbers.
      boundary: the token before s_1.
      batch_size: B.
    """
    total = len(tokens)
    column_length = -(-total // batch_size)
    lengths = np.clip(total - column_length * np.arange(batch_size), 0, column_length)
    # One sequence at a time: tokens mapped from the disk may fit into memory only once.
    columns = np.zeros((column_length + 1, batch_size), tokens.dtype)
    for column, targets in enumerate(lengths):
        if targets:
            first = column * column_length
            columns[0, column] = tokens[first - 1] if column else boundary
            columns[1 : targets + 1, column] = tokens[first : first + targets]
    return Streams(jnp.asarray(columns), jnp.asarray(lengths, jnp.int32))


def sentences(tokens: np.ndarray, boundary: int, batch_size: int, length: int) -> Sentences:
    """Cut a text after each boundary token, and every T tokens within a longer sentence.

    The rest of a longer sentence becomes a sentence of its own, and no token is lost.

    Args:
      tokens: [N] token numbers.
      boundary: the token that ends a sentence; also the token before s_1.
      batch_size: B.
      length: T.

    Raises:
      UserError: an index into the text does not fit into 32 bits.
    """
    starts, spans = _lines(tokens, boundary)
    pieces = -(-spans // length)  # none for the empty rest after the last line's end
    first = np.repeat(starts, pieces)
    nth = np.arange(len(first)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    lengths = np.minimum(np.repeat(spans, pieces) - nth * length, length)
    missing = -len(first) % batch_size

    def in_rows(values: np.ndarray) -> Array:
        return jnp.asarray(np.pad(values, (0, missing)).reshape(-1, batch_size), jnp.int32)

    stream = np.concatenate([np.array([boundary], tokens.dtype), tokens])
    return Sentences(jnp.asarray(stream), in_rows(first + nth * length), in_rows(lengths))


def sentence_count(tokens: np.ndarray, boundary: int, length: int) -> int:
    """Number of sentences that `sentences` cuts a text into.

    Args and Raises: as `sentences`.
    """
    _, spans = _lines(tokens, boundary)
    return int(np.sum(-(-spans // length)))


def _lines(tokens: np.ndarray, boundary: int) -> tuple[np.ndarray, np.ndarray]:
    """The start and the number of tokens of each line, ends of lines included."""
    total = len(tokens)
    if total >= 2**31:
        raise UserError(
            f"{total:,} tokens are too many for data.batching=sentences, which reads up to "
            f"{2**31 - 1:,}"
        )
    ends = np.flatnonzero(np.asarray(tokens) == boundary) + 1
    edges = np.concatenate([[0], ends, [total]])
    return edges[:-1], np.diff(edges)


def batch_at(
    source: Source,
    step: Int[Array, ""] | int,
    length: Int[Array, ""] | int,
    key: Array | None = None,
    jitter: int | None = None,
) -> Batch:
    """Return the batch of the update after `step` updates.

    Streams give the next `length` tokens of every sequence, and start again after each epoch.
    Sentences give B sentences, padded to `length`. A generator gives sequences of `length` steps.

    Args:
      source: streams, a window of streams with this update, sentences, or a generator.
      step: number of updates made.
      length: T; for a generator, at most its own T, and may be a tracer.
      key: draws the order of the sentences in each epoch (None: the order of the text), the borders
        of chunks, or the generated sequences, which need a key.
      jitter: of streams: largest number of tokens by which a border between two chunks moves. The
        batch then has `length` + 2 `jitter` steps.
    """
    if isinstance(source, Generated):
        assert key is not None
        return source.batch(key, step, length)
    assert isinstance(length, int)
    in_epoch, epoch = (
        step % steps_per_epoch(source, length),
        step // steps_per_epoch(source, length),
    )
    if isinstance(source, Streams | StreamWindow):
        in_source = in_epoch - source.first if isinstance(source, StreamWindow) else in_epoch
        first, steps, read = in_source * length, None, length
        if jitter is not None:
            assert key is not None
            last = source.tokens.shape[0] - 2
            of_epoch = jax.random.fold_in(key, epoch)
            first, end = (
                _border(in_epoch + place, length, last, jitter, of_epoch) for place in (0, 1)
            )
            steps, read = end - first, length + 2 * jitter
        positions = first + jnp.arange(read + 1)
        # Past its end a sequence repeats its last token, under a False mask.
        chunk = jnp.take(source.tokens, positions, axis=0, mode="clip").astype(jnp.int32)
        mask = positions[:-1, None] < source.lengths[None, :]
        if isinstance(source, StreamWindow):
            # Before the window there are no targets.
            mask &= positions[:-1, None] >= 0
        x = chunk[:-1]
        if steps is not None:
            within = (jnp.arange(read) < steps)[:, None]
            x, mask = jnp.where(within, x, -1), mask & within
        start = jnp.broadcast_to(in_epoch == 0, source.lengths.shape)
    else:
        batch_size = source.starts.shape[1]
        rank = in_epoch * batch_size + jnp.arange(batch_size)
        if key is not None:
            rank = shuffled(rank, source.starts.size, jax.random.fold_in(key, epoch))
        starts, lengths = source.starts.ravel()[rank], source.lengths.ravel()[rank]
        positions = starts[None, :] + jnp.arange(length + 1)[:, None]
        chunk = jnp.take(source.tokens, positions, mode="clip").astype(jnp.int32)
        x = chunk[:-1]
        mask = jnp.arange(length)[:, None] < lengths[None, :]
        start = jnp.ones(batch_size, bool)
    return Batch(x, chunk[1:], mask, start)


def _border(
    number: Int[Array, ""] | int, length: int, last: int, jitter: int, key: Array
) -> Int[Array, ""]:
    """The place of the border before chunk `number` of an epoch, at most `last` but for the end."""
    move = jax.random.randint(jax.random.fold_in(key, number), (), -jitter, jitter + 1)
    inside = jnp.logical_and(number > 0, number * length <= last)
    return number * length + jnp.where(inside, jnp.minimum(move, last - number * length), 0)


def first_sequences(batch: Batch, count: int) -> Batch:
    """Return the first `count` sequences of a batch."""
    x, y, mask = (leaf[:, :count] for leaf in (batch.x, batch.y, batch.mask))
    return Batch(x, y, mask, batch.start[:count])


def steps_per_epoch(source: Source, length: int) -> int:
    """Updates of an epoch: until each token was a target once; for a task, `Generated.epoch`."""
    if isinstance(source, Generated | StreamWindow):
        return source.epoch
    if isinstance(source, Streams):
        return -(-(source.tokens.shape[0] - 1) // length)
    return source.starts.shape[0]


def shuffled(rank: Int[Array, " B"], count: int, key: Array) -> Int[Array, " B"]:
    """Return the items at given places of a random permutation, without building the permutation.

    A Feistel network permutes the numbers below a power of four. A number not below `count` goes
    through the network again ("cycle walking"; Black & Rogaway, 2002, section 3).

    Args:
      rank: places, each below `count`.
      count: number of items.
      key: determines the permutation.
    """
    bits = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    low = jnp.uint32(2**bits - 1)
    round_keys = jax.random.bits(key, (6,), jnp.uint32)

    def permuted(number: Array) -> Array:
        left, right = number >> bits, number & low
        for round_key in round_keys:
            # A multiply-and-shift hash of one half (as in MurmurHash3's finaliser) masks the other.
            mixed = (right ^ round_key) * jnp.uint32(0x85EBCA6B)
            mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
            left, right = right, left ^ ((mixed ^ (mixed >> 16)) & low)
        return (left << bits) | right

    item = jax.lax.while_loop(
        lambda item: jnp.any(item >= count),
        lambda item: jnp.where(item >= count, permuted(item), item),
        permuted(rank.astype(jnp.uint32)),
    )
    return item.astype(jnp.int32)


def check_length(total: int, batch_size: int, length: int, name: str) -> None:
    """Refuse a chunk longer than a sequence of the training text.

    Raises:
      UserError: `total` tokens in `batch_size` sequences give fewer than `length` tokens each.
    """
    each = total // batch_size
    if length > each:
        raise UserError(
            f"{name}={length} is longer than a sequence: {total:,} training tokens over "
            f"data.batch_size={batch_size} sequences make {each:,} each"
        )
