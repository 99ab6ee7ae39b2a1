"""A text on its way to the device: whole, or in windows that are read ahead from the disk.

A training text is mapped into memory from the disk and may be larger than memory. Then its streams
are never made: a `Window` holds what W consecutive updates read of them, and while the device works
on one, a thread reads the next and puts it on the device. All windows of a text have one shape, so
that one program reads them, and none crosses the end of an epoch: its ⌈L / T⌉ updates are shared
out among as few windows as there can be, so evenly that only the last ones have room to spare.

Letters: B lanes of L targets, T targets of each in one update, W updates.
"""

import mmap
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from lm_jax.config import Data
from lm_jax.data.batches import Epoch, Source, Window, steps_per_epoch
from lm_jax.settings import UserError

SHARE = 0.25  # of the free memory that a text on the device may take
WINDOW_BYTES = 2**26  # of a window, if nothing else is asked for


class Whole:
    """What is on the device from first to last.

    Attributes:
      source: it.
      epoch: updates of an epoch.
    """

    def __init__(self, source: Source, length: int):
        self.source, self.epoch = source, steps_per_epoch(source, length)

    def at(self, step: int) -> tuple[Source, int]:
        """The source of an update, counted from 0, and the update from which on it is another."""
        return self.source, sys.maxsize

    def whole(self) -> Source:
        """All of it on the device."""
        return self.source


class Windows:
    """Streams of which two windows are on the device, the one that is read and the next.

    Attributes:
      updates: W.
      epoch: updates of an epoch.
    """

    def __init__(
        self, tokens: np.ndarray, boundary: int, batch_size: int, length: int, updates: int
    ):
        """Reads nothing yet.

        Args:
          tokens: [N] numbers of tokens, mapped from a disk or not.
          boundary: the token that stands before the first one.
          batch_size: B.
          length: T.
          updates: the most that a window may hold.
        """
        self._tokens, self._boundary, self._length = tokens, boundary, length
        self._lane = -(-len(tokens) // batch_size)
        self._targets = np.clip(len(tokens) - self._lane * np.arange(batch_size), 0, self._lane)
        self.epoch = -(-self._lane // length)
        self._count = -(-self.epoch // updates)
        self.updates = -(-self.epoch // self._count)
        self._reader = ThreadPoolExecutor(1, "windows")
        self._read: dict[int, Future[Window]] = {}

    def at(self, step: int) -> tuple[Source, int]:
        """The window of an update, counted from 0, and the update from which on it is another."""
        index = step % self.epoch
        number = index // self.updates
        wanted = (number, (number + 1) % self._count)
        # What is not wanted any more is let go before anything else is read.
        self._read = {n: self._read[n] for n in wanted if n in self._read}
        for n in wanted:
            if n not in self._read:
                self._read[n] = self._reader.submit(self._window, n)
        end = min((number + 1) * self.updates, self.epoch)
        return self._read[number].result(), step - index + end

    def whole(self) -> Source:
        """Refuses to put all of it on the device.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"runs side by side need all of the {len(self._tokens):,} training tokens on the "
            f"device, and data.window_updates, or want of memory, puts those of {self.updates:,} "
            "updates there at a time: train the runs one by one"
        )

    def _window(self, number: int) -> Window:
        first = number * self.updates
        low, rows = first * self._length, self.updates * self._length + 1
        lanes = np.zeros((len(self._targets), rows), self._tokens.dtype)
        for lane, targets in enumerate(self._targets):
            here = min(low + rows, targets + 1) - low  # of the lane's tokens, its first input's too
            if not targets or here <= 0:
                continue
            start = lane * self._lane + low - 1  # where the window's first input is in the text
            if start < 0:
                lanes[lane, 0] = self._boundary
            lanes[lane, max(0, -start) : here] = self._tokens[max(0, start) : start + here]
            if targets == self._lane:
                lanes[lane, here:] = lanes[lane, here - 1]
            if isinstance(self._tokens.base, mmap.mmap):
                # Else what was read, and megabytes around it, would stay in this process's memory.
                self._tokens.base.madvise(mmap.MADV_DONTNEED)
        lengths = np.clip(self._targets - low, 0, rows - 1).astype(np.int32)
        # In this thread, where it waits for nobody.
        arrays = jax.device_put((np.ascontiguousarray(lanes.T), lengths, np.int32(first)))
        lanes, lengths, first = jax.block_until_ready(arrays)
        return Window(lanes, lengths, first, Epoch(self.epoch))


Feed = Whole | Windows


def window_of(tokens: np.ndarray, data: Data, length: int) -> int | None:
    """The most updates that a window of a training text may hold; None: it is to be held whole.

    Args:
      tokens: [N] numbers of tokens.
      data: the config; of its streams.
      length: T.
    """
    if data.window_updates is not None:
        return data.window_updates
    if tokens.nbytes <= SHARE * free_memory():
        return None
    return max(1, WINDOW_BYTES // (data.batch_size * length * tokens.itemsize))


def free_memory() -> int:
    """Bytes that are free in the machine's memory, or in the device's, if that is less."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        # Other systems than Linux do not say what is free.
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    device = jax.local_devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats and "bytes_limit" in stats:
        free = min(free, stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return free
