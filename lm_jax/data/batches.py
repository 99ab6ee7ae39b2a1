"""Batches as functions of the step, so that a checkpoint need not know where the reading stopped.

Two ways to read a text of N tokens s_1 … s_N, each of them a target exactly once an epoch:

- as *streams*: B lanes of L = ⌈N / B⌉ tokens each; update `step` reads the next T tokens of every
  lane and the carry goes on from chunk to chunk, until the lanes start again;
- as *sentences*: each row is one line of the text, from a fresh carry, in an order drawn anew every
  epoch.

Streams that are longer than memory are read in *windows*, each the tokens of some consecutive
updates (`lm_jax.data.windows`). Or no text is read: sequences are *generated*, for every update
anew (`lm_jax.data.tasks`).

The input before s_1 is the boundary token s_0 (see `lm_jax.data.vocabulary`). Where a lane or a
sentence has run out, the mask is False and the tokens mean nothing.

Letters: B lanes or sentences, T time steps, L targets of a lane, N tokens, S sentences. Arrays are
time-major, [T, B], as `lax.scan` reads them.
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
    """What one update reads."""

    x: Int[Array, "T B"] | Float[Array, "T B I"]
    """Input tokens; of some tasks, I real numbers each."""
    y: Int[Array, "T B"] | Float[Array, "T B"]
    """Targets: each the token after its input; of a task, whatever is asked for."""
    mask: Bool[Array, "T B"]
    """Whether there is a target."""
    start: Bool[Array, " B"]
    """Whether the text starts (again) here, from a fresh carry."""


class Streams(NamedTuple):
    """B lanes, ready to be read."""

    lanes: Int[Array, "L+1 B"]
    """Lane b holds s_{bL} … s_{bL + L}: the last token of a lane is the first input of the next."""
    lengths: Int[Array, " B"]
    """Targets in each lane: L, or less where the text ends."""


@jax.tree_util.register_static
class Epoch(int):
    """Updates of an epoch, as a number that a program is compiled for."""


class Window(NamedTuple):
    """What W consecutive updates of one epoch read of some streams."""

    lanes: Int[Array, "W*T+1 B"]
    """Those rows of the streams' lanes; after the last row of all, that row again."""
    lengths: Int[Array, " B"]
    """Targets in each lane of the window."""
    first: Int[Array, ""]
    """Number of the first update in its epoch, from 0."""
    epoch: Epoch
    """Updates of an epoch of the streams."""


class Sentences(NamedTuple):
    """Lines of a text in rows of B, ready to be read; the last row is filled up with empty ones."""

    tokens: Int[Array, " N+1"]
    """s_0 … s_N."""
    starts: Int[Array, "S/B B"]
    """Where each sentence's first input lies in `tokens`."""
    lengths: Int[Array, "S/B B"]
    """Targets in each sentence, its line's end among them."""


@jax.tree_util.register_static  # it holds no arrays, and a program is compiled for it
@dataclass(frozen=True, eq=False)
class Generated:
    """Sequences that are drawn when they are read."""

    batch: Callable[..., Batch]
    """(key, step, length) -> what update `step` reads, each sequence from a fresh carry. A sequence
    has `length` steps, or, without it, as many as there is room for."""
    epoch: int
    """Updates that count as an epoch, for what goes by epochs."""


Source = Streams | Window | Sentences | Generated


