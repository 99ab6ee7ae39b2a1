"""Changing a config at some paths, as a sweep does."""

import numpy as np
import pytest

from lm_jax.config import (
    LSTM,
    RNN,
    TFDS,
    Config,
    Cosine,
    Data,
    File,
    Memory,
    NGram,
    SampledSoftmax,
    Train,
    Window,
    override,
    with_kind,
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
    assert with_kind(base, {"model": "rnn"}) == base
    assert with_kind(base, {"train.schedule": "cosine"}).train.schedule == Cosine()


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
        ({"train.gradient.k1": 3}, "train.gradient.k1 is read only with"),
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


def test_the_source_follows_from_what_is_given():
    assert Data().origin == "builtin"
    assert Data(source=File(train="a.txt")).origin == "file"
    assert Data(source=TFDS(name="lm1b")).origin == "tfds"
    assert Data(source=Memory()).origin == "memory"
