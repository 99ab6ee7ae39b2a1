"""Norms and angles of trees, at every scale that a float has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm_jax import trees
from lm_jax.gradients.clipping import by_norm

F32 = np.finfo(np.float32)
SCALES = [1e-37, 1e-30, 1e-20, 1.0, 1e19, 1e30, 5e37]


def pair(scale):
    """A 3-4-5 triangle over two leaves."""
    return {"W": jnp.array([[3 * scale]], jnp.float32), "b": jnp.array([4 * scale, 0], jnp.float32)}


@pytest.mark.parametrize("scale", SCALES)
def test_a_norm_is_right_wherever_it_is_a_float(scale):
    """In float32 the square of 1e-30 is 0, and that of 1e30 infinite."""
    np.testing.assert_allclose(trees.norm(pair(scale)) / np.float32(scale), 5, rtol=1e-6)
    rows = jnp.stack([pair(scale)["b"], pair(1.0)["b"]])
    np.testing.assert_allclose(trees.norm(rows, kept=1), [4 * scale, 4], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, *SCALES])
def test_what_is_known_when_a_program_is_compiled_has_the_same_norm(scale):
    """XLA takes products of constants together, and would square 1e30 by itself."""
    known, read = pair(scale), jnp.float32([1.0])
    length = np.hypot(5 * scale, 1)
    found = jax.jit(
        lambda read: (
            trees.norm(known),
            trees.norm({"none": jnp.zeros(3, jnp.float32), "read": read}),
            trees.norm({"known": known, "read": read}),
            trees.limit_norm(known, 1e-6)[0],
        )
    )(read)
    np.testing.assert_allclose(found[0], np.float32(5 * scale), rtol=1e-6)
    np.testing.assert_allclose(found[1], 1, rtol=1e-6)
    np.testing.assert_allclose(found[2] / np.float32(length), 1, rtol=1e-6)
    np.testing.assert_allclose(trees.norm(found[3]), min(5 * scale, 1e-6), rtol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("threshold", [1.0, 1e-6, 1e30])
def test_what_is_too_long_is_cut_to_the_threshold_and_keeps_its_direction(scale, threshold):
    clipped, cut = by_norm(pair(scale), threshold)
    length = min(5 * scale, threshold)
    assert cut == (5 * scale > threshold)
    np.testing.assert_allclose(clipped["W"] / np.float32(length), [[0.6]], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"] / np.float32(length), [0.8, 0], rtol=1e-6)


def test_a_norm_beyond_the_largest_float_gives_no_gradient_to_go_on_with():
    """Zeros would leave a run standing still, and «finished»."""
    longest = {"W": jnp.full(4, F32.max / 2, jnp.float32)}
    clipped, cut = by_norm(longest, 1.0)
    np.testing.assert_allclose(clipped["W"], 0.5, rtol=1e-6)
    for beyond in (jnp.full(5, F32.max / 2, jnp.float32), jnp.array([1, jnp.inf], jnp.float32)):
        clipped, cut = by_norm({"W": beyond}, 1.0)
        assert np.isinf(trees.norm(beyond))
        assert cut
        assert np.isnan(clipped["W"]).all()


def test_half_precision_is_added_up_in_float32():
    """Of 360,000 ones float16 has no sum, and bfloat16 one of two digits."""
    for dtype in (jnp.float16, jnp.bfloat16):
        ones = {"a": jnp.ones((600, 600), dtype)}
        np.testing.assert_allclose(trees.norm(ones), 600, rtol=1e-6)
        np.testing.assert_allclose(trees.cosine(ones, ones), 1, rtol=1e-6)
        clipped, _ = by_norm(ones, 1.0)
        assert clipped["a"].dtype == dtype
        np.testing.assert_allclose(clipped["a"].astype(float), 1 / 600, rtol=1e-2)


def test_a_vanished_tree_has_no_length_and_no_direction():
    nothing = jax.tree.map(jnp.zeros_like, pair(1.0))
    assert trees.norm(nothing) == 0
    np.testing.assert_array_equal(by_norm(nothing, 1.0)[0]["W"], 0)
    assert np.isnan(trees.cosine(nothing, pair(1.0)))
    assert np.isnan(trees.norm({"W": jnp.array([1, jnp.nan])}))


@pytest.mark.parametrize("scale", SCALES)
def test_the_angle_of_a_tree_to_itself_is_0_and_its_cosine_1(scale):
    a, b = pair(scale), jax.tree.map(lambda leaf: leaf / 7, pair(scale))
    np.testing.assert_allclose(trees.cosine(a, b), 1, rtol=1e-6)
    assert trees.angle(a, b) < 1e-4
    away = {"W": a["W"] / -3 * 4, "b": a["b"] / 4 * 3}
    assert abs(trees.cosine(a, away)) < 1e-6
    np.testing.assert_allclose(trees.angle(a, away), 90, rtol=1e-6)
    np.testing.assert_allclose(trees.angle(a, jax.tree.map(jnp.negative, a)), 180, rtol=1e-6)


def test_small_angles_keep_their_digits():
    a, turned = jnp.array([3.0, 0.0, 4.0]), jnp.array([3.0, 5e-9, 4.0])
    np.testing.assert_allclose(trees.angle(a, turned), np.degrees(1e-9), rtol=1e-6)


def test_where_nothing_overflows_it_is_the_plain_norm(key):
    for exponent in range(-8, 9, 4):
        tree = jax.random.normal(key, (311, 7), jnp.float32) * np.float32(10.0**exponent)
        np.testing.assert_allclose(trees.norm(tree), optax.tree.norm(tree), rtol=3e-7)


def test_the_gradient_of_integers_counts_nothing():
    none = np.zeros((2,), jax.dtypes.float0)
    mixed = {"h": jnp.array([[3.0], [6.0]]), "place": none}
    np.testing.assert_array_equal(trees.norm(mixed, kept=1), [3, 6])
    clipped, cut = trees.limit_norm(mixed, 4.0, kept=1)
    np.testing.assert_allclose(clipped["h"], [[3], [4]])
    np.testing.assert_array_equal(cut, [False, True])
    assert clipped["place"] is none
    np.testing.assert_array_equal(trees.norm({"place": none}, kept=1), [0, 0])


@pytest.mark.quick("8")
@pytest.mark.parametrize("rows", [1, 7, 8])
def test_a_large_leaf_in_pieces_is_the_leaf(rows, monkeypatch):
    """However its rows are shared out, each of them counts once; one piece is all zeros."""
    leaf = jax.random.normal(jax.random.key(rows), (rows, 3, 2)).at[:2].set(0).at[-1].set(1e-200)
    tree, factor = {"small": jnp.arange(3.0), "large": leaf}, jnp.asarray(0.3)

    def found():
        cut, was_cut = trees.limit_norm(tree, 0.7)
        length = trees.norm(tree, change=lambda leaf: leaf + 2)
        return trees.norm(tree), length, trees.scaled(leaf, factor, factor), cut, was_cut

    expected = found()
    monkeypatch.setattr(trees, "LARGE", 5)
    for size in (1, 4, 9, 100):
        monkeypatch.setattr(trees, "PIECE", size)
        for one, other in zip(jax.tree.leaves(found()), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-14)
    np.testing.assert_allclose(expected[1], np.sqrt(4 + 9 + 16 + np.sum((leaf + 2) ** 2)))
