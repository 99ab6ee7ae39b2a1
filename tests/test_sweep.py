"""Sweeps: every point a run of its own, and nothing lost."""

import json
import shlex

import pytest
import tiny

import lm_jax
from lm_jax import settings
from lm_jax.config import override, resolve
from lm_jax.settings import UserError
from lm_jax.training import loop

BASE = tiny.config(train={"steps": 4, "validate_every": 4, "checkpoint_every": 2})
POINTS = {
    "slow": {"train.learning_rate": 0.001},
    "counted": {"model.kind": "ngram", "model.order": 2, "model.bounded": False},
}


def test_a_sweep_is_its_runs_and_a_table_over_them(tmp_path):
    names = []

    def watch(name):
        names.append(name)
        return lambda step, row: None

    rows = lm_jax.sweep(BASE, POINTS, tmp_path / "sweep", text=tiny.TEXT, watch=watch)
    assert names == [row["name"] for row in rows] == list(POINTS)
    alone = lm_jax.train(override(BASE, POINTS["slow"]), tmp_path / "alone", text=tiny.TEXT)
    assert rows[0]["sha256"] == alone.result["sha256"]
    lines = (tmp_path / "sweep" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["splits"] for line in lines] == [row["splits"] for row in rows]
    trained = lm_jax.load_run(tmp_path / "sweep" / rows[0]["trial"])
    assert trained.config.train.learning_rate == 0.001


def test_a_sweep_that_was_stopped_goes_on_with_the_trial_that_was_not_done(tmp_path, monkeypatch):
    whole = lm_jax.sweep(BASE, POINTS, tmp_path / "whole", text=tiny.TEXT)
    real, calls = loop.Counting.run, []

    def broken(self):
        calls.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Counting, "run", broken)
    with pytest.raises(KeyboardInterrupt):
        lm_jax.sweep(BASE, POINTS, tmp_path / "sweep", text=tiny.TEXT)
    assert len((tmp_path / "sweep" / "results.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr(loop.Counting, "run", real)
    monkeypatch.setattr(loop.Descent, "run", lambda self: pytest.fail("trained again"))
    rows = lm_jax.sweep(BASE, POINTS, tmp_path / "sweep", text=tiny.TEXT)
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in whole]


def test_a_point_is_a_command_line():
    point = {"model.cell": "my cell.py:f", "model.bounded": False, "model.readout.cutoffs": [2, 4]}
    words = shlex.split(lm_jax.flags(point))
    assert words == [
        "--model.cell",
        "my cell.py:f",
        "--model.no-bounded",
        "--model.readout.cutoffs",
        "2",
        "4",
    ]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ({}, "the sweep has no points"),
        (
            {"a": {"model.hiden_size": 3}},
            "point 1 of the sweep, 'a': there is no field model.hiden",
        ),
        ({"a": {}, "b": {"model.layers": 0}}, "point 2 of the sweep, 'b': the changed config:"),
        (
            {"a": {"seed": 1}, "b": {"seed": 1}},
            "points 1 and 2 of the sweep, 'a' and 'b', are the same run",
        ),
    ],
)
def test_a_wrong_point_is_named_before_anything_starts(points, said, tmp_path):
    with pytest.raises(UserError) as refusal:
        lm_jax.sweep(BASE, points, tmp_path / "sweep", text=tiny.TEXT)
    assert said in str(refusal.value)
    assert not (tmp_path / "sweep").exists()


def test_a_point_that_does_not_fit_the_text_is_named_before_anything_starts(tmp_path):
    points = {"fits": {}, "long": {"model.kind": "ngram", "model.order": 3000}}
    with pytest.raises(UserError, match="point 2 of the sweep, 'long': order=3000 is longer than"):
        lm_jax.sweep(BASE, points, tmp_path / "sweep", text=tiny.TEXT)
    assert not (tmp_path / "sweep").exists()


def test_points_may_differ_in_what_may_change_when_a_run_goes_on():
    configs = lm_jax.sweep_configs(BASE, {"short": {"train.steps": 2}, "long": {}})
    assert [c.train.steps for c in configs.values()] == [2, 4]


def test_a_directory_of_another_sweep_is_refused(tmp_path):
    lm_jax.sweep(BASE, {"counted": POINTS["counted"]}, tmp_path, text=tiny.TEXT)
    with pytest.raises(UserError, match="holds another sweep"):
        lm_jax.sweep(BASE, POINTS, tmp_path, text=tiny.TEXT)


def test_the_experiments_of_the_house_sweep_over_configs_that_are_valid():
    import run

    for name in ("lecture_table", "kneser_ney"):
        config, points, _ = run.load_experiment(name)
        configs = lm_jax.sweep_configs(config, points)
        assert len({settings.digest(resolve(c)) for c in configs.values()}) == len(points)
