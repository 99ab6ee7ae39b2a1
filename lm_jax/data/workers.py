"""Map a function over many pieces of bytes in several processes, with the results in order.

A worker is a fresh Python process, because a process that runs JAX must not fork, and because
`multiprocessing` would run the user's main module again. A worker is told the name of a function
that makes the function to map, and this function's setup. The worker then reads items from its
standard input and writes results to its standard output, as bytes after their length. A worker ends
when its standard input closes, and therefore never outlives the process that started the worker,
even after kill -9.
"""

import contextlib
import importlib
import itertools
import os
import queue
import struct
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import lm_jax
from lm_jax.settings import UserError

Function = Callable[[bytes], bytes]

ALONE = 1 << 26  # bytes mapped in this process before others are started
MOST = 8  # workers
_LENGTH = struct.Struct("<Q")  # of a message
_DONE, _REFUSED, _FAILED = b"+", b"-", b"!"  # first byte of a worker's answer


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    make: Callable[[str], Function], setup: str, items: Iterable[bytes], workers: int | None = None
) -> Iterator[bytes]:
    """Yield the result of the function `make(setup)` for each item, in the items' order.

    The first items are mapped in this process, until `ALONE` bytes have passed; few items start no
    process. Afterwards at most two items for each worker wait or are mapped at a time.

    Args:
      make: a function of a module, by whose names a worker finds the function.
      setup: argument of `make`.
      items: the items.
      workers: number of processes; None: one for each core, at most `MOST`.

    Raises:
      UserError: a worker has died; or raised by the function.
      RuntimeError: another error of the function in a worker.
    """
    workers = min(MOST, cores()) if workers is None else workers
    function, items = make(setup), iter(items)
    alone = 0
    while workers == 1 or alone < ALONE:
        item = next(items, None)
        if item is None:
            return
        yield function(item)
        alone += len(item)
    first = next(items, None)
    if first is not None:
        name = "\n".join((make.__module__, make.__qualname__, setup))
        yield from _mapped(name.encode(), itertools.chain([first], items), workers)


def _mapped(name: bytes, items: Iterable[bytes], workers: int) -> Iterator[bytes]:
    crew: list[subprocess.Popen[bytes]] = []
    free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    waiting: deque[Future[bytes]] = deque()

    def mapped(item: bytes) -> bytes:
        worker = free.get()
        try:
            return _asked(worker, item)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(workers, "tokenise")  # each waits for a worker
    try:
        for _ in range(workers):
            crew.append(_started())
            free.put(crew[-1])
        for worker in crew:
            with contextlib.suppress(OSError):  # it has died, which `_asked` will say
                _send(worker.stdin, name)
        for item in items:
            waiting.append(threads.submit(mapped, item))
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in crew:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in crew:
            # A dead worker may have left the end of an item unread, which raises here again.
            with contextlib.suppress(OSError), worker:
                pass


def _started() -> subprocess.Popen[bytes]:
    root = str(Path(lm_jax.__file__).parent.parent)
    known = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, known] if known else [root]),
        "JAX_PLATFORMS": "cpu",  # workers do not use JAX, and take no GPU
        "TOKENIZERS_PARALLELISM": "false",  # one core for each worker
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # an interrupt from the keyboard reaches this process only
    )


def _asked(worker: subprocess.Popen[bytes], item: bytes) -> bytes:
    try:
        _send(worker.stdin, item)
        answer = _received(worker.stdout)
    except OSError:
        answer = None
    if answer is None:
        raise UserError(
            f"a process that tokenises the text has died, with status {worker.wait()}; is there "
            "memory left?"
        )
    if answer.startswith(_REFUSED):
        raise UserError(answer[1:].decode())
    if answer.startswith(_FAILED):
        raise RuntimeError(answer[1:].decode())
    return answer[1:]


def _send(pipe: IO[bytes] | None, *message: bytes) -> None:
    assert pipe is not None
    pipe.write(_LENGTH.pack(sum(map(len, message))))
    for part in message:
        pipe.write(part)
    pipe.flush()


def _received(pipe: IO[bytes] | None) -> bytes | None:
    """The next message of a pipe; None at the end."""
    assert pipe is not None
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    message = pipe.read(length)
    return message if len(message) == length else None


def serve() -> None:
    """Be a worker: read a function and items, and write results, until standard input closes."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no result
    name = _received(sys.stdin.buffer)
    if name is None:
        return
    module, function, setup = name.decode().split("\n", 2)
    mapped: Function = getattr(importlib.import_module(module), function)(setup)
    while (item := _received(sys.stdin.buffer)) is not None:
        try:
            answer = (_DONE, mapped(item))
        except UserError as error:
            answer = (_REFUSED, str(error).encode())
        except Exception:
            answer = (_FAILED, traceback.format_exc().encode())
        try:
            _send(results, *answer)
        except BrokenPipeError:  # the other process is gone
            os._exit(1)
