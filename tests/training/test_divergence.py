"""Loss, gradient or parameters that are no longer finite: stop, leave out the batch, or go back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from diverging import diverging_config

import lm_jax
from lm_jax.analysis.replay import state_at
from lm_jax.config import RestoreCheckpoint, SkipBatch, resolve
from lm_jax.data.batches import streams
from lm_jax.settings import UserError
from lm_jax.training import step, trainer
from lm_jax.training.checkpoint import steps_saved


def test_a_parameter_that_is_not_finite_ends_the_run_and_takes_no_good_states_place(tmp_path):
    config = diverging_config()
    run = lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)
    assert (run.result["status"], run.result["step"]) == ("diverged", 8)
    assert steps_saved(run.path) == [3, 6, 8]
    last = tiny.rows_of(run.path)[-1]
    assert last["step"] == 8
    assert last["grad_norm"] is not None
    assert lm_jax.train(config, tmp_path / "run", text=tiny.TEXT).result == run.result


def test_a_run_returns_to_its_checkpoint_with_a_lower_rate(tmp_path):
    config = diverging_config(on_divergence="restore")
    run = lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)
    assert (run.result["status"], run.result["step"]) == ("finished", 20)
    rows = tiny.rows_of(run.path)
    returned = [row for row in rows if row["kind"] == "restored"]
    assert returned == [
        {"step": 6, "kind": "restored", "split": "train", "diverged": 8, "lr_scale": 0.5}
    ]
    rates = [row["learning_rate"] for row in rows if row["kind"] == "train"]
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.05]

    # Stopped between the return and the end, and stopped before it.
    for at in (2, 10):
        parts = tmp_path / f"stopped-{at}"
        with pytest.raises(SystemExit):
            lm_jax.train(config, parts, text=tiny.TEXT, watch=tiny.stopping_at(at))
        again = lm_jax.train(config, parts, text=tiny.TEXT)
        tiny.assert_trees_equal(again.params, run.params)
        assert tiny.rows_of(parts) == rows

    # Made again from a checkpoint before the return.
    for saved in (run.path / "checkpoints").iterdir():
        if int(saved.name) > 6:
            saved.rename(saved.with_name(f"kept-{saved.name}"))
    with pytest.warns(UserWarning, match="gone"):
        state = state_at(run, 20, text=tiny.TEXT)
    tiny.assert_trees_equal(state.best_params, run.params)


def test_without_an_intact_checkpoint_to_return_to_the_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "newest", lambda *_, **__: None)
    config = diverging_config(on_divergence="restore")
    with pytest.raises(UserError, match="no checkpoint of these is intact"):
        lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)


@pytest.mark.slow
def test_a_lane_returns_to_its_checkpoint_as_a_run_alone_does(tmp_path):
    config = diverging_config(on_divergence="restore")
    rates = {"high": {}, "low": {"train.learning_rate": 0.05}}
    rows = lm_jax.sweep(config, rates, tmp_path / "sweep", text=tiny.TEXT)
    for row, rate in zip(rows, (0.1, 0.05), strict=True):
        alone = tmp_path / str(rate)
        config = diverging_config(on_divergence="restore", learning_rate=rate)
        run = lm_jax.train(config, alone, text=tiny.TEXT)
        assert (row["status"], row["sha256"]) == ("finished", run.result["sha256"])
        assert tiny.rows_of(tmp_path / "sweep" / row["trial"]) == tiny.rows_of(alone)


@pytest.mark.slow
def test_returns_are_limited_and_the_first_state_counts_as_a_checkpoint(tmp_path):
    config = tiny.config(
        train={"learning_rate": 1e308, "on_divergence": RestoreCheckpoint(factor=0.9, limit=2)}
    )
    run = lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)
    assert run.result["status"] == "diverged"
    returned = [row for row in tiny.rows_of(run.path) if row["kind"] == "restored"]
    assert [(row["step"], row["lr_scale"]) for row in returned] == [(0, 0.9), (0, 0.9 * 0.9)]
    mild = tiny.config(
        train={"learning_rate": 1e308, "on_divergence": RestoreCheckpoint(factor=1e-310)}
    )
    assert lm_jax.train(mild, tmp_path / "mild", text=tiny.TEXT).result["status"] == "finished"


def test_a_batch_whose_gradient_is_not_finite_is_left_out(monkeypatch):
    config = resolve(tiny.config(train={"on_divergence": SkipBatch(limit=2)}))
    source = streams(np.arange(400, dtype=np.int32) % tiny.V, 0, config.data.batch_size)
    state = step.init(config, tiny.V)

    def update(state):
        return step.update(config, state, source, tiny.V)

    sound = jax.jit(update)(state)

    def spoilt(config, model):
        right = make(config, model)

        def estimate(params, carry, batch):
            loss, carry, grads, info = right(params, carry, batch)
            return loss, carry, jax.tree.map(lambda grad: grad * jnp.nan, grads), info

        return dataclasses.replace(right, estimate=estimate)

    make = step._estimator
    monkeypatch.setattr(step, "_estimator", spoilt)
    spoiling = jax.jit(lambda state: update(state))
    bad = spoiling(sound)
    tiny.assert_trees_equal(bad._replace(step=sound.step, skipped=sound.skipped), sound)
    assert (int(bad.step), int(bad.skipped.in_a_row), int(bad.skipped.total)) == (2, 1, 1)
    assert not step.diverged(config, bad)
    worse = spoiling(bad)
    assert step.diverged(config, worse)
    monkeypatch.undo()
    good = jax.jit(update)(worse)
    assert (int(good.skipped.in_a_row), int(good.skipped.total)) == (0, 2)
    assert not step.diverged(config, good)
    assert np.isfinite(good.record.nats)


@pytest.mark.slow
def test_leaving_out_changes_no_bit_of_a_run_that_stays_finite(tmp_path):
    plain = lm_jax.train(tiny.config(), tmp_path / "plain", text=tiny.TEXT)
    config = tiny.config(train={"on_divergence": "skip"})
    run = lm_jax.train(config, tmp_path / "skip", text=tiny.TEXT)
    tiny.assert_trees_equal(run.params, plain.params)
    rows = [row for row in tiny.rows_of(run.path) if row["kind"] == "train"]
    assert {row["skipped"] for row in rows} == {0}


def test_a_mean_of_batches_needs_each_of_them():
    with pytest.raises(UserError, match="accumulate"):
        tiny.config(train={"on_divergence": "skip", "accumulate": 2})
