"""Trackers hold each row of metrics.jsonl once, after a kill, too, and leave the run as it is."""

import csv
import functools
import json
import math
import struct
import sys

import pytest
import tiny
from tiny_experiment import told

import lm_jax
from lm_jax import track
from lm_jax.settings import UserError
from lm_jax.sweeps.plan import trial_dirs
from lm_jax.training.journal import read_rows

CONFIG = tiny.config(
    train={"steps": 12, "log_every": 2, "validate_every": 6, "checkpoint_every": 5},
)
LONGER = tiny.changed(CONFIG, train__steps=14)


class Killed(Exception):
    pass


def interrupted(name, path):
    """A tracked run that is killed after rows which its checkpoint does not have, and goes on."""

    def killing(step, row):
        if step == 8 and row is not None:
            raise Killed

    for config, more in [(CONFIG, [killing]), (CONFIG, []), (LONGER, []), (LONGER, [])]:
        try:
            with track.tracker(name, path) as watch:
                lm_jax.train(config, path, text=tiny.TEXT, watch=track.together(watch, *more))
        except Killed:
            pass
    lm_jax.train(LONGER, path.parent / "alone", text=tiny.TEXT)
    assert tiny.rows_of(path) == tiny.rows_of(path.parent / "alone")
    return read_rows(path / "metrics.jsonl")


def test_a_csv_has_a_line_for_each_row_and_a_column_for_each_number(tmp_path):
    rows = interrupted("csv", tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(int(line["step"]), line["kind"]) for line in lines] == [
        (row["step"], row["kind"]) for row in rows
    ]
    for line, row in zip(lines, rows, strict=True):
        shown = {name: float(value) for name, value in line.items() if "/" in name and value}
        assert shown == track.numbers(row)
    assert float(lines[0]["train/nats"]) == rows[0]["nats"]


def lines_of(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return [(int(line["step"]), line["kind"]) for line in csv.DictReader(file)]


def test_every_trial_of_a_sweep_has_each_row_once_after_a_stop_too(tmp_path):
    sweep_dir, points = tmp_path / "sweep", {name: {"seed": k} for k, name in enumerate("ab")}

    def sweep(*more):
        with track.trials(["csv"], functools.partial(trial_dirs, sweep_dir)) as follow:

            def watch(name):
                return track.together(follow(name), *more)

            return lm_jax.sweep(CONFIG, points, sweep_dir, text=tiny.TEXT, watch=watch)

    with pytest.raises(SystemExit):
        sweep(tiny.stopping_at(4))
    rows = sweep()
    run_dirs = [sweep_dir / row["trial"] for row in rows]
    wanted = [[(row["step"], row["kind"]) for row in tiny.rows_of(path)] for path in run_dirs]
    assert [lines_of(path) for path in run_dirs] == wanted
    (run_dirs[0] / "metrics.csv").unlink()
    sweep()  # both are over
    assert [lines_of(path) for path in run_dirs] == wanted


def test_rows_of_another_process_are_read_before_they_are_told(tmp_path):
    """A sweep's other processes write metrics.jsonl, which is whole when its first row is told."""
    lm_jax.train(CONFIG, tmp_path, text=tiny.TEXT)
    rows = read_rows(tmp_path / "metrics.jsonl")
    with track.csv(tmp_path) as watch:
        for row in [*rows, {**rows[-1], "step": 99}]:
            watch(row["step"], row)
    wanted = [(row["step"], row["kind"]) for row in rows]
    assert lines_of(tmp_path) == [*wanted, (99, rows[-1]["kind"])]


def test_a_sweep_asks_for_a_missing_library_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="requirements-track"), track.trials(["wandb"], dict):
        pass


def test_numbers_of_a_row_by_name():
    row = {"kind": "probe", "step": 3, "split": "train", "lyapunov": math.nan}
    row |= {"horizon": {"0.9": 4}, "spectral_radius": {"0": [1.0, 2.0]}, "lag_norms": [1.0] * 9}
    assert track.numbers(row) == {
        "probe/horizon/0.9": 4,
        "probe/spectral_radius/0/0": 1.0,
        "probe/spectral_radius/0/1": 2.0,
    }


def test_a_finished_run_is_tracked_by_the_same_command(folder, capsys):
    words = ["train", "lab.py", "--run-dir", "r", "--quiet"]
    assert told(capsys, *words) == (0, "r\n", "")
    assert told(capsys, *words, "--track", "csv") == (0, "r\n", "")
    assert len((folder / "r" / "metrics.csv").read_text().splitlines()) == 1 + 5
    status, _, err = told(capsys, *words, "--track", "tensorbord")
    assert (status, "did you mean --track tensorboard?" in err) == (2, True)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(name, name), None)
    with pytest.raises(UserError, match="requirements-track"), track.tracker(name, tmp_path):
        pass


@pytest.mark.extras
@pytest.mark.filterwarnings("default")
def test_tensorboard_has_each_number_once_at_its_step(tmp_path):
    pytest.importorskip("tensorboardX")
    rows = interrupted("tensorboard", tmp_path / "run")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = {}
    for path in sorted((tmp_path / "run" / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            if event.session_log.status == SessionLog.START:  # TensorBoard purges what was before
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = value.simple_value
    wanted = {(name, row["step"]): n for row in rows for name, n in track.numbers(row).items()}
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.extras
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_is_sent_each_row_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = pytest.importorskip("wandb")
    sent, real = [], wandb.sdk.wandb_run.Run.log

    def log(self, data, *more, **options):
        sent.append((self.id, data))
        return real(self, data, *more, **options)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", log)
    rows = interrupted("wandb", tmp_path / "run")
    steps = [(data["step"], "validation/nats" in data) for _, data in sent]
    assert steps == [(row["step"], row["kind"] == "evaluation") for row in rows]
    kept = json.loads((tmp_path / "run" / "wandb.json").read_text())
    assert {name for name, _ in sent} == {kept["id"]}
    assert kept["rows"] == len(rows)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
