"""JAX's cluster of processes: how a process joins it, and the messages between the processes.

A message is an object of JSON in an array of bytes, which JAX gathers from all processes. A process
that sends a message therefore waits until all others have sent theirs.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm_jax.files import Row
from lm_jax.settings import UserError

VARIABLES = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
WAIT = 50  # seconds for the processes to find each other
DEAD = 30  # seconds without a sign of life after which JAX takes a process for dead
MESSAGE = 4096  # bytes of a message
SAID = 500  # characters of an error in a message


_SHORTENER = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
ended = False
for line in sys.stdin.buffer:
    if ended or b"coordination_service" in line or line.startswith(b"[Gloo]"):
        continue
    if b"JAX distributed service detected fatal errors" in line:
        line, ended = b"error: another process of this run has ended, so JAX ends this one\\n", True
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
"""


class LostProcess(OSError):
    """Another process of the run has ended without a word, or a common computation has failed."""


def join() -> None:
    """Join the processes of this run into one cluster of JAX; do nothing if there is a cluster.

    The environment says where the cluster is: JAX finds Slurm's and a TPU pod's own variables;
    otherwise JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name it. A process that
    waits in vain for the others is ended with one line: JAX would end it with a page.

    Raises:
      UserError: the environment names no cluster, or JAX has computed something before, or the
        processes have different numbers of devices.
    """
    if not jax.distributed.is_initialized():
        address, count, number = _from_environment()
        late = threading.Timer(WAIT, _give_up, [address, count])
        late.daemon = True
        late.start()
        try:
            jax.distributed.initialize(
                address,
                count,
                number,
                cluster_detection_method=None if address is None else "deactivate",
                heartbeat_timeout_seconds=DEAD,
                shutdown_timeout_seconds=DEAD,
            )
            with _output_as_errors():
                exchange({})  # the first message connects the processes
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            said = first_line(error)
            if address is None and "coordinator_address" in said:
                said = f"neither Slurm nor a TPU pod is there, nor {', '.join(VARIABLES)}"
            raise UserError(f"--distributed: {said}") from None
        finally:
            late.cancel()
        if threading.current_thread() is threading.main_thread():
            # JAX's own handler would swallow a SIGTERM that arrives outside of training.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"--distributed: process {jax.process_index()} has {jax.local_device_count()} of "
            f"{jax.device_count()} devices, and {jax.process_count()} processes must share them "
            "evenly"
        )


def _from_environment() -> tuple[str | None, int | None, int | None]:
    """The address of the coordinator, the number of processes and the number of this process.

    All are None if JAX is to find the cluster, as it does for Slurm and for a TPU pod.
    """
    given = {name: os.environ.get(name) for name in VARIABLES}
    missing = [name for name, value in given.items() if not value]
    if len(missing) == len(VARIABLES):
        return None, None, None
    if missing:
        raise UserError(f"--distributed: the environment lacks {' and '.join(missing)}")
    address, *numbers = given.values()
    for name, value in zip(VARIABLES[1:], numbers, strict=True):
        if not str(value).isdecimal():
            raise UserError(f"--distributed: {name}={value} is not a whole number")
    count, number = (int(str(value)) for value in numbers)
    if number >= count:
        raise UserError(
            f"--distributed: JAX_PROCESS_ID={number} must be below JAX_NUM_PROCESSES={count}"
        )
    if not str(address).rpartition(":")[2].isdecimal() or ":" not in str(address):
        raise UserError(
            f"--distributed: JAX_COORDINATOR_ADDRESS={address} must be a host and a port, as in "
            "node1:12345"
        )
    return address, count, number


def _give_up(address: str | None, count: int | None) -> None:
    """End this process, in which JAX waits for others and cannot be interrupted."""
    said = "the processes that it was told of" if count is None else f"{count} processes"
    where = "" if address is None else f" at {address}"
    os.write(2, f"error: --distributed: waited {WAIT} seconds{where} in vain for {said}\n".encode())
    os._exit(2)


def shorten_errors() -> None:
    """Let JAX's own messages about its cluster reach standard error as one line; for a program.

    JAX ends a process with a page of text once it misses another process of the cluster, and leaves
    no time to say so in Python. From here on, what is written to file descriptor 2 passes through a
    process that shortens the page. Python's own `sys.stderr` goes on as before.
    """
    errors = os.dup(2)
    shortener = subprocess.Popen(
        [sys.executable, "-c", _SHORTENER], stdin=subprocess.PIPE, stderr=errors
    )
    assert shortener.stdin is not None
    os.dup2(shortener.stdin.fileno(), 2)
    shortener.stdin.close()
    encoding = sys.stderr.encoding
    sys.stderr = os.fdopen(errors, "w", 1, encoding=encoding, errors="backslashreplace")


@contextlib.contextmanager
def _output_as_errors() -> Iterator[None]:
    """Send standard output to standard error: the CPU's library for messages prints a greeting."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def exchange(message: Row) -> list[Row]:
    """The messages of all processes by number; returns when every process has called it."""
    content = np.frombuffer(json.dumps(message, ensure_ascii=False).encode(), np.uint8)
    found = multihost_utils.process_allgather(np.pad(content, (0, MESSAGE - len(content))))
    return [json.loads(bytes(row).rstrip(b"\0")) for row in found.reshape(-1, MESSAGE)]


def leads() -> bool:
    """True in the process that decides and writes."""
    return jax.process_index() == 0


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:SAID]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Context of a computation of all processes.

    Raises:
      LostProcess: the computation has failed in this process, most often because another process
        has ended.
    """
    try:
        yield
    except (UserError, LostProcess):
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise LostProcess(
            f"process {jax.process_index()} of {jax.process_count()} can no longer compute "
            f"together with the others, of which one has probably ended: {first_line(error)}"
        ) from error
