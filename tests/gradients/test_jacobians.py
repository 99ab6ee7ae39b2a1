"""Jacobians through time: against closed forms, brute-force autodiff, and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lm_jax import gradients as g
from lm_jax.gradients.lags import SLOPES
from lm_jax.models import cells
from lm_jax.settings import UserError

T, N, L = 6, 4, 3
A = jax.random.normal(jax.random.key(1), (N, N)) / 2
XS = jax.random.normal(jax.random.key(2), (T, N))
ZERO = jnp.zeros(N)


def linear(A, h, x):
    return A @ h + x


def elman(W, h, x):
    return jnp.tanh(W @ h + x)


def powers(matrix, count):
    return [np.linalg.matrix_power(np.asarray(matrix), power) for power in range(count)]


def single_example(cell):
    """A transition for one example of a cell that works on a batch."""

    def step(params, carry, x):
        lanes = jax.tree.map(lambda leaf: leaf[None], carry)
        after = cell.step(params, lanes, cell.prepare(params, (x @ params["W_xh"])[None, None])[0])
        return jax.tree.map(lambda leaf: leaf[0], after)

    return step


CELLS = {"elman": cells.ElmanCell(N), "lstm": cells.LSTMCell(N), "gru": cells.GRUCell(N)}


def of(name):
    """step, params, carry of a cell of lm_jax, with a carry that is not 0."""
    cell = CELLS[name]
    own, first, begin = jax.random.split(jax.random.key(3), 3)
    params = {"W_xh": jax.random.normal(first, (N, cell.width)), **cell.init(own)}
    carry = jax.tree.map(lambda leaf: leaf[0], cell.init_carry(1))
    flat, unravel = ravel_pytree(carry)
    return single_example(cell), params, unravel(jax.random.normal(begin, flat.shape))


@functools.cache
def jitted(name, **settings):
    function = functools.partial(getattr(g, name), **settings)
    return jax.jit(function, static_argnums=0 if name == "step_jacobians" else (0, 4))


def test_of_a_linear_network_every_jacobian_is_the_matrix():
    J = jitted("step_jacobians")(linear, A, ZERO, XS)
    assert jnp.array_equal(J, jnp.broadcast_to(A, (T, N, N)))


@pytest.mark.parametrize("method", ["exact", "matrix-free", None])
def test_of_a_linear_network_the_lag_norm_is_the_norm_of_the_power(method):
    norms = jitted("lag_norms", method=method)(linear, A, ZERO, XS, T)
    expected = [np.linalg.norm(power, 2) for power in powers(A, T + 1)]
    np.testing.assert_allclose(norms, expected, rtol=1e-9)
    assert norms[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_the_product_of_the_step_jacobians_is_the_jacobian_of_the_composed_map(name):
    step, params, carry = of(name)
    J = jitted("step_jacobians")(step, params, carry, XS)
    flat, unravel = ravel_pytree(carry)

    def composed(start, first):
        states = jax.lax.scan(
            lambda s, x: (ravel_pytree(step(params, unravel(s), x))[0], s), start, XS[first:]
        )
        return states[0]

    whole = jax.jit(jax.jacfwd(functools.partial(composed, first=0)))(flat)
    np.testing.assert_allclose(np.linalg.multi_dot(J[::-1]), whole, rtol=1e-10, atol=1e-14)
    P = jitted("jacobian_products")(step, params, carry, XS, T)
    np.testing.assert_allclose(P[T], whole, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(P[2], J[T - 1] @ J[T - 2], rtol=1e-10, atol=1e-14)
    assert jnp.array_equal(P[0], jnp.eye(flat.size))

    exact = jitted("lag_norms", method="exact")(step, params, carry, XS, T)
    np.testing.assert_allclose(exact, np.linalg.norm(P, 2, axis=(1, 2)), rtol=1e-10)
    free = jitted("lag_norms", method="matrix-free")(step, params, carry, XS, T)
    np.testing.assert_allclose(free, exact, rtol=1e-8)
    sigma = jitted("singular_values")(step, params, carry, XS, T)
    np.testing.assert_allclose(sigma, np.linalg.svd(P, compute_uv=False), rtol=1e-8, atol=1e-14)


def test_matrix_free_holds_no_matrix():
    """No array of n × n numbers in all of the program, for a step that has none itself."""
    n = 64

    def step(w, h, x):
        return jnp.tanh(w * jnp.roll(h, 1) + h + x)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)

    def largest(**settings):
        def run(w, h, xs):
            return g.lanczos_lag_norms(step, w, h, xs, 3, iterations=8, **settings)

        arguments = jnp.ones(n), jnp.zeros(n), jnp.zeros((4, n))
        return max(sizes(jax.make_jaxpr(run)(*arguments).jaxpr))

    assert largest() < n * n / 8


def test_a_large_carry_is_matrix_free_and_its_norm_is_right():
    n = 400
    w = jnp.linspace(0.1, 1.0, n).at[-1].set(1.5)
    xs = jnp.zeros((2, n))
    found = g.lanczos_lag_norms(lambda w, h, x: w * h + x, w, xs[0], xs, 2)
    np.testing.assert_allclose(found.norms, [1, 1.5, 1.5**2], rtol=1e-7)
    assert jnp.all(found.residuals <= 1e-5)
    norms = g.lag_norms(lambda w, h, x: w * h + x, w, xs[0], xs, 2)
    assert jnp.array_equal(norms, found.norms)


def test_few_iterations_stay_below_the_norm_and_say_how_far_they_are():
    found = jitted("lanczos_lag_norms", iterations=2, tolerance=0.0)(linear, A, ZERO, XS, L)
    true = [np.linalg.svd(power, compute_uv=False) for power in powers(A, L + 1)]
    for norm, residual, sigma in zip(*found, true, strict=True):
        assert norm <= sigma[0] * (1 + 1e-12)
        assert np.min(np.abs(sigma - norm)) <= residual * norm * (1 + 1e-9) + 1e-12
    assert found.residuals[1] > 1e-4


def test_small_singular_values_beside_large_ones_of_a_long_product():
    """Steps Q D R and Rᵀ D Qᵀ in turn, Q and R orthogonal: σ_i(P_l) = D_i^l.

    Over 200 steps they span 361 decades, more than a number of double precision.
    """
    steps = 200
    decays = jnp.array([4.0, 1.0, 0.25, 0.0625])
    Q = jnp.linalg.qr(A)[0]
    R = jnp.linalg.qr(A + 1)[0]
    to, back = Q @ jnp.diag(decays) @ R, R.T @ jnp.diag(decays) @ Q.T
    pairs = jnp.tile(jnp.stack([back, to]), (steps // 2, 1, 1))
    logs = jitted("log_singular_values")(lambda p, h, M: M @ h, 0.0, ZERO, pairs, steps)
    expected = jnp.arange(steps + 1.0)[:, None] * jnp.log(decays)[None]
    np.testing.assert_allclose(logs, expected, atol=1e-11)
    # Where a number of that size does not exist, it is infinite or 0, not in between.
    norms = jitted("lag_norms", method="exact")(lambda p, h, M: 1e3 * M @ h, 0.0, ZERO, pairs, 200)
    assert jnp.isfinite(norms[80])
    assert jnp.isinf(norms[200])


def test_the_smallest_singular_value_is_right_in_proportion_to_itself():
    """σ_min(A^l) = 1 / σ_max(A^-l), and Σ ln σ_i = l ln |det A|. A is not normal."""
    steps = 150
    xs = jnp.zeros((steps, N))
    logs = jitted("log_singular_values")(linear, A, ZERO, xs, steps)
    lags = np.arange(steps + 1)
    np.testing.assert_allclose(jnp.sum(logs, axis=1), lags * np.linalg.slogdet(A)[1], atol=1e-9)
    inverse = jitted("log_singular_values")(linear, jnp.linalg.inv(A), ZERO, xs, steps)
    np.testing.assert_allclose(logs[:, -1], -inverse[:, 0], atol=1e-9)
    norms = jitted("lag_norms")(linear, A, ZERO, xs, steps)
    np.testing.assert_allclose(logs[:, 0], np.log(norms), atol=1e-9)
    assert logs[-1, 0] - logs[-1, -1] > 60


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_no_lag_back_nothing_has_changed(method):
    assert jnp.array_equal(g.lag_norms(elman, A, ZERO, XS, 0, method=method), jnp.ones(1))
    assert jnp.array_equal(g.mean_lag_norms(elman, A, ZERO, XS, 0, method=method), jnp.ones(1))


def test_a_product_that_is_zero_has_norm_zero():
    nilpotent = jnp.diag(jnp.ones(N - 1), 1)
    for method in "exact", "matrix-free":
        norms = jitted("lag_norms", method=method)(linear, nilpotent, ZERO, XS, N + 1)
        np.testing.assert_allclose(norms, [1.0] * N + [0, 0], rtol=1e-12)
    logs = jitted("log_singular_values")(linear, nilpotent, ZERO, XS, N + 1)
    assert jnp.all(jnp.isneginf(logs[N:]))


@pytest.mark.slow
def test_the_mean_over_the_ends_is_the_mean_of_the_norms_at_each_end():
    step = elman
    ends = [jitted("lag_norms")(step, A, ZERO, XS[:end], L) for end in range(L, T + 1)]
    mean = jitted("mean_lag_norms")(step, A, ZERO, XS, L)
    np.testing.assert_allclose(mean, np.mean(ends, axis=0), rtol=1e-12)
    some = jitted("mean_lag_norms", every=2)(step, A, ZERO, XS, L)
    np.testing.assert_allclose(some, np.mean(ends[::2], axis=0), rtol=1e-12)


@pytest.mark.slow
def test_lanes_are_mapped():
    lanes = jax.random.normal(jax.random.key(4), (2, N))
    for name in "mean_lag_norms", "lag_norms", "singular_values":
        function = functools.partial(getattr(g, name), elman, A)
        both = jax.jit(jax.vmap(lambda h, f=function: f(h, XS, L)))(lanes)
        alone = jitted(name)(elman, A, lanes[1], XS, L)
        np.testing.assert_allclose(both[1], alone, rtol=1e-12)
    free = functools.partial(g.lag_norms, elman, A, method="matrix-free")
    both = jax.jit(jax.vmap(lambda h: free(h, XS, L)))(lanes)
    np.testing.assert_allclose(both[1], jitted("lag_norms")(elman, A, lanes[1], XS, L), rtol=1e-9)


def test_frobenius_probes_are_exact_where_the_rows_are_orthogonal(key):
    diagonal = jnp.diag(jnp.arange(1.0, N + 1))
    found = jitted("frobenius_lag_norms", probes=3)(linear, diagonal, ZERO, XS, L, key=key)
    expected = [np.linalg.norm(power) for power in powers(diagonal, L + 1)]
    np.testing.assert_allclose(found.norms, expected, rtol=1e-12)
    np.testing.assert_allclose(found.standard_errors, 0, atol=1e-12)


def test_frobenius_probes_err_by_their_standard_error(key):
    """Over 64 keys the mean square is unbiased, and the errors are as large as is said."""
    probe = jax.vmap(lambda key: g.frobenius_lag_norms(elman, A, ZERO, XS, L, key=key, probes=32))
    found = jax.jit(probe)(jax.random.split(key, 64))
    P = jitted("jacobian_products")(elman, A, ZERO, XS, L)
    true = jnp.linalg.norm(P, axis=(1, 2))
    squares = found.norms[:, 1:] ** 2
    off = jnp.mean(squares, axis=0) - true[1:] ** 2
    assert jnp.all(jnp.abs(off) < 4 * jnp.std(squares, axis=0) / 8)
    spread = jnp.std(found.norms[:, 1:], axis=0)
    assert jnp.all(spread > 0)
    np.testing.assert_allclose(jnp.mean(found.standard_errors[:, 1:], axis=0), spread, rtol=0.3)


def test_predictions_of_a_linear_network():
    symmetric = (A + A.T) / 2
    top = np.linalg.norm(symmetric, 2)
    xs = jnp.zeros((300, N))
    predict = jitted("predicted_lag_norms")
    found = predict(linear, symmetric, ZERO, xs, L, W_hh=symmetric)
    lags = np.arange(L + 1)
    for prediction in found[:3]:
        np.testing.assert_allclose(prediction, top**lags, rtol=1e-6)
    np.testing.assert_allclose(found.exponent, top**lags, rtol=0.03)
    without = predict(linear, symmetric, ZERO, XS, 0)
    assert without.radius is None
    assert without.slope_norm is None
    assert jnp.array_equal(without.step_norms, jnp.ones(1))
    assert jnp.array_equal(without.exponent, jnp.ones(1))


@pytest.mark.slow
def test_bounds_are_bounds():
    W = 2 * A
    found = g.predicted_lag_norms(elman, W, ZERO, XS, T, W_hh=W, slope=SLOPES["tanh"])
    measured = jitted("lag_norms")(elman, W, ZERO, XS, T)
    assert jnp.all(measured <= found.step_norms * (1 + 1e-12))
    assert jnp.all(found.step_norms <= found.slope_norm * (1 + 1e-12))
    powers_of = np.arange(T + 1)
    np.testing.assert_allclose(found.slope_norm, np.linalg.norm(W, 2) ** powers_of, rtol=1e-12)
    rho = np.max(np.abs(np.linalg.eigvals(W)))
    np.testing.assert_allclose(found.radius, rho**powers_of, rtol=1e-7)
    J = jitted("step_jacobians")(elman, W, ZERO, XS)
    products = np.cumprod(np.linalg.norm(J, 2, axis=(1, 2))[::-1])
    np.testing.assert_allclose(found.step_norms[1:], products, rtol=1e-12)


def test_slopes_are_the_largest_derivatives():
    assert SLOPES.keys() == cells.ACTIVATIONS.keys()
    grid = jnp.linspace(-3, 3, 100).at[50].set(1e-9)
    for name, slope in SLOPES.items():
        slopes = jax.vmap(jax.grad(cells.ACTIVATIONS[name]))(grid)
        np.testing.assert_allclose(jnp.max(slopes), slope, rtol=1e-12)


@pytest.mark.slow
def test_nan_from_the_lag_on_whose_product_holds_it():
    """The fourth of six x is NaN, and so carry_4, which the next step forgets.

    So J_3 and J_4, into it and out of it, are NaN, whatever autodiff says, and J_4 is in lag 2.
    """

    def forgetful(W, h, x):
        return jnp.tanh(W @ jnp.nan_to_num(h)) + x

    bad = XS.at[3].set(jnp.nan)
    J = jitted("step_jacobians")(forgetful, A, ZERO, bad)
    assert jnp.isnan(J[3:5]).all()
    assert jnp.isfinite(J[jnp.array([0, 1, 2, 5])]).all()
    good = XS.at[3].set(0)
    for name in "lag_norms", "singular_values", "jacobian_products":
        values = jitted(name)(forgetful, A, ZERO, bad, T)
        assert jnp.isnan(values[2:]).all(), name
        assert jnp.isfinite(values[:2]).all(), name
    free = jitted("lag_norms", method="matrix-free")(forgetful, A, ZERO, bad, T)
    assert jnp.isnan(free[2:]).all()
    np.testing.assert_allclose(free[:2], jitted("lag_norms")(forgetful, A, ZERO, bad, T)[:2])
    assert jnp.isfinite(jitted("lag_norms")(forgetful, A, ZERO, good, T)).all()


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_single_precision_loses_no_digit_to_the_size_of_a_long_product(method):
    """0.3^60 = 4e-32, to what 60 roundings make of it."""
    w, start, xs = jnp.full(1, 0.3, "float32"), jnp.zeros(1, "float32"), jnp.zeros((60, 1))
    norms = jitted("lag_norms", method=method)(lambda w, h, x: w * h, w, start, xs, 60)
    assert norms.dtype == jnp.float32
    np.testing.assert_allclose(norms, np.float64(w[0]) ** np.arange(61), rtol=5e-6)


def test_lag_norms_have_a_gradient():
    """Of the linear network's ‖A^l‖ with A = a I: d a^l / da = l a^(l-1)."""
    norms = jax.jacfwd(lambda a: g.lag_norms(lambda a, h, x: a * h + x, a, ZERO, XS, L))(0.7)
    np.testing.assert_allclose(norms, [0, 1, 1.4, 3 * 0.49], rtol=1e-12)


