"""Killed at any time and at any file operation, a run or a sweep ends as if nothing had been.

Each process is killed at a file operation that a seed draws, or gets one or two signals at a time,
and the next one goes on where it lies, until one is left alive. `make torture` draws more. The same
where a file operation fails, in a process that lives on.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
import threading

import pytest
from killed import OPERATIONS, WORK, contents, started, text_run

from lm_jax.settings import UserError

KILLS = int(os.environ.get("LM_JAX_KILLS", "12"))  # of each kind of work
ENDED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 143, 130}  # statuses


@pytest.mark.quick("text")
@pytest.mark.parametrize("name", WORK)
def test_whenever_it_is_killed_it_ends_as_if_nothing_had_been(name, tmp_path, kept_cache):
    told = tmp_path / "told.json"
    assert started(name, tmp_path / "whole", kept_cache, told) == 0
    operations, seconds = json.loads(told.read_text())
    draw, place, killed = random.Random(name), tmp_path / "killed", 0
    for turn in range(KILLS):
        if turn % 2:
            number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            when = {"after": draw.uniform(0, seconds), "numbers": [number] * draw.randint(1, 2)}
        else:
            when = {"operation": draw.randint(1, operations)}
        status = started(name, place, kept_cache, told, **when)
        assert status in {0, *ENDED}
        killed += status in ENDED
    assert killed
    assert started(name, place, kept_cache, told) == 0
    assert contents(place) == contents(tmp_path / "whole")


class Disk:
    """Makes a file operation of this process below a folder fail, or all from one on."""

    folder, operation, lasting, error, count = None, 0, False, errno.ENOSPC, 0

    def __init__(self):
        sys.addaudithook(self.see)  # which nothing takes away again

    def see(self, event, arguments):
        if self.folder is None or event not in OPERATIONS:
            return
        if self.folder in str(arguments[0]):
            self.count += 1
            if self.count == self.operation or (self.lasting and self.count > self.operation > 0):
                raise OSError(self.error, os.strerror(self.error), str(arguments[0]))

    @contextlib.contextmanager
    def failing(self, folder, operation=0, lasting=False, error=errno.ENOSPC):
        self.folder, self.operation, self.lasting = str(folder), operation, lasting
        self.error, self.count = error, 0
        try:
            yield
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def disk():
    return Disk()


@pytest.mark.quick("once-EIO")
@pytest.mark.filterwarnings("ignore:passing over the damaged checkpoint")
@pytest.mark.parametrize(
    "error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get
)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for ever"])
def test_where_a_file_operation_fails_the_same_process_ends_it_later(
    lasting, error, disk, tmp_path
):
    with disk.failing(tmp_path / "whole"):
        text_run(tmp_path / "whole")
    draw, whole, place = random.Random(error), contents(tmp_path / "whole"), tmp_path / "run"
    failed = 0
    for operation in sorted(draw.sample(range(1, disk.count + 1), max(3, KILLS // 4))):
        shutil.rmtree(place, ignore_errors=True)
        with disk.failing(place, operation, lasting, error), contextlib.suppress(UserError):
            try:
                text_run(place)
            except OSError:
                failed += 1
        left = [thread.name for thread in threading.enumerate()]
        assert not any("checkpoint" in name for name in left)  # nothing works on
        text_run(place)
        assert contents(place) == whole
    assert failed
