"""Arrays by name in a folder, written and read by Orbax; no other module uses Orbax.

In a cluster of JAX, Orbax writes only together with all processes of the cluster, and only arrays
that they share (version 0.12, whatever its options for several processes say). A process of a
cluster therefore has its arrays written by a process of its own, which belongs to no cluster.
Reading needs no other process.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Orbax does not support two threads: several runs in one process, or loading a run in training.
_ORBAX = threading.Lock()

# A signal to all processes of a run must not end the writer before the last save.
_WRITER = """
import json, math, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
import numpy as np
from orbax.checkpoint import v1
path, described = json.loads(sys.stdin.buffer.readline())
arrays = {}
for name, (kind, shape) in described.items():
    content = sys.stdin.buffer.read(np.dtype(kind).itemsize * math.prod(shape))
    arrays[name] = np.frombuffer(content, kind).reshape(shape)
context = v1.Context()
context.memory.deepcopy_host_arrays = False
context.array.saving.use_compression = False
with context:
    v1.save(path, arrays)
"""


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax, for one thread at a time; imported here, because the import takes half a second."""
    from orbax.checkpoint import v1

    context, number = v1.Context(), jax.process_index()
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_compression = False
    context.pytree.loading.partial_load = True
    # This process alone; else reading would wait for the other processes of a cluster.
    context.multiprocessing.primary_host = number
    context.multiprocessing.active_processes = {number}
    with _ORBAX, context:
        yield v1


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into a new folder.

    Raises:
      OSError, ValueError: the arrays cannot be written.
    """
    path = str(folder.absolute())
    if jax.process_count() > 1:
        _save_outside(path, arrays)
        return
    with _orbax() as ocp:
        ocp.save(path, arrays)


def _save_outside(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by a process that belongs to no cluster."""
    with tempfile.TemporaryFile() as errors:
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER],
            stdin=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert writer.stdin is not None
        described = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        with contextlib.suppress(BrokenPipeError), writer.stdin as pipe:
            pipe.write(json.dumps((path, described)).encode() + b"\n")
            for array in arrays.values():
                pipe.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if writer.wait():
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise OSError(said[-1] if said else f"the writer ended with status {writer.returncode}")


@dataclasses.dataclass(frozen=True)
class Stored:
    """Shape and type of an array in a folder; Orbax restores it as a NumPy array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def load_arrays(folder: Path, stored: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """Read some of the arrays in a folder.

    Args:
      folder: the folder.
      stored: the arrays to read, by name.

    Raises:
      OSError, ValueError: the folder is damaged.
    """
    with _orbax() as ocp:
        return ocp.load(str(folder.absolute()), dict(stored))
