"""Runs side by side: a lane is a run, whoever runs beside it."""

import dataclasses
import signal

import jax
import numpy as np
import pytest
import tiny

from lm_jax.config import LSTM, RNN, override
from lm_jax.sweeps import evaluation
from lm_jax.sweeps.group import train_group
from lm_jax.sweeps.plan import Trial
from lm_jax.sweeps.vmapped_runs import VmappedRuns
from lm_jax.training import load_run
from lm_jax.training.checkpoint import steps_saved, tree_digest
from lm_jax.training.evaluator import Evaluator
from lm_jax.training.hosts import Processes
from lm_jax.training.journal import read_rows
from lm_jax.training.loop import prepared
from lm_jax.training.step import after_validation, init, reset_metrics, run_until
from lm_jax.training.trainer import Trainer, pipeline_of

BASE = tiny.config(
    model=RNN(embedding_size=4, hidden_size=5, cell=LSTM()), train={"clip_norm": 1.0}
)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def points(rates=RATES):
    """Configs that differ in numbers of every kind: of the optimizer, the model and the seed."""
    return [
        prepared(
            override(
                BASE,
                {"train.learning_rate": rate, "model.cell.gain": 0.5 + rate / 6, "seed": number},
            ),
            tiny.TEXT,
        )
        for number, rate in enumerate(rates)
    ]


def trials(count, rates=RATES):
    return [
        Trial(number, f"trial {number}", {}, config, f"trials/{number:03d}")
        for number, (config, _) in enumerate(points(rates)[:count], 1)
    ]


@pytest.fixture(scope="module")
def made():
    """V, the text on the device and the configs of eight runs."""
    configs, corpora = zip(*points(), strict=True)
    source = pipeline_of(configs[0], corpora[0]).whole()
    return len(corpora[0].vocabulary), source, configs


def advanced(made, runs, width, stop=7, params=None):
    """The states of some runs after `stop` updates as lanes."""
    V, source, configs = made
    lanes = VmappedRuns(V, source, [configs[run] for run in runs], width=width)
    for number, run in enumerate(runs):
        state = init(configs[run], V)
        if params is not None:
            state = state._replace(params=params(run, state))
        lanes.put(number, state)
    lanes.advance(dict.fromkeys(range(len(runs)), stop))
    return [lanes.get(number) for number in range(len(runs))], lanes


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2])
def test_a_lane_is_the_same_bits_beside_two_four_or_eight(made, width):
    pair = advanced(made, [2, 5], width)[0]
    for runs in ([0, 2, 5, 1], [5, 4, 3, 2, 1, 0, 6, 7]):
        states, _ = advanced(made, runs, width)
        for mine, run in zip(pair, (2, 5), strict=True):
            assert tree_digest(states[runs.index(run)]) == tree_digest(mine)


def test_a_lane_is_a_run(made):
    V, source, configs = made
    for width in (1, 4):
        states, _ = advanced(made, [0, 1, 2, 3], width)
        for run, state in enumerate(states):
            alone = run_until(configs[run], init(configs[run], V), source, 7, V)
            tiny.assert_trees_close(state, jax.tree.map(np.asarray, alone), 1e-9)


def test_a_lane_that_diverges_stands_still_and_harms_no_other(made):
    def broken(run, state):
        return jax.tree.map(lambda leaf: leaf * (np.nan if run == 4 else 1), state.params)

    for width in (1, 4):
        sound, _ = advanced(made, [0, 4, 5, 6], width)
        states, lanes = advanced(made, [0, 4, 5, 6], width, params=broken)
        diverged = [bool(lanes.summary(number).diverged) for number in range(4)]
        assert diverged == [False, True, False, False]
        assert int(states[1].step) == 1
        for lane in (0, 2, 3):
            assert tree_digest(states[lane]) == tree_digest(sound[lane])


def test_lanes_stop_where_each_is_told_to(made):
    lanes = begun(made, 3, width=2)
    lanes.advance({0: 2, 2: 5})
    assert [int(lanes.summary(run).step) for run in range(3)] == [2, 0, 5]
    assert lanes.count == 4


def begun(made, count, **options):
    """Lanes before the first update."""
    V, source, configs = made
    configs = [configs[run % len(configs)] for run in range(count)]
    lanes = VmappedRuns(V, source, configs, **options)
    for run, config in enumerate(configs):
        lanes.put(run, init(config, V))
    return lanes


