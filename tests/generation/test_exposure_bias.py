"""The model's own tokens as inputs: scheduled sampling and exposure bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import generation
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.generation import sample_inputs
from lm_jax.gradients import full_bptt
from lm_jax.scoring import score
from lm_jax.settings import UserError

MODEL = tiny.rnn()
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)), seed=2, size=1.0)
CHARS = Vocabulary("char", ("<unk>", "\n", "a", "b", "c", "d", " "))
RANDOM = np.random.default_rng(0)
TEXT = "".join(RANDOM.choice(list("abcd \n"), 130, p=[0.2] * 4 + [0.1] * 2))


@jax.jit
def _fed(batch, key, rate):
    return sample_inputs(MODEL, PARAMS, MODEL.init_carry(tiny.B), batch, key, rate)


def test_inputs_are_replaced_at_the_rate_that_is_asked_for(key):
    batch = tiny.batch(length=40)
    tiny.assert_trees_equal(_fed(batch, key, 0.0), batch)
    own = _fed(batch, key, 1.0)
    np.testing.assert_array_equal(own.x[0], batch.x[0])
    np.testing.assert_array_equal(own.y, batch.y)
    some = np.asarray(_fed(batch, key, 0.5).x != batch.x)
    every = np.asarray(own.x != batch.x)
    assert 0.2 < some[1:].mean() < every[1:].mean() <= 1


def test_what_a_model_is_fed_greedily_is_its_likeliest_token(key):
    batch = tiny.batch(length=8)
    carry = MODEL.init_carry(tiny.B)
    own = sample_inputs(MODEL, PARAMS, carry, batch, key, jnp.ones(()), greedy=True)
    _, h = MODEL.hidden(PARAMS, carry, own.x)
    np.testing.assert_array_equal(own.x[1:], jnp.argmax(MODEL.logits(PARAMS, h), -1)[:-1])
    assert np.any(own.x != batch.x)


@pytest.mark.slow
def test_no_gradient_flows_through_what_a_model_is_fed(key):
    batch, carry = tiny.batch(), MODEL.init_carry(tiny.B)
    estimator = full_bptt(MODEL)
    own = sample_inputs(MODEL, PARAMS, carry, batch, key, jnp.ones(()))

    def loss(params):
        return estimator(
            params, carry, sample_inputs(MODEL, params, carry, batch, key, jnp.ones(()))
        )[0]

    tiny.assert_trees_close(jax.grad(loss)(PARAMS), estimator(PARAMS, carry, own)[2])


def test_the_exposure_gap_is_zero_at_first_and_forced_is_the_score():
    nats = score(MODEL, PARAMS, CHARS, TEXT).nats
    found = generation.exposure(MODEL, PARAMS, CHARS, TEXT, length=40)
    np.testing.assert_array_equal(found.tokens, [4] * 10 + [3] * 30)
    assert found.mean(found.forced) == pytest.approx(nats.mean(), rel=1e-12)
    positions = np.arange(len(nats)) % 40
    by_position = [nats[positions == place].mean() for place in range(40)]
    np.testing.assert_allclose(found.forced, by_position, rtol=1e-12)
    assert found.free[0] == pytest.approx(found.forced[0], rel=1e-12)
    assert np.all(found.free[1:] != found.forced[1:])
    assert found.gap == pytest.approx(found.mean(found.free) - nats.mean(), rel=1e-9)
    short = generation.exposure(MODEL, PARAMS, CHARS, "abc", length=40)
    np.testing.assert_array_equal(short.tokens, [1, 1, 1])


def test_a_model_that_says_the_text_itself_has_no_exposure_gap():
    """The likeliest continuation, read greedily, is what the text is."""
    text = generation.sample(MODEL, PARAMS, CHARS, length=60, temperature=0.0)
    assert CHARS.unknown not in CHARS.encode(text)
    found = generation.exposure(MODEL, PARAMS, CHARS, text, length=40, greedy=True)
    assert found.gap == pytest.approx(0, abs=1e-12)


def test_a_length_out_of_range_is_refused():
    with pytest.raises(UserError, match="exposure=0 must be"):
        generation.exposure(MODEL, PARAMS, CHARS, "a", length=0)
