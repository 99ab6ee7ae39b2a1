"""Executors: the same trials come out, wherever they are trained and whatever dies on the way."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny
from tiny_sweep import Group, bits, trial

from lm_jax.config import NGram, override
from lm_jax.files import write_whole
from lm_jax.settings import UserError
from lm_jax.sweeps import processes, run_job, tail
from lm_jax.sweeps.executors import Here, execute, executor_called
from lm_jax.sweeps.group import train_group
from lm_jax.sweeps.jobs import divided, is_over, read_job, write_job
from lm_jax.sweeps.processes import Processes
from lm_jax.sweeps.slurm import Slurm
from lm_jax.training.checkpoint import steps_saved
from lm_jax.training.journal import line_of, read_result
from lm_jax.training.loop import prepared
from lm_jax.training.trainer import Trainer


def group(count=3, **changes):
    return Group([trial(number, **changes) for number in range(1, count + 1)])


def done(groups, path, executor, **options):
    jobs = divided(groups, path, workers=executor.workers, text=tiny.TEXT)
    return list(execute(jobs, executor, [], **options))


def failure(path, trial):
    return json.loads((path / trial.directory / "error.json").read_text())


class Again(Here):
    """An executor whose retries are made in this process, too."""

    def fresh(self):
        return self


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    (ended,) = done([group()], path, Here())
    assert ended.failed == {}
    return bits(path, group().trials)


PLANT = """
import os, pathlib, signal
from lm_jax.training import trainer

real, flag = trainer.Trainer._save, pathlib.Path({flag!r})

def save(self, **how):
    step = int(self.state.step)
    if self.run_dir.name == "002" and step == 10:
        raise OSError("no space left on device")
    if self.run_dir.name == "003" and step == 10 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, **how)