def streams(tokens: np.ndarray, boundary: int, batch_size: int) -> Streams:
    """A text cut into B contiguous lanes.

    Args:
      tokens: [N] numbers of tokens.
      boundary: the token that stands before the first one.
      batch_size: B.
    """
    total = len(tokens)
    length = -(-total // batch_size)
    lengths = np.clip(total - length * np.arange(batch_size), 0, length)
    # Lane by lane, for the tokens may be mapped from a disk and fit into memory only once.
    lanes = np.zeros((length + 1, batch_size), tokens.dtype)
    for lane, targets in enumerate(lengths):
        if targets:
            first = lane * length
            lanes[0, lane] = tokens[first - 1] if lane else boundary
            lanes[1 : targets + 1, lane] = tokens[first : first + targets]
    return Streams(jnp.asarray(lanes), jnp.asarray(lengths, jnp.int32))


def sentences(tokens: np.ndarray, boundary: int, batch_size: int, length: int) -> Sentences:
    """A text cut after each boundary token, and sentences longer than T every T tokens.

    The rest of a sentence that is cut is read as a sentence of its own, so no token is lost.

    Args:
      tokens: [N] numbers of tokens.
      boundary: the token that ends a sentence, and stands before the first one.
      batch_size: B.
      length: T.

    Raises:
      UserError: a place in the text does not fit into 32 bits.
    """
    total = len(tokens)
    if total >= 2**31:
        raise UserError(
            f"{total:,} tokens are too many for data.batching=sentences, which reads up to "
            f"{2**31 - 1:,}"
        )
    ends = np.flatnonzero(np.asarray(tokens) == boundary) + 1
    edges = np.concatenate([[0], ends, [total]])
    starts, spans = edges[:-1], np.diff(edges)
    pieces = -(-spans // length)  # none for the empty rest after the last line's end
    first = np.repeat(starts, pieces)
    nth = np.arange(len(first)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    lengths = np.minimum(np.repeat(spans, pieces) - nth * length, length)
    missing = -len(first) % batch_size

    def in_rows(values: np.ndarray) -> Array:
        return jnp.asarray(np.pad(values, (0, missing)).reshape(-1, batch_size), jnp.int32)

    stream = np.concatenate([np.array([boundary], tokens.dtype), tokens])
    return Sentences(jnp.asarray(stream), in_rows(first + nth * length), in_rows(lengths))


def batch_at(
    source: Source,
    step: Int[Array, ""] | int,
    length: Int[Array, ""] | int,
    key: Array | None = None,
) -> Batch:
    """What update `step`, counted from 0, reads.

    Args:
      source: streams, of which the next `length` tokens of every lane are read, from the front
        again after each epoch; or the window of them that holds the update; or sentences, of which
        B are read, padded to `length`; or generated ones, of `length` steps each.
      step: the update.
      length: T; of generated sequences, no more than their T, and it may be a tracer.
      key: draws the order of sentences in each epoch; None: as they stand in the text. What is
        generated needs one, to be drawn from.
    """
    if isinstance(source, Generated):
        assert key is not None
        return source.batch(key, step, length)
    assert isinstance(length, int)
    index, epoch = step % steps_per_epoch(source, length), step // steps_per_epoch(source, length)
    if isinstance(source, Streams | Window):
        # Beyond a window there are no targets.
        number = index - source.first if isinstance(source, Window) else index
        positions = number * length + jnp.arange(length + 1)
        # Past the end a lane repeats its last token, under a False mask.
        chunk = jnp.take(source.lanes, positions, axis=0, mode="clip").astype(jnp.int32)
        mask = positions[:-1, None] < source.lengths[None, :]
        if isinstance(source, Window):
            mask &= positions[:-1, None] >= 0
        start = jnp.broadcast_to(index == 0, source.lengths.shape)
    else:
        lanes = source.starts.shape[1]
        rank = index * lanes + jnp.arange(lanes)
        if key is not None:
            rank = shuffled(rank, source.starts.size, jax.random.fold_in(key, epoch))
        starts, lengths = source.starts.ravel()[rank], source.lengths.ravel()[rank]
        positions = starts[None, :] + jnp.arange(length + 1)[:, None]
        chunk = jnp.take(source.tokens, positions, mode="clip").astype(jnp.int32)
        mask = jnp.arange(length)[:, None] < lengths[None, :]
        start = jnp.ones(lanes, bool)
    return Batch(chunk[:-1], chunk[1:], mask, start)


def first_lanes(batch: Batch, count: int) -> Batch:
    """The first `count` lanes of a batch."""
    x, y, mask = (leaf[:, :count] for leaf in (batch.x, batch.y, batch.mask))
    return Batch(x, y, mask, batch.start[:count])


def steps_per_epoch(source: Source, length: int) -> int:
    """Updates until every token has been a target once, or as many as count for that."""
    if isinstance(source, Generated | Window):
        return source.epoch
    if isinstance(source, Streams):
        return -(-(source.lanes.shape[0] - 1) // length)
    return source.starts.shape[0]


def shuffled(rank: Int[Array, " B"], count: int, key: Array) -> Int[Array, " B"]:
    """Which items stand at some places of a random order, without drawing the whole of it.

    A Feistel network permutes the numbers below a power of four, and a number that comes out too
    large is sent round again ("cycle walking"; Black & Rogaway, 2002, section 3).

    Args:
      rank: places, each below `count`.
      count: how many items there are.
      key: another order for each.
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
    """Refuses a chunk that is longer than a lane of the training text.

    Raises:
      UserError: fewer than `length` of the `total` tokens fall to each of `batch_size` lanes.
    """
    lane = total // batch_size
    if length > lane:
        raise UserError(
            f"{name}={length} is longer than a lane: {total:,} training tokens over "
            f"data.batch_size={batch_size} lanes make {lane:,} each"
        )
