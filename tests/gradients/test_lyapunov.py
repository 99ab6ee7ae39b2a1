"""Lyapunov exponents: closed forms of linear networks, and the gradient of flossing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax import gradients as g
from lm_jax.models import cells
from lm_jax.settings import UserError

T, N = 400, 3
RATES = np.array([1.5, -0.8, 0.3])  # eigenvalues, real and apart
X = np.array([[1.0, 0.5, -0.3], [0.2, 1.0, 0.4], [-0.5, 0.1, 1.0]])
A = jnp.asarray(X @ np.diag(RATES) @ np.linalg.inv(X))
EXPONENTS = np.log(np.abs(RATES))
ZERO = jnp.zeros(N)
XS = jax.random.normal(jax.random.key(1), (T, N))


def linear(A, h, x):
    return A @ h + x


def elman(W, h, x):
    return jnp.tanh(W @ h + x)


@functools.cache
def jitted(name):
    static = (0, 4, 5) if name == "finite_time_exponents" else (0, 4)
    return jax.jit(getattr(g, name), static_argnums=static)


def test_of_a_linear_network_the_exponents_are_the_logs_of_the_eigenvalues():
    """The error of the running estimate is O(1/T), and of the last steps alone exponentially small.

    QR iteration leaves in R_t the eigenvalues, in order, up to (|λ_2| / |λ_1|)^t.
    """
    running = jitted("lyapunov_convergence")(linear, A, ZERO, XS, N)
    off = np.abs(running - EXPONENTS[None]) * np.arange(1, T + 1)[:, None]
    assert np.max(off) < 4  # T times the error is bounded, by the condition of X and of Q_0
    np.testing.assert_allclose(off[-1], off[T // 2], atol=1e-9)  # and settles
    late = jitted("finite_time_exponents")(linear, A, ZERO, XS, N, 100)
    assert late.shape == (4, N)
    np.testing.assert_allclose(late[1:], np.tile(EXPONENTS, (3, 1)), atol=1e-12)


def test_fewer_exponents_are_the_largest_of_all():
    all_of_them = jitted("lyapunov_spectrum")(linear, A, ZERO, XS, N)
    for count in (1, 2):
        some = jitted("lyapunov_spectrum")(linear, A, ZERO, XS, count)
        assert some.shape == (count,)
        np.testing.assert_allclose(some, all_of_them[:count], atol=5 / T)
    assert np.all(np.diff(all_of_them) < 0)


def test_the_largest_is_first_even_before_the_directions_have_settled():
    """One step with random directions need not stretch the first of them most."""
    keys = jax.random.split(jax.random.key(6), 8)
    short = jax.vmap(lambda key: g.lyapunov_convergence(linear, A, ZERO, XS[:2], N, key=key))(keys)
    assert jnp.all(jnp.diff(short, axis=-1) <= 0)


def test_the_sum_of_all_exponents_is_the_growth_of_the_volume():
    """Σ λ_i = (1/T) Σ_t ln |det J_t|, exactly and for every T, whatever Q_0."""
    xs = XS[:20]
    J = g.step_jacobians(elman, A, ZERO, xs)
    growth = np.linalg.slogdet(J)[1]
    running = jitted("lyapunov_convergence")(elman, A, ZERO, xs, N)
    expected = np.cumsum(growth) / np.arange(1, 21)
    np.testing.assert_allclose(jnp.sum(running, axis=1), expected, rtol=1e-10)
    for key in jax.random.split(jax.random.key(5)):
        spectrum = g.lyapunov_spectrum(elman, A, ZERO, xs, N, key=key)
        np.testing.assert_allclose(jnp.sum(spectrum), expected[-1], rtol=1e-10)


def test_the_last_running_estimate_and_the_mean_of_the_windows_are_the_spectrum():
    spectrum = jitted("lyapunov_spectrum")(elman, A, ZERO, XS, 2)
    running = jitted("lyapunov_convergence")(elman, A, ZERO, XS, 2)
    windows = jitted("finite_time_exponents")(elman, A, ZERO, XS, 2, 50)
    np.testing.assert_allclose(running[-1], spectrum, rtol=1e-12)
    np.testing.assert_allclose(jnp.mean(windows, axis=0), spectrum, rtol=1e-12)
    odd = jitted("finite_time_exponents")(elman, A, ZERO, XS[:120], 2, 50)
    np.testing.assert_allclose(odd, windows[:2], rtol=1e-12)


def test_the_spectrum_is_the_long_products_singular_values():
    """ln σ_i(P_T) / T and the exponents of the same trajectory differ by O(1/T)."""
    cell = cells.LSTMCell(2)
    params = cell.init(jax.random.key(2))

    def step(params, carry, x):
        lanes = jax.tree.map(lambda leaf: leaf[None], carry)
        return jax.tree.map(lambda leaf: leaf[0], cell.step(params, lanes, x[None]))

    carry = cells.LSTMState(jnp.zeros(2), jnp.zeros(2))
    xs = jax.random.normal(jax.random.key(3), (T, 8))
    spectrum = jitted("lyapunov_spectrum")(step, params, carry, xs, 4)
    logs = jitted("log_singular_values")(step, params, carry, xs, T)[T]
    np.testing.assert_allclose(logs / T, spectrum, atol=10 / T)


def test_no_square_matrix_where_fewer_exponents_are_asked_for():
    n = 64

    def step(w, h, x):
        return jnp.tanh(w * jnp.roll(h, 1) + x)

    def run(w, h, xs):
        return g.lyapunov_spectrum(step, w, h, xs, 2)

    text = str(jax.make_jaxpr(run)(jnp.ones(n), jnp.zeros(n), jnp.zeros((5, n))))
    assert f"[{n},2]" in text
    assert f"[{n},{n}]" not in text


@pytest.mark.slow
def test_the_gradient_of_flossing_is_that_of_finite_differences():
    xs, start, count = XS[:8], jnp.array([0.1, -0.2, 0.3]), 2
    penalty = jax.jit(lambda W: g.flossing(elman, W, start, xs, count))
    grad = jax.jit(jax.grad(penalty))(A)
    assert jnp.isfinite(grad).all()
    spectrum = g.lyapunov_spectrum(elman, A, start, xs, count)
    np.testing.assert_allclose(penalty(A), jnp.mean(spectrum**2), rtol=1e-12)
    for way in jax.random.normal(jax.random.key(7), (3, N, N)):
        numeric = (penalty(A + 1e-6 * way) - penalty(A - 1e-6 * way)) / 2e-6
        np.testing.assert_allclose(jnp.vdot(grad, way), numeric, rtol=1e-6)


def test_flossing_descends_to_exponents_of_zero():
    penalty = jax.jit(jax.value_and_grad(lambda W: g.flossing(elman, W, ZERO, XS[:8], N)))
    W, before = A, penalty(A)[0]
    for _ in range(60):
        W = W - 0.05 * penalty(W)[1]
    assert penalty(W)[0] < before / 10


def test_lanes_are_mapped():
    lanes = jax.random.normal(jax.random.key(4), (2, N))
    both = jax.jit(jax.vmap(lambda h: g.lyapunov_spectrum(elman, A, h, XS[:20], 2)))(lanes)
    alone = jitted("lyapunov_spectrum")(elman, A, lanes[1], XS[:20], 2)
    np.testing.assert_allclose(both[1], alone, rtol=1e-10)


def test_nan_from_the_first_one_on():
    """Also where the step forgets it, and its derivative is a number."""

    def forgetful(W, h, x):
        return jnp.tanh(W @ jnp.nan_to_num(h)) + x

    bad = XS[:20].at[9].set(jnp.nan)
    running = jitted("lyapunov_convergence")(forgetful, A, ZERO, bad, N)
    assert jnp.isnan(running[9:]).all()
    assert jnp.isfinite(running[:9]).all()
    assert jnp.isnan(jitted("lyapunov_spectrum")(linear, A, ZERO, bad, N)).all()
    windows = jitted("finite_time_exponents")(linear, A, ZERO, bad, N, 4)
    assert jnp.isnan(windows[2:]).all()
    assert jnp.isfinite(windows[:2]).all()


def test_a_direction_that_is_lost_has_an_exponent_of_minus_infinity():
    flat = jnp.diag(jnp.array([2.0, 0.5, 0.0]))
    spectrum = jitted("lyapunov_spectrum")(linear, flat, ZERO, XS[:20], N)
    assert not jnp.isnan(spectrum).any()
    assert spectrum[2] < -30


@pytest.mark.parametrize("count", [0, 4])
def test_more_exponents_than_numbers_are_refused(count):
    for function in g.lyapunov_spectrum, g.lyapunov_convergence, g.flossing:
        with pytest.raises(UserError, match=rf"count={count} is not in 1 … n=3"):
            function(linear, A, ZERO, XS, count)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"window=21 is not in 1 … T=20"):
        g.finite_time_exponents(linear, A, ZERO, XS[:20], 1, 21)
    with pytest.raises(UserError, match=r"window=0 is not in 1 … T=20"):
        g.finite_time_exponents(linear, A, ZERO, XS[:20], 1, 0)
    with pytest.raises(UserError, match="T=0"):
        g.lyapunov_spectrum(linear, A, ZERO, XS[:0], 1)
    with pytest.raises(UserError, match="carry is of type int64, not floating-point"):
        g.flossing(linear, A, jnp.zeros(N, int), XS, 1)
