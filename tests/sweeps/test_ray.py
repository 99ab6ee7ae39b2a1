"""Ray: a sweep on a cluster of several nodes, one of which dies.

Needs Ray, which the other tests do not: make test-extras
"""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny
from tiny_sweep import BASE, Group, bits

from lm_jax.config import override
from lm_jax.sweeps.executors import Here, execute, executor_called
from lm_jax.sweeps.jobs import divided
from lm_jax.sweeps.plan import Trial
from lm_jax.training.journal import read_result
from lm_jax.training.loop import prepared

ray = pytest.importorskip("ray")
# Ray's own warnings are its business.
pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]


def group(steps):
    def config(seed):
        return prepared(override(BASE, {"seed": seed, "train.steps": steps}), tiny.TEXT)[0]

    return Group([Trial(n, f"trial {n}", {}, config(n), f"trials/{n:03d}") for n in (1, 2, 3)])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head that does no work, and two nodes of one core each; what they work in is a folder."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("nodes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("RAY_TMPDIR", "/tmp")  # its sockets allow only short paths
        patch.setenv("RAY_worker_niceness", "0")  # else 15: a busy machine would starve the tasks
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        patch.setenv("RAY_ADDRESS", cluster.address)
        # Ray lets a node look for modules in the folder where this process joins the cluster.
        edited = tmp_path_factory.mktemp("edited")
        (edited / "lm_jax").mkdir()
        (edited / "lm_jax" / "__init__.py").write_text("raise ImportError('edited since')")
        with patch.context() as inner:
            inner.chdir(edited)
            executor = executor_called("ray")
        yield cluster, nodes, folder, executor
        ray.shutdown()
        cluster.shutdown()


def working(folder, trial):
    """The process at work on a trial that has saved, waited for."""
    while True:
        for saved in Path(folder).glob(f"lm_jax-*/{trial}/checkpoints/*/manifest.json"):
            return int((saved.parents[2] / ".lock").read_text().split()[0])
        time.sleep(0.01)


def parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_nodes_run_the_code_of_the_driver_whatever_lies_in_its_folder(cluster, tmp_path):
    *_, executor = cluster
    trials = group(5)
    jobs = divided([trials], tmp_path, workers=1, text=tiny.TEXT)
    assert [ended.failed for ended in execute(jobs, executor, [], retries=0)] == [{}]
    results = [read_result(tmp_path / trial.directory) for trial in trials.trials]
    assert [result["status"] for result in results] == ["finished"] * 3


def test_a_signal_brings_home_what_there_is(cluster, tmp_path):
    _, _, folder, executor = cluster
    received, long = [], group(10**6)

    def tell():
        working(folder, "trials/001")
        received.append(signal.SIGTERM)

    threading.Thread(target=tell).start()
    jobs = divided([long], tmp_path, lanes=1, workers=executor.workers, text=tiny.TEXT)
    ends = list(execute(jobs, executor, received))
    assert [ended.failed for ended in ends] == [{}] * len(ends)
    results = [read_result(tmp_path / trial.directory) for trial in long.trials]
    assert results[0]["status"] == "stopped"
    assert results[2] is None


def test_a_node_that_dies_costs_nothing(cluster, tmp_path):
    ours, nodes, folder, executor = cluster
    trials = group(200)
    alone = divided([trials], tmp_path / "alone", text=tiny.TEXT)
    assert [ended.failed for ended in execute(alone, Here(), [])] == [{}]
    jobs = divided([trials], tmp_path / "sweep", workers=executor.workers, text=tiny.TEXT)
    assert [len(job.trials) for job in jobs] == [2, 1]
    removed = []

    def strike():
        process = working(folder, "trials/001")
        os.kill(process, signal.SIGSTOP)  # else it may be through before it misses its node
        (node,) = (n for n in nodes if n.all_processes["raylet"][0].process.pid == parent(process))
        ours.remove_node(node, allow_graceful=False)
        with contextlib.suppress(ProcessLookupError):  # its node may have taken it along
            os.kill(process, signal.SIGKILL)
        removed.append(node)

    killer = threading.Thread(target=strike)
    killer.start()
    ends = list(execute(jobs, executor, []))
    killer.join()
    assert removed
    assert [ended.failed for ended in ends] == [{}, {}]  # a node's death is no failure of a trial
    assert bits(tmp_path / "sweep", trials.trials) == bits(tmp_path / "alone", trials.trials)
    assert executor.workers == 1
