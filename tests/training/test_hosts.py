"""One run in several processes, which CPUs make, connected by gloo: what one process computes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import jax
import pytest
import tiny
from tiny_experiment import EXPERIMENT, told

import lm_jax
from lm_jax.config import (
    LSTM,
    RNN,
    Adding,
    Config,
    LiveProbe,
    NGram,
    RecurrentDropout,
    RestoreCheckpoint,
    Truncated,
    resolve,
)
from lm_jax.settings import UserError, to_json
from lm_jax.training import cluster, hosts, journal
from lm_jax.training.checkpoint import steps_saved
from lm_jax.training.devices import check_divisible

ROOT = Path(__file__).parents[2]

WORK = """
import json, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import jax
jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_enable_x64", True)
import lm_jax, tiny
from lm_jax.settings import from_json
from lm_jax.training.trainer import Trainer

advance, read = Trainer.advance, set()

def watched(self, state, source, stop):
    for leaf in jax.tree.leaves(source)[:1]:
        read.add(leaf.addressable_data(0).shape[-1])
    return advance(self, state, source, stop)

Trainer.advance = watched
for place, config in json.loads(sys.argv[1]):
    config = from_json(lm_jax.Config, config, place)
    text = tiny.TEXT if config.data.source.kind == "memory" else None
    lm_jax.train(config, place, text=text, distributed=True)
print(json.dumps([jax.process_index(), jax.process_count(), sorted(read)]))
"""

LITTLE = {"steps": 6, "log_every": 2, "validate_every": 3, "checkpoint_every": 100}


def case(model=None, data=None, **train):
    model = tiny.changed(RNN(embedding_size=4, hidden_size=5, cell=LSTM()), **(model or {}))
    return tiny.config(model=model, data=data or {}, train={**LITTLE, **train})


CASES = {
    "lstm": case(),
    "sentences": case(data={"batching": "sentences"}),
    "windows": case(data={"window_updates": 2}),
    "truncated": case(gradient=Truncated(k1=4, k2=8)),
    "averaged": case(ema_decay=0.9, accumulate=2),
    "dropout": case(model={"dropout": RecurrentDropout(outputs=0.3)}),
    "probed": case(probe=LiveProbe(every=3, by_lag=True), sample_length=5),
    "task": case(data={"source": Adding()}),
    "restored": case(learning_rate=1e307, on_divergence=RestoreCheckpoint(factor=1e-307, limit=3)),
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def started(count, words, folder, **environment):
    """Start a command once for each process of a cluster."""
    address = f"localhost:{free_port()}"
    running = []
    for number in range(count):
        cluster = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        running.append(
            subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **cluster, **environment},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def ends(running):
    """Status, standard output and standard error of each process."""
    said = [process.communicate(timeout=300) for process in running]
    return [(p.returncode, *words) for p, words in zip(running, said, strict=True)]


def together(count, runs, folder, **environment):
    """Train runs by their places, one after the other, in `count` processes.

    Returns the number of each process, that of all, and how many sequences each has read.
    """
    work = WORK.format(root=str(ROOT), cache=str(jax.config.jax_compilation_cache_dir))
    asked = json.dumps([(place, to_json(resolve(config))) for place, config in runs])
    found = ends(started(count, ["-c", work, asked], folder, **environment))
    assert [status for status, *_ in found] == [0] * count, found[-1][2][-2000:]
    return [json.loads(out.splitlines()[-1]) for _, out, _ in found]


def assert_same_run(one, other, tolerance=1e-9):
    """Parameters and rows of two runs agree to rounding."""
    tiny.assert_trees_close(lm_jax.load_run(one).params, lm_jax.load_run(other).params, tolerance)
    rows = zip(tiny.rows_of(one), tiny.rows_of(other), strict=True)
    for row, like in rows:
        tiny.assert_trees_close(*(without_text(r) for r in (row, like)), tolerance)


def without_text(row):
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def test_two_processes_train_as_one_does_and_repeat_and_resume_to_the_bit(tmp_path):
    runs = [("whole", case()), ("resumed", case(steps=3)), ("resumed", case())]
    found = together(2, runs, tmp_path)
    assert found == [[0, 2, [2]], [1, 2, [2]]]  # each reads two of the four sequences
    lm_jax.train(case(), tmp_path / "alone", text=tiny.TEXT)
    assert_same_run(tmp_path / "whole", tmp_path / "alone")
    one, other = (lm_jax.load_run(tmp_path / name) for name in ("whole", "resumed"))
    assert one.result["sha256"] == other.result["sha256"]
    assert tiny.rows_of(tmp_path / "whole")[-1] == tiny.rows_of(tmp_path / "resumed")[-1]


@pytest.mark.slow
def test_two_processes_train_every_kind_of_run(tmp_path):
    together(2, CASES.items(), tmp_path)
    for name, config in CASES.items():
        text = None if name == "task" else tiny.TEXT
        lm_jax.train(config, tmp_path / "alone" / name, text=text)
        assert_same_run(tmp_path / name, tmp_path / "alone" / name)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_devices(tmp_path):
    """Four processes, then two of two devices each, then one: as one from the first to the last."""
    found = together(4, [("run", case(steps=3)), ("like", case(steps=3))], tmp_path)
    assert found == [[number, 4, [1]] for number in range(4)]
    assert (
        lm_jax.load_run(tmp_path / "run").result["sha256"]
        == (lm_jax.load_run(tmp_path / "like").result["sha256"])
    )
    together(2, [("run", case())], tmp_path, JAX_NUM_CPU_DEVICES="2")
    with pytest.warns(UserWarning, match="4 x cpu in 2 processes -> 1 x cpu"):
        lm_jax.train(case(steps=9), tmp_path / "run", text=tiny.TEXT)
    alone = lm_jax.train(case(steps=9), tmp_path / "alone", text=tiny.TEXT)
    tiny.assert_trees_close(lm_jax.load_run(tmp_path / "run").params, alone.params, 1e-9)


ALONE = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import json, os, jax
jax.config.update("jax_enable_x64", True)
number = int(os.environ["JAX_PROCESS_ID"])
jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], 2, number)
import lm_jax, tiny
from lm_jax.settings import from_json
from jax.experimental import multihost_utils
for config in json.loads(sys.argv[1])[number]:  # the second run of process 1 is longer
    lm_jax.train(from_json(lm_jax.Config, config, "-"), f"run_{{number}}", text=tiny.TEXT)
multihost_utils.sync_global_devices("end")
"""