@pytest.mark.slow
def test_half_precision_is_measured_in_single():
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (A, ZERO, XS))
    for method in "exact", "matrix-free":
        norms = g.lag_norms(linear, *half, 2, method=method)
        assert norms.dtype == jnp.float32
        np.testing.assert_allclose(norms[1], np.linalg.norm(A, 2), rtol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_lag": 7}, "max_lag=7 is longer than the sequence, T=6"),
        ({"max_lag": -1}, "max_lag=-1 must be 0 or more"),
        ({"xs": XS[:0]}, "xs holds T=0 time steps"),
        ({"xs": ()}, "xs holds no array"),
        ({"xs": 1.0}, "xs is a single number"),
        ({"xs": (XS, XS[1:])}, r"xs\[1\] has T=5 steps, xs\[0\] has T=6"),
        ({"params": {"W": A, "n": jnp.arange(2)}}, r"params\['n'\] is of type int64, not floating"),
        ({"carry": (ZERO, 3)}, r"carry\[1\] is of type int64, not floating"),
        ({"carry": ()}, "the carry holds no numbers"),
        ({"step": lambda p, h, x: (h,)}, "step changes the structure of the carry from"),
        (
            {"step": lambda p, h, x: h[1:]},
            r"step changes carry from float64\[4\] to float64\[3\]",
        ),
        (
            {"step": lambda p, h, x: h.astype(jnp.float32)},
            r"step changes carry from float64\[4\] to float32\[4\]",
        ),
        ({"method": "exakt"}, "method='exakt' must be 'exact', 'matrix-free' or None"),
    ],
)
def test_mistakes_are_told(change, message):
    arguments = {"step": linear, "params": A, "carry": ZERO, "xs": XS, "max_lag": 2, **change}
    with pytest.raises(UserError, match=message):
        g.lag_norms(**arguments)


def test_mistakes_in_settings_are_told(key):
    at = linear, A, ZERO, XS, 2
    with pytest.raises(UserError, match="probes=1 must be 2 or more"):
        g.frobenius_lag_norms(*at, key=key, probes=1)
    with pytest.raises(UserError, match="every=0 must be 1 or more"):
        g.mean_lag_norms(*at, every=0)
    with pytest.raises(UserError, match="iterations=0 must be 1 or more"):
        g.lanczos_lag_norms(*at, iterations=0)
    with pytest.raises(UserError, match=r"W_hh of shape \[4, 3\] is not square"):
        g.predicted_lag_norms(*at, W_hh=A[:, 1:])
    for function in g.mean_lag_norms, g.jacobian_products, g.singular_values:
        with pytest.raises(UserError, match="max_lag=7 is longer than the sequence, T=6"):
            function(linear, A, ZERO, XS, 7)
    with pytest.raises(UserError, match="T=0"):
        g.step_jacobians(linear, A, ZERO, XS[:0])
