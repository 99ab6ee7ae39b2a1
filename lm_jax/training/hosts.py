"""One run in several processes, on one machine or on many: the batch on the devices of all of them.

Process 0 decides: it alone validates, measures, writes the run directory and shows the progress.
The other processes follow. Before a computation on the devices of all processes, process 0 names
the trainer's method for it to the others (`ManyProcesses.call`), and each process calls the method.
No decision is made twice, and no two processes can decide differently.

Each process holds all of the parameters and its own sequences of the batch, and reads only their
text. A checkpoint holds the whole state, gathered from all processes and written by process 0;
one process, or another number of processes, can read it.

The messages are arrays of bytes, gathered by JAX. A message of any process may hold an error, which
then ends the run in every process, or a signal, which stops the run in every process.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm_jax.data.windows import Part
from lm_jax.files import Row
from lm_jax.settings import UserError
from lm_jax.training.cluster import LostProcess, exchange, first_line, leads, together
from lm_jax.training.devices import check_divisible, make_mesh
from lm_jax.training.directory import LOCK, locked_dir

SHARED = 10.0  # seconds for a file of process 0 to appear in the directory of another process
LISTEN = 0.5  # seconds of a validation between two messages

Result = TypeVar("Result")


class Processes:
    """The processes of a run: this process alone, on its own devices.

    Attributes:
      received: stop signals received, of several processes by any; the list grows as they arrive.
    """

    def __init__(self, received: list[signal.Signals] | None = None, count: int = 1):
        """Prepare a run on the first `count` devices."""
        self.received = [] if received is None else received
        self._count = count

    @property
    def devices(self) -> list[Any]:
        """The devices that the run may use."""
        return jax.local_devices()

    def mesh(self, batch_size: int) -> Mesh | None:
        """The devices that share a batch; None for one device of one process.

        Raises:
          UserError: as `lm_jax.training.devices.make_mesh`.
        """
        return make_mesh(self._count, batch_size)

    def part(self, mesh: Mesh | None, batch_size: int) -> Part | None:
        """The sequences of the batch that this process reads; None for all of them."""
        return None

    def each(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function in every process; an error of one process is an error in all.

        Raises:
          UserError, OSError: the function's, here or in another process.
        """
        return function(*args)

    def first(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function in process 0 alone; all processes get the result, which JSON can hold.

        Raises:
          UserError, OSError: the function's.
        """
        return function(*args)

    def check_same(self, values: Row) -> None:
        """Check that all processes have the same values.

        Args:
          values: strings and numbers by name.

        Raises:
          UserError: names a value that differs.
        """

    def call(self, method: Callable[..., Result], *args: Any) -> Result:
        """Call a method of the trainer in every process, from process 0; JSON can hold `args`."""
        return method(*args)

    def stopping(self) -> bool:
        """True if a process has received a signal."""
        return bool(self.received)

    def local(self, tree: Any) -> Any:
        """The arrays of a tree as this process holds them, for computations of its own."""
        return tree

    def whole(self, tree: Any) -> Any:
        """The whole arrays of a tree; in several processes, a computation of all of them."""
        return tree

    def locked(self, run_dir: Path) -> contextlib.AbstractContextManager[None]:
        """Lock the run directory, as `lm_jax.training.directory.locked_dir`."""
        return locked_dir(run_dir)

    def run(self, work: Any) -> None:
        """Run a trainer, or the run of an n-gram model."""
        work.run()


class ManyProcesses(Processes):
    """A run in all processes of JAX's cluster, on all devices."""

    def __init__(self):
        """Prepare a run on all devices."""
        super().__init__()
        self._heard = time.monotonic()
        self._failed = False  # an error that all processes know has ended the run

    @property
    def devices(self) -> list[Any]:
        return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))

    def mesh(self, batch_size: int) -> Mesh | None:
        check_divisible(batch_size, len(self.devices))
        return Mesh(np.array(self.devices), ("batch",), axis_types=(AxisType.Auto,))

    def part(self, mesh: Mesh | None, batch_size: int) -> Part | None:
        assert mesh is not None

        def put(array: np.ndarray, axis: int | None) -> jax.Array:
            spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch")
            return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), array)

        share = batch_size // jax.process_count()
        first = share * jax.process_index()
        return Part(range(first, first + share), put)

    def each(self, function: Callable[..., Result], *args: Any) -> Result:
        return self._agreed(function, args)[0]

    def first(self, function: Callable[..., Result], *args: Any) -> Result:
        value, messages = self._agreed(function if leads() else lambda *_: None, args, send=True)
        return value if leads() else messages[0]["value"]

    def _agreed(
        self, function: Callable[..., Any], args: tuple[Any, ...], send: bool = False
    ) -> tuple[Any, list[Row]]:
        try:
            value = function(*args)
        except LostProcess:
            raise
        except (UserError, OSError) as error:
            self._fail(error)
            raise
        return value, self._exchange(**{"value": value} if send else {})

    def _fail(self, error: Exception) -> None:
        """Tell the other processes of an error, unless they know of one and have left."""
        if self._failed:
            return
        self._failed = True
        with contextlib.suppress(UserError, OSError):  # theirs: each process names its own
            self._exchange(error=first_line(error), mistake=isinstance(error, UserError))

    def _exchange(self, **message: Any) -> list[Row]:
        """The messages of all processes.

        Raises:
          UserError, OSError: another process has failed.
        """
        if self.received:
            message["signal"] = int(self.received[-1])
        with together():
            messages = exchange(message)
        self._heard = time.monotonic()
        for number, other in enumerate(messages):
            if "error" in other:
                self._failed = True
                kind = UserError if other["mistake"] else OSError
                raise kind(f"process {number}: {other['error']}")
        if not self.received:
            self.received += [signal.Signals(m["signal"]) for m in messages if "signal" in m][:1]
        return messages

    def check_same(self, values: Row) -> None:
        def check(there: Row) -> None:
            for name, value in values.items():
                if value != there[name]:
                    raise UserError(f"{name}: {there[name]} in process 0, but {value} here")

        self.each(check, self.first(lambda: values))

    def call(self, method: Callable[..., Result], *args: Any) -> Result:
        self._exchange(call=method.__name__, args=args)
        with together():
            return method(*args)

    def stopping(self) -> bool:
        if time.monotonic() - self._heard > LISTEN:
            self._exchange()
        return bool(self.received)

    def local(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def whole(self, tree: Any) -> Any:
        def gathered(leaf: Any) -> Any:
            if leaf.is_fully_replicated:
                return leaf.addressable_data(0)
            return multihost_utils.process_allgather(leaf, tiled=True)

        return jax.tree.map(gathered, tree)

    @contextlib.contextmanager
    def locked(self, run_dir: Path) -> Iterator[None]:
        with contextlib.ExitStack() as stack:

            def lock() -> str:
                stack.enter_context(locked_dir(run_dir))
                return (run_dir / LOCK).read_text()

            self.each(_check_shared, run_dir, self.first(lock))
            yield

    def run(self, work: Any) -> None:
        if leads():
            try:
                work.run()
            except LostProcess:
                raise
            except (UserError, OSError) as error:
                self._fail(error)
                raise
            self._exchange(end=True)
            return
        while "end" not in (told := self._exchange()[0]):
            if "call" in told:
                with together():
                    getattr(work, told["call"])(*told["args"])


def _check_shared(run_dir: Path, content: str) -> None:
    """Check that process 0 has written its lock file into the directory that this process sees."""
    until = time.monotonic() + SHARED  # a network's file system may take seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if (run_dir / LOCK).read_text() == content:
                return
        time.sleep(0.1)
    raise UserError(
        f"{run_dir.absolute()} is another directory here than in process 0: all processes of a "
        "distributed run need the same one, on a file system that they share"
    )
