"""Mixtures of two models: their probabilities, and the weight that suits a text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import models
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.generation import sample
from lm_jax.models import Mixture, best_weight
from lm_jax.scoring import score

A, B = tiny.rnn(), tiny.window()
PARAMS = A.init(jax.random.key(1)), B.init(jax.random.key(2))


def never(token):
    """A model that gives one token probability zero, as a counted model may."""

    def logits(params, h):
        return B.logits(params, h).at[..., token].set(-jnp.inf)

    def nats(params, h, y):
        log_p = jax.nn.log_softmax(logits(params, h))
        return -jnp.take_along_axis(log_p, y[..., None], -1)[..., 0]

    return tiny.altered(B, logits=logits, nats=nats)


def read(model, params, batch):
    """The probabilities of all tokens, and the nats of the targets."""
    _, h = model.hidden(params, model.init_carry(batch.x.shape[1]), batch.x)
    return jax.nn.softmax(model.logits(params, h)), model.nats(params, h, batch.y)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("b", [B, never(2)], ids=["window", "with zeros"])
def test_a_mixture_is_the_weighted_sum_of_probabilities(b, weight):
    batch = tiny.batch()
    p, nats = read(Mixture(A, b, weight), PARAMS, batch)
    p_a, _ = read(A, PARAMS[0], batch)
    p_b, _ = read(b, PARAMS[1], batch)
    expected = weight * p_a + (1 - weight) * p_b
    np.testing.assert_allclose(p, expected, 1e-12)
    np.testing.assert_allclose(jnp.sum(p, -1), 1, 1e-12)
    of_targets = jnp.take_along_axis(expected, batch.y[..., None], -1)[..., 0]
    np.testing.assert_allclose(jnp.exp(-nats), of_targets, 1e-12)
    assert bool(jnp.any(batch.y == 2))  # the zeros are met


def test_the_logits_of_a_mixture_are_log_probabilities():
    model = Mixture(A, never(2), 0.4)
    _, h = model.hidden(PARAMS, model.init_carry(tiny.B), tiny.batch().x)
    logits = model.logits(PARAMS, h)
    np.testing.assert_allclose(jax.nn.logsumexp(logits, -1), 0, atol=1e-12)


@pytest.mark.slow
def test_the_gradient_of_a_mixture_at_its_edges_is_that_of_one_model():
    """No NaN comes out of ln 0."""
    batch = tiny.batch()

    def loss(model, params):
        _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
        return model.loss(params, h, batch.y, batch.mask)

    grad_a, grad_b = jax.grad(lambda p: loss(Mixture(A, never(2), 1.0), p))(PARAMS)
    tiny.assert_trees_close(grad_a, jax.grad(lambda p: loss(A, p))(PARAMS[0]))
    tiny.assert_trees_close(grad_b, jax.tree.map(jnp.zeros_like, grad_b), 0)


@pytest.mark.slow
def test_a_mixture_reads_in_chunks_and_starts_afresh_as_its_models_do():
    model, x = Mixture(A, B, 0.5), tiny.batch().x
    carry, whole = model.hidden(PARAMS, model.init_carry(tiny.B), x)
    between, first = model.hidden(PARAMS, model.init_carry(tiny.B), x[:2])
    after, second = model.hidden(PARAMS, between, x[2:])
    tiny.assert_trees_close(after, carry)
    tiny.assert_trees_close(second, whole[2:])
    tiny.assert_trees_close(first[-1], whole[1])  # as of an array
    fresh = models.restart(model, carry, jnp.ones(tiny.B, bool))
    tiny.assert_trees_equal(fresh, model.init_carry(tiny.B))


def test_a_mixture_of_a_model_with_itself_is_the_model_for_scoring_and_sampling():
    vocabulary = Vocabulary("char", ("\n", *"abcde", "<unk>"))
    params = PARAMS[0]
    model = Mixture(A, A, 0.25)
    scored = score(model, (params, params), vocabulary, "abba\ncabe\n")
    np.testing.assert_allclose(scored.nats, score(A, params, vocabulary, "abba\ncabe\n").nats)
    drawn = sample(model, (params, params), vocabulary, length=20, prompt="b", temperature=0.0)
    assert drawn == sample(A, params, vocabulary, length=20, prompt="b", temperature=0.0)


@pytest.mark.parametrize("weight", [1.5, 2, -1, float("nan")])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match=rf"weight={weight} must be from 0 to 1"):
        Mixture(A, B, weight)


def mean_nats(weight, nats_a, nats_b):
    return -np.mean(np.log(weight * np.exp(-nats_a) + (1 - weight) * np.exp(-nats_b)))


def test_the_best_weight_is_the_best_of_a_grid_and_stays_where_em_leaves_it():
    rng = np.random.default_rng(0)
    nats_a, nats_b = rng.exponential(2.0, 500), rng.exponential(2.2, 500)
    nats_b[:20] = np.inf
    weight = best_weight(nats_a, nats_b)
    grid = np.linspace(0.001, 1, 1000)
    losses = [mean_nats(w, nats_a, nats_b) for w in grid]
    assert abs(weight - grid[np.argmin(losses)]) <= 0.001
    assert mean_nats(weight, nats_a, nats_b) <= min(losses)
    p_a, p_b = weight * np.exp(-nats_a), (1 - weight) * np.exp(-nats_b)
    assert np.mean(p_a / (p_a + p_b)) == pytest.approx(weight, abs=1e-12)
    assert best_weight(nats_b, nats_a) == pytest.approx(1 - weight, abs=1e-12)


def test_the_best_weight_of_a_coin_is_in_closed_form():
    """a is right on m of N tokens, b on the others: w = m / N. A better model wins alone."""
    right = np.arange(10) < 7
    sure = np.where(right, 0.0, np.inf)
    assert best_weight(sure, np.where(right, np.inf, 0.0)) == pytest.approx(0.7, abs=1e-15)
    worse = np.full(10, 3.0)
    assert best_weight(worse - 1, worse) == 1.0
    assert best_weight(worse, worse - 1) == 0.0
    # Far beyond what exp can hold, and so flat that EM would need millions of rounds.
    assert best_weight(np.full(10, 1e5), worse) == 0.0
    nearly = worse + np.where(right, -1e-9, 1e-9)
    assert best_weight(nearly, worse) == 1.0


def test_texts_without_a_best_weight_are_refused():
    with pytest.raises(ValueError, match="1 tokens have probability zero in both"):
        best_weight(np.array([1.0, np.inf]), np.array([2.0, np.inf]))
    with pytest.raises(ValueError, match="2 tokens of one model, 3 of the other"):
        best_weight(np.ones(2), np.ones(3))
