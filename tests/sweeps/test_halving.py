"""Successive halving: the best go on, and a kill changes nothing of who they are."""

import json
import math
import os
import re
import signal
import threading

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import lm_jax
from lm_jax.config import NGram, override
from lm_jax.files import read_row
from lm_jax.settings import UserError
from lm_jax.sweeps.group import train_group
from lm_jax.sweeps.halving import RUNGS, Halving, survivors
from lm_jax.sweeps.plan import Trial
from lm_jax.training import load_run
from lm_jax.training.loop import prepared

CONFIG = tiny.config()


def judgements(sweep_dir):
    path = sweep_dir / RUNGS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [read_row(line, "it") for line in lines]


def trials(count):
    return [
        Trial(number, f"trial {number}", {}, CONFIG, f"trials/{number:03d}")
        for number in range(1, count + 1)
    ]


losses = st.lists(
    st.one_of(st.floats(0, 9), st.sampled_from([1.0, math.nan, math.inf])), min_size=1, max_size=20
)


@settings(max_examples=60, deadline=None)
@given(losses, st.integers(2, 5))
def test_of_one_slice_the_best_in_so_many_go_on(nats, factor):
    kept = survivors({f"{place:02d}": loss for place, loss in enumerate(nats)}, factor)
    finite = [loss for loss in nats if math.isfinite(loss)]
    assert len(kept) == min(math.ceil(len(nats) / factor), len(finite))
    values = sorted(nats[int(name)] for name in kept)
    assert values == sorted(finite)[: len(kept)]


@settings(max_examples=60, deadline=None)
@given(st.lists(losses, min_size=2, max_size=5), st.integers(2, 4))
def test_of_later_slices_those_go_on_that_are_among_the_best_of_all_so_far(slices, factor):
    before = []
    for nats in slices:
        kept = survivors({f"{place:02d}": loss for place, loss in enumerate(nats)}, factor, before)
        before += nats
        of = math.ceil(len(before) / factor)
        for place, loss in enumerate(nats):
            better = sum(other < loss for other in before)
            if f"{place:02d}" in kept:
                assert better < of
                assert math.isfinite(loss)
            elif math.isfinite(loss):
                assert sum(other <= loss for other in before) > of
        least = min((loss for loss in before if math.isfinite(loss)), default=None)
        if least is not None and before.index(least) >= len(before) - len(nats):
            assert f"{nats.index(least):02d}" in kept  # the best of all is never ended


def test_a_trial_without_a_finite_loss_never_goes_on():
    assert survivors({"a": math.nan, "b": math.inf}, 2) == set()
    assert survivors({"a": math.nan, "b": 3.0}, 2, [None, None]) == {"b"}


def test_rungs_lie_below_the_last_update_and_their_cost_is_that_of_who_gets_there():
    halving = Halving(200)
    assert halving.rungs(1800) == (200, 600)
    assert halving.rungs(1801) == (200, 600, 1800)
    assert halving.rungs(200) == ()
    assert halving.updates(7, 200) == 7 * 200
    rng = np.random.default_rng(0)
    for count, factor, steps in ((27, 3, 2500), (10, 2, 900), (1, 4, 5000)):
        halving, alive, spent, at = Halving(100, factor), count, 0, 0
        for rung in halving.rungs(steps):
            spent, at = spent + alive * (rung - at), rung
            alive = len(survivors({str(n): rng.random() for n in range(alive)}, factor))
        assert halving.updates(count, steps) == spent + alive * (steps - at)


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (lambda: Halving(0), "first=0 is not a whole number of at least 1"),
        (lambda: Halving(5, 1), "factor=1 is not a whole number of at least 2"),
        (lambda: Halving(20).check([CONFIG]), "first=20 is not below train.steps=20"),
        (
            lambda: Halving(20).check([override(CONFIG, {"model": "ngram"})]),
            "no trial is trained",
        ),
    ],
)
def test_halving_that_judges_nobody_is_refused(refused, said):
    with pytest.raises(UserError, match=said):
        refused()


def test_one_trial_that_is_long_enough_is_reason_to_halve():
    counted = override(CONFIG, {"model": "ngram"})
    assert isinstance(counted.model, NGram)
    Halving(19).check([counted, CONFIG])


