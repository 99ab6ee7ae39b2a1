"""Slurm: through submitit, whose local executor stands in for a cluster here.

Needs submitit, which the other tests do not: make test-extras
"""

import signal

import pytest
import tiny
from tiny_sweep import Group, bits, trial

from lm_jax.settings import UserError
from lm_jax.sweeps.executors import Here, execute, executor_called
from lm_jax.sweeps.jobs import divided
from lm_jax.sweeps.slurm import Slurm
from lm_jax.training.journal import read_result

pytest.importorskip("submitit")
pytestmark = pytest.mark.extras


def test_a_job_of_the_cluster_is_the_job(tmp_path):
    group = Group([trial(1), trial(2)])
    ends = {}
    for name, executor in (("here", Here()), ("there", Slurm(cluster="local", workers=1))):
        jobs = divided([group], tmp_path / name, text=tiny.TEXT)
        ends[name] = [ended.failed for ended in execute(jobs, executor, [])]
    assert ends == {"here": [{}], "there": [{}]}
    assert bits(tmp_path / "there", group.trials) == bits(tmp_path / "here", group.trials)


def test_a_signal_saves_what_there_is(tmp_path):
    long, received = Group([trial(1, **{"train.steps": 10**6})]), []

    def watch(trial):
        return lambda step, row: received or received.append(signal.SIGTERM)

    jobs = divided([long], tmp_path, text=tiny.TEXT)
    executor = Slurm(cluster="local", workers=1)
    (ended,) = execute(jobs, executor, received, watch=watch)
    assert ended.failed == {}
    assert read_result(tmp_path / "trials/001")["status"] == "stopped"


def test_a_machine_without_slurm_is_told_so():
    with pytest.raises(UserError, match="there is no Slurm on this machine"):
        executor_called("slurm")
