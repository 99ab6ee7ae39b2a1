"""Suggested points: none twice, the good ones followed up, and a kill changes nothing."""

import json
import math
import sys
import warnings
from types import SimpleNamespace

import pytest
import tiny

import lm_jax
from lm_jax.settings import UserError
from lm_jax.sweeps import optuna_search
from lm_jax.sweeps.optuna_search import ASKED, STUDY, OptunaSearch
from lm_jax.sweeps.points import choice, draw, integers, log_uniform, uniform
from lm_jax.training.trainer import Trainer

SPACE = draw(
    {
        "train.learning_rate": log_uniform(1e-4, 1.0),
        "model.dropout.outputs": uniform(0.0, 0.5),
        "model.hidden_size": integers(4, 64),
        "model.cell": choice(["elman", "lstm"]),
        "model.readout.cutoffs": choice([None, [2, 4]]),
    },
    count=1,
).space
SMALL = {"model.layers": integers(1, 3), "model.cell": choice(["elman", "lstm"])}


def row(number, point, status="finished"):
    """Of results.jsonl: a bowl whose bottom is at a learning rate of 0.01, and an LSTM's."""
    rate = point.get("train.learning_rate", 0.01)
    nats = 1 + (math.log10(rate) + 2) ** 2 + (point.get("model.cell") == "elman")
    return {
        "number": number,
        "status": status,
        "step": 900,
        "best_validation": nats,
        "last_validation": nats + 0.5,
    }


def searched(search, steps=99):
    """Goes on for so many batches, and gives what was asked for."""
    while steps and (batch := search.ask()):
        search.tell([row(number, point) for number, point in batch.items()])
        steps -= 1
    return search.asked


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    pytest.importorskip("optuna")
    path = tmp_path_factory.mktemp("whole")
    return path, searched(OptunaSearch(SPACE, 22, path, batch=5))


@pytest.mark.extras
def test_every_point_is_one_of_the_space_and_none_comes_twice(undisturbed):
    _, asked = undisturbed
    assert list(asked) == list(range(1, 23))
    assert len({json.dumps(point) for point in asked.values()}) == 22
    for point in asked.values():
        assert list(point) == list(SPACE)
        assert 1e-4 <= point["train.learning_rate"] <= 1.0
        assert 0 <= point["model.dropout.outputs"] <= 0.5
        assert isinstance(point["model.hidden_size"], int)
        assert 4 <= point["model.hidden_size"] <= 64
        assert point["model.cell"] in ("elman", "lstm")
        assert point["model.readout.cutoffs"] in (None, [2, 4])


@pytest.mark.extras
def test_the_seed_and_what_was_told_say_what_comes_next(undisturbed, tmp_path):
    _, asked = undisturbed
    other = OptunaSearch(SPACE, 22, tmp_path, batch=5, seed=1)
    assert not {json.dumps(p) for p in other.ask().values()} & {
        json.dumps(p) for p in asked.values()
    }
    for end, told in (("better", 0.5), ("same", None)):
        (tmp_path / end).mkdir()
        search = OptunaSearch(SPACE, 22, tmp_path / end, batch=5)
        searched(search, 2)
        batch = search.ask()
        rows = [row(number, point) for number, point in batch.items()]
        worst = max(rows, key=lambda row: row["best_validation"])
        worst["best_validation"] = told or worst["best_validation"]
        search.tell(rows)
        assert (search.ask() == {n: asked[n] for n in range(16, 21)}) is (end == "same")