SLICES = (
    (10, {1: 3.0, 2: 2.0, 3: math.nan, 4: 2.5}),
    (30, {2: 1.5, 4: 1.0}),
    (10, {5: 2.6, 6: 1.9, 7: 2.1}),
    (30, {6: 1.2}),
)


def come(judge, everyone, slices=SLICES):
    return [
        {trial.number for trial in judge(step, {everyone[n - 1]: x for n, x in nats.items()})}
        for step, nats in slices
    ]


def test_a_sweep_that_is_killed_anywhere_judges_in_the_same_way(tmp_path):
    everyone, halving = trials(7), Halving(10, 2)
    undisturbed = come(halving.pruner(tmp_path), everyone)
    # Of 7, the best 4 at the first rung are 6, 2, 7 and 4; of 3 at the second, 4 and 6.
    assert undisturbed == [{2, 4}, {4}, {6, 7}, {6}]
    whole = (tmp_path / RUNGS).read_bytes()
    for end in {*range(0, len(whole), 17), *(m.end() for m in re.finditer(b".\n", whole))}:
        torn = tmp_path / f"torn {end}"
        torn.mkdir()
        (torn / RUNGS).write_bytes(whole[:end])
        assert come(halving.pruner(torn), everyone) == undisturbed
        assert (torn / RUNGS).read_bytes() == whole


@pytest.mark.parametrize("zeros", [slice(0, 50), slice(30, 60), slice(30, None)])
def test_a_sweep_whose_power_was_cut_in_a_judgement_judges_again(zeros, tmp_path):
    everyone, halving = trials(7), Halving(10, 2)
    undisturbed = come(halving.pruner(tmp_path), everyone)
    whole = (tmp_path / RUNGS).read_bytes()
    *rows, last = whole.splitlines(keepends=True)
    written = bytearray(last)
    written[zeros] = bytes(len(written[zeros]))
    (tmp_path / RUNGS).write_bytes(b"".join(rows) + written)
    assert come(halving.pruner(tmp_path), everyone) == undisturbed
    assert (tmp_path / RUNGS).read_bytes() == whole


def test_the_order_in_which_trials_of_a_slice_are_given_is_all_the_same(tmp_path):
    everyone, halving = trials(4), Halving(10, 4)
    tie = {everyone[n]: 1.0 for n in (3, 1, 0, 2)}
    assert halving.pruner(tmp_path)(10, tie) == {everyone[0]}
    (tmp_path / RUNGS).unlink()
    assert halving.pruner(tmp_path)(10, dict(reversed(tie.items()))) == {everyone[0]}


def test_trials_that_come_later_are_compared_with_those_before(tmp_path):
    slices = (10, {1: 1.0, 2: 2.0}), (10, {3: 3.0, 4: 4.0}), (10, {5: 1.5, 6: 9.0})
    assert come(Halving(10, 2).pruner(tmp_path), trials(6), slices) == [{1}, set(), {5}]


def test_a_judgement_is_on_the_disk_before_it_is_told(tmp_path, monkeypatch):
    everyone, synced = trials(3), []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle)))
    Halving(10).pruner(tmp_path)(10, dict(zip(everyone, (2.0, 1.0, math.nan), strict=True)))
    assert judgements(tmp_path) == [
        {
            "step": 10,
            "nats": {"trials/001": 2.0, "trials/002": 1.0, "trials/003": None},
            "kept": ["trials/002"],
        }
    ]
    file, folder = (tmp_path / RUNGS).stat(), tmp_path.stat()
    assert [one.st_ino for one in synced] == [file.st_ino, folder.st_ino]
    assert synced[0].st_size == file.st_size