@pytest.mark.quick("2-3-4")
@pytest.mark.parametrize(
    ("width", "kept", "left"),
    [(8, 4, 8), (None, 2, 8), (2, 5, 8), (2, 3, 4)],  # rows of 1 on a CPU
)
def test_lanes_that_stand_still_are_given_up_where_they_cost(made, width, kept, left):
    lanes = begun(made, 8, width=width)
    states = [lanes.get(run) for run in range(8)]
    last = list(range(8))[-kept:]
    lanes.keep(last)
    assert lanes.count == left
    for run in last:
        tiny.assert_trees_equal(lanes.get(run), states[run])


def test_a_change_of_some_lanes_changes_no_other(made):
    configs, lanes = made[2], begun(made, 3, width=2)
    lanes.advance({0: 3, 1: 3, 2: 3})
    before = [lanes.get(run) for run in range(3)]
    lanes.reset_metrics([0, 2])
    lanes.after_validation({1: 2.5, 2: 3.5})
    lanes.put(0, before[1])
    found = [lanes.get(run) for run in range(3)]
    nats = [jax.numpy.asarray(loss) for loss in (2.5, 3.5)]
    reset = reset_metrics(configs[2], jax.tree.map(jax.numpy.copy, before[2]))
    tiny.assert_trees_equal(found[0], before[1])
    tiny.assert_trees_equal(found[2], after_validation(configs[2], reset, nats[1]))
    tiny.assert_trees_equal(found[1], after_validation(configs[1], before[1], nats[0]))


