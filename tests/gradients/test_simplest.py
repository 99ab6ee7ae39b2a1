"""Every tool of a transition on the simplest recurrences there are, and on every cell that ships.

What each tool should say is worked out by NumPy from three things: the step's Jacobian J_t, and the
derivatives in the parameters, with the state before the step held still, of the step, B_t, and of
J_t, D_t. They are written down by hand for h' = a h + x, h' = h W + x, h' = h + b and steps that
forget; for the cells they are autodiff's, of one step at a time. The loss of a step is ⟨h_t, y_t⟩,
whose gradient is y_t.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.flatten_util import ravel_pytree

import lm_jax
from lm_jax import gradients as g
from lm_jax.analysis import probing
from lm_jax.config import RNN, LiveProbe
from lm_jax.models import cells, linear_recurrences, sru, xlstm
from lm_jax.settings import UserError
from lm_jax.training.journal import read_rows

T = 9  # more than the steps of a credit map's block
PROBES = 64
KEY = jax.random.key(7)


def loss(params, carry, y):
    return jnp.vdot(ravel_pytree(carry)[0], y)


# --- what the tools say ---------------------------------------------------------------------------


def told(step, params, carry, xs, ys):
    """What the tools say."""
    steps, n = len(xs), ravel_pytree(carry)[0].size
    at = step, params, carry, xs
    whole, losses = (*at, steps), (step, loss, params, carry, xs, ys)
    by_lag, credit = g.gradient_by_lag(*losses, steps - 1), g.credit_map(*losses)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), carry)
    both = (jnp.stack([leaf, leaf], axis=1) for leaf in (xs, ys))
    return {
        "jacobians": g.step_jacobians(*at),
        "products": g.jacobian_products(*whole),
        "lag norms": g.lag_norms(*whole),
        "lanczos": g.lanczos_lag_norms(*whole, key=KEY),
        "convergence": g.lyapunov_convergence(*at, n),
        "by lag": by_lag,
        "credit": credit,
        "omega": g.omega(*losses),
        "sensitivity": g.sensitivity(*at, depth=None),
        "by probes": g.sensitivity_by_probes(*at, key=KEY, probes=PROBES),
        "singular values": g.singular_values(*whole),
        "logarithms": g.log_singular_values(*whole),
        "matrix-free": g.lag_norms(*whole, method="matrix-free"),
        "mean": g.mean_lag_norms(*at, (steps + 1) // 2),
        "frobenius": g.frobenius_lag_norms(*whole, key=KEY, probes=PROBES),
        "predicted": g.predicted_lag_norms(*whole),
        "spectrum": g.lyapunov_spectrum(*at, n),
        "windows": g.finite_time_exponents(*at, n, 1),
        "flossing": g.flossing(*at, n),
        "batched": g.gradient_by_lag(step, loss, params, two, *both, steps - 1, batched=True),
        "truncations": g.truncations_by_block(by_lag, depth=None),
        "credit horizon": g.credit_horizon(credit, 0.9),
    }


# --- what they should say -------------------------------------------------------------------------


def back_from(J, row, t):
    """row ∂h_t/∂h_k for k = t, t - 1, …, 0, h_k being the state after step k."""
    rows = [row]
    for k in range(t, 0, -1):
        rows.append(rows[-1] @ J[k])
    return rows


def by_lag(rows, immediate):
    """(1/T) Σ_t y_t ∂h_t/∂h_{t-l} B_{t-l}, for each l."""
    steps = len(rows)
    through = lambda t, lag: np.tensordot(rows[t][lag], immediate[t - lag], 1)  # noqa: E731
    return [sum(through(t, lag) for t in range(lag, steps)) / steps for lag in range(steps)]


def sensitivity(J, immediate):
    """‖S_t‖ with S_t = J_t S_{t-1} + B_t."""
    S, sizes = np.zeros(immediate.shape[1:]), []
    for jacobian, now in zip(J, immediate, strict=True):
        S = np.tensordot(jacobian, S, 1) + now
        sizes.append(np.linalg.norm(S))
    return np.array(sizes)


def omega(J, D, ys):
    """Σ_t (‖δ_t J_t‖ / ‖δ_t‖ - 1)² with δ_t = y_t + δ_{t+1} J_{t+1}, and its derivative by J_t."""
    total, slope, returned = 0.0, [0.0 for _ in D], 0.0
    for t in reversed(range(len(J))):
        delta = ys[t] + returned
        returned = delta @ J[t]
        size, before = np.linalg.norm(returned), np.linalg.norm(delta)
        total += (size / before - 1) ** 2
        if size:
            by_J = 2 * (size / before - 1) * np.outer(delta, returned) / (size * before)
            slope = [
                old + np.tensordot(by_J, leaf[t], 2) for old, leaf in zip(slope, D, strict=True)
            ]
    return total, slope


def growth(J, count):
    """ln |R_t[i, i]|, by NumPy's own decomposition, from the directions that the tools draw."""
    Q = np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(0), (J.shape[1], count))))[0]
    found = []
    for jacobian in J:
        Q, R = np.linalg.qr(jacobian @ Q)
        with np.errstate(divide="ignore"):
            found.append(np.log(np.abs(np.diagonal(R))))
    return np.array(found)


