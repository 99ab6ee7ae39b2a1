"""Truncations are what each prefix of lags says; horizons of a geometric decay are logarithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax import gradients as g
from lm_jax.settings import UserError

L = 6


def split(seed=0):
    draw = np.random.default_rng(seed).normal
    return {
        "cell": {"W": jnp.asarray(draw(size=(L, 3, 2))), "b": jnp.asarray(draw(size=(L, 3)))},
        "E": jnp.asarray(draw(size=(L, 4))),
    }


def flat(tree):
    return np.concatenate([np.asarray(leaf).reshape(L, -1) for leaf in jax.tree.leaves(tree)], 1)


def check(found, tree):
    lags = flat(tree)
    full = lags.sum(0)
    for k2 in range(1, L + 1):
        part = lags[:k2].sum(0)
        size, whole = np.linalg.norm(part), np.linalg.norm(full)
        np.testing.assert_allclose(found.norm[k2 - 1], size, rtol=1e-12)
        np.testing.assert_allclose(found.cosine[k2 - 1], part @ full / size / whole, rtol=1e-12)
        error = np.linalg.norm(part - full) / whole
        np.testing.assert_allclose(found.relative_error[k2 - 1], error, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_truncations_are_those_of_every_prefix_of_lags():
    tree = split()
    found = g.truncations(tree)
    check(found, tree)
    assert found.relative_error[-1] == 0
    by_block = g.truncations_by_block(tree)
    assert list(by_block) == ["E", "cell"]
    for name, part in by_block.items():
        check(part, tree[name])
    leaves = g.truncations_by_block(tree, depth=None)
    assert list(leaves) == ["E", "cell.W", "cell.b"]
    check(leaves["cell.b"], tree["cell"]["b"])


def test_truncations_know_neither_large_nor_small():
    """In float32 the square of 1e-30 is 0, and that of 1e30 infinite; neither changes a ratio."""
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), split())
    plain = g.truncations(tree)
    for size in (1e-30, 1e30):
        found = g.truncations(jax.tree.map(lambda leaf, s=size: leaf * np.float32(s), tree))
        np.testing.assert_allclose(found.cosine, plain.cosine, rtol=1e-5)
        np.testing.assert_allclose(found.relative_error, plain.relative_error, rtol=1e-5)
        np.testing.assert_allclose(found.norm / np.float32(size), plain.norm, rtol=1e-5)


def test_of_a_gradient_that_is_zero_there_is_no_share():
    found = g.truncations({"W": jnp.zeros((L, 2))})
    assert np.all(found.norm == 0)
    assert np.all(np.isnan(found.cosine))
    assert np.all(np.isnan(found.relative_error))
    assert np.isnan(g.horizon(found, 0.5))
    assert np.isnan(g.horizon(jnp.zeros(L), 0.5))


@pytest.mark.parametrize("decay", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_of_geometric_decay_the_horizon_is_a_logarithm(decay, share):
    """1 - q^k >= share (1 - q^L), with k the smallest such."""
    count = 400
    lags = decay ** jnp.arange(count)
    steps = np.ceil(np.log1p(-share * (1 - decay**count)) / np.log(decay))
    assert g.horizon(lags, share) == steps
    assert g.horizon(g.truncations({"W": lags[:, None]}), share) == steps
    # Every row of the map decays alike; a row near the beginning reaches its sum sooner.
    t = np.arange(40)
    credit = np.tril(decay ** np.abs(t[:, None] - t[None, :]).astype(float))
    rows = np.ceil(np.log1p(-share * (1 - decay ** (t + 1.0))) / np.log(decay) - 1e-9)
    np.testing.assert_allclose(g.credit_horizon(jnp.asarray(credit), share), rows.mean())


def test_a_share_that_is_reached_exactly_is_reached():
    assert g.horizon(jnp.ones(4), 0.5) == 2
    assert g.credit_horizon(jnp.ones((1, 1)), 0.5) == 1


def test_a_horizon_is_where_the_error_falls_for_good():
    """Lags 1, -1, 2 have prefix sums 1, 0, 2: errors 1/2, 1, 0."""
    found = g.truncations({"W": jnp.array([[1.0], [-1.0], [2.0]])})
    np.testing.assert_allclose(found.relative_error, [0.5, 1, 0])
    assert g.horizon(found, 0.4) == 3
    assert g.horizon(g.truncations({"W": jnp.array([[1.0], [0.0], [0.1]])}), 0.9) == 1


@pytest.mark.slow
def test_rows_without_credit_are_left_out_and_nan_is_not():
    credit = jnp.eye(4).at[2].set(jnp.array([3.0, 0, 1, 0])).at[1].set(0)
    np.testing.assert_allclose(g.credit_horizon(credit, 0.5), (1 + 3 + 1) / 3)
    assert np.isnan(g.credit_horizon(jnp.zeros((4, 4)), 0.5))
    assert np.isnan(g.credit_horizon(credit.at[3, 1].set(jnp.nan), 0.5))
    assert np.isnan(g.horizon(jnp.array([1.0, jnp.nan]), 0.5))
    nan = g.truncations({"W": jnp.array([[1.0], [jnp.nan]])})
    assert np.isnan(g.horizon(nan, 0.5))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 90.0])
def test_a_share_is_between_none_and_all(share):
    with pytest.raises(UserError, match=f"share={share}"):
        g.horizon(jnp.ones(3), share)
    with pytest.raises(UserError, match=f"share={share}"):
        g.credit_horizon(jnp.eye(3), share)
