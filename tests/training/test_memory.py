"""No copies of a train state: none while it is saved, restored, judged, or when its run is over."""

import os
import signal
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import trees
from lm_jax.config import RNN, resolve
from lm_jax.scoring import scorer
from lm_jax.training import checkpoint, step
from lm_jax.training.checkpoint import Checkpoints
from lm_jax.training.journal import NO_ROWS

MEGABYTE = 10**6
PEAK = Path("/proc/self/clear_refs")

needs_peak = pytest.mark.skipif(
    not os.access(PEAK, os.W_OK), reason="the operating system tells no peak of memory"
)


def resident(line):
    """A line of the kernel's about this process, in bytes: VmRSS now, VmHWM at its peak."""
    with open("/proc/self/status") as lines:
        return next(1024 * int(words.split()[1]) for words in lines if words.startswith(line))


def at_its_peak(work):
    """What a call returns, and the bytes that memory at its peak was above memory before."""
    PEAK.write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    result = work()
    return result, resident("VmHWM") - before


class State(NamedTuple):
    """A state of four tables of 48 MB."""

    step: jax.Array
    params: list[jax.Array]


TABLE = 48 * MEGABYTE


@pytest.fixture
def large(monkeypatch):
    tables = [jax.random.normal(jax.random.key(n), (6, TABLE // 48)) for n in range(4)]
    assert tables[0].nbytes == TABLE
    monkeypatch.setattr(checkpoint, "COPIED", TABLE)
    return jax.block_until_ready(State(jnp.asarray(7, jnp.int32), tables))


def copied(state):
    return jax.tree.map(np.array, state)


next_update = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)


@pytest.mark.slow
@needs_peak
def test_a_large_state_is_saved_and_restored_without_a_copy(large, tmp_path):
    small = Checkpoints(tmp_path / "small", 0, tiny.KNOWN)
    small.save(State(large.step, []), NO_ROWS)  # Orbax is imported
    checkpoints, wanted = Checkpoints(tmp_path, 0, tiny.KNOWN), copied(large)
    _, peak = at_its_peak(lambda: checkpoints.save(large, NO_ROWS))
    assert peak < TABLE / 2
    # What was saved is no longer looked at: the update takes its memory over.
    places = [leaf.unsafe_buffer_pointer() for leaf in large.params]
    after, peak = at_its_peak(lambda: jax.block_until_ready(next_update(large)))
    assert peak < TABLE / 2
    assert [leaf.unsafe_buffer_pointer() for leaf in after.params] == places
    checkpoints.close()
    template = jax.eval_shape(lambda: after)
    del large
    found, peak = at_its_peak(lambda: tiny.restored(tmp_path, template))
    assert 4 * TABLE < peak < 5.5 * TABLE
    tiny.assert_trees_equal(found, wanted)
    places = [leaf.unsafe_buffer_pointer() for leaf in found.params]
    assert [leaf.unsafe_buffer_pointer() for leaf in next_update(found).params] == places


def test_what_is_restored_can_be_taken_over_wherever_numpy_put_it():
    """JAX reads an array of NumPy's in place where it lies on 64 bytes."""
    memory = np.zeros(128 + 800, np.uint8)
    for shift in range(0, 64, 8):
        start = -memory.ctypes.data % 64 + shift
        array = memory[start : start + 800].view(np.float64)
        array[:] = np.arange(100)
        owned = checkpoint._owned(array)
        place = owned.unsafe_buffer_pointer()
        assert next_update(owned).unsafe_buffer_pointer() == place
        np.testing.assert_array_equal(array, np.arange(100))


def test_a_small_state_may_change_while_it_is_written(tmp_path, monkeypatch):
    changed, write = threading.Event(), Checkpoints._write

    def late(*given):
        changed.wait()
        write(*given)

    monkeypatch.setattr(Checkpoints, "_write", late)
    state = State(jnp.asarray(3, jnp.int32), [jnp.arange(6.0)])
    wanted, checkpoints = copied(state), Checkpoints(tmp_path, 0, tiny.KNOWN)
    checkpoints.save(state, NO_ROWS)
    after = next_update(state)
    changed.set()
    checkpoints.close()
    tiny.assert_trees_equal(tiny.restored(tmp_path, jax.eval_shape(lambda: after)), wanted)


@pytest.mark.slow
@needs_peak
def test_a_whole_run_takes_its_state_a_gradient_and_little_more(tmp_path, monkeypatch):
    """Through validation, saving, going on, and the end: what an update takes, and no copy."""
    words, size = 60_000, 256
    # What is small beside the tables of a million words is to be small beside these.
    monkeypatch.setattr(trees, "LARGE", 2**22)
    monkeypatch.setattr(scorer, "LOGITS_AT_ONCE", 2**20)
    text = " ".join(f"w{n}" for n in range(words))
    config = tiny.config(
        data={"tokenizer": "word"},
        model=RNN(embedding_size=size, hidden_size=4),
        train={"steps": 4, "validate_every": 2, "checkpoint_every": 2},
    )
    texts = [text, "w1 w2 w3", "w2 w1"]
    table = 8 * size * words
    of_a_run = 5 * table  # parameters, gradient, Adam's two moments, the best parameters

    def stop(now, row):
        if now == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def begin():
        with pytest.raises(SystemExit):
            lm_jax.train(config, tmp_path, text=texts, watch=stop)

    _, peak = at_its_peak(begin)
    assert 4 * table < peak < of_a_run + 2.5 * table
    run, peak = at_its_peak(lambda: lm_jax.train(config, tmp_path, text=texts))
    assert 4 * table < peak < of_a_run + 2.5 * table
    assert run.result["status"] == "finished"
    del run
    _, peak = at_its_peak(lambda: lm_jax.load_run(tmp_path))
    assert peak < 3.5 * table


def test_a_run_is_loaded_without_what_it_does_not_keep(tmp_path, monkeypatch):
    lm_jax.train(tiny.config(train={"keep_best": True}), tmp_path, text=tiny.TEXT)
    read, load = set(), checkpoint.Checkpoint._load

    def loaded(saved, names):
        read.update(name.split("/")[0] for name in names)
        return load(saved, names)

    monkeypatch.setattr(checkpoint.Checkpoint, "_load", loaded)
    lm_jax.load_run(tmp_path)
    assert read == {"step", "early_stopping", "best_params"}


def test_a_restored_state_is_laid_out_in_its_own_memory():
    config = resolve(tiny.config())
    state = step.init(config, tiny.V)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    placed = step.shard(config, state, tiny.V, None)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(placed)] == places