def falling(exponents):
    return -np.sort(-exponents, axis=-1)


def product(J):
    """∂h/∂h over some steps, the last one leftmost."""
    return functools.reduce(np.matmul, J[::-1], np.eye(J.shape[1]))


def assert_told(found, J, B, D, ys):
    """What was found is what follows from J [T, n, n], B [T, n, ...] and D [T, n, n, ...]."""
    steps, n, _ = J.shape
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    P = np.array([product(J[steps - lag :]) for lag in range(steps + 1)])
    norms = np.linalg.norm(P, 2, axis=(1, 2))
    close(found["jacobians"], J)
    close(found["products"], P)
    close(found["lag norms"], norms)
    close(found["lanczos"].norms, norms, rtol=1e-7)
    assert np.all(found["lanczos"].residuals <= 1e-5)
    grown = growth(J, n)
    mean = np.cumsum(grown, axis=0) / np.arange(1, steps + 1)[:, None]
    # If a step maps a direction to almost zero, rounding determines all but the largest exponent.
    exact = np.all((grown > -30) | np.isneginf(grown))
    first = np.s_[..., : n if exact else 1]
    close(found["convergence"][first], falling(mean)[first])

    # Row l of step t is y_t ∂h_t/∂h_{t-l}.
    rows = [back_from(J, ys[t], t) for t in range(steps)]
    credit = np.zeros((steps, steps))
    for t in range(steps):
        credit[t, : t + 1] = np.linalg.norm(rows[t], axis=1)[::-1]
    close(found["credit"], credit)
    leaves, structure = jax.tree.flatten(B)
    close_leaves = lambda a, b: jax.tree.map(close, a, structure.unflatten(b))  # noqa: E731
    close_leaves(found["by lag"], [by_lag(rows, leaf) for leaf in leaves])
    sizes = [sensitivity(J, leaf) for leaf in leaves]
    close(list(found["sensitivity"].values()), sizes)
    for norm, error in found["by probes"].values():  # of all parameters together
        assert np.all(np.abs(norm - np.linalg.norm(sizes, axis=0)) <= 5 * error + 1e-13)
    total, slope = omega(J, jax.tree.leaves(D), ys)
    close(found["omega"][0], total)
    close_leaves(found["omega"][1], slope)

    sigma = np.linalg.svd(P, compute_uv=False)
    close(found["singular values"], sigma)
    close(np.exp(found["logarithms"]), sigma)
    close(found["matrix-free"], sigma[:, 0], rtol=1e-7)
    longest = (steps + 1) // 2
    ends = [
        [np.linalg.norm(product(J[end - lag : end]), 2) for lag in range(longest + 1)]
        for end in range(longest, steps + 1)
    ]
    close(found["mean"], np.mean(ends, axis=0))
    size, probed = np.linalg.norm(P, axis=(1, 2)), found["frobenius"]
    assert np.all(np.abs(probed.norms - size) <= 4 * probed.standard_errors + 1e-12 * size)
    steps_back = np.linalg.norm(J, 2, axis=(1, 2))[::-1]
    close(found["predicted"].step_norms, np.cumprod([1, *steps_back]))
    close(found["predicted"].exponent, np.exp(growth(J, 1).mean()) ** np.arange(steps + 1))
    close(found["spectrum"][first], falling(grown.mean(axis=0))[first])
    close(found["windows"][first], grown[first])
    if exact:
        close(found["flossing"], np.mean(grown.mean(axis=0) ** 2))
    tiny.assert_trees_close(found["batched"], found["by lag"])
    splits = found["truncations"].values()
    for leaf, split in zip(jax.tree.leaves(found["by lag"]), splits, strict=True):
        prefixes = np.cumsum(np.asarray(leaf), axis=0).reshape(steps, -1)
        size = np.linalg.norm(prefixes, axis=1)
        close(split.norm, size)
        with np.errstate(invalid="ignore"):  # of no gradient there is no share
            error = np.linalg.norm(prefixes - prefixes[-1], axis=1) / size[-1]
        close(split.relative_error, error)
    back = [found["credit"][t, : t + 1][::-1] for t in range(steps)]
    reached = [1 + np.sum(np.cumsum(row) < 0.9 * np.sum(row)) for row in back]
    close(found["credit horizon"], np.mean(reached))


