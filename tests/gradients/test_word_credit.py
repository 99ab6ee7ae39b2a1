"""Credit by class is the mean of a double loop; bands of frequency share out the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax import gradients as g
from lm_jax.settings import UserError

T, C = 5, 3


def sentence(seed, real):
    draw = np.random.default_rng(seed)
    credit = np.tril(draw.uniform(0.1, 1, (T, T)))
    credit[real:] = np.nan  # padding is not read
    return credit, draw.integers(0, C, T), draw.integers(0, C, T), np.arange(T) < real


def test_means_over_sentences_are_those_of_a_double_loop():
    sentences = [sentence(0, T), sentence(1, 3)]
    by_class = jax.jit(g.credit_by_class, static_argnums=3)
    word, target = ({(c, lag): [] for c in range(C) for lag in range(T)} for _ in range(2))
    sums = None
    for credit, words, targets, mask in sentences:
        arrays = [jnp.asarray(a) for a in (credit, words, targets)]
        one = by_class(*arrays, C, jnp.asarray(mask))
        sums = one if sums is None else jax.tree.map(jnp.add, sums, one)
        for t in range(mask.sum()):
            for k in range(t + 1):
                word[words[k], t - k].append(credit[t, k])
                target[targets[t], t - k].append(credit[t, k])
    for found, brute in zip(sums.means(), (word, target), strict=True):
        for (c, lag), values in brute.items():
            np.testing.assert_allclose(found[c, lag], np.mean(values) if values else np.nan, 1e-12)


def test_every_pair_is_counted_once_but_those_of_no_class():
    words = jnp.array([0, 1, -2, C, 2])
    sums = g.credit_by_class(jnp.ones((T, T)), words, jnp.zeros(T, int), C)
    np.testing.assert_array_equal(sums.word_pairs.sum(1), [T, T - 1, 1])
    np.testing.assert_array_equal(sums.target_pairs[0], np.arange(T, 0, -1))
    np.testing.assert_array_equal(sums.by_target, sums.target_pairs)  # credit is 1 everywhere


def test_a_nan_stays_in_its_own_class():
    credit = jnp.tril(jnp.ones((T, T))).at[2, 1].set(jnp.nan)
    words = jnp.array([0, 1, 0, 0, 0])
    word, _ = g.credit_by_class(credit, words, words, C).means()
    np.testing.assert_array_equal(np.argwhere(np.isnan(word[:2])), [[1, 1], [1, 4]])


def test_bands_share_out_the_text():
    """Of 16 tokens in 4 bands, first occurrences are numbers 0, 8, 12, 14, 15 by frequency."""
    counts = np.array([1, 8, 2, 0, 4, 1])
    np.testing.assert_array_equal(g.frequency_bands(counts, 4), [3, 0, 3, 3, 2, 3])
    np.testing.assert_array_equal(g.frequency_bands(counts, 1), np.zeros(6))
    shares = np.bincount(g.frequency_bands(np.ones(100, int), 5))
    np.testing.assert_array_equal(shares, np.full(5, 20))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int8, np.float32])
def test_bands_are_of_counts_of_any_type(dtype):
    found = g.frequency_bands(np.array([10, 0, 5, 5], dtype), 2)
    np.testing.assert_array_equal(found, [0, 1, 1, 1])


@pytest.mark.parametrize(
    ("counts", "bands", "match"),
    [([1, 2], 0, "bands=0"), ([1, -2], 2, "counts holds -2"), ([0, 0], 2, "none of the 2 words")],
)
def test_bands_that_make_no_sense_are_refused(counts, bands, match):
    with pytest.raises(UserError, match=match):
        g.frequency_bands(np.array(counts), bands)