trainer.Trainer._save = save
"""


def test_two_processes_one_killed_and_one_trial_that_always_breaks(
    undisturbed, tmp_path, monkeypatch
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(PLANT.format(flag=str(tmp_path / "flag")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    told = {}

    def watch(trial):
        return lambda step, row: told.setdefault(trial.number, []).append(row["step"])

    path, trials = tmp_path / "sweep", group().trials
    jobs = divided([group()], path, workers=2, text=tiny.TEXT)
    assert [[t.number for t in job.trials] for job in jobs] == [[1, 2], [3]]
    ends = list(execute(jobs, Processes(2), [], watch=watch))
    first, second = ends[:2], ends[2:]
    assert {number for ended in first for number in ended.failed} == {2, 3}
    (killed,) = (ended.failed[3] for ended in first if 3 in ended.failed)
    assert "was ended by SIGKILL" in killed.error
    # Each is tried again by itself: one comes through, the other is given up.
    assert sorted(len(ended.job.trials) for ended in second) == [1, 1]
    assert [number for ended in second for number in ended.failed] == [2]
    broken = failure(path, trials[1])
    assert (broken["error"], broken["type"]) == ("OSError: no space left on device", "OSError")
    assert broken["attempt"] == 2
    assert "in save" in broken["traceback"]
    assert not (path / trials[2].directory / "error.json").exists()
    sound = [trials[0], trials[2]]
    assert bits(path, sound) == {t.number: undisturbed[t.number] for t in sound}
    assert told[1] == sorted(told[1])
    assert told[1][-1] == told[3][-1] == 20


@pytest.mark.slow
def test_a_signal_is_passed_on_and_leaves_trials_that_go_on(tmp_path):
    received, long = [], Group([trial(n, **{"train.steps": 10**6}) for n in (1, 2)])

    def watch(trial):
        return lambda step, row: received or received.append(signal.SIGTERM)

    jobs = divided([long, group(1)], tmp_path, lanes=2, text=tiny.TEXT)
    (ended,) = execute(jobs, Processes(1), received, watch=watch)
    assert ended.failed == {}
    for stopped in long.trials:
        run_dir = tmp_path / stopped.directory
        result = read_result(run_dir)
        assert result["status"] == "stopped"
        assert max(steps_saved(run_dir)) == result["step"] > 0
        assert not (run_dir / "error.json").exists()


def test_a_journal_that_is_written_anew_is_followed_from_its_start_and_told_once(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tail, "BETWEEN_LOOKS", 0)
    (job,) = divided([group(1)], tmp_path)
    path = job.place(job.trials[0]) / "metrics.jsonl"
    path.parent.mkdir(parents=True)

    def write(steps, rate):
        lines = [{"step": n, **tiny.RECORD, "nats": rate} for n in steps]
        place = {"step": steps[-1], "kind": "evaluation", "split": "validation"}
        lines.append({**place, "nats": 1.0})
        write_whole(path, "".join(map(line_of, range(len(lines)), lines)))

    told = []
    follower = tail.Tail(lambda trial: lambda step, row: told.append((step, row["kind"])))
    write((1, 100, 200), 1234.5678)
    follower.look([job])
    assert told == [(1, "train"), (100, "train"), (200, "train"), (200, "evaluation")]
    # It goes on from its checkpoint at 1, and is longer than it was before the next look.
    write((1, 100, 200, 300, 400), 99.123456789)
    follower.look([job])
    assert told[4:] == [(300, "train"), (400, "train"), (400, "evaluation")]


@pytest.mark.slow
def test_what_breaks_down_is_recorded_and_tried_again(undisturbed, tmp_path, monkeypatch):
    real, calls = Trainer.restored, []

    def broken(self):
        if self.run_dir.name == "002" and len(calls) < 2:
            calls.append(self)
            raise ZeroDivisionError
        return real(self)

    monkeypatch.setattr(Trainer, "restored", broken)
    ends = []
    for ended in execute(divided([group()], tmp_path, text=tiny.TEXT), Again(), [], retries=2):
        ends.append(ended)
        for number in ended.failed:
            told = failure(tmp_path, group().trials[number - 1])
            assert (told["error"], told["attempt"]) == ("ZeroDivisionError", len(ends))
    assert [list(ended.failed) for ended in ends] == [[2], [2], []]
    assert not (tmp_path / group().trials[1].directory / "error.json").exists()
    assert bits(tmp_path, group().trials) == undisturbed


@pytest.mark.slow
def test_half_as_many_lanes_where_memory_is_short(undisturbed, tmp_path, monkeypatch):
    widths = []

    def short(trials, *arguments, **options):
        widths.append(len(trials))
        if len(trials) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return train_group(trials, *arguments, **options)

    monkeypatch.setattr(run_job, "train_group", short)
    (ended,) = done([group()], tmp_path, Here())
    assert (widths, ended.failed) == ([3, 1, 1, 1], {})
    assert bits(tmp_path, group().trials) == undisturbed


def test_memory_that_is_short_for_one_is_a_failure_of_each(tmp_path, monkeypatch):
    def short(trials, *arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")

    monkeypatch.setattr(run_job, "train_group", short)
    (ended,) = done([group()], tmp_path, Here(), retries=0)
    assert sorted(ended.failed) == [1, 2, 3]
    assert "RESOURCE_EXHAUSTED" in failure(tmp_path, group().trials[2])["error"]


def test_trials_that_share_no_program_are_done_in_turn(tmp_path):
    counted = [
        trial(n, **{"model": "ngram", "model.order": n, "model.sentence_boundaries": False})
        for n in (1, 2)
    ]
    assert isinstance(counted[0].config.model, NGram)
    wrong = trial(3)
    config = override(
        wrong.config, {"data.source": "file", "data.source.train": str(tmp_path / "no.txt")}
    )
    wrong = dataclasses.replace(wrong, config=config)
    ends = done([Group([t], vectorised=False) for t in (*counted, wrong)], tmp_path, Again())
    # Each is told of as it ends.
    assert [list(ended.failed) for ended in ends] == [[], [], [3], [3]]
    assert failure(tmp_path, wrong)["type"] == "UserError"
    assert all(is_over(tmp_path / t.directory, t.config) for t in counted)


def test_a_run_that_is_asked_for_more_is_not_over(tmp_path):
    done([group(1)], tmp_path, Here())
    (one,) = group(1).trials
    assert is_over(tmp_path / one.directory, one.config)
    assert not is_over(tmp_path / one.directory, override(one.config, {"train.steps": 21}))
    assert not is_over(tmp_path / "nothing", one.config)


def test_every_worker_has_a_job_and_no_trial_two(tmp_path):
    single = Group([trial(9)], vectorised=False)
    for workers, lanes, sizes in (
        (1, None, [8, 1]),
        (2, None, [4, 4, 1]),
        (2, 3, [3, 3, 2, 1]),
        (5, None, [2, 2, 2, 2, 1]),
    ):
        jobs = divided([single, group(8)], tmp_path, workers=workers, lanes=lanes)
        assert [len(job.trials) for job in jobs] == sizes
        numbers = [t.number for job in jobs for t in job.trials]
        assert numbers == list(range(1, 10))


def test_a_job_is_told_whole(tmp_path):
    (job,) = divided([group(2)], tmp_path, lanes=5, text=[tiny.TEXT, "a", "b"])
    write_job(job, tmp_path / "jobs" / "1.json", cores=[3])
    read, more = read_job(tmp_path / "jobs" / "1.json")
    assert more == {"cores": [3]}
    assert read.text == [tiny.TEXT, "a", "b"]
    assert (read.sweep_dir, read.lanes, read.vectorised) == (tmp_path, 5, True)
    assert [t.config for t in read.trials] == [t.config for t in job.trials]
    assert read.name == job.name == "001-1"
    assert read.alone(read.trials[1]).name == "002-2"


@pytest.mark.parametrize(
    ("name", "workers", "said"),
    [
        ("procesess", None, "--executor=procesess: choose from .*; did you mean 'processes'"),
        ("here", 2, "--workers=2 is for --executor processes; this is here"),
        ("processes", 10**6, "workers=1000000 is more than the"),
        ("processes", 0, "workers=0 must be 1 or more"),
        ("processes", -1, "workers=-1 must be 1 or more"),
    ],
)
def test_an_executor_that_cannot_be_had_is_refused(name, workers, said):
    with pytest.raises(UserError, match=said):
        executor_called(name, workers=workers)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: executor_called("ray", cores=0), "cores=0 must be 1 or more"),
        (lambda: executor_called("slurm", cores=-2), "cores=-2 must be 1 or more"),
        (lambda: Slurm(workers=0), "workers=0 must be 1 or more"),
    ],
)
def test_a_job_without_cores_or_workers_is_refused(made, said):
    with pytest.raises(UserError, match=said):
        made()


def test_a_gpu_is_a_workers_own(monkeypatch):
    monkeypatch.setattr(processes, "_gpus", lambda: ["4", "7"])
    monkeypatch.setattr(processes, "cores_here", lambda: [0, 1, 2, 5, 6])
    assert Processes()._shares == [([0, 1], "4"), ([2, 5, 6], "7")]
    with pytest.raises(UserError, match="workers=3 is more than the 2 GPUs"):
        Processes(3)


def test_a_process_that_holds_an_accelerator_tries_again_itself(monkeypatch):
    here = Here()
    assert isinstance(here.fresh(), Processes)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert here.fresh() is here


@pytest.mark.parametrize(
    ("visible", "platforms", "gpus"),
    [
        ("0,3", "", ["0", "3"]),
        ("GPU-5a, 1", "cuda,cpu", ["GPU-5a", "1"]),
        ("-1", "", []),
        ("2,-1,3", "", ["2"]),
        ("", "", []),
        ("0", "cpu", []),
        ("0", "tpu,cpu", []),
    ],
)
def test_the_gpus_are_those_that_cuda_and_jax_would_use(monkeypatch, visible, platforms, gpus):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert processes._gpus() == gpus


def test_a_tpu_is_for_one_worker(monkeypatch):
    monkeypatch.setattr(processes, "_gpus", list)
    monkeypatch.setattr(processes, "cores_here", lambda: [0, 1, 2])
    monkeypatch.setattr(processes, "_has_tpu", lambda: True)
    assert Processes()._shares == Processes(1)._shares == [([0, 1, 2], None)]
    with pytest.raises(UserError, match="workers=2: only one process can use this machine's TPU"):
        Processes(2)


def test_a_tpu_is_there_if_its_library_and_its_chips_are(monkeypatch):
    found, library, platforms = {"accel[0-9]*": ["accel0"]}, ["libtpu"], ["", "tpu", "cpu"]
    monkeypatch.setattr(processes.Path, "glob", lambda _, pattern: iter(found.get(pattern, [])))
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name in library)

    def seen():
        answers = []
        for platform in platforms:
            monkeypatch.setenv("JAX_PLATFORMS", platform)
            answers.append(processes._has_tpu())
        return answers

    assert seen() == [True, True, False]
    found.clear()
    assert seen() == [False, False, False]
    found["vfio/[0-9]*"] = ["0"]
    assert seen() == [True, True, False]
    library.clear()
    assert seen() == [False, False, False]


PARENT = """
import os, sys
os.environ["JAX_PLATFORMS"] = "nonsense"  # any use of a device fails
import lm_jax, tiny
from lm_jax.sweeps.jobs import Ended

class Elsewhere:
    workers = 2

    def run(self, jobs, received, watch=None):
        for job in jobs:
            yield Ended(job, {}, f"{len(job.trials)} of {job.lanes}: to be trained elsewhere")

    def fresh(self):
        return self

points = {str(seed): {"seed": seed} for seed in range(4)}
points["sentences"] = {"data.batching": "sentences"}
points["counted"] = {"model": "ngram", "model.order": 2, "model.sentence_boundaries": False}
config = tiny.config(train={"epochs": 2})
place = sys.argv[1]
for row in lm_jax.sweep(config, points, place, text=tiny.TEXT, executor=Elsewhere(), retries=0):
    print(row["steps"], row["error"])
"""


def test_the_process_that_shares_out_a_sweep_uses_no_device(tmp_path):
    folders = [Path(tiny.__file__).parent, Path(tiny.__file__).parents[1]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    words = [sys.executable, "-c", PARENT, str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    config, _ = prepared(tiny.config(train={"epochs": 2}), tiny.TEXT)
    assert said[:4] == [f"{config.train.steps} 2 of None: to be trained elsewhere"] * 4
    assert len(said) == 6
