"""Estimators against a reference: what is exact, what is biased and what only varies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g

MODEL = tiny.rnn(hidden_size=3, embedding_size=2)
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)))
BATCHES = [tiny.batch(seed, start=seed == 0) for seed in range(3)]
FULL = g.full_bptt(MODEL)


@pytest.fixture(scope="module")
def found():
    drawn = g.randomised_bptt(MODEL, rate=0.3, key=jax.random.key(1))

    def skewed(params, carry, batch):
        """Twice the gradient of what is drawn: biased by all of g."""
        loss, carry, grads, info = drawn(params, carry, batch)
        return loss, carry, jax.tree.map(lambda a: 2 * a, grads), info

    estimators = {
        "explicit": g.explicit_bptt(MODEL),
        "truncated": g.truncated_bptt(MODEL, k1=tiny.T, k2=2),
        "drawn": drawn,
        "skewed": dataclasses.replace(drawn, estimate=skewed),
    }
    return g.compare(estimators, FULL, PARAMS, BATCHES, draws=100)


@pytest.mark.slow
def test_the_reference_itself_is_exact(found):
    same = found["explicit"]
    np.testing.assert_allclose([same.cosine, same.norm_ratio], 1, rtol=1e-12)
    assert same.relative_bias < 1e-12
    assert (same.standard_error, same.relative_variance, same.draws) == (0, 0, 1)


@pytest.mark.slow
def test_a_truncated_gradient_is_biased_and_does_not_vary(found):
    """Cosines and bias against the two estimators' gradients, taken one by one."""
    cosines, mean, true = [], 0, 0
    short = jax.jit(g.truncated_bptt(MODEL, k1=tiny.T, k2=2))
    carry = MODEL.init_carry(tiny.B)
    for batch in BATCHES:
        _, after, whole, _ = jax.jit(FULL)(PARAMS, carry, batch)
        a, b = (
            jax.flatten_util.ravel_pytree(tree)[0]
            for tree in (short(PARAMS, carry, batch)[2], whole)
        )
        cosines.append(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))
        mean, true, carry = mean + a, true + b, after
    np.testing.assert_allclose(found["truncated"].cosine, cosines, rtol=1e-12)
    bias = jnp.linalg.norm(mean - true) / jnp.linalg.norm(true)
    np.testing.assert_allclose(found["truncated"].relative_bias, bias, rtol=1e-12)
    assert bias > 0.01
    assert found["truncated"].standard_error == 0


@pytest.mark.slow
def test_an_unbiased_gradient_varies_about_the_reference(found):
    drawn = found["drawn"]
    assert drawn.draws == 100
    assert 0 < drawn.relative_bias < 2 * drawn.standard_error
    np.testing.assert_allclose(drawn.standard_error**2, drawn.relative_variance / 100, rtol=1e-12)


def test_a_factor_is_bias_and_not_variance(found):
    drawn, skewed = found["drawn"], found["skewed"]
    np.testing.assert_allclose(skewed.cosine, drawn.cosine, rtol=1e-12)
    np.testing.assert_allclose(skewed.relative_variance, 4 * drawn.relative_variance, rtol=1e-9)
    assert abs(skewed.relative_bias - 1) < 4 * skewed.standard_error
    assert skewed.relative_bias > 10 * skewed.standard_error


@pytest.mark.slow
def test_successive_readings_have_draws_of_their_own():
    """The variance over two readings is that of two different ones."""
    drawn = g.uoro(MODEL, key=jax.random.key(1))
    found = g.compare({"uoro": drawn}, FULL, PARAMS, BATCHES[:1], draws=2)["uoro"]
    assert found.relative_variance > 0.01
    alone = g.compare({"uoro": drawn}, FULL, PARAMS, BATCHES[:1])["uoro"]
    assert alone.cosine == found.cosine
    assert np.isnan([alone.standard_error, alone.relative_variance]).all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="batches of one shape"):
        g.compare({}, FULL, PARAMS, [tiny.batch(), tiny.batch(length=2)])
    with pytest.raises(ValueError, match="batches of one shape"):
        g.compare({}, FULL, PARAMS, [])
    with pytest.raises(ValueError, match="draws=0"):
        g.compare({}, FULL, PARAMS, BATCHES, draws=0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_sizes_that_no_square_has_change_no_figure(found, scale):
    """A gradient against itself has cosine 1, however large or small it is."""

    def as_large(estimator):
        def estimate(params, carry, batch):
            loss, carry, grads, info = estimator(params, carry, batch)
            return loss, carry, jax.tree.map(lambda leaf: scale * leaf, grads), info

        return dataclasses.replace(estimator, estimate=estimate)

    drawn = g.randomised_bptt(MODEL, rate=0.3, key=jax.random.key(1))
    estimators = {"itself": as_large(FULL), "drawn": as_large(drawn)}
    there = g.compare(estimators, as_large(FULL), PARAMS, BATCHES, draws=100)
    itself = there["itself"]
    np.testing.assert_allclose([itself.cosine, itself.norm_ratio], 1, rtol=1e-12)
    np.testing.assert_allclose(itself.mean_cosine, 1, rtol=1e-15)
    assert itself.relative_bias == itself.relative_variance == 0
    for here, expected in zip(there["drawn"], found["drawn"], strict=True):
        np.testing.assert_allclose(here, expected, rtol=1e-10)
