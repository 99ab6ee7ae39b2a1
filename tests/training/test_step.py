"""An update and a validation by themselves: keys, the order of the parts, rates and ties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lm_jax.config import RNN, SGD, Cosine, Epochs, RecurrentDropout, ScheduledSampling, resolve
from lm_jax.data.batches import steps_per_epoch, streams
from lm_jax.training import step

SOURCE = streams(np.random.default_rng(0).integers(0, tiny.V, 400).astype(np.int32), 0, 4)
EPOCH = steps_per_epoch(SOURCE, 8)


def begun(model=None, **train):
    config = resolve(tiny.config(model=model or RNN(embedding_size=4, hidden_size=5), train=train))
    return config, step.init(config, tiny.V)


@pytest.mark.quick("dropout", "feeding")
@pytest.mark.parametrize(
    ("model", "train"),
    [
        (RNN(embedding_size=4, hidden_size=5, dropout=RecurrentDropout(inputs=0.5)), {}),
        (None, {"feeding": ScheduledSampling(start=0.5, end=0.5)}),
        (None, {}),
    ],
    ids=["dropout", "feeding", "none"],
)
def test_each_update_draws_anew(model, train):
    """The first batch of two epochs, read from a fresh carry with the same parameters."""
    config, state = begun(model, **train)
    update = jax.jit(lambda state: step.update(config, state, SOURCE, tiny.V))
    first, again, later = (update(state._replace(step=jnp.int32(n))) for n in (0, 0, EPOCH))
    assert first.record.nats == again.record.nats
    assert (first.record.nats != later.record.nats) == bool(model or train)


def test_the_gradient_is_clipped_before_decay_and_rate():
    """W - W' = rate · (the clipped gradient + decay · W)."""
    rate, longest, decay = 0.25, 0.1, 0.5
    config, state = begun(
        optimizer=SGD(), learning_rate=rate, clip_norm=longest, weight_decay=decay
    )
    after = jax.jit(lambda state: step.update(config, state, SOURCE, tiny.V))(state)
    assert after.record.grad_norm > 2 * longest
    clipped = jax.tree.map(
        lambda old, new: (old - new) / rate - decay * old, state.params, after.params
    )
    np.testing.assert_allclose(optax.tree.norm(clipped), longest, rtol=1e-10)


@pytest.mark.quick("cosine")
@pytest.mark.parametrize(
    ("schedule", "at", "shares"),
    [
        (Cosine(warmup_steps=4), (0, 1, 3), (0.25, 0.5, 1)),
        (Epochs(factor=0.5, constant_epochs=1), (0, EPOCH - 1, EPOCH), (1, 1, 0.5)),
    ],
    ids=["cosine", "epochs"],
)
def test_an_update_has_the_rate_of_its_own_step(schedule, at, shares):
    config, state = begun(schedule=schedule, learning_rate=0.5)
    update = jax.jit(lambda state: step.update(config, state, SOURCE, tiny.V))
    found = [update(state._replace(step=jnp.int32(n))).record.learning_rate for n in at]
    np.testing.assert_allclose(found, 0.5 * np.array(shares), rtol=1e-12)


def test_a_chunk_of_a_random_length_has_its_share_of_the_rate():
    """W - W' = rate · n / T · gradient, for n of T tokens; at the same parameters and texts."""
    config, state = begun(optimizer=SGD(), learning_rate=0.5)
    random = dataclasses.replace(config, data=dataclasses.replace(config.data, jitter=3))
    update = jax.jit(lambda state: step.update(random, state, SOURCE, tiny.V))
    seen = set()
    for number in range(4):
        before = state._replace(step=jnp.int32(number))
        after = update(before)
        tokens = int(after.record.low_high[0]) // SOURCE.tokens.shape[1]
        moved = optax.tree.norm(optax.tree.sub(after.params, before.params))
        share = tokens / config.data.length
        np.testing.assert_allclose(moved, 0.5 * share * after.record.grad_norm, rtol=1e-9)
        assert after.record.learning_rate == 0.5
        seen.add(tokens)
    assert len(seen) > 1


def test_of_two_equal_validations_the_first_is_the_best():
    config, state = begun()
    first = jax.tree.map(np.asarray, state.params)
    for number, nats in enumerate((2.0, 2.0, 3.0), 1):
        params = jax.tree.map(lambda w, n=number: jnp.asarray(w) + n, first)
        state = state._replace(step=jnp.int32(number), params=params)
        state = step.after_validation(config, state, jnp.asarray(nats))
    tiny.assert_trees_equal(state.best_params, jax.tree.map(lambda w: w + 1, first))
    found = state.early_stopping
    assert (int(found.best_step), int(found.since_best), float(found.best_nats)) == (1, 2, 2.0)


def test_where_there_is_an_average_it_is_the_best():
    config, state = begun(ema_decay=0.9)
    mean = jax.tree.map(lambda w: np.asarray(w) + 1, state.params)
    average = state.average._replace(params=jax.tree.map(jnp.asarray, mean))
    after = step.after_validation(config, state._replace(average=average), jnp.asarray(2.0))
    tiny.assert_trees_equal(after.best_params, mean)


@pytest.mark.parametrize("wrong", ["nats", "grad_norm"])
def test_a_run_has_diverged_if_the_loss_or_the_gradient_is_not_finite(wrong):
    config, state = begun()
    assert not step.diverged(config, state)
    record = state.record._replace(**{wrong: jnp.asarray(jnp.inf)})
    assert step.diverged(config, state._replace(record=record))


def test_one_number_that_is_not_finite_spoils_the_parameters():
    config, state = begun()
    assert step.is_sound(config, state)
    for number in (jnp.nan, jnp.inf):
        layer = state.params["layers"][0]
        spoiled = {**layer, "W_hh": layer["W_hh"].at[1, 2].set(number)}
        params = {**state.params, "layers": [spoiled]}
        assert not step.is_sound(config, state._replace(params=params))
