"""Killed at random times, a sweep on Ray or Slurm ends as if nothing had been.

A kill takes the program that waits for the jobs, a process at work on a trial, or both. Slurm is
submitit's local executor. Needs Ray and submitit: make test-extras
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time

import jax
import pytest
import tiny

import lm_jax
from lm_jax import files

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]
KILLS = int(os.environ.get("LM_JAX_KILLS", "4"))  # of each executor
PATIENCE = 10  # times the undisturbed sweep, for a machine that becomes busier
SHORT = {"steps": 60, "log_every": 5, "validate_every": 15, "checkpoint_every": 4}


def work(name, place, cache, told):
    """In a process of its own: do a sweep of two trials, in two jobs."""
    os.environ["LM_JAX_CACHE"] = str(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if name == "ray":
        from lm_jax.sweeps.ray_nodes import Ray

        executor = Ray()
    else:
        from lm_jax.sweeps.slurm import Slurm

        executor = Slurm(cluster="local", workers=2)
    points = {str(rate): {"train.learning_rate": rate} for rate in (0.01, 0.1)}
    began = time.monotonic()
    lm_jax.sweep(tiny.config(train=SHORT), points, place, text=tiny.TEXT, executor=executor)
    told.write_text(json.dumps(time.monotonic() - began))


def started(*given):
    process = multiprocessing.get_context("spawn").Process(target=work, args=given)
    process.start()
    return process


def at_work(*places):
    """The processes at work below some places, each with an open file there."""
    found = set()
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for handle in os.listdir(f"/proc/{process}/fd"):
                path = os.readlink(f"/proc/{process}/fd/{handle}")
                if any(path.startswith(f"{place}/") for place in places):
                    found.add(int(process))
    return found - {os.getpid()}


def contents(place):
    """Rows and results of the trials, and the table, without the clock's figures."""
    runs = {
        path.parent.name: (
            tiny.rows_of(path.parent),
            files.read_sealed(path)["sha256"],
            files.read_sealed(path)["splits"],
        )
        for path in place.glob("trials/*/result.json")
    }
    rows = lm_jax.sweeps.read_results(place)
    return runs, [{k: v for k, v in row.items() if k not in tiny.CLOCKS} for row in rows]


@pytest.fixture
def nodes(request, monkeypatch, tmp_path):
    """The folder in which jobs work; with Ray, that of a cluster of two cores, which outlives the
    programs that use it."""
    folder = tmp_path / "nodes"
    folder.mkdir()
    if request.node.callspec.params["name"] != "ray":
        pytest.importorskip("submitit")
        yield folder
        return
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # its sockets allow only short paths
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else 15: a busy machine would starve the tasks
    head = {"num_cpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield folder
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_whenever_it_is_killed_it_ends_as_if_nothing_had_been(name, nodes, tmp_path, kept_cache):
    told, place = tmp_path / "told.json", tmp_path / "killed"
    began = time.monotonic()
    undisturbed = started(name, tmp_path / "whole", kept_cache, told)
    undisturbed.join(600)
    assert undisturbed.exitcode == 0
    longest = PATIENCE * (time.monotonic() - began)
    began = time.monotonic()
    again = started(name, tmp_path / "whole", kept_cache, told)
    again.join(longest)
    overhead = time.monotonic() - began  # of a program that finds the sweep done
    draw, killed, seconds = random.Random(name), 0, overhead + 3
    for _ in range(KILLS):
        driver = started(name, place, kept_cache, told)
        driver.join(draw.uniform(0, seconds))
        number, whom = draw.choice([signal.SIGKILL, signal.SIGTERM]), draw.randrange(1, 4)
        if driver.is_alive() and whom & 1:
            os.kill(driver.pid, number)
            killed += 1
        if whom & 2:
            for process in at_work(place, nodes) - {driver.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
                    killed += 1
        driver.join(longest)
        assert driver.exitcode is not None
        end = time.monotonic() + longest
        while (
            at_work(place, nodes) and time.monotonic() < end
        ):  # jobs of a dead driver end by themselves
            time.sleep(0.1)
        assert not at_work(place, nodes)
    assert killed
    last = started(name, place, kept_cache, told)
    last.join(longest)
    assert last.exitcode == 0
    assert contents(place) == contents(tmp_path / "whole")
