"""Gradients under teacher forcing and under the model's own tokens, position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.flatten_util import ravel_pytree

from lm_jax import gradients as g
from lm_jax.generation.scheduled_sampling import sample_inputs
from lm_jax.models import restart
from lm_jax.settings import UserError

MODEL = tiny.rnn(cell="gru")
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)))
CARRY = jax.tree.map(lambda leaf: leaf + 0.1, MODEL.init_carry(tiny.B))
START = jnp.array([True, False, False])
# No lane has a target at the last position, and one has none from the third on.
MASK = jnp.arange(tiny.T)[:, None] < jnp.array([5, 2, 5])[None]
BATCH = tiny.batch()._replace(mask=MASK, start=START)
cosines = jax.jit(lambda params, batch, own: g.exposure_cosines(MODEL, params, CARRY, batch, own))


@pytest.fixture(scope="module")
def own():
    return sample_inputs(MODEL, PARAMS, CARRY, BATCH, jax.random.key(1), jnp.ones(()))


@jax.jit
def by_position(x):
    """[T, P]: every position's gradient, written out."""

    def nats(params):
        _, h = MODEL.hidden(params, restart(MODEL, CARRY, START), x)
        return jnp.sum(MODEL.nats(params, h, BATCH.y) * MASK, 1) / jnp.array([3, 3, 2, 2, 2, 1])

    stacked = jax.jacrev(nats)(PARAMS)
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(stacked)


@pytest.mark.slow
def test_the_cosines_are_those_of_every_position_s_gradients(own):
    assert np.any(own.x != BATCH.x)
    found = cosines(PARAMS, BATCH, own)
    forced, free = (np.asarray(by_position(batch.x))[:5] for batch in (BATCH, own))
    lengths = [np.linalg.norm(a, axis=1) for a in (forced, free)]
    np.testing.assert_allclose(found.forced[:5], lengths[0], rtol=1e-10)
    np.testing.assert_allclose(found.free[:5], lengths[1], rtol=1e-10)
    expected = np.sum(forced * free, 1) / np.prod(lengths, 0)
    np.testing.assert_allclose(found.cosine[:5], expected, rtol=1e-9)
    assert np.min(expected) < 0.95


def test_at_the_first_position_both_have_read_the_same(own):
    np.testing.assert_allclose(cosines(PARAMS, BATCH, own).cosine[0], 1, rtol=1e-14)


def test_the_same_inputs_have_the_same_gradients():
    found = cosines(PARAMS, BATCH, BATCH)
    np.testing.assert_allclose(found.cosine[:5], 1, rtol=1e-14)
    np.testing.assert_array_equal(found.forced, found.free)


def test_a_position_without_a_target_has_no_direction(own):
    found = cosines(PARAMS, BATCH, own)
    assert np.isnan(found.cosine[5])
    assert found.forced[5] == found.free[5] == 0
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    assert np.all(np.isnan(cosines(broken, BATCH, own).cosine[:5]))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"own inputs are \[5, 3\], those of the batch \[6, 3\]"):
        g.exposure_cosines(MODEL, PARAMS, CARRY, BATCH, tiny.batch(length=5))
    with pytest.raises(UserError, match="not floating-point"):
        g.exposure_cosines(MODEL, {"n": jnp.ones(2, jnp.int32)}, CARRY, BATCH, BATCH)
