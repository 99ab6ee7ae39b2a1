"""Points of a sweep: what is declared, in which order, and what is refused."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from lm_jax import fields
from lm_jax.config import Config, override
from lm_jax.fields import Mark
from lm_jax.settings import UserError
from lm_jax.sweeps import (
    chain,
    choice,
    crossed,
    draw,
    grid,
    integers,
    lanes,
    log_uniform,
    plan,
    uniform,
    zipped,
)
from lm_jax.sweeps.plan import distinctions

RATE, SEED, SIZE = "train.learning_rate", "seed", "model.hidden_size"


def test_a_grid_is_every_combination_and_the_last_path_changes_fastest():
    assert grid({RATE: [0.1, 0.2], SEED: range(2)}) == [
        {RATE: 0.1, SEED: 0},
        {RATE: 0.1, SEED: 1},
        {RATE: 0.2, SEED: 0},
        {RATE: 0.2, SEED: 1},
    ]
    assert grid({SEED: np.arange(2)}) == grid({SEED: range(2)})


def test_points_are_zipped_chained_and_crossed():
    pairs = zipped({SIZE: [4, 8], RATE: [0.1, 0.2]})
    assert pairs == [{SIZE: 4, RATE: 0.1}, {SIZE: 8, RATE: 0.2}]
    assert chain(pairs, [{SEED: 3}]) == [*pairs, {SEED: 3}]
    assert crossed(pairs, grid({SEED: [0, 1]})) == [
        {**pair, SEED: seed} for pair in pairs for seed in (0, 1)
    ]


def test_draws_are_the_same_each_time_and_keep_to_their_space():
    space = {
        RATE: log_uniform(1e-4, 1e-1),
        "train.clip_norm": uniform(0.5, 2.0),
        "model.cell": choice(["gru", "lstm"]),
        SIZE: integers(4, 6),
    }
    points = draw(space, count=400, seed=1)
    assert points == draw(space, count=400, seed=1) != draw(space, count=400, seed=2)
    assert points[:3] == draw(space, count=3, seed=1)  # more draws come after, not between
    assert points.space == space
    assert {point[SIZE] for point in points} == {4, 5, 6}
    assert {point["model.cell"] for point in points} == {"gru", "lstm"}
    assert all(0.5 <= point["train.clip_norm"] <= 2.0 for point in points)
    # log10 of the rate is uniform on [-4, -1]: mean -2.5, standard deviation √(9/12).
    logs = np.log10([point[RATE] for point in points])
    assert -4 <= logs.min() < logs.max() <= -1
    assert abs(logs.mean() + 2.5) < 4 * np.sqrt(9 / 12 / 400)
    override(Config(), points[0])  # numbers of Python, which JSON knows


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (lambda: grid({SEED: 3}), "grid: seed=3 must be a list of values"),
        (lambda: grid({"model.cell": "gru"}), "grid: model.cell='gru' must be a list of values"),
        (lambda: grid({SEED: []}), "grid: seed has no values"),
        (lambda: zipped({SEED: [1, 2], RATE: [0.1]}), "not 2 of seed, 1 of train.learning_rate"),
        (lambda: crossed([{SEED: 1}], [{SEED: 2}]), "crossed: seed is changed by two"),
        (lambda: draw({SEED: [1, 2]}), "draw: seed=[1, 2] must be log_uniform, uniform"),
        (lambda: draw({SEED: integers(0, 9)}, count=0), "draw: count=0 must be 1 or more"),
        (lambda: log_uniform(0, 1), "log_uniform(0, 1): it must be 0 < low < high"),
        (lambda: uniform(2, 1), "uniform(2, 1): it must be low < high"),
        (lambda: integers(1, 2.5), "integers(1, 2.5): both ends must be integers"),
        (lambda: choice([]), "choice: of has no values"),
        (lambda: lanes({SIZE: [4, 8]}), "lanes: model.hidden_size changes the compiled program"),
        (lambda: lanes({"seeed": [4]}), "lanes: there is no field seeed"),
        (lambda: lanes({"train.omega": [None, 1.0]}), "lanes: train.omega=None switches it off"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(declared, said):
    with pytest.raises(UserError) as refusal:
        declared()
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_lanes_are_the_fields_that_reach_the_program_as_arguments():
    values = {
        RATE: [0.1, 0.2],
        "train.optimizer.beta1": [0.8],
        "model.cell.gain": [0.5],
        "train.feeding.start": [0.1],
    }
    assert lanes(values) == grid(values)
    for path, _, marks in fields.fields(tiny.config()):
        assert fields.marks_at(Config, path) == marks, path
    assert fields.marks_at(Config, "data.source.seed") == frozenset()


def planned(points, **parts):
    named = {str(number): point for number, point in enumerate(points)}
    return plan(tiny.config(**parts), named, tiny.TEXT)


def test_trials_that_differ_only_in_numbers_are_one_group():
    numbers = crossed(
        grid({RATE: [0.1, 0.2], SEED: [0, 1]}),
        zipped({"train.clip_norm": [1.0, 2.0], "model.dropout.inputs": [0.1, 0.2]}),
    )
    found = planned(numbers)
    assert [len(group.trials) for group in found.groups] == [8]
    assert found.groups[0].vectorised
    assert [trial.number for trial in found.groups[0].trials] == list(range(1, 9))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (SIZE, 7),
        ("train.clip_norm", 1.0),  # from off to on
        ("train.log_every", 7),
        ("train.steps", 19),
        ("data.length", 4),
        ("train.optimizer", "sgd"),
    ],
)
def test_any_other_difference_makes_another_group_and_is_told(path, value):
    found = planned([{SEED: 0}, {SEED: 1}, {path: value}])
    assert [len(group.trials) for group in found.groups] == [2, 1]
    assert not found.groups[1].vectorised
    told = distinctions(found.groups)[1]
    assert told == {path: True if path == "train.clip_norm" else value}


def test_counted_models_share_no_program():
    ngram = {"model": "ngram", "model.smoothing": "add-k"}
    found = planned([{**ngram, "model.k": k} for k in (0.1, 0.2)])
    assert [group.vectorised for group in found.groups] == [False]


def test_a_text_is_read_once_however_many_trials_there_are(monkeypatch):

    module = sys.modules["lm_jax.sweeps.plan"]  # `plan` is the function
    real, loads = module.load, []
    monkeypatch.setattr(module, "load", lambda *args: loads.append(args) or real(*args))
    points = grid({SEED: range(40), "data.length": [4, 8]})
    found = planned([*points, {"data.tokenizer": "word"}], train={"epochs": 2})
    assert len(loads) == 2
    # An epoch of all targets: half the length is twice the updates, to one.
    steps = {trial.config.data.length: trial.config.train.steps for trial in found.trials[:2]}
    assert 0 <= 2 * steps[8] - steps[4] <= 2
    assert {group.vocab for group in found.groups} == {
        len(set(tiny.TEXT)) + 1,
        len(set(tiny.TEXT.split())) + 2,
    }


def test_marks_are_what_shape_blanks():
    assert fields.marks_at(Config, RATE) == {Mark.LEAF}
    assert fields.marks_at(Config, "train.steps") == {Mark.ADJUSTABLE}
    assert fields.marks_at(Config, "train.step") is None


def test_what_the_page_declares_is_a_plan():
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    found = planned(names["sweep"]())
    assert [len(group.trials) for group in found.groups] == [6, 6, 1]