@pytest.mark.slow
def test_processes_of_a_cluster_train_runs_of_their_own(tmp_path):
    """Neither waits for the other, and the runs are the runs of processes without a cluster."""
    runs = [[case(steps=3)], [case(steps=3), case(steps=6)]]
    asked = json.dumps([[to_json(resolve(config)) for config in one] for one in runs])
    found = ends(started(2, ["-c", ALONE.format(root=str(ROOT)), asked], tmp_path))
    assert [status for status, *_ in found] == [0, 0], found[1][2][-2000:]
    for number, configs in enumerate(runs):
        alone = lm_jax.train(configs[-1], tmp_path / "alone" / str(number), text=tiny.TEXT)
        run = lm_jax.load_run(tmp_path / f"run_{number}")
        assert run.step == alone.step
        tiny.assert_trees_close(run.params, alone.params)


@pytest.fixture
def command(tmp_path, kept_cache, monkeypatch):
    """The words of a distributed run by the command line, of as many updates as asked."""
    monkeypatch.setenv("LM_JAX_CACHE", str(kept_cache))
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    (tmp_path / "small.py").write_text(EXPERIMENT)

    def words(steps, *more):
        train = ["train", "small.py", "--distributed", "--run-dir", "run", "--quiet"]
        return [str(ROOT / "run.py"), *train, "--train.steps", str(steps), *more]

    return words


