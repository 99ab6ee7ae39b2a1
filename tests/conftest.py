"""What every test stands on: float64, checked shapes, warnings as errors, a cache of its own."""

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Most of the time goes into compiling: what is compiled need not be fast here. XLA reads this when
# JAX is imported, and ends a process that names a flag which its version does not know.
# On a loaded machine the threads of several devices may wait long for each other.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_opt_preset=FAST_COMPILE "
    "--xla_cpu_parallel_codegen_split_count=1 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=300"
)
if "XLA_FLAGS" not in os.environ:  # the processes of pytest-xdist have it from the first one
    starts = [sys.executable, "-c", "import jax; jax.devices()"]
    known = subprocess.run(starts, env={**os.environ, "XLA_FLAGS": _QUICK}, capture_output=True)
    os.environ["XLA_FLAGS"] = "" if known.returncode else _QUICK

import checked
import jax
import pytest

# Compiled programs are kept between test runs; tokenised corpora are not.
_KEPT = Path(tempfile.gettempdir()) / f"lm_jax-tests-{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(_KEPT / jax.__version__))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

checked.install()
gc.set_threshold(100_000, 20, 20)  # traces make much garbage, and little of it in cycles


# The files that take longest begin first, so that no worker waits for another at the end.
_LONGEST = (
    "test_analysis",
    "test_kills",
    "test_cli",
    "test_devices",
    "test_executors",
    "test_hostile",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as slow the cases of a test that its mark `quick` does not name; longest files first."""
    for item in items:
        mark = item.get_closest_marker("quick")
        if mark and item.callspec.id not in mark.args:
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.stem not in _LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
    """Drop the compiled programs at a file's end: those of the whole suite take gigabytes."""
    yield
    if sys.platform != "linux":
        jax.clear_caches()
    elif _resident() > 2**30:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # malloc keeps what is freed


def _resident() -> int:
    """The bytes of this process that lie in memory, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def kept_cache():
    """A cache for processes of their own, whose compiled programs are kept between test runs."""
    return _KEPT / "processes"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def key():
    return jax.random.key(0)
