"""The surface of a loss: curvature through time, against the dense Hessian of the plain scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.flatten_util import ravel_pytree

from lm_jax import gradients as g
from lm_jax.models.base import NO_HOOK
from lm_jax.settings import UserError

MODEL = tiny.rnn(cell="lstm", embedding_size=2, hidden_size=3)
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)))
CARRY = jax.tree.map(lambda leaf: leaf + 0.1, MODEL.init_carry(tiny.B))
MASK = jnp.arange(tiny.T)[:, None] < jnp.array([6, 5, 2])[None]
BATCH = tiny.batch(start=False)._replace(mask=MASK)
LOSS = g.batch_loss(MODEL, CARRY, BATCH)
FLAT, UNRAVEL = ravel_pytree(PARAMS)


def plain_loss(flat):
    """The same, by the plain scan and its autodiff."""
    params = UNRAVEL(flat)
    _, h = MODEL.hidden(params, CARRY, BATCH.x, NO_HOOK)
    return jnp.sum(MODEL.nats(params, h, BATCH.y) * MASK) / 13


@pytest.fixture(scope="module")
def dense():
    """g and H, reverse over reverse."""
    both = jax.jit(
        lambda flat: (jax.grad(plain_loss)(flat), jax.jacrev(jax.grad(plain_loss))(flat))
    )
    return tuple(np.asarray(a) for a in both(FLAT))


def test_the_loss_of_a_batch_is_the_mean_over_its_tokens():
    np.testing.assert_allclose(LOSS(PARAMS), plain_loss(FLAT), rtol=1e-13)


def test_a_hessian_vector_product_through_the_explicit_pass_is_the_dense_one(dense):
    v = jax.random.normal(jax.random.key(1), FLAT.shape)
    found = jax.jit(lambda v: g.hessian_vector_product(LOSS, PARAMS, UNRAVEL(v)))(v)
    np.testing.assert_allclose(ravel_pytree(found)[0], dense[1] @ v, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_lanczos_finds_the_eigenvalues_of_the_dense_hessian(dense, key):
    """With as many steps as parameters all of them, none twice, and their directions."""
    values, vectors = np.linalg.eigh(dense[1])
    program = jax.jit(lambda key: g.top_eigenpairs(LOSS, PARAMS, key, steps=FLAT.size, count=8))
    found = program(key)
    np.testing.assert_allclose(found.eigenvalues, values[::-1][:8], rtol=1e-9)
    directions = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(found.directions))
    np.testing.assert_allclose(directions @ directions.T, np.eye(8), atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(directions * vectors.T[::-1][:8], 1)), 1, rtol=1e-7)
    assert np.all(np.asarray(found.residuals) < 1e-9)


@pytest.mark.slow
def test_a_residual_bounds_the_distance_to_an_eigenvalue(dense, key):
    values = np.linalg.eigvalsh(dense[1])
    found = jax.jit(lambda key: g.top_eigenpairs(LOSS, PARAMS, key, steps=6, count=2))(key)
    for value, residual, direction in zip(
        found.eigenvalues,
        found.residuals,
        jax.vmap(lambda tree: ravel_pytree(tree)[0])(found.directions),
        strict=True,
    ):
        assert np.min(np.abs(values - value)) <= residual
        off = np.linalg.norm(dense[1] @ direction - value * direction)
        np.testing.assert_allclose(residual, off, rtol=1e-7)
    assert 1e-6 < found.residuals[1]  # not yet found, and said so


def parabola(diagonal):
    return lambda x: jnp.sum(jnp.asarray(diagonal) * x**2) / 2


@jax.jit
def all_five(diagonal, key):
    return g.top_eigenpairs(parabola(diagonal), jnp.ones(5), key, steps=5, count=5)


@pytest.mark.parametrize("diagonal", [[-3.0, -3, -3, -3, -2], [0.0, 0, 0, 0, 0], [5.0, 5, 5, 1, 1]])
def test_lanczos_goes_on_where_the_space_of_its_first_vector_is_exhausted(diagonal, key):
    """Two eigenvalues are found in two steps; the rest must not come up as zeros."""
    found = all_five(jnp.array(diagonal), key)
    np.testing.assert_allclose(found.eigenvalues, sorted(diagonal, reverse=True), atol=1e-12)
    assert np.all(np.asarray(found.residuals) < 1e-12)


@pytest.mark.slow
def test_where_the_loss_is_not_a_number_nor_is_the_curvature(key):
    found = g.top_eigenpairs(lambda x: jnp.sum(x**3) * jnp.nan, jnp.ones(3), key, steps=2)
    assert np.isnan(found.eigenvalues[0])
    assert np.isnan(found.residuals[0])


@pytest.fixture(scope="module")
def cliff():
    program = jax.jit(
        lambda params, distances: g.cliff(
            LOSS, params, jax.random.key(2), distances=distances, steps=40
        )
    )
    size = 1e-4
    program(jax.tree.map(lambda leaf: leaf * 0.9, PARAMS), jnp.array([0.0, 1.0, 2.0]))
    found = program(PARAMS, jnp.array([-size, 0.0, size]))
    assert program._cache_size() == 1
    return found, size


@pytest.mark.slow
def test_a_cliff_is_what_the_dense_hessian_says(cliff, dense):
    found, _ = cliff
    gradient, H = dense
    values, vectors = np.linalg.eigh(H)
    length = np.linalg.norm(gradient)
    np.testing.assert_allclose(found.loss, plain_loss(FLAT), rtol=1e-12)
    np.testing.assert_allclose(found.gradient_norm, length, rtol=1e-10)
    np.testing.assert_allclose(
        found.gradient_curvature, gradient @ H @ gradient / length**2, rtol=1e-9
    )
    np.testing.assert_allclose(found.eigenvalue, values[-1], rtol=1e-8)
    np.testing.assert_allclose(
        found.alignment, np.abs(gradient @ vectors[:, -1]) / length, rtol=1e-5
    )


@pytest.mark.slow
def test_the_slices_have_the_slope_and_the_curvature_that_the_cliff_tells(cliff):
    found, size = cliff
    for line, slope, curvature in (
        (found.along_gradient, found.gradient_norm, found.gradient_curvature),
        (found.along_sharpest, found.alignment * found.gradient_norm, found.eigenvalue),
    ):
        below, here, above = (float(value) for value in line)
        np.testing.assert_allclose(here, found.loss, rtol=1e-14)
        np.testing.assert_allclose((above - below) / (2 * size), slope, rtol=1e-5)
        np.testing.assert_allclose((above - 2 * here + below) / size**2, curvature, rtol=1e-4)


def test_a_slice_of_a_parabola_is_the_parabola_whatever_the_length_of_the_direction():
    distances = jnp.array([-2.0, 0.0, 0.5])
    directions = jnp.array([[100.0, 0.0], [0.0, 1e-30], [0.0, 0.0]])
    lines = g.loss_slices(parabola([1.0, 4.0]), jnp.array([1.0, 1.0]), directions, distances)
    np.testing.assert_allclose(lines[0], ((1 + distances) ** 2 + 4) / 2, rtol=1e-12)
    np.testing.assert_allclose(lines[1], (1 + 4 * (1 + distances) ** 2) / 2, rtol=1e-12)
    assert np.all(np.isnan(lines[2]))


@pytest.mark.slow
def test_a_cliff_of_any_height_has_the_same_shape(dense, key):
    """The curvatures' squares pass the largest float, and those of a flat one are 0."""
    distances = jnp.array([-0.1, 0.0, 0.2])
    plain, *others = (
        jax.jit(
            lambda params, s=s: g.cliff(lambda p: s * LOSS(p), params, key, distances=distances)
        )(PARAMS)
        for s in (1.0, 1e200, 1e-200)
    )
    for scale, found in zip((1e200, 1e-200), others, strict=True):
        heights = ("loss", "gradient_norm", "gradient_curvature", "eigenvalue", "along_sharpest")
        for name in heights:
            here, there = getattr(found, name), getattr(plain, name)
            np.testing.assert_allclose(here / scale, there, rtol=1e-8, err_msg=name)
        np.testing.assert_allclose(found.alignment, plain.alignment, rtol=1e-8)
        assert found.residual / scale < 1e-8


def test_what_has_no_surface_is_refused(key):
    x = jnp.ones(3)
    for steps in (0, 4):
        with pytest.raises(UserError, match=f"steps={steps} must be from 1 to the 3 parameters"):
            g.top_eigenpairs(parabola([1.0, 1, 1]), x, key, steps=steps)
    with pytest.raises(UserError, match="count=3 must be from 1 to steps=2"):
        g.top_eigenpairs(parabola([1.0, 1, 1]), x, key, steps=2, count=3)
    with pytest.raises(UserError, match="distances is empty"):
        g.cliff(parabola([1.0, 1, 1]), x, key, distances=jnp.zeros(0))
    with pytest.raises(UserError, match="shaped as the parameters"):
        g.loss_slices(parabola([1.0, 1, 1]), x, jnp.ones(3), jnp.zeros(1))
    with pytest.raises(UserError, match=r"params\['n'\] is of type int32"):
        g.hessian_vector_product(jnp.sum, {"n": jnp.ones(2, jnp.int32)}, {"n": jnp.ones(2)})
    with pytest.raises(UserError, match="hold no numbers"):
        g.cliff(jnp.sum, {}, key, distances=jnp.zeros(1))
