"""Map a function over many items in several processes, with the results in the items' order.

A worker is a fresh Python process, because a process that runs JAX must not fork, and because
`multiprocessing` would run the user's main module again. The worker reads pickled items from its
standard input and writes pickled results to its standard output. A worker ends when its standard
input closes, and therefore never outlives the process that started the worker, even after kill -9.
"""

import itertools
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import lm_jax
from lm_jax.settings import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

ALONE = 1 << 26  # characters mapped in this process before others are started
MOST = 8  # workers


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    size: Callable[[Item], int],
    workers: int | None = None,
) -> Iterator[Result]:
    """Yield the result of a function for each item, in the items' order.

    The first items are mapped in this process, until `ALONE` characters have passed; few items
    start no process. Afterwards at most two items for each worker wait or are mapped at a time.

    Args:
      function: a pure function that can be pickled.
      items: the items.
      size: returns the characters of an item.
      workers: number of processes; None: one for each core, at most `MOST`.

    Raises:
      UserError: a worker has died.
      Exception: an exception of `function` or `items`; no process is left.
    """
    workers = min(MOST, cores()) if workers is None else workers
    items = iter(items)
    alone = 0
    while workers == 1 or alone < ALONE:
        item = next(items, None)
        if item is None:
            return
        yield function(item)
        alone += size(item)
    first = next(items, None)
    if first is not None:
        yield from _mapped(function, itertools.chain([first], items), workers)


def _mapped(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    crew: list[subprocess.Popen[bytes]] = []
    free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    waiting: deque[Future[Result]] = deque()

    def mapped(item: Item) -> Result:
        worker = free.get()
        try:
            return _asked(worker, item)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(workers, "tokenise")  # each waits for a worker
    try:
        for _ in range(workers):
            crew.append(_started())
            _send(crew[-1], function)
            free.put(crew[-1])
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
            worker.wait()
            _close(worker)


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


def _asked(worker: subprocess.Popen[bytes], item: Any) -> Any:
    assert worker.stdout is not None
    try:
        _send(worker, item)
        done, value = pickle.load(worker.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        raise UserError(
            f"a process that tokenises the text has died, with status {worker.wait()}; is there "
            "memory left?"
        ) from None
    if done:
        return value
    raise value


def _send(worker: subprocess.Popen[bytes], value: Any) -> None:
    assert worker.stdin is not None
    pickle.dump(value, worker.stdin, pickle.HIGHEST_PROTOCOL)
    worker.stdin.flush()


def _close(worker: subprocess.Popen[bytes]) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdout.close()
    try:
        worker.stdin.close()
    except OSError:  # the rest of an item that the dead worker has not read
        pass


def serve() -> None:
    """Be a worker: read a function and items, and write results, until standard input closes."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no result
    function = pickle.load(sys.stdin.buffer)
    while True:
        try:
            item = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, function(item))
        except Exception as error:
            answer = (False, error)
        try:
            pickle.dump(answer, results, pickle.HIGHEST_PROTOCOL)
            results.flush()
        except BrokenPipeError:  # the other process is gone
            os._exit(1)
