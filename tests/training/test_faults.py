"""A save in which a file operation fails raises at once, ends its threads, or has saved all arrays.

Orbax writes in threads, and TensorStore in C++. A library in C, put before the C library, lets one
operation of any of them fail, or all from one on.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lm_jax.training.arrays import Stored, load_arrays, save_arrays

ARRAYS = {"a": np.arange(1000.0), "b/c": np.ones((3, 4), np.float32)}
SECONDS = 10  # of a save; Orbax's threads used to wait 600
COMPILER = shutil.which("cc")
EACH = """
import ctypes, json, os, pathlib, sys
import test_faults
library = ctypes.CDLL(os.environ["LD_PRELOAD"])
folder, error, lasting = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
test_faults.save_arrays(folder / "first", test_faults.ARRAYS)
number, last, failed = 0, 1, 0
while number <= last:
    library.failing(bytes(folder), number, lasting, error)
    try:
        failed += test_faults.fails(folder / str(number), lambda: library.failing(b"", 0, 0, 0))
    except BaseException:
        print("operation", number, file=sys.stderr)
        raise
    if number == 0:
        last = library.operations()
    number += 1
print(json.dumps([last, failed]))
os._exit(0)
"""


def working():
    """The threads of a save that are still at work."""
    threads = threading.enumerate()
    return [t.name for t in threads if "handler" in t.name or "metadata" in t.name]


def fails(folder, mend=lambda: None):
    """True if saving fails; else all arrays are there."""
    began = time.monotonic()
    try:
        save_arrays(folder, ARRAYS)
        failed = False
    except (OSError, ValueError):
        failed = True
    mend()
    while working() and time.monotonic() < began + SECONDS:
        time.sleep(0.01)
    assert not working()
    assert time.monotonic() < began + SECONDS
    if not failed:
        stored = {name: Stored(array.shape, array.dtype) for name, array in ARRAYS.items()}
        for name, array in load_arrays(folder, stored).items():
            np.testing.assert_array_equal(array, ARRAYS[name])
    return failed


@pytest.mark.parametrize("name", ["mkdir", "scandir"])
def test_a_folder_that_cannot_be_made_or_listed_fails_the_save(name, monkeypatch, tmp_path, capfd):
    operation = getattr(os, name)

    def refused(path=".", *rest, **more):
        if "arrays" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return operation(path, *rest, **more)

    monkeypatch.setattr(os, name, refused)
    assert fails(tmp_path / "arrays")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs cc, on Linux")
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [0, 1], ids=["once", "for ever"])
def test_whichever_operation_fails_the_save_ends(lasting, error, tmp_path):
    library, here = tmp_path / "failing.so", os.path.dirname(__file__)
    source = os.path.join(here, "failing.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", EACH, tmp_path / "run", str(error), str(lasting)],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": f"{here}:{os.getcwd()}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    operations, failed = json.loads(done.stdout)
    assert 50 < failed <= operations
