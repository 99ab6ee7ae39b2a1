"""Spectra of recurrent weights against matrices whose spectra are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax import gradients as g
from lm_jax.models import cells
from lm_jax.settings import UserError

H = 4
ROTATION = jnp.array([[0.0, -2], [2, 0]])


def test_each_gate_has_its_own_block():
    """Blocks k Q with Q orthogonal: every singular value and every |eigenvalue| is k."""
    Q = np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(1), (H, H))))[0]
    W_hh = np.concatenate([Q, 2 * Q, 3 * Q], axis=1)
    found = g.recurrent_spectra(W_hh)
    for gain, block in enumerate(found.blocks, start=1):
        np.testing.assert_allclose(block.singular_values, gain, rtol=1e-12)
        np.testing.assert_allclose(np.abs(block.eigenvalues), gain, rtol=1e-12)
        np.testing.assert_allclose([block.radius, block.norm], gain, rtol=1e-12)
    np.testing.assert_allclose(found.singular_values, np.sqrt(1 + 4 + 9), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(g.block_radii)(jnp.asarray(W_hh)), [1, 2, 3], rtol=1e-8)
    np.testing.assert_allclose(jax.jit(g.block_norms)(jnp.asarray(W_hh)), [1, 2, 3], rtol=1e-12)


def test_a_matrix_that_is_not_normal_has_a_norm_above_its_radius():
    (block,) = g.recurrent_spectra(jnp.array([[0.5, 10], [0, -0.25]])).blocks
    np.testing.assert_allclose(block.eigenvalues, [0.5, -0.25], rtol=1e-12)
    assert block.radius == 0.5
    assert block.norm > 10


def test_a_rotation_has_complex_eigenvalues():
    (block,) = g.recurrent_spectra(ROTATION).blocks
    np.testing.assert_allclose(sorted(block.eigenvalues.imag), [-2, 2], rtol=1e-12)
    assert np.iscomplexobj(g.recurrent_spectra(jnp.eye(2)).blocks[0].eigenvalues)


def test_every_recurrent_layer_of_the_params_is_found(key):
    layers = [kind(H).init(key) for kind in (cells.LSTMCell, cells.GRUCell)]
    params = {"layers": layers, "W_xh": jnp.ones(3)}
    found = g.spectra_by_layer(params)
    assert {where: len(each.blocks) for where, each in found.items()} == {
        "layers.0.W_hh": 4,
        "layers.1.W_hh": 3,
    }
    state = cells.LSTMState(jnp.ones(1), jnp.ones(1))
    assert g.spectra_by_layer((state, [])) == g.spectra_by_layer(jnp.ones(2)) == {}
    others = {"W_hh": jnp.ones((4, 2))}, {"W_hh": {"kernel": jnp.ones((2, 2))}}, {"W_hh": 0.5}
    assert g.spectra_by_layer(others) == {}


def test_what_is_not_finite_is_nan_and_only_there():
    found = g.recurrent_spectra(jnp.concatenate([ROTATION.at[0, 0].set(jnp.inf), ROTATION], 1))
    assert np.isnan(found.blocks[0].eigenvalues).all()
    assert np.isnan([found.blocks[0].radius, found.blocks[0].norm]).all()
    assert np.isnan(found.singular_values).all()
    np.testing.assert_allclose([found.blocks[1].radius, found.blocks[1].norm], 2, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (0, 0), (2, 0)])
def test_what_is_not_made_of_square_blocks_is_refused(shape):
    for function in g.recurrent_spectra, g.block_radii, g.block_norms:
        with pytest.raises(UserError, match=r"W_hh of shape \[\d, \d\] is not made of square"):
            function(jnp.zeros(shape))
    with pytest.raises(UserError, match=r"W_hh of shape \[3\] is not"):
        g.recurrent_spectra(np.zeros(3))