# --- the simplest there is ------------------------------------------------------------------------

DRAW = np.random.default_rng(0)
W = 0.5 * DRAW.normal(size=(2, 2))
XS, YS = DRAW.normal(size=(2, T, 2))


def repeated(matrix, steps):
    return np.broadcast_to(matrix, (steps, *np.shape(matrix)))


def still(steps):
    """D, of a Jacobian that does not depend on b."""
    return {"b": np.zeros((steps, 2, 2, 2))}


def scalar(steps):
    """h' = a h + x: J = a, and the state before a step is how the step changes with a."""
    a, h, before = -0.8, 0.3, []
    for x in XS[:steps, 0]:
        before.append(h)
        h = a * h + x
    J, B, D = (
        repeated([[a]], steps),
        {"a": np.array(before)[:, None]},
        {"a": np.ones((steps, 1, 1))},
    )
    return lambda p, h, x: p["a"] * h + x, {"a": a}, 0.3, XS[:steps, 0], J, B, D


def matrix(steps):
    """h' = h W + x: J = Wᵀ, whose entry i, a is W[a, i]."""
    h, before = np.array([0.3, -1.0]), []
    for x in XS[:steps]:
        before.append(h)
        h = h @ W + x
    B = {"W": np.einsum("ta,ib->tiab", before, np.eye(2))}
    step = lambda p, h, x: h @ p["W"] + x  # noqa: E731
    D = {"W": repeated(np.einsum("ab,ij->iabj", np.eye(2), np.eye(2)), steps)}
    return step, {"W": W}, before[0], XS[:steps], repeated(W.T, steps), B, D


def counting(steps):
    """h' = h + b: J is the identity, and so is B."""
    J = repeated(np.eye(2), steps)
    return lambda p, h, x: h + p["b"], {"b": W[0]}, W[1], XS[:steps], J, {"b": J}, still(steps)


def identity(steps):
    """h' = h, without parameters."""
    return lambda p, h, x: h, {}, W[1], XS[:steps], repeated(np.eye(2), steps), {}, {}


def forgetful(steps):
    """h' = b x, whatever h was: J = 0."""
    J, B = repeated(np.zeros((2, 2)), steps), {"b": np.eye(2) * XS[:steps, None]}
    return lambda p, h, x: p["b"] * x, {"b": W[0]}, W[1], XS[:steps], J, B, still(steps)


def constant(steps):
    """h' = 2, whatever there was."""
    J = repeated(np.zeros((2, 2)), steps)
    B = {"b": J}
    return lambda p, h, x: jnp.full(2, 2.0), {"b": W[0]}, W[1], XS[:steps], J, B, still(steps)


ALL = scalar, matrix, counting, identity, forgetful, constant


@pytest.mark.slow
@pytest.mark.parametrize(("recurrence", "steps"), [(one, T) for one in ALL] + [(matrix, 1)])
def test_of_the_simplest_recurrences_the_tools_say_what_is_worked_out_by_hand(recurrence, steps):
    step, params, carry, xs, J, B, D = recurrence(steps)
    ys = YS[:steps, : J.shape[1]]
    given = jax.tree.map(jnp.asarray, (params, carry, xs, ys))
    assert_told(jax.jit(functools.partial(told, step))(*given), J, B, D, ys)


def test_of_a_scalar_every_figure_is_a_power_or_a_logarithm():
    """Of h' = a h: |a|^l, |a|^(t-k) and ln |a|, which the derivative of flossing knows, too."""
    a, lags = -0.8, np.arange(T + 1)
    step, xs = lambda a, h, x: a * h, jnp.zeros(T)

    @jax.jit
    def read(a):
        at = step, a, 1.0, xs
        penalty, slope = jax.value_and_grad(lambda a: g.flossing(step, a, 1.0, xs, 1))(a)
        predicted = g.predicted_lag_norms(*at, T, W_hh=a[None, None])
        return (
            g.lag_norms(*at, T),
            predicted,
            g.credit_map(step, loss, *at[1:], xs + 1),
            penalty,
            slope,
        )

    norms, predicted, credit, penalty, slope = read(jnp.asarray(a))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    for found in (norms, *predicted):
        close(found, abs(a) ** lags)
    close(credit, np.tril(abs(a) ** np.maximum(lags[:T, None] - lags[None, :T], 0)))
    close([penalty, slope], [np.log(-a) ** 2, 2 * np.log(-a) / a])


