"""Changing a config at some paths, as a sweep does."""

import numpy as np
import pytest

from lm_jax.config import (
    LSTM,
    RNN,
    Config,
    Cosine,
    Group,
    Momentum,
    NGram,
    SampledSoftmax,
    Train,
    Window,
    override,
    resolve,
    with_kinds,
)
from lm_jax.settings import UserError


def test_a_change_is_made_at_its_path_and_nowhere_else():
    base = Config(model=RNN(hidden_size=7), train=Train(schedule=Cosine()))
    changed = override(base, {"model.cell": "lstm", "train.schedule.final": 0.5, "seed": 3})
    assert changed == Config(
        model=RNN(cell=LSTM(), hidden_size=7), train=Train(schedule=Cosine(final=0.5)), seed=3
    )
    assert override(base, {}) == base


def test_another_kind_begins_with_its_own_defaults():
    base = Config(model=RNN(hidden_size=7), train=Train(steps=9))
    changed = override(base, {"model.order": 3, "model": "window"})
    assert changed == Config(model=Window(order=3), train=Train(steps=9))
    same = override(base, {"model": "rnn", "model.layers": 2})
    assert same.model == RNN(hidden_size=7, layers=2)


def test_kinds_come_in_any_order_and_one_that_is_there_stays():
    point = {"model.readout.samples": 5, "model.readout": "sampled", "model": "window"}
    assert override(Config(), point).model == Window(readout=SampledSoftmax(samples=5))
    base = Config(model=RNN(hidden_size=7))
    assert with_kinds(base, {"model": "rnn"}) == base
    assert with_kinds(base, {"train.schedule": "cosine"}).train.schedule == Cosine()


def test_numbers_of_numpy_are_numbers():
    changed = override(Config(), {"model.hidden_size": np.int64(4), "seed": np.uint32(3)})
    assert changed == Config(model=RNN(hidden_size=4), seed=3)


def test_a_counted_model_is_not_trained_and_any_other_is():
    counted = override(Config(train=Train(steps=9)), {"model": "ngram"})
    assert counted == Config(model=NGram(), train=None)
    assert override(counted, {"model": "rnn"}) == Config()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.hiden_size": 3}, "no field model.hiden_size; did you mean 'model.hidden_size'?"),
        ({"model": "rmn"}, "model='rmn'"),
        ({"seed.x": 3}, "there is no field seed.x"),
        ({"model.hidden_size": 0}, "hidden_size=0: input should be greater than 0"),
        ({"model.hidden_size": "big"}, "hidden_size='big'"),
        ({"model": "ngram", "train.steps": 3}, "there is no field train.steps"),
        (
            {"train.gradient.k1": 3},
            "train.gradient.k1 with train.gradient=explicit: it is read with "
            "train.gradient=truncated",
        ),
        (
            {"model.uniform": 0.1, "model.cell.gain": 2.0},
            "model.cell.gain is not read with model.uniform",
        ),
        ({"model.uniform": float("inf")}, "uniform"),
        ({"data.batching": "sentences", "model": "ngram"}, "is told by model.sentence_boundaries"),
    ],
)
def test_a_wrong_change_is_refused_and_named(changes, said):
    with pytest.raises(UserError) as refusal:
        override(Config(), changes)
    assert said in str(refusal.value)


CODE = """
def cell(inputs, hidden_size, heads=2, scale=0.5, name="a"):
    pass


def rule(learning_rate, decay=0.9):
    pass
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(CODE)


@pytest.mark.usefixtures("code")
def test_the_hyperparameters_of_custom_code_are_fields_at_its_place():
    changed = override(
        Config(),
        {
            "model.cell.heads": 4,
            "model.cell": "own.py:cell",
            "train.optimizer": "own.py:rule",
            "train.optimizer.decay": 0.5,
        },
    )
    assert changed.model.cell.arguments == {"heads": 4, "scale": 0.5, "name": "a"}
    assert changed.train.optimizer.arguments == {"decay": 0.5}
    again = override(changed, {"model.cell.scale": 2, "train.groups": ["*"]})
    again = override(again, {"train.groups.0.optimizer": "own.py:rule"})
    assert resolve(again).model.cell.arguments == {"heads": 4, "scale": 2.0, "name": "a"}
    assert again.train.groups[0].optimizer.arguments == {"decay": 0.9}


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.cell.head": 4}, "there is no field model.cell.head; did you mean 'model.cell.h"),
        ({"model.cell.hidden_size": 4}, "there is no field model.cell.hidden_size"),
        ({"model.cell.heads": "x"}, "model.cell.heads='x': model.cell=own.py:cell takes int here"),
        ({"model.cell.heads": 2.5}, "model.cell.heads=2.5: model.cell=own.py:cell takes int here"),
        ({"model.cell.heads": None}, "model.cell.heads=None: input should be a valid"),
        ({"model.cell": "own.py:sell"}, "model.cell=own.py:sell: own.py has no sell; did you mean"),
    ],
)
def test_a_wrong_hyperparameter_is_refused_and_named(changes, said):
    with pytest.raises(UserError) as refusal:
        resolve(override(Config(), {"model.cell": "own.py:cell", **changes}))
    assert said in str(refusal.value)


def test_groups_are_chosen_by_their_patterns_and_set_by_their_numbers():
    base = override(
        Config(),
        {
            "train.groups.1.optimizer.momentum": 0.5,
            "train.groups.1.optimizer": "momentum",
            "train.groups.0.learning_rate": 0.1,
            "train.groups": ["embedding.*", "*W_hh"],
        },
    )
    embedding, recurrent = (
        Group("embedding.*", 0.1),
        Group("*W_hh", optimizer=Momentum(momentum=0.5)),
    )
    assert base.train.groups == (embedding, recurrent)
    # A pattern that stays keeps its settings.
    swapped = override(base, {"train.groups": ("*W_hh", "*b_h")})
    assert swapped.train.groups == (recurrent, Group("*b_h"))
    off = override(base, {"train.groups.0.learning_rate": None, "train.groups.1.optimizer": None})
    assert off.train.groups == (Group("embedding.*"), Group("*W_hh"))
    assert override(base, {"train.groups": None}) == override(base, {"train.groups": []})
    assert override(base, {"train.groups": None}) == Config()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.groups": "*"}, "train.groups='*' must be a list of patterns"),
        ({"train.groups": [3]}, "train.groups=[3] must be a list of patterns"),
        ({"train.groups.1.optimizer": "sgd"}, "there is no field train.groups.1.optimizer"),
        ({"train.groups.1.learning_rate": 1}, "there is no field train.groups.1.learning_rate"),
        ({"train.groups.²": 1}, "there is no field train.groups.²"),
        ({f"train.groups.{'9' * 5000}": 1}, "there is no field train.groups.99"),
        ({"train.groups.0.optimizer": "asgd"}, "train.groups.0.optimizer='asgd': choose from sgd,"),
        ({"train.groups.0.learning_rate": "x"}, "train.groups.0.learning_rate='x': input should"),
        (
            {"train.groups.0.optimizer.beta1": 0.5},
            "with train.groups.0.optimizer=None: it is read with train.groups.0.optimizer=adam or",
        ),
        (
            {"train.groups.0.optimizer": "momentum", "train.groups.0.optimizer.momentum": 2.0},
            "train.groups.0.optimizer.momentum=2.0: input should be less than",
        ),
    ],
)
def test_a_wrong_group_is_refused_and_named(changes, said):
    with pytest.raises(UserError) as refusal:
        override(Config(), {"train.groups": ["*"], **changes})
    assert said in str(refusal.value)
