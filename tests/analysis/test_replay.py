"""A run as it was before any update, and where its loss rose most."""

import shutil

import jax
import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import data
from lm_jax.analysis import replay, spike, state_at
from lm_jax.config import ASGD, RNN, SGD, Elman, NGram, Plateau, resolve
from lm_jax.gradients import batch_loss
from lm_jax.settings import UserError
from lm_jax.training import step
from lm_jax.training.checkpoint import newest, tree_digest
from lm_jax.training.journal import line_of, read_rows
from lm_jax.training.manifest import read
from lm_jax.training.trainer import pipeline_of

# Validation decides on the learning rate, on the average and on the parameters kept.
CONFIG = tiny.config(
    data={"batching": "sentences", "tokenizer": "word", "length": 6},
    train={
        "optimizer": ASGD(patience=1),
        "schedule": Plateau(factor=0.5, patience=1),
        "learning_rate": 10.0,
        "validate_every": 3,
        "log_every": 4,
        "steps": 18,
    },
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return lm_jax.train(CONFIG, tmp_path_factory.mktemp("run"), text=tiny.TEXT)


def saved(run, until=None):
    template = step.init.eval_shape(resolve(run.config), len(run.vocabulary))
    known, load = read(run.path), lambda saved: saved.restored(template)
    return newest(run.path, known, load, until=until)


def copied(run, folder, *without):
    shutil.copytree(run.path, folder)
    for old in without:
        shutil.rmtree(folder / "checkpoints" / f"{old:08d}")
    return run._replace(path=folder)


OLDER = pytest.mark.filterwarnings("ignore:passing over the checkpoint .* it is gone")


@OLDER
def test_a_state_on_the_way_is_the_one_that_was_saved_there(run, tmp_path):
    """Every bit of it, from the start and from the checkpoint before it."""
    assert float(saved(run).early_stopping.lr_scale) < 1
    assert int(saved(run).average.begun) > 0
    for name, removed in (("before", [18]), ("start", [15, 18])):
        older = copied(run, tmp_path / name, *removed)
        for at in (15, 18):
            state = state_at(older, at, text=tiny.TEXT)
            assert jax.tree.structure(state) == jax.tree.structure(saved(run, at))
            assert int(state.step) == at
            assert tree_digest(state) == tree_digest(saved(run, at))


def test_a_replay_writes_nothing(run):
    def files():
        return {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}

    before = files()
    state_at(run, 7, text=tiny.TEXT)
    assert files() == before


def test_before_the_first_update_a_run_is_as_it_was_drawn(run):
    state = state_at(run, 0, text=tiny.TEXT)
    assert tree_digest(state) == tree_digest(step.init(resolve(run.config), len(run.vocabulary)))


@pytest.mark.slow
@OLDER
def test_records_that_another_call_asked_for_are_replayed_as_they_were(tmp_path):
    """log_every may change when a run goes on; what a record has summed up is in the state."""
    first = tiny.config(train={"steps": 6, "log_every": 4, "checkpoint_every": 100})
    then = tiny.config(train={"steps": 12, "log_every": 5, "checkpoint_every": 11})
    lm_jax.train(first, tmp_path / "run", text=tiny.TEXT)
    run = lm_jax.train(then, tmp_path / "run", text=tiny.TEXT)
    older = copied(run, tmp_path / "copy", 11, 12)
    state = state_at(older, 11, text=tiny.TEXT)
    assert int(state.record.steps) == 1
    assert tree_digest(state) == tree_digest(saved(run, 11))


def test_what_cannot_be_replayed_is_refused(run, tmp_path):
    for at in (-1, 19):
        with pytest.raises(UserError, match=f"step={at} must be from 0 to the 18 updates"):
            state_at(run, at, text=tiny.TEXT)
    with pytest.raises(UserError, match="hands it over again, as text="):
        state_at(run, 3)
    with pytest.raises(UserError, match="another text"):
        state_at(run, 3, text=tiny.TEXT + "more\n")
    counted = lm_jax.train(
        lm_jax.Config(data=tiny.config().data, model=NGram(order=2)), tmp_path, text=tiny.TEXT
    )
    with pytest.raises(UserError, match="not trained by gradients"):
        state_at(counted, 0, text=tiny.TEXT)


def test_a_journal_that_does_not_tell_the_way_is_refused(run, tmp_path):
    older = copied(run, tmp_path / "copy", 15, 18)
    metrics = older.path / "metrics.jsonl"
    rows = read_rows(metrics)
    third = next(row for row in rows if row["kind"] == "evaluation" and row["step"] == 6)
    third["nats"] = None
    metrics.write_text("".join(line_of(number, row) for number, row in enumerate(rows)))
    assert int(state_at(older, 5, text=tiny.TEXT).step) == 5
    with pytest.raises(UserError, match="cannot be replayed beyond step 6: its validation there"):
        state_at(older, 6, text=tiny.TEXT)
    metrics.write_text("")
    with pytest.raises(UserError, match="has no record of an update yet"):
        spike(older, text=tiny.TEXT)


# --- spikes ---------------------------------------------------------------------------------------

PLANTED = 13
STEEP = tiny.config(
    model=RNN(embedding_size=4, hidden_size=6),
    train={"optimizer": SGD(), "learning_rate": 0.1, "log_every": 4, "validate_every": 30},
)


@pytest.fixture
def planted(monkeypatch):
    """One update whose learning rate is 3000 times the config's; its compiled loop is not kept."""
    rate = step.learning_rate

    def once(train, now, *rest):
        return rate(train, now, *rest) * jax.numpy.where(now == PLANTED, 3000.0, 1.0)

    monkeypatch.setattr(step, "learning_rate", once)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the run has learned nothing")
def test_a_planted_spike_is_found_to_the_update(planted, tmp_path):
    run = lm_jax.train(STEEP, tmp_path, text=tiny.TEXT)
    found = spike(run, text=tiny.TEXT)
    assert found.step == PLANTED
    assert found.after > found.before + 1
    config = resolve(run.config)
    corpus = data.load(config.data, tiny.TEXT)
    batch = data.batch_at(pipeline_of(config, corpus).whole(), PLANTED, 8)
    before, after = (state_at(run, at, text=tiny.TEXT) for at in (PLANTED, PLANTED + 1))
    loss = batch_loss(run.model, before.carry, batch)
    np.testing.assert_allclose(found.before, loss(before.params), rtol=1e-12)
    np.testing.assert_allclose(found.after, loss(after.params), rtol=1e-12)


@pytest.mark.slow
def test_the_update_that_broke_a_run_is_its_spike(tmp_path):
    config = tiny.config(train={"learning_rate": 1e200}, model=RNN(cell=Elman(activation="relu")))
    run = lm_jax.train(config, tmp_path, text=tiny.TEXT)
    assert run.result["status"] == "diverged"
    found = spike(run, text=tiny.TEXT)
    assert found.step == run.step - 2  # the update after it meets the loss that ends the run
    assert np.isfinite(found.before)
    assert not np.isfinite(found.after)


def rows(nats, norms):
    return [
        {"step": 10 * n, "nats": a, "grad_norm_max": b}
        for n, (a, b) in enumerate(zip(nats, norms, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("nats", "norms", "updates"),
    [
        ([4.0, 3.0, 3.5, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0, 2.0], [*range(10, 30), *range(30, 50)]),
        ([4.0, 3.0, 2.0, 2.0, 1.0], [1.0, 1.0, 1.0, 9.0, 1.0], range(20, 40)),
        ([4.0, 3.0, None], [1.0, 1.0, None], range(10, 30)),
        ([4.0], [1.0], range(0, 10)),
        ([None], [None], range(0, 10)),
    ],
)
def test_the_records_that_stand_out_are_looked_into_with_those_before_them(nats, norms, updates):
    assert set(replay._suspects(rows(nats, norms))) == set(updates)
