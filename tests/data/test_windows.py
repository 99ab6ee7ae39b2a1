"""Prefetched: what is read ahead from the disk trains as what is on the device, to the last bit."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import fields, settings
from lm_jax.analysis import state_at
from lm_jax.config import Copy, Data, resolve
from lm_jax.data import windows
from lm_jax.data.batches import batch_at, steps_per_epoch, streams
from lm_jax.data.corpus import load
from lm_jax.data.windows import Prefetched, input_pipeline, updates_of_epoch, window_updates
from lm_jax.settings import UserError
from lm_jax.training import step
from lm_jax.training.checkpoint import newest, tree_digest
from lm_jax.training.hosts import Processes
from lm_jax.training.loop import prepared
from lm_jax.training.manifest import read
from lm_jax.training.trainer import Trainer

BOUNDARY = 0
# N, B, T, W: a last window that is not full; empty lanes and a short one; windows of one update;
# one window; a lane shorter than an update.
TEXTS = [(67, 3, 4, 4), (23, 6, 1, 2), (40, 4, 3, 1), (30, 2, 4, 9), (7, 2, 10, 3)]


@pytest.mark.parametrize(("N", "B", "T", "W"), TEXTS)
def test_a_window_gives_the_batches_that_the_whole_streams_give(N, B, T, W):
    """Every number of them, those under the mask too, over two epochs and a start in the middle."""
    tokens = np.arange(1, N + 1, dtype=np.uint8)
    whole, feed = streams(tokens, BOUNDARY, B), Prefetched(tokens, BOUNDARY, B, T, W)
    epoch = steps_per_epoch(whole, T)
    assert feed.steps_per_epoch == epoch
    assert feed.updates <= W
    shapes, ends = set(), []
    read = jax.jit(batch_at, static_argnums=2)
    for update in [*range(2 * epoch + 1), epoch // 2]:
        source, end = feed.at(update)
        shapes.add((jax.tree.structure(source), tuple(leaf.shape for leaf in source[:3])))
        ends.append(end)
        assert update < end <= update + W
        assert steps_per_epoch(source, T) == epoch
        tiny.assert_trees_equal(read(source, update, T), batch_at(whole, update, T))
    assert len(shapes) == 1
    assert {epoch, 2 * epoch} <= set(ends)


@pytest.mark.parametrize("batching", ["streams", "sentences"])
def test_the_updates_of_an_epoch_are_counted_without_a_device(batching):
    for B, T in ((1, 3), (4, 8), (7, 5), (50, 100)):
        _, corpus = prepared(tiny.config(), tiny.TEXT)
        epoch = input_pipeline(corpus, batching, B, T).steps_per_epoch
        assert updates_of_epoch(corpus, batching, B, T) == epoch
    task = Data(source=Copy(symbols=3, items=2), length=9, batch_size=4)
    corpus = load(task)
    assert updates_of_epoch(corpus, batching, 4, 9) == corpus.task.epoch


def test_outside_of_its_window_an_update_has_no_targets():
    feed = Prefetched(np.arange(1, 61, dtype=np.uint8), BOUNDARY, 2, 5, 2)
    source, end = feed.at(2)
    assert end == 4
    targets = [int(batch_at(source, update, 5).mask.sum()) for update in range(6)]
    assert targets == [0, 0, 10, 10, 0, 0]


def test_a_mapped_text_is_read_a_window_ahead_and_no_further(tmp_path, monkeypatch):
    np.arange(1, 121, dtype=np.uint8).tofile(tmp_path / "tokens")
    mapped = np.memmap(tmp_path / "tokens", np.uint8, "r")
    feed, read = Prefetched(mapped, BOUNDARY, 2, 5, 3), []
    plain = feed._window
    monkeypatch.setattr(feed, "_window", lambda number: (read.append(number), plain(number))[1])
    whole = streams(np.asarray(mapped), BOUNDARY, 2)
    for update, known in [(0, {0, 1}), (2, {0, 1}), (3, {1, 2}), (9, {3, 0}), (12, {0, 1})]:
        source, _ = feed.at(update)
        assert set(feed._read) == known
        tiny.assert_trees_equal(batch_at(source, update, 5), batch_at(whole, update, 5))
    for ahead in feed._read.values():
        ahead.result()
    # What is held already is not read again.
    assert read == [0, 1, 2, 3, 0, 1]


CONFIG = tiny.config(
    data={"batch_size": 5},
    train={"steps": 53, "log_every": 7, "validate_every": 20, "checkpoint_every": 15},
)
WINDOWED = fields.replace_at(CONFIG, "data.window_updates", 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return lm_jax.train(CONFIG, tmp_path_factory.mktemp("whole"), text=tiny.TEXT)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    return lm_jax.train(WINDOWED, tmp_path_factory.mktemp("windowed"), text=tiny.TEXT)


def state_of(run, until=None):
    template = step.init.eval_shape(resolve(run.config), len(run.vocabulary))
    known, load = read(run.path), lambda saved: saved.restored(template)
    return newest(run.path, known, load, until=until)


def test_training_from_windows_is_training_from_the_device(whole, windowed):
    """Every bit of the last state, over more than two epochs, and every figure of the records."""
    work = Trainer(*prepared_work(windowed))
    assert isinstance(work.pipeline, Prefetched)
    assert 2 * work.pipeline.steps_per_epoch < 53
    assert work.pipeline.updates < work.pipeline.steps_per_epoch
    assert tree_digest(state_of(windowed)) == tree_digest(state_of(whole))
    for name in ("sha256", "splits", "parameters_step"):
        assert windowed.result[name] == whole.result[name]
    # A field that changes no result makes no other run.
    assert settings.digest(resolve(CONFIG)) == settings.digest(resolve(WINDOWED))


def prepared_work(run):
    config, corpus = prepared(run.config, tiny.TEXT)
    return config, run.path, corpus, Processes(), lambda step, row: None


@pytest.mark.slow
def test_a_run_goes_on_in_windows_and_out_of_them(whole, tmp_path):
    short = fields.replace_at(WINDOWED, "train.steps", 18)
    lm_jax.train(short, tmp_path, text=tiny.TEXT)
    middle = fields.replace_at(CONFIG, "train.steps", 31)
    lm_jax.train(middle, tmp_path, text=tiny.TEXT)
    run = lm_jax.train(WINDOWED, tmp_path, text=tiny.TEXT)
    # The states differ in where a record began.
    assert run.result["sha256"] == whole.result["sha256"]


def test_a_replay_and_a_probe_read_across_windows(whole, windowed):
    for at in (0, 4, 29, 53):
        assert tree_digest(state_at(windowed, at, text=tiny.TEXT)) == tree_digest(
            state_at(whole, at, text=tiny.TEXT)
        )
    one, other = Trainer(*prepared_work(windowed)), Trainer(*prepared_work(whole))
    for update in range(1, 9):  # as many as a probe looks at
        tiny.assert_trees_equal(one.batch(update), other.batch(update))
    state = one.restored(30)
    tiny.assert_trees_equal(one.next_batch(state), other.next_batch(state))


def test_a_loss_that_is_not_finite_ends_the_updates_in_its_own_window(windowed):
    work = Trainer(*prepared_work(windowed))
    state = step.init(work.config, work.vocab)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.params)
    after = work.replay_until(state._replace(params=broken), 11)
    assert int(after.step) == 1


def test_a_text_that_does_not_fit_comes_in_windows(monkeypatch):
    tokens = np.zeros(1000, np.uint16)
    for free, updates in ((8000, None), (7999, 2**26 // 40)):
        monkeypatch.setattr(windows, "free_memory", lambda free=free: free)
        assert window_updates(tokens, 4, 5) == updates


def test_free_memory_is_in_bytes_and_less_than_there_is():
    total = resource.getpagesize() * windows.os.sysconf("SC_PHYS_PAGES")
    assert total / 1000 < windows.free_memory() <= total


def test_windows_that_would_not_be_read_are_refused(windowed):
    for changed in ({"batching": "sentences"}, {"source": Copy(), "length": 40}):
        with pytest.raises(UserError, match=r"data\.window_updates is read only"):
            Data(**changed, window_updates=3)
    with pytest.raises(UserError, match=r"data\.window_updates.* one by one"):
        _ = Trainer(*prepared_work(windowed)).source