def when_validated(run_dir):
    """Wait until a run has validated and saved."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        rows = run_dir / "metrics.jsonl"
        if rows.exists() and '"evaluation"' in rows.read_text() and steps_saved(run_dir):
            return
        time.sleep(0.1)
    raise AssertionError(f"{run_dir} has not begun")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_to_the_same_bits(command, tmp_path):
    running = started(2, command(10**6), tmp_path)
    when_validated(tmp_path / "run")
    running[1].send_signal(signal.SIGTERM)
    found = ends(running)
    assert [status for status, *_ in found] == [143, 143]
    assert "stopped and saved" in found[0][2]
    assert found[1][1:] == ("", "")
    assert_goes_on_to_the_same_bits(command, tmp_path)


def assert_goes_on_to_the_same_bits(command, tmp_path):
    """A run resumed in two processes ends as a run that was never stopped, in two processes."""
    steps = steps_saved(tmp_path / "run")[-1] + 10
    resumed = ends(started(2, command(steps), tmp_path))
    whole = ends(started(2, command(steps, "--run-dir", "whole"), tmp_path))
    assert [status for status, *_ in (*resumed, *whole)] == [0] * 4
    # The commands train in float32, and this process loads float64.
    one, other = (journal.read_result(tmp_path / name) for name in ("run", "whole"))
    assert (one["step"], one["sha256"]) == (other["step"], other["sha256"]) == (steps, ANY)
    assert resumed[0][1] == "run\n"
    assert resumed[1][1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_others_with_one_line(dead, command, tmp_path):
    running = started(2, command(10**6), tmp_path)
    when_validated(tmp_path / "run")
    running[dead].kill()
    began = time.monotonic()
    status, out, err = ends([running[1 - dead]])[0]
    assert time.monotonic() - began < 60
    assert status != 0
    assert out == ""
    assert [line for line in err.splitlines() if "error: " in line] == err.splitlines()[:2]
    assert "ended" in err
    running[dead].communicate()
    assert_goes_on_to_the_same_bits(command, tmp_path)


@pytest.mark.slow
def test_an_error_in_one_process_is_an_error_in_all(command, tmp_path):
    for words, status, said in (
        (command(6, "--data.batch-size", "5"), 2, "data.batch_size=5 cannot be shared evenly by 2"),
        (command(6, "--data.length", "9999"), 2, "data.length=9999 is longer than a sequence"),
    ):
        for end, out, err in ends(started(2, words, tmp_path)):
            assert (end, out) == (status, "")
            assert said in err
            assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_differ_are_refused(command, tmp_path):
    """In their settings, and in the directory that they call by one name."""
    address = f"localhost:{free_port()}"
    for of_one, said in (
        (["--seed", "7"], "the settings: "),
        (["--run-dir", "elsewhere"], "is another directory here than in process 0"),
    ):
        running = []
        for number, more in enumerate(([], of_one)):
            environment = {
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            }
            running += [
                subprocess.Popen(
                    [sys.executable, *command(6), *more],
                    env={**os.environ, **environment},
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            ]
        (status, _, first), (other_status, _, second) = ends(running)
        assert (status, other_status) == (2, 2)
        assert said in second
        assert f"process 1: {second.removeprefix('error: ')}" in first
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_process_that_waits_in_vain_is_ended_with_one_line(command, tmp_path):
    running = started(2, command(6), tmp_path)
    running[1].kill()
    running[1].communicate()
    ((status, out, err),) = ends(running[:1])
    assert (status, out) == (2, "")
    assert "waited 50 seconds" in err
    assert len(err.splitlines()) == 1


NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("node:1", "2", None), "lacks JAX_PROCESS_ID"),
        ((None, "2", None), "lacks JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
        (("node:1", "two", "0"), "JAX_NUM_PROCESSES=two"),
        (("node:1", "2", "-1"), "JAX_PROCESS_ID=-1"),
        (("node:1", "2", "2"), "JAX_PROCESS_ID=2 must be below JAX_NUM_PROCESSES=2"),
        (("node", "2", "0"), "JAX_COORDINATOR_ADDRESS=node must be"),
        (("node:x", "2", "0"), "JAX_COORDINATOR_ADDRESS=node:x must be"),
    ],
)
def test_an_environment_that_names_no_cluster_is_refused(values, said, monkeypatch):
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"--distributed: .*{said}"):
        cluster.join()


def test_what_cannot_be_distributed_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="model=ngram cannot be distributed"):
        lm_jax.train(Config(model=NGram()), tmp_path / "run", text=tiny.TEXT, distributed=True)
    with pytest.raises(UserError, match="devices=2: a distributed run takes all devices"):
        lm_jax.train(case(), tmp_path / "run", text=tiny.TEXT, distributed=True, devices=2)
    for words, said in (
        (["train", "quickstart", "--distributed", "--devices", "2"], "do not go together"),
        (["sweep", "clip_sweep", "--distributed"], "--distributed"),
    ):
        status, _, err = told(capsys, *words)
        assert status == 2
        assert said in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_cluster_that_nobody_names_is_refused(command, tmp_path):
    others = {name: value for name, value in os.environ.items() if name not in cluster.VARIABLES}
    ended = subprocess.run(
        [sys.executable, *command(6)],
        env=others,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "neither Slurm nor a TPU pod is there, nor JAX_COORDINATOR_ADDRESS" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_computation_that_fails_among_several_processes_is_told_in_one_line():
    with pytest.raises(cluster.LostProcess, match=r"process 0 of 1 .*: peer gone$"):
        with cluster.together():
            raise ValueError("peer gone\nand more")
    with pytest.raises(UserError, match=r"^mistake$"):
        with cluster.together():
            raise UserError("mistake")


def test_messages_keep_numbers_to_the_bit():
    """This process alone is a cluster of one."""
    message = {"args": [0.1 + 0.2, float("inf"), 2**62], "said": "σ"}
    assert cluster.exchange(message) == [message]
    alone = hosts.ManyProcesses()
    alone.check_same({"the text": "a"})
    assert alone.first(lambda: 3) == 3
    check_divisible(4, len(alone.devices))