def test_without_parameters_there_is_no_gradient_to_truncate():
    step, params, carry, xs, *_ = identity(1)
    by_lag = g.gradient_by_lag(step, loss, params, carry, xs, xs, 0)
    assert by_lag == {}
    assert g.sensitivity(step, params, carry, xs) == {}
    assert g.truncations_by_block(by_lag) == {}
    with pytest.raises(UserError, match="the transition has no parameters"):
        g.truncations(by_lag)


# --- the cells that ship --------------------------------------------------------------------------

CELLS = {
    "elman": cells.ElmanCell(2),
    "lstm": cells.LSTMCell(2),
    "lstm with peepholes": cells.LSTMCell(2, peepholes=True),
    "lstm with layer normalisation": cells.LSTMCell(3, layer_norm=True),
    "gru, reset after": cells.GRUCell(2),
    "gru, reset before": cells.ResetBeforeGRUCell(2),
    "mingru": linear_recurrences.MinGRUCell(2),
    "minlstm": linear_recurrences.MinLSTMCell(2),
    "lru": linear_recurrences.LRUCell(2),
    "rglru": linear_recurrences.RGLRUCell(2),
    "sru": sru.SRUCell(2),
    "slstm": xlstm.SLSTMCell(2),
    "mlstm": xlstm.MLSTMCell(2, heads=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_of_every_cell_the_tools_say_what_follows_from_its_single_steps(name):
    cell = CELLS[name]

    def step(params, carry, x):
        carry, x = jax.tree.map(lambda leaf: leaf[None], (carry, x))
        z_x = cell.prepare(params["cell"], x[None])[0]
        return jax.tree.map(lambda leaf: leaf[0], cell.step(params["cell"], carry, z_x))

    params = {"cell": tiny.moved(cell.init(KEY))}
    start = tiny.moved(jax.tree.map(lambda leaf: leaf[0], cell.init_carry(1)))
    flat, unravel = ravel_pytree(start)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(T, cell.width)))
    ys = jnp.asarray(np.random.default_rng(2).normal(size=(T, flat.size)))

    def told_and_single_steps(params, start, xs, ys):
        def of_vectors(params, s, x):
            return ravel_pytree(step(params, unravel(s), x))[0]

        def advance(s, x):
            B, J = jax.jacrev(of_vectors, (0, 1))(params, s, x)
            D = jax.jacfwd(jax.jacrev(of_vectors, 1))(params, s, x)
            return of_vectors(params, s, x), (J, B, D)

        _, single = jax.lax.scan(advance, ravel_pytree(start)[0], xs)
        return told(step, params, start, xs, ys), single

    found, single = jax.jit(told_and_single_steps)(params, start, xs, ys)
    J, B, D = jax.tree.map(np.asarray, single)
    assert_told(found, J, B, D, np.asarray(ys))


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lru", "mingru", "minlstm"])
def test_a_run_of_a_linear_cell_is_probed(cell, tmp_path, monkeypatch):
    """While it is trained and afterwards. What its next updates would do is left out: that asks
    estimators, not tools of a transition, and `test_estimators` has those of a linear cell."""
    monkeypatch.setattr(probing, "updates", lambda *args, **kwargs: None)
    length = 11  # more than a block of the credit map, and no multiple of a shorter one
    config = tiny.config(
        model=tiny.changed(RNN(embedding_size=None, hidden_size=2), cell=cell),
        data={"batch_size": 2, "length": length},
        train={"steps": 1, "probe": LiveProbe(every=1, lags=True, sequences=1)},
    )
    run = lm_jax.train(config, tmp_path / cell, text=tiny.TEXT)
    rows = [row for row in read_rows(run.path / "metrics.jsonl") if row["kind"] == "probe"]
    assert [row["step"] for row in rows] == [0, 1]
    for row in rows:
        assert np.all(np.isfinite(row["gradient_by_lag"]))
        assert row["lag_norms"][0] == 1
        assert row["lyapunov"] < 0  # |λ|, 1 - z and f' are below 1
    reach = lm_jax.probe(run, text=tiny.TEXT, sequences=1).reach
    norms, exponents = reach.lags.measured, reach.dynamics.convergence[-1]
    assert np.all(np.diff(norms) < 0)
    assert np.all(exponents < 0)
    if cell == "lru":  # both numbers of its one complex unit turn, and shrink as |λ|^l
        size = np.exp(-np.exp(run.params["layers"][0]["nu"]))
        np.testing.assert_allclose(norms, size ** np.arange(len(norms)), rtol=1e-6)
        np.testing.assert_allclose(exponents, np.log(size).repeat(2), rtol=1e-6)
    assert reach.credit.map.shape[0] > 8
    assert np.all(np.diagonal(reach.credit.map) > 0)
    assert np.all(np.triu(reach.credit.map, 1) == 0)
