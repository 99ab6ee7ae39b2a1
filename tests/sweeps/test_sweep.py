"""Sweeps: every point a run of its own, and nothing lost."""

import json
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import settings
from lm_jax.config import Copy, override, resolve
from lm_jax.data import sources
from lm_jax.experiment import load_experiment
from lm_jax.settings import UserError
from lm_jax.sweeps import choice, draw, folded, memory, plan, ranked, read_results
from lm_jax.sweeps.executors import Here
from lm_jax.sweeps.jobs import Job
from lm_jax.sweeps.memory import lane_bytes, lanes_that_fit
from lm_jax.sweeps.plan import CorpusCache, write_or_check_manifest
from lm_jax.sweeps.ray_nodes import packed, unpack
from lm_jax.training import loop
from lm_jax.training.step import init

BASE = tiny.config(train={"steps": 4, "validate_every": 4, "checkpoint_every": 2})
POINTS = {
    "slow": {"train.learning_rate": 0.001},
    "counted": {"model": "ngram", "model.order": 2, "model.sentence_boundaries": False},
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


def test_a_kill_while_a_run_comes_home_from_a_node_loses_nothing(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def rename(path, target):
        if path.parent.parent.name.endswith(".archive"):
            raise Killed
        return real(path, target)

    points, real = {"counted": POINTS["counted"]}, Path.rename
    before = lm_jax.sweep(BASE, points, tmp_path, text=tiny.TEXT)
    job = Job(tmp_path, plan(BASE, points, tiny.TEXT).trials, vectorised=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            unpack(job, packed(job))
    assert not job.place(job.trials[0]).exists()
    # Another run would take other seconds.
    assert lm_jax.sweep(BASE, points, tmp_path, text=tiny.TEXT) == before


COUNTED = {
    str(order): {"model": "ngram", "model.order": order, "data.batch_size": 2 + order}
    for order in (1, 2, 3, 4)
}


class Dealing(Here):
    """In this process, as if there were two workers."""

    workers = 2

    def __init__(self):
        self.jobs = []

    def run(self, jobs, received, watch=None):
        self.jobs += [[trial.number for trial in job.trials] for job in jobs]
        return super().run(jobs, received, watch)


@pytest.mark.slow
def test_trials_that_share_no_program_are_dealt_out_to_the_workers(tmp_path):
    points = {**COUNTED, "a": {"seed": 1}, "b": {"seed": 2}, "c": {"model.hidden_size": 6}}
    dealing = Dealing()
    rows = lm_jax.sweep(BASE, points, tmp_path, text=tiny.TEXT, executor=dealing)
    assert dealing.jobs == [[1, 3, 7], [2, 4], [5], [6]]
    assert [row["status"] for row in rows] == ["finished"] * 7


@pytest.mark.slow
def test_a_text_is_read_once_more_to_train_on_it_however_many_trials_there_are(
    tmp_path, monkeypatch
):
    real, reads = sources.splits, []
    monkeypatch.setattr(sources, "splits", lambda *args: reads.append(args) or real(*args))
    points = {**COUNTED, "a": {"seed": 1}, "b": {"seed": 2}}
    lm_jax.sweep(BASE, points, tmp_path, text=tiny.TEXT, lanes=1)
    assert len(reads) == 2  # to see that it fits, and to train


def test_a_text_is_the_same_with_chunks_of_any_lengths():
    texts = CorpusCache(tiny.TEXT)
    some = [{}, {"jitter": 3}, {"length": 4, "jitter": 1}, {"batching": "sentences"}]
    assert len({id(texts.get(tiny.config(data=fields).data)) for fields in some}) == 1


def test_a_sweep_that_was_stopped_goes_on_with_the_trial_that_was_not_done(tmp_path, monkeypatch):
    whole = lm_jax.sweep(BASE, POINTS, tmp_path / "whole", text=tiny.TEXT)
    real, calls = loop.NGramRun.run, []

    def broken(self):
        calls.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.NGramRun, "run", broken)
    with pytest.raises(KeyboardInterrupt):
        lm_jax.sweep(BASE, POINTS, tmp_path / "sweep", text=tiny.TEXT)
    assert len((tmp_path / "sweep" / "results.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr(loop.NGramRun, "run", real)
    monkeypatch.setattr(loop.Trainer, "run", lambda self: pytest.fail("trained again"))
    rows = lm_jax.sweep(BASE, POINTS, tmp_path / "sweep", text=tiny.TEXT)
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in whole]


def test_a_point_is_a_command_line():
    point = {
        "model.cell": "my cell.py:f",
        "model.sentence_boundaries": False,
        "model.readout.cutoffs": [2, 4],
    }
    words = shlex.split(lm_jax.flags(point))
    assert words == [
        "--model.cell",
        "my cell.py:f",
        "--model.no-sentence-boundaries",
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
        (
            {"a": {"train.optimizer": {"kind": "sgd"}, "seed": 0}},
            "point 1 of the sweep, 'a': train.optimizer={'kind': 'sgd'} holds settings: set each "
            "by its path, such as train.optimizer='sgd'",
        ),
        ({"a": {"data.source": Copy()}}, "set each by its path, such as data.source='copy'"),
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


def test_a_point_that_was_drawn_twice_is_refused(tmp_path):
    drawn = draw({"seed": choice([3])}, count=2)
    with pytest.raises(UserError, match="draw: the same point comes twice, as 1 and 2: --seed 3"):
        lm_jax.sweep(BASE, drawn, tmp_path / "sweep", text=tiny.TEXT)
    assert not (tmp_path / "sweep").exists()


def test_a_point_that_does_not_fit_the_text_is_named_before_anything_starts(tmp_path):
    points = {"fits": {}, "long": {"model": "ngram", "model.order": 3000}}
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
    for name in ("lecture_table", "kneser_ney", "bengio_mlp", "word_language_model"):
        config, points, *_ = load_experiment(name)
        configs = lm_jax.sweep_configs(config, points)
        assert len({settings.digest(resolve(c)) for c in configs.values()}) == len(points)


SEEDS = {
    f"{rate} {seed}": {"train.learning_rate": rate, "seed": seed}
    for rate in (0.01, 0.1)
    for seed in (0, 1)
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep with a trial that diverges, one that breaks off, one that is counted, and seeds."""
    folder = tmp_path_factory.mktemp("swept")
    points = {
        **SEEDS,
        "wild": {"train.learning_rate": 1e300, "model.cell.activation": "relu"},
        "broken": {"seed": 13, "train.learning_rate": 0.01},
        "counted": POINTS["counted"],
    }
    real = loop.Trainer.events

    def events(self):
        if self.config.seed == 13:
            raise MemoryError("Out of memory allocating 12 bytes\nand more of it")
        yield from real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "events", events)
        rows = lm_jax.sweep(BASE, points, folder, text=tiny.TEXT, retries=0)
    return folder, points, {row["name"]: row for row in rows}


def test_a_row_says_what_its_trial_has_come_to(swept):
    folder, points, rows = swept
    assert list(rows) == list(points)  # though groups were run one after another
    assert [row["number"] for row in rows.values()] == [1, 2, 3, 4, 5, 6, 7]
    row = rows["0.1 1"]
    journal = [
        json.loads(line)
        for line in (folder / row["trial"] / "metrics.jsonl").read_text().splitlines()
    ]
    nats = [found["nats"] for found in journal if found["kind"] == "evaluation"]
    assert (row["best_validation"], row["last_validation"]) == (min(nats), nats[-1])
    assert row["test"] == row["splits"]["test"]["nats"]
    assert (row["status"], row["step"], row["steps"]) == ("finished", 4, 4)
    assert row["settings"]["train.learning_rate"] == 0.1
    assert row["settings"]["model"] == "rnn"  # its point does not say so
    assert read_results(folder) == json.loads(json.dumps(list(rows.values())))


def test_a_trial_that_diverges_is_marked_with_its_first_bad_step(swept):
    folder, _, rows = swept
    row = rows["wild"]
    assert row["status"] == "diverged"
    journal = (folder / row["trial"] / "metrics.jsonl").read_text().splitlines()
    losses = {found["step"]: found["nats"] for found in map(json.loads, journal)}
    assert losses.pop(row["bad_step"]) is None
    assert losses
    assert None not in losses.values()
    assert row["test"] is None


def test_a_trial_that_breaks_off_stops_no_other_and_is_tried_again(swept, tmp_path):
    folder, points, rows = swept
    row = rows["broken"]
    assert row["status"] == "failed"
    assert row["error"] == "MemoryError: Out of memory allocating 12 bytes"
    said = json.loads((folder / row["trial"] / "error.json").read_text())
    assert "Traceback" in said["traceback"]
    assert "and more of it" in said["traceback"]
    assert rows["counted"]["status"] == "finished"
    again = {row["name"]: row for row in lm_jax.sweep(BASE, points, folder, text=tiny.TEXT)}
    assert again["broken"]["status"] == "finished"
    assert not (folder / row["trial"] / "error.json").exists()
    for name in set(rows) - {"broken"}:
        assert again[name] == rows[name]


def test_the_best_comes_first_and_what_went_wrong_last(swept):
    _, _, rows = swept
    order = [row["name"] for row in ranked(rows.values())]
    assert order[-2:] == ["wild", "broken"]
    best = [rows[name]["best_validation"] for name in order[:-2]]
    assert best == sorted(best)


def test_what_went_wrong_comes_last_however_low_its_loss():
    ends = [("diverged", 1.0), ("finished", 3.0), ("failed", 2.0), ("pruned", 2.5)]
    rows = [
        {"status": status, "best_validation": nats, "number": number}
        for number, (status, nats) in enumerate(ends)
    ]
    assert [row["number"] for row in ranked(rows)] == [3, 1, 0, 2]


def test_seeds_are_folded_into_their_mean_and_standard_error(swept):
    _, _, rows = swept
    folds = {fold.name: fold for fold in folded(rows.values())}
    fold = folds["--train.learning-rate 0.1"]
    a, b = (rows[f"0.1 {seed}"]["best_validation"] for seed in (0, 1))
    # Of two numbers the standard error of the mean is half their distance.
    np.testing.assert_allclose(fold.best_validation, ((a + b) / 2, abs(a - b) / 2), rtol=1e-12)
    assert (fold.finished, fold.of) == (2, 2)
    slow = folds["--train.learning-rate 0.01"]
    assert (slow.finished, slow.of) == (2, 3)  # one broke off, and is in no mean
    assert folded([rows["0.1 0"], rows["0.01 1"]]) == []


def test_a_probe_s_last_row_is_in_the_table(tmp_path):
    off = {f"train.probe.{name}": False for name in ("by_lag", "lyapunov", "deltas")}
    points = {"watched": {"train.probe": "live", **off}}
    (row,) = lm_jax.sweep(BASE, points, tmp_path, text=tiny.TEXT)
    lines = (tmp_path / row["trial"] / "metrics.jsonl").read_text().splitlines()
    last = [found for found in map(json.loads, lines) if found["kind"] == "probe"][-1]
    assert row["probe"] == {"spectral_radius": last["spectral_radius"]}


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_a_sweep_is_a_frame_in_one_call(kind, swept):
    pytest.importorskip(kind)
    frame = lm_jax.sweep_frame(swept[0], kind)
    assert list(frame["number"]) == [1, 2, 3, 4, 5, 6, 7]
    assert list(frame["train.learning_rate"])[:4] == [0.01, 0.01, 0.1, 0.1]
    assert list(frame["model"])[-2:] == ["rnn", "ngram"]


def test_a_frame_of_what_is_not_there_is_one_line(swept, tmp_path, monkeypatch):
    for library in ("polars", "pandas"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UserError, match=f"{library}, which is not installed: pip install -r"):
            lm_jax.sweep_frame(swept[0], library)
    with pytest.raises(UserError, match="no trial of a sweep has ended there"):
        lm_jax.sweep_frame(tmp_path)


def test_a_frame_s_columns_are_of_one_type():
    from lm_jax.frames import columns

    rows = [{"a": 1, "b": "gru", "c": {"d": 1.0}}, {"a": 0.5, "b": 3}, {"a": None}]
    found = {"a": [1.0, 0.5, None], "b": ["gru", "3", None], "c.d": [1.0, None, None]}
    assert columns(rows) == found


def test_another_sweep_s_directory_is_named_with_the_point_that_differs(tmp_path):
    trials = plan(BASE, {"a": {"seed": 1}, "b": {"seed": 2}}, tiny.TEXT).trials
    write_or_check_manifest(tmp_path, trials)
    write_or_check_manifest(tmp_path, trials)
    others = {
        "its points are 2, not 1": {"a": {"seed": 1}},
        "point 2, 'b', has other settings": {"a": {"seed": 1}, "b": {"seed": 3}},
        "point 2, 'c', was 'b'": {"a": {"seed": 1}, "c": {"seed": 2}},
        # Directories are numbered in the order of the points: each trial would begin again.
        "its points are in another order": {"b": {"seed": 2}, "a": {"seed": 1}},
    }
    for said, points in others.items():
        with pytest.raises(UserError, match=f"holds another sweep: {said}"):
            write_or_check_manifest(tmp_path, plan(BASE, points, tiny.TEXT).trials)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        write_or_check_manifest(tmp_path, trials)


def test_a_lane_s_memory_is_twice_its_state_and_the_numbers_of_each_token(monkeypatch):
    (group,) = plan(BASE, {"a": {"seed": 0}, "b": {"seed": 1}}, tiny.TEXT).groups
    V, E, H, B, T = group.vocab, 4, 5, 4, 8
    config = group.config
    state = init(config, V)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    # C, W_xh, W_hh and W_hy; float64.
    assert lane_bytes(config, V) == 2 * held + 2 * 8 * B * T * (E + H + H + V)
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    assert [lanes_that_fit(each) for each in (100, 500, 501, 10**9)] == [5, 1, 1, 1]


def test_a_restarted_sweep_keeps_the_old_one_beside(tmp_path):
    counted, place = {"2": POINTS["counted"]}, tmp_path / "sweep"
    more = {**counted, "3": {**POINTS["counted"], "model.order": 3}}
    old = lm_jax.sweep(BASE, more, place, text=tiny.TEXT)
    with pytest.raises(UserError, match="another sweep"):
        lm_jax.sweep(BASE, counted, place, text=tiny.TEXT)
    (row,) = lm_jax.sweep(BASE, counted, place, text=tiny.TEXT, restart=True)
    assert row["status"] == "finished"
    assert read_results(tmp_path / "sweep.old-1") == old
    assert read_results(place) == [row]
