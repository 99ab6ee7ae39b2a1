"""The input pipeline: data whole on the device, or a text in windows read ahead from the disk.

A training text is mapped into memory from the disk and may be larger than the memory. The streams
of such a text are never built as a whole. A `StreamWindow` holds the part of the streams that W
consecutive updates read. While the device works on a window, a thread reads the next window and
puts it on the device.

All windows of a text have the same shape and share a compiled program. No window crosses the end of
an epoch. The ⌈L / T⌉ updates of an epoch are divided evenly among as few windows as possible; only
the last windows may be partly empty.

Letters: B sequences of L targets, T targets a sequence and update, W updates.
"""

import mmap
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from lm_jax.data.batches import (
    Epoch,
    Source,
    StreamWindow,
    sentence_count,
    sentences,
    steps_per_epoch,
    streams,
)
from lm_jax.data.corpus import Corpus
from lm_jax.settings import UserError

SHARE = 0.25  # largest share of the free memory for a whole text on the device
WINDOW_BYTES = 2**26  # tokens of a window, if data.window_updates is None


class Part(NamedTuple):
    """The part of a process in the batches, if several processes share the sequences."""

    columns: range
    """Numbers of the sequences that the process reads."""
    put: Callable[[np.ndarray, int | None], jax.Array]
    """(array, axis) -> the array of all processes, made of their parts along the batch axis, or of
    the same array in all of them if the axis is None."""


class InMemory:
    """A source that stays on the device for the whole run.

    Attributes:
      source: the source.
      steps_per_epoch: number of updates of an epoch.
    """

    def __init__(self, source: Source, length: int):
        self.source, self.steps_per_epoch = source, steps_per_epoch(source, length)

    def at(self, step: int) -> tuple[Source, int]:
        """Return the source of update `step`, and the first update with another source."""
        return self.source, sys.maxsize

    def whole(self) -> Source:
        """Return the whole source, on the device."""
        return self.source


class Prefetched:
    """Streams with two windows on the device: the current window and the next.

    Attributes:
      updates: W.
      steps_per_epoch: number of updates of an epoch.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        boundary: int,
        batch_size: int,
        length: int,
        updates: int,
        part: Part | None = None,
    ):
        """Set up the windows; reading begins with `at`.

        Args:
          tokens: [N] token numbers, mapped from a disk or not.
          boundary: the token before the first token.
          batch_size: B.
          length: T.
          updates: maximum number of updates in a window.
          part: the sequences to read; None for all.
        """
        self._part = part or Part(range(batch_size), lambda array, _: jax.device_put(array))
        self._tokens, self._boundary, self._length = tokens, boundary, length
        self._each = -(-len(tokens) // batch_size)
        self._targets = np.clip(len(tokens) - self._each * np.arange(batch_size), 0, self._each)
        self.steps_per_epoch = -(-self._each // length)
        self._count = -(-self.steps_per_epoch // updates)
        self.updates = -(-self.steps_per_epoch // self._count)
        self._reader = ThreadPoolExecutor(1, "windows")
        self._read: dict[int, Future[StreamWindow]] = {}

    def at(self, step: int) -> tuple[Source, int]:
        """Return the window of update `step`, and the first update with another window.

        Updates count from 0. If the window has not been read ahead, the call waits for the thread.
        """
        index = step % self.steps_per_epoch
        number = index // self.updates
        wanted = (number, (number + 1) % self._count)
        # Release old windows before reading new ones.
        self._read = {n: self._read[n] for n in wanted if n in self._read}
        for n in wanted:
            if n not in self._read:
                self._read[n] = self._reader.submit(self._window, n)
        end = min((number + 1) * self.updates, self.steps_per_epoch)
        return self._read[number].result(), step - index + end

    def whole(self) -> Source:
        """Refuse to put the whole text on the device.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"runs side by side need all of the {len(self._tokens):,} training tokens on the "
            f"device, and data.window_updates, or want of memory, puts those of {self.updates:,} "
            "updates there at a time: train the runs one by one"
        )

    def _window(self, number: int) -> StreamWindow:
        first = number * self.updates
        low, rows = first * self._length, self.updates * self._length + 1
        numbers = self._part.columns
        columns = np.zeros((len(numbers), rows), self._tokens.dtype)
        for column, number in enumerate(numbers):
            targets = self._targets[number]
            here = min(low + rows, targets + 1) - low  # tokens, including the first input
            if not targets or here <= 0:
                continue
            start = number * self._each + low - 1  # index in the text of the window's first input
            if start < 0:
                columns[column, 0] = self._boundary
            columns[column, max(0, -start) : here] = self._tokens[max(0, start) : start + here]
            if targets == self._each:
                columns[column, here:] = columns[column, here - 1]
            if isinstance(self._tokens.base, mmap.mmap):
                # Else the pages read, and megabytes around them, would stay in memory.
                self._tokens.base.madvise(mmap.MADV_DONTNEED)
        lengths = np.clip(self._targets[numbers] - low, 0, rows - 1).astype(np.int32)
        put = self._part.put
        window = StreamWindow(
            put(np.ascontiguousarray(columns.T), 1),
            put(lengths, 0),
            put(np.array(first, np.int32), None),
            Epoch(self.steps_per_epoch),
        )
        # In this thread, to keep the training thread from waiting.
        return jax.block_until_ready(window)