@pytest.mark.extras
def test_a_search_that_is_killed_after_any_write_goes_on_as_if_it_had_not_been(
    undisturbed, tmp_path
):
    path, asked = undisturbed
    lines = (path / ASKED).read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 5
    for done in (0, 1, 2, 7, 10):
        killed = tmp_path / str(done)
        killed.mkdir()
        if done:
            (killed / ASKED).write_text("".join(lines[: 1 + done]))
        search = OptunaSearch(SPACE, 22, killed, batch=5)
        if done % 2:  # asked for, and not told of
            first = 1 + 5 * (done // 2)
            assert search.ask() == {n: asked[n] for n in range(first, min(first + 5, 23))}
        assert searched(search) == asked
        assert (killed / ASKED).read_text() == "".join(lines)


@pytest.mark.extras
def test_what_is_told_of_one_trial_at_a_time_is_the_same(undisturbed, tmp_path):
    _, asked = undisturbed
    search = OptunaSearch(SPACE, 22, tmp_path, batch=5)
    for number in (2, 5, 4, 1, 3):
        batch = search.ask()
        assert number in batch
        others = [row(n, point, "stopped") for n, point in batch.items() if n != number]
        search.tell([*others, row(number, batch[number])])
        search = OptunaSearch(SPACE, 22, tmp_path, batch=5)
    assert searched(search) == asked


@pytest.mark.extras
def test_the_search_closes_in_on_what_is_good(undisturbed, tmp_path):
    found = [row(n, p)["best_validation"] for n, p in undisturbed[1].items()]
    first, last = sorted(found[:10]), sorted(found[10:])
    assert last[len(last) // 2] < first[len(first) // 2]


@pytest.mark.extras
def test_a_small_space_is_asked_for_whole(tmp_path):
    pytest.importorskip("optuna")
    asked = searched(OptunaSearch(SMALL, 6, tmp_path, batch=4))
    every = {(layers, cell) for layers in (1, 2, 3) for cell in ("elman", "lstm")}
    assert {tuple(point.values()) for point in asked.values()} == every


@pytest.mark.extras
def test_a_search_may_be_given_more_points(undisturbed, tmp_path):
    path, asked = undisturbed
    search = OptunaSearch(SPACE, 10, tmp_path, batch=5)
    assert searched(search) == {number: asked[number] for number in range(1, 11)}
    assert search.ask() == {}
    assert searched(OptunaSearch(SPACE, 22, tmp_path, batch=5)) == asked
    assert (tmp_path / ASKED).read_text() == (path / ASKED).read_text()


@pytest.mark.extras
def test_the_study_lies_there_for_optuna_and_says_how_each_trial_ended(tmp_path):
    optuna = pytest.importorskip("optuna")
    search = OptunaSearch(SPACE, 5, tmp_path, batch=5)
    batch = search.ask()
    ends = ["finished", "pruned", "diverged", "failed", "finished"]
    rows = [row(n, batch[n], status) for n, status in enumerate(ends, 1)]
    rows[4]["best_validation"] = None
    rows[3] |= {"best_validation": None, "last_validation": None}
    search.tell(rows[2:])
    assert search.ask() == {1: batch[1], 2: batch[2]}
    search.tell(rows)
    # What was killed before the study was written is made up for.
    assert OptunaSearch(SPACE, 5, tmp_path).ask() == {}
    assert search.ask() == {}
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / STUDY}")
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    storage.engine.dispose()
    by_number = {trial.user_attrs["trial"]: trial for trial in trials}
    assert len(trials) == len(by_number) == 5
    best = rows[0]["best_validation"]
    values = {n: (trial.state.name, trial.value) for n, trial in sorted(by_number.items())}
    assert values == {
        1: ("COMPLETE", best),
        2: ("PRUNED", None),
        3: ("COMPLETE", math.inf),
        4: ("FAIL", None),
        5: ("COMPLETE", math.inf),
    }
    assert by_number[2].intermediate_values == {900: rows[1]["last_validation"]}
    assert by_number[1].params["model.cell"] == json.dumps(batch[1]["model.cell"])


@pytest.mark.extras
def test_optuna_is_as_talkative_afterwards_as_before(tmp_path, capfd):
    optuna = pytest.importorskip("optuna")
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searched(OptunaSearch(SMALL, 2, tmp_path))
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""


@pytest.mark.extras
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "is of another search: its seed is another"),
        ({"space": {"seed": integers(0, 9)}}, "is of another search: its space is another"),
        ({"space": SMALL, "count": 7}, "the space has 6 points, which is less than 7"),
        ({"count": 0}, "count=0 must be 1 or more"),
        ({"batch": 0}, "batch=0 must be 1 or more"),
    ],
)
def test_a_search_that_cannot_be_or_is_another_is_refused(change, said, undisturbed):
    asked = {"space": SPACE, "count": 5, **change}
    with pytest.raises(UserError, match=said):
        OptunaSearch(asked.pop("space"), asked.pop("count"), undisturbed[0], **asked)


@pytest.mark.extras
def test_a_damaged_search_is_refused(tmp_path):
    pytest.importorskip("optuna")
    for damage in ("", "{", "[]\n[]\n", '{"seed": 0}\n{"told": 3}\n'):
        (tmp_path / ASKED).write_text(damage)
        with pytest.raises(UserError, match=r"is damaged|of another search"):
            OptunaSearch(SPACE, 5, tmp_path)


def test_without_optuna_the_user_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"Optuna is not installed: pip install"):
        OptunaSearch(SPACE, 5, tmp_path)


@pytest.mark.slow
def test_a_search_that_is_over_tries_once_more_what_broke_off(tmp_path, monkeypatch):
    """Without Optuna, which has no say once all points are asked for."""
    quiet = SimpleNamespace(get_verbosity=lambda: 0, set_verbosity=lambda level: None, WARNING=0)
    points, real = [{"seed": 1}, {"seed": 2}], Trainer.events

    def events(self):
        if self.config.seed == 2:
            raise OSError("no space left on device")
        yield from real(self)

    def run():
        drawn = draw({"seed": integers(1, 9)}, count=2)
        rows = lm_jax.sweep(tiny.config(), drawn, tmp_path, text=tiny.TEXT, suggest=2, retries=0)
        return [row["status"] for row in rows]

    monkeypatch.setattr(optuna_search, "_optuna", lambda: SimpleNamespace(logging=quiet))
    monkeypatch.setattr(OptunaSearch, "_publish", lambda self, optuna: None)
    monkeypatch.setattr(OptunaSearch, "_drawn", lambda self, optuna, count: points)
    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "events", events)
        assert run() == ["finished", "failed"]
    asked = (tmp_path / ASKED).read_bytes()
    assert run() == ["finished", "finished"]
    assert (tmp_path / ASKED).read_bytes() == asked  # or other points would have followed
