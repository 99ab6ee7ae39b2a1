"""Sensitivity is the Jacobian that autodiff finds, and its probes are unbiased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax.models import cells
from lm_jax.settings import UserError

T, H, E = 5, 3, 2
CELL = cells.LSTMCell(H)


def step(params, carry, x):
    lane = jax.tree.map(lambda leaf: leaf[None], carry)
    z_x = CELL.prepare(params["cell"], (x @ params["W_xh"])[None, None])[0]
    return jax.tree.map(lambda leaf: leaf[0], CELL.step(params["cell"], lane, z_x))


def case():
    key = jax.random.key(1)
    params = {"cell": tiny.moved(CELL.init(key)), "W_xh": jax.random.normal(key, (E, CELL.width))}
    carry = jax.tree.map(lambda leaf: leaf[0], tiny.moved(CELL.init_carry(1)))
    return params, carry, jax.random.normal(jax.random.key(2), (T, E))


@pytest.fixture(scope="module")
def brute():
    """‖∂h_t/∂leaf‖² of every leaf, by jacrev of the whole run."""
    params, carry, xs = case()

    def states(params):
        def advance(carry, x):
            carry = step(params, carry, x)
            return carry, jnp.concatenate(carry)

        return jax.lax.scan(advance, carry, xs)[1]

    J = jax.jit(jax.jacrev(states))(params)
    return jax.tree.map(lambda leaf: np.square(leaf).reshape(T, -1).sum(1), J)


def test_the_sensitivity_is_the_jacobian_of_the_whole_run(brute):
    found = jax.jit(lambda *data: g.sensitivity(step, *data))(*case())
    assert list(found) == ["W_xh", "cell"]
    np.testing.assert_allclose(found["W_xh"], np.sqrt(brute["W_xh"]), rtol=1e-11)
    both = brute["cell"]["W_hh"] + brute["cell"]["b_h"]
    np.testing.assert_allclose(found["cell"], np.sqrt(both), rtol=1e-11)


def test_every_leaf_may_be_a_block(brute):
    found = jax.jit(lambda *data: g.sensitivity(step, *data, depth=None))(*case())
    assert list(found) == ["W_xh", "cell.W_hh", "cell.b_h"]
    np.testing.assert_allclose(found["cell.W_hh"], np.sqrt(brute["cell"]["W_hh"]), rtol=1e-11)


@pytest.mark.slow
def test_probes_find_it_within_their_standard_error(brute):
    """The error shrinks as 1 / √K, and is what a root mean square of K normals may have at most."""
    count = 4000
    probe = jax.jit(
        lambda key, *data: g.sensitivity_by_probes(step, *data, key=key, probes=count, depth=None)
    )
    found = probe(jax.random.key(0), *case())
    for name, exact in (("W_xh", brute["W_xh"]), ("cell.b_h", brute["cell"]["b_h"])):
        norm, error = found[name]
        exact = np.sqrt(exact)
        assert np.all(np.abs(norm - exact) < 4 * error)
        assert np.all(error < 1.1 * exact / np.sqrt(2 * count))
        assert np.all(error > 0.2 * exact / np.sqrt(2 * count))


def test_of_a_sum_over_time_the_sensitivity_grows_with_it():
    """h_t = a h_{t-1} + w: ∂h_t/∂w = Σ_{k<t} a^k, and nothing else of it depends on w."""
    params = {"a": jnp.array(0.5), "w": jnp.array(2.0)}
    xs = jnp.zeros(T)
    found = g.sensitivity(lambda p, h, x: p["a"] * h + p["w"] + x, params, jnp.array(0.0), xs)
    np.testing.assert_allclose(found["w"], 2 * (1 - 0.5 ** np.arange(1, T + 1)), rtol=1e-12)


@pytest.mark.quick("float32-bfloat16")
@pytest.mark.parametrize(
    ("of_params", "of_carry"),
    [(jnp.float32, jnp.bfloat16), (jnp.float64, jnp.float32), (jnp.bfloat16, jnp.float32)],
)
def test_parameters_may_be_of_another_type_than_the_carry(of_params, of_carry):
    params = {"a": jnp.array(0.5, of_params), "w": jnp.array(2.0, of_params)}
    step = lambda p, h, x: (p["a"] * h + p["w"] + x).astype(h.dtype)  # noqa: E731
    data = params, jnp.array(0, of_carry), jnp.zeros(T, of_carry)
    exact = 2 * (1 - 0.5 ** np.arange(1, T + 1))
    found = g.sensitivity(step, *data)["w"]
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=0.02)
    probed = g.sensitivity_by_probes(step, *data, key=jax.random.key(0), probes=2)["w"]
    assert np.all(np.isfinite(np.asarray(probed.norm, np.float64)))


def test_a_parameter_may_be_a_bare_number():
    step = lambda p, h, x: p * h + x  # noqa: E731
    found = g.sensitivity(step, 0.5, jnp.array(1.0), jnp.zeros(T))[""]
    np.testing.assert_allclose(found, np.arange(1, T + 1) * 0.5 ** np.arange(T), rtol=1e-12)
    probed = g.sensitivity_by_probes(
        step, 0.5, jnp.array(1.0), jnp.zeros(T), key=jax.random.key(0), probes=2
    )[""]
    np.testing.assert_allclose(probed.norm / probed.norm[0], found / found[0], rtol=1e-12)


@pytest.mark.slow
def test_a_nan_spoils_what_follows_and_a_dead_block_is_zero():
    def step(params, h, x):
        return jax.nn.relu(params["w"] * h + x) + 0 * params["dead"]

    params = {"w": jnp.array(0.5), "dead": jnp.array(1.0)}
    xs = jnp.array([1.0, 1.0, jnp.nan, 1.0])
    probed = g.sensitivity_by_probes(
        step, params, jnp.array(1.0), xs, key=jax.random.key(0), probes=3
    )
    exact = g.sensitivity(step, params, jnp.array(1.0), xs)
    for found in (exact["w"], *probed["w"], exact["dead"], *probed["dead"]):
        np.testing.assert_array_equal(np.isnan(found), [False, False, True, True])
    for found in (exact["dead"], *probed["dead"]):
        np.testing.assert_array_equal(found[:2], 0)


def test_mistakes_are_told_in_one_line():
    params, carry, xs = case()
    with pytest.raises(UserError, match="probes=1 must be 2"):
        g.sensitivity_by_probes(step, params, carry, xs, key=jax.random.key(0), probes=1)
    with pytest.raises(UserError, match="T=0"):
        g.sensitivity(step, params, carry, xs[:0])
    with pytest.raises(UserError, match="structure of the carry"):
        g.sensitivity(lambda p, c, x: c.h, params, carry, xs)
    with pytest.raises(UserError, match="int"):
        g.sensitivity(step, {**params, "n": jnp.arange(2)}, carry, xs)