InputPipeline = InMemory | Prefetched


def input_pipeline(
    corpus: Corpus,
    batching: str,
    batch_size: int,
    length: int,
    updates: int | None = None,
    part: Part | None = None,
) -> InputPipeline:
    """The input pipeline: the whole training data on the device, or windows of a large text.

    Args:
      corpus: the text, or a task.
      batching: streams or sentences.
      batch_size: B.
      length: T.
      updates: for streams: updates in a window; None: windows only if the device cannot hold the
        whole text.
      part: the sequences of this process; None for all. Streams are then always read in windows,
        whose size must not depend on the free memory of a process.
    """
    tokens = corpus.train.tokens
    if corpus.task is None and batching == "streams":
        updates = updates or window_updates(tokens, batch_size, length, whole=part is None)
        if updates is not None:
            return Prefetched(tokens, corpus.vocabulary.boundary, batch_size, length, updates, part)
    source = source_of(corpus, batching, batch_size, length)
    if part is not None:
        source = jax.tree.map(lambda leaf: part.put(np.asarray(leaf), None), source)
    return InMemory(source, length)


def source_of(corpus: Corpus, batching: str, batch_size: int, length: int) -> Source:
    """The task, or the training text on the device, batched as streams or as sentences."""
    if corpus.task is not None:
        return corpus.task
    read = streams if batching == "streams" else partial(sentences, length=length)
    return read(corpus.train.tokens, corpus.vocabulary.boundary, batch_size)


def updates_of_epoch(corpus: Corpus, batching: str, batch_size: int, length: int) -> int:
    """Number of updates of an epoch, counted on the host: nothing is put on a device.

    Args:
      corpus: the text, or a task.
      batching: streams or sentences.
      batch_size: B.
      length: T.
    """
    tokens = corpus.train.tokens
    if corpus.task is not None:
        return corpus.task.epoch
    if batching == "streams":
        each = -(-len(tokens) // batch_size)
        return -(-each // length)
    return -(-sentence_count(tokens, corpus.vocabulary.boundary, length) // batch_size)


def window_updates(
    tokens: np.ndarray, batch_size: int, length: int, *, whole: bool = True
) -> int | None:
    """Return the maximum number of updates in a window of a text; None: keep the text whole.

    Args:
      tokens: [N] token numbers.
      batch_size: B.
      length: T.
      whole: False to read in windows whatever the size of the text.
    """
    if whole and tokens.nbytes <= SHARE * free_memory():
        return None
    return max(1, WINDOW_BYTES // (batch_size * length * tokens.itemsize))


def free_memory() -> int:
    """Free memory in bytes: the machine's or the device's, the smaller of the two."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        # Systems other than Linux: take all of the memory as free.
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    device = jax.local_devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats and "bytes_limit" in stats:
        free = min(free, stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return free