def test_processes_that_judge_at_once_judge_one_after_another(tmp_path):
    """A lock on a file holds between threads, too, where each has opened it by itself."""
    everyone, halving, told = trials(60), Halving(10, 3), {}
    rng = np.random.default_rng(1)
    nats = dict(zip(everyone, rng.random(60).tolist(), strict=True))
    start = threading.Barrier(6)

    def work(own):
        judge = halving.pruner(tmp_path)
        start.wait()
        for first in range(0, 10, 2):
            pair = own[first : first + 2]
            kept = judge(10, {trial: nats[trial] for trial in pair})
            told.update({trial: trial in kept for trial in pair})

    threads = [threading.Thread(target=work, args=(everyone[n::6],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows, before = judgements(tmp_path), []
    assert len(rows) == 30
    for row in rows:
        assert set(row["kept"]) == survivors(row["nats"], 3, before)
        before += row["nats"].values()
    kept = {name for row in rows for name in row["kept"]}
    assert {trial.directory for trial, on in told.items() if on} == kept


class _Killed(BaseException):
    """What a kill does, where a test can go on after it."""


@pytest.fixture(scope="module")
def groups():
    """Two of two trials each, of two shapes."""
    found, corpus, number = [], None, 0
    for cell in ("elman", "lstm"):
        group = []
        for rate in (1e-4, 0.03):
            number += 1
            point = {"model.cell": cell, "train.learning_rate": rate}
            config, corpus = prepared(override(CONFIG, point), tiny.TEXT)
            group.append(Trial(number, f"trial {number}", point, config, f"trials/{number:03d}"))
        found.append(group)
    return found, corpus


def swept(groups, path, judge, halving):
    for group in groups[0]:
        rungs = halving.rungs(CONFIG.train.steps)
        assert train_group(group, path, groups[1], [], prune=judge, rungs=rungs) == {}


def results(groups, path):
    found = {}
    for trial in (trial for group in groups[0] for trial in group):
        result = load_run(path / trial.directory).result
        found[trial.number] = (result["status"], result["step"], result["sha256"])
    return found


@pytest.mark.slow
def test_groups_share_the_rungs_and_may_be_killed_at_any(groups, tmp_path):
    halving, whole, broken = Halving(5, 3), tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    swept(groups, whole, halving.pruner(whole), halving)
    undisturbed, rows = results(groups, whole), judgements(whole)
    assert [row["step"] for row in rows] == [5, 15, 5, 15][: len(rows)]
    assert len(rows) >= 3
    ends = [(status, step) for status, step, _ in undisturbed.values()]
    assert ends[:2] == [("pruned", 5), ("finished", 20)]
    for row in rows:
        for name in row["nats"].keys() - set(row["kept"]):
            number = int(name[-3:])
            assert undisturbed[number][:2] == ("pruned", row["step"])

    killed = []

    def deadly(step, nats):
        kept = halving.pruner(broken)(step, nats)
        place = (step, frozenset(trial.number for trial in nats))
        if place not in killed:
            killed.append(place)
            if len(killed) % 2 == 0:  # while it was being written
                torn = (broken / RUNGS).read_bytes()[:-7]
                (broken / RUNGS).write_bytes(torn)
            raise _Killed
        return kept

    for _ in rows:
        with pytest.raises(_Killed):
            swept(groups, broken, deadly, halving)
    swept(groups, broken, deadly, halving)
    assert len(killed) == len(rows)
    assert results(groups, broken) == undisturbed
    assert judgements(broken) == rows
    assert json.loads((broken / "trials/001/result.json").read_text())["status"] == "pruned"


@pytest.mark.slow
def test_a_signal_while_trials_are_validated_at_a_rung_changes_nobody_s_fate(tmp_path):
    points = {str(n): {"train.learning_rate": rate} for n, rate in enumerate((1e-5, 1e-3, 0.03))}
    halving = Halving(5, 3)

    def stopping(name):
        def told(step, row):
            if name == "0" and step == 5 and row is not None and row["kind"] == "evaluation":
                os.kill(os.getpid(), signal.SIGTERM)

        return told

    def run(place, watch=None):
        options = {"text": tiny.TEXT, "halving": halving, "watch": watch}
        return lm_jax.sweep(CONFIG, points, tmp_path / place, **options)

    whole = run("whole")
    with pytest.raises(SystemExit):
        run("stopped", stopping)
    assert judgements(tmp_path / "stopped") == []  # not of the first alone
    on = run("stopped")
    assert judgements(tmp_path / "stopped") == judgements(tmp_path / "whole")
    ends = [[(r["name"], r["status"], r["sha256"]) for r in rows] for rows in (on, whole)]
    assert ends[0] == ends[1]
    assert [row["status"] for row in on] == ["pruned", "pruned", "finished"]