def read(path):
    """What a group has come to: for each trial its parameters and the rows of its journal."""
    clock = ("seconds", "tokens_per_second")
    return {
        trial.name: (
            load_run(path / trial.directory).result["sha256"],
            [
                {name: value for name, value in row.items() if name not in clock}
                for row in read_rows(path / trial.directory / "metrics.jsonl")
            ],
        )
        for trial in trials(3)
    }


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A group of three: its folder, the states that were read, and the evaluations."""
    path, states, evaluations = tmp_path_factory.mktemp("whole"), [], []
    get, read_text = VmappedRuns.get, evaluation._read_text

    def reading(self, run):
        state = get(self, run)
        states.append((run, int(state.step)))
        return state

    def together(runs, works, split, own):
        evaluations.append((split, len(works)))
        return read_text(runs, works, split, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VmappedRuns, "get", reading)
        patch.setattr(evaluation, "_read_text", together)
        patch.setattr(Evaluator, "evaluate", lambda *_: pytest.fail("evaluated alone"))
        assert train_group(trials(3), path, points()[0][1], []) == {}
    return {"path": path, "read": states, "evaluated": evaluations}


@pytest.fixture(scope="module")
def undisturbed(watched):
    return read(watched["path"])


@pytest.mark.slow
def test_a_group_is_its_runs(undisturbed, tmp_path):
    config, corpus = points()[0]
    work = Trainer(config, tmp_path / "alone", corpus, Processes(), lambda step, row: None)
    (tmp_path / "alone").mkdir()
    work.run()
    alone = [row["nats"] for row in read_rows(tmp_path / "alone" / "metrics.jsonl")]
    beside = [row["nats"] for row in undisturbed["trial 1"][1]]
    np.testing.assert_allclose(beside, alone, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:passing over the checkpoint .* it is gone")
def test_a_group_that_was_stopped_anywhere_goes_on_to_the_same_bits(undisturbed, tmp_path):
    class Told(list):
        """Signals, of which one comes after it has been asked for them so often."""

        left = 20

        def __bool__(self):
            self.left -= 1
            return self.left < 0

    corpus = points()[0][1]
    told = Told([signal.SIGTERM])
    train_group(trials(3), tmp_path, corpus, told)
    stopped = [load_run(tmp_path / trial.directory).result for trial in trials(3)]
    assert {"stopped"} == {result["status"] for result in stopped}
    # One is taken back to an older checkpoint, as a kill at the wrong time does.
    first = tmp_path / trials(3)[0].directory
    assert len(steps_saved(first)) == 2
    newest = first / "checkpoints" / f"{max(steps_saved(first)):08d}"
    newest.rename(newest.with_suffix(".trash"))
    (first / "result.json").unlink()
    train_group(trials(3), tmp_path, corpus, [])
    assert read(tmp_path) == undisturbed


def test_a_state_leaves_the_devices_only_to_be_saved(watched):
    read = watched["read"]
    assert {step for _, step in read} == {5, 10, 15, 20}  # and not at the record of update 1
    assert all(sum(step == saved for _, step in read) == 3 for saved in (5, 10, 15))


def test_lanes_are_evaluated_in_a_single_call(watched):
    assert watched["evaluated"] == [("validation", 3), ("validation", 3), ("test", 3)]


@pytest.mark.quick("3")
@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
def test_the_loss_of_a_lane_is_that_of_its_parameters_alone(made, tmp_path, monkeypatch, at_once):
    """However many lanes are read at once, and whichever are asked."""
    configs, lanes, corpus = made[2], begun(made, 4, width=4), points()[0][1]
    works = {
        run: Trainer(configs[run], tmp_path, corpus, Processes(), lambda step, row: None)
        for run in (0, 2, 3)
    }
    monkeypatch.setattr(evaluation, "_width", lambda *_: at_once)
    for split in ("validation", "test"):
        found = evaluation.losses(lanes, works, split)
        for run, work in works.items():
            state = lanes.get(run)
            alone = work.evaluator.evaluate(work.model, state.params, split)
            assert found[run].nats == pytest.approx(alone.nats, rel=1e-9)
            assert found[run][1:] == alone[1:]


def test_an_evaluation_holds_no_more_tokens_than_an_update(made, tmp_path):
    config, corpus = points()[0]
    work = Trainer(config, tmp_path, corpus, Processes(), lambda step, row: None)
    B, T = config.data.batch_size, config.data.length
    lanes = begun(made, 8, width=8)
    widths = {1: 8, B * T: 8, B * T + 1: 7, 3 * B * T: 2, 100 * B * T: 1}
    assert {tokens: evaluation._width(lanes, work, tokens) for tokens in widths} == widths
    assert evaluation._width(begun(made, 2), work, 1) == 1


@pytest.mark.slow
def test_what_breaks_one_trial_does_not_stop_the_others(undisturbed, tmp_path, monkeypatch):
    real = Trainer._save

    def full(self, **how):
        if self.run_dir.name == "002" and int(self.state.step) == 10:
            raise OSError("no space left on device")
        real(self, **how)

    monkeypatch.setattr(Trainer, "_save", full)
    corpus = points()[0][1]
    failed = train_group(trials(3), tmp_path, corpus, [])
    assert {trial.name: str(error) for trial, error in failed.items()} == {
        "trial 2": "no space left on device"
    }
    monkeypatch.undo()
    train_group(trials(3), tmp_path, corpus, [])
    assert read(tmp_path) == undisturbed


def test_a_diverged_trial_says_so_at_its_first_bad_step(tmp_path):
    corpus = points()[0][1]
    wild = dataclasses.replace(
        trials(2)[1], config=override(trials(2)[1].config, {"train.clip_norm": 1e300})
    )
    wild = dataclasses.replace(
        wild, config=override(wild.config, {"train.learning_rate": 1e308, "model.cell.gain": 1.0})
    )
    train_group([trials(1)[0], wild], tmp_path, corpus, [])
    results = [load_run(tmp_path / trial.directory).result for trial in (trials(1)[0], wild)]
    assert [result["status"] for result in results] == ["finished", "diverged"]
    assert results[1]["step"] < 20


@pytest.mark.slow
def test_the_worst_are_pruned_at_a_rung_and_stay_so(tmp_path):
    corpus = points()[0][1]
    asked = []

    def judge(step, nats):
        asked.append((step, {trial.name: loss for trial, loss in nats.items()}))
        return set(sorted(nats, key=nats.__getitem__)[: len(nats) - 1])

    four = trials(4)
    train_group(four, tmp_path, corpus, [], prune=judge, rungs=(7, 14))
    results = {t.name: load_run(tmp_path / t.directory).result for t in four}
    assert [step for step, _ in asked] == [7, 14]
    out = [max(nats, key=nats.__getitem__) for _, nats in asked]
    assert [results[name]["status"] for name in out] == ["pruned", "pruned"]
    assert [results[name]["step"] for name in out] == [7, 14]
    assert sum(result["status"] == "finished" for result in results.values()) == 2
    train_group(four, tmp_path, corpus, [], prune=judge, rungs=(7, 14))
    assert len(asked) == 2
