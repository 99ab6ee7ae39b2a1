"""Credit: the gradient by lag and by (loss, carry) pair is what brute force finds, and sums up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax.gradients import credit as credit_module
from lm_jax.models import cells
from lm_jax.settings import UserError

T, H, E, B = 6, 3, 2, 2
CELLS = {"elman": cells.ElmanCell(H), "lstm": cells.LSTMCell(H), "gru": cells.ResetBeforeGRUCell(H)}


def step_of(cell):
    """One example of a cell, which takes batches."""

    def step(params, carry, x):
        lane = jax.tree.map(lambda leaf: leaf[None], carry)
        z_x = cell.prepare(params["cell"], (x @ params["W_xh"])[None, None])[0]
        return jax.tree.map(lambda leaf: leaf[0], cell.step(params["cell"], lane, z_x))

    return step


def loss_of(cell):
    """Reads the carry and, itself, the parameters."""

    def loss(params, carry, y):
        lane = jax.tree.map(lambda leaf: leaf[None], carry)
        return jnp.sum((cell.output(lane)[0] @ params["W_hy"] - y) ** 2)

    return loss


def case(name, steps=T):
    cell = CELLS[name]
    key = jax.random.key(1)
    x, y, w, v = (jax.random.normal(k, (9, 9, 9)) for k in jax.random.split(key, 4))
    params = {"cell": tiny.moved(cell.init(key)), "W_xh": w[0, :E], "W_hy": v[0, :H, :2]}
    params["W_xh"] = jax.random.normal(key, (E, cell.width))
    carry = tiny.moved(cell.init_carry(B), seed=2)
    return step_of(cell), loss_of(cell), params, carry, x[:steps, :B, :E], y[:steps, :B, :2]


def one(carry, xs, ys):
    """The first lane."""
    return jax.tree.map(lambda leaf: leaf[0], carry), xs[:, 0], ys[:, 0]


def run(step, params, carry, xs):
    def advance(carry, x):
        carry = step(params, carry, x)
        return carry, carry

    return jax.lax.scan(advance, carry, xs)[1]


def through_transition(step, loss, params, carry, xs, ys):
    """The gradient of the mean loss, without what the loss itself owes to the parameters."""

    def mean(moving):
        after = run(step, moving, carry, xs)
        return jnp.mean(jax.vmap(loss, (None, 0, 0))(params, after, ys))

    return jax.grad(mean)(params)


def truncated(step, loss, params, carry, xs, ys, k2):
    """Each loss by itself, the parameters moving in its last k2 steps only."""

    def mean(moving):
        after, total = carry, 0.0
        before = []
        for t in range(T):
            before.append(jax.lax.stop_gradient(after))
            after = step(params, after, xs[t])
            first = max(0, t - k2 + 1)
            window = before[first]
            for s in range(first, t + 1):
                window = step(moving, window, xs[s])
            total += loss(params, window, ys[t]) / T
        return total

    return jax.jit(jax.grad(mean))(params)


def by_lag(max_lag, batched=False):
    def split(step, loss, *data):
        return jax.jit(
            lambda *data: g.gradient_by_lag(step, loss, *data, max_lag, batched=batched)
        )(*data)

    return split


def summed(tree, count=None):
    return jax.tree.map(lambda leaf: leaf[:count].sum(0), tree)


@pytest.mark.quick("lstm")
@pytest.mark.parametrize("name", CELLS)
def test_the_lags_sum_to_the_gradient_through_the_transition(name):
    step, loss, params, *data = case(name)
    data = one(*data)
    found = by_lag(T - 1)(step, loss, params, *data)
    tiny.assert_trees_close(
        summed(found), jax.jit(lambda p: through_transition(step, loss, p, *data))(params), 1e-11
    )
    assert not np.any(found["W_hy"])  # the readout's own gradient is not through the transition


@pytest.mark.slow
def test_a_prefix_of_lags_is_the_gradient_truncated_to_as_many_steps():
    step, loss, params, *data = case("lstm")
    data = one(*data)
    found = by_lag(T - 2)(step, loss, params, *data)
    for k2 in (1, 3, T - 1):
        brute = truncated(step, loss, params, *data, k2)
        tiny.assert_trees_close(summed(found, k2), brute, 1e-11)


def test_sequences_at_once_are_the_mean_of_sequences_one_by_one():
    step, loss, params, *data = case("gru")
    together = by_lag(3, batched=True)(step, loss, params, *data)
    split = jax.vmap(lambda *lane: g.gradient_by_lag(step, loss, params, *lane, 3), (0, 1, 1))
    alone = jax.jit(split)(*data)
    tiny.assert_trees_close(together, jax.tree.map(lambda leaf: leaf.mean(0), alone), 1e-11)


A = 0.6 * np.random.default_rng(0).normal(size=(H, H))


def linear(params, h, x):
    return params["A"] @ h + params["W"] @ x


def linear_case():
    draw = np.random.default_rng(1).normal
    params = {"A": jnp.asarray(A), "W": jnp.asarray(draw(size=(H, E)))}
    xs, ys = jnp.asarray(draw(size=(T, E))), jnp.asarray(draw(size=(T, H)))
    return params, jnp.zeros(H), xs, ys


def dot(params, h, y):
    """A loss whose gradient is y, whatever the carry."""
    return jnp.dot(h, y)


def test_of_a_linear_transition_every_lag_has_a_closed_form():
    """Entry l of W is (1/T) Σ_t (A^lᵀ y_t) x_{t-l}ᵀ, and the map is ‖A^(t-k)ᵀ y_t‖."""
    params, carry, xs, ys = linear_case()
    found = by_lag(T - 1)(linear, dot, params, carry, xs, ys)
    credit = jax.jit(lambda *data: g.credit_map(linear, dot, *data))(params, carry, xs, ys)
    powers = [np.linalg.matrix_power(A.T, lag) for lag in range(T)]
    for lag in range(T):
        outer = [np.outer(powers[lag] @ ys[t], xs[t - lag]) for t in range(lag, T)]
        np.testing.assert_allclose(found["W"][lag], sum(outer) / T, rtol=1e-11)
    for t in range(T):
        for k in range(T):
            value = np.linalg.norm(powers[t - k] @ ys[t]) if k <= t else 0
            np.testing.assert_allclose(credit[t, k], value, rtol=1e-11)


def test_a_step_whose_linearisation_keeps_nothing_has_a_map():
    """h_t = h_{t-1} + W x_t has the identity for its Jacobian, and a reset has 0."""
    params, carry, xs, ys = linear_case()
    lengths = np.linalg.norm(ys, axis=1)[:, None]
    for step, past in (
        (lambda p, h, x: h + p["W"] @ x, np.tril(np.ones((T, T)))),
        (lambda p, h, x: jnp.tanh(p["W"] @ x), np.eye(T)),
    ):
        found = g.credit_map(step, dot, params, carry, xs, ys)
        np.testing.assert_allclose(found, lengths * past, rtol=1e-12)


@pytest.fixture(params=[T, 2, 1], ids=["whole", "pairs", "steps"])
def _blocks(request, monkeypatch):
    """T is no multiple of the blocks' number where there are several, so some steps are padding."""
    monkeypatch.setattr(credit_module, "BLOCK", request.param)


@pytest.mark.quick("steps-lstm", "pairs-lstm", "whole-lstm")
@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_the_credit_map_is_one_gradient_for_each_pair(name):
    step, loss, params, *data = case(name)
    carry, xs, ys = one(*data)

    def losses(moves):
        def advance(carry, at):
            x, move = at
            carry = jax.tree.map(jnp.add, step(params, carry, x), move)
            return carry, carry

        return jax.vmap(loss, (None, 0, 0))(
            params, jax.lax.scan(advance, carry, (xs, moves))[1], ys
        )

    moves = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape)), carry)
    rows = jax.jit(jax.jacrev(losses))(moves)  # leaves [t, k, ...]
    brute = np.sqrt(sum(np.sum(np.square(leaf), axis=2) for leaf in jax.tree.leaves(rows)))
    credit_map = jax.jit(lambda *data: g.credit_map(step, loss, *data))
    found = credit_map(params, carry, xs, ys)
    np.testing.assert_allclose(found, brute, rtol=1e-11)
    assert not np.any(np.triu(found, 1))
    # Later words and targets change no earlier row.
    changed = credit_map(params, carry, xs.at[4:].add(1), ys.at[4:].add(1))
    np.testing.assert_allclose(changed[:4], found[:4], rtol=1e-13)
    assert np.all(changed[4:, :4] != found[4:, :4])


def test_a_single_step_has_one_lag():
    params, carry, xs, ys = linear_case()
    found = g.gradient_by_lag(linear, dot, params, carry, xs[:1], ys[:1], 0)
    np.testing.assert_allclose(found["W"], np.outer(ys[0], xs[0])[None], rtol=1e-12)
    credit = g.credit_map(linear, dot, params, carry, xs[:1], ys[:1])
    np.testing.assert_allclose(credit, [[np.linalg.norm(ys[0])]], rtol=1e-12)


def test_vanished_credit_keeps_its_size():
    """In float32 the square of 1e-25 is 0, and 1e25's is infinite."""
    for factor in (1e-5, 1e5):
        params = {"a": jnp.float32(factor)}
        xs = jnp.zeros((T, 1), jnp.float32)
        credit = g.credit_map(
            lambda p, h, x: p["a"] * h, lambda p, h, y: jnp.sum(h), params, xs[0], xs, xs
        )
        np.testing.assert_allclose(credit[-1], float(factor) ** np.arange(T)[::-1], rtol=1e-5)


@pytest.mark.usefixtures("_blocks")
def test_a_nan_stands_where_a_path_leads_through_it():
    """Behind a relu autodiff would say 0. A carry that recovers lets later pairs be."""

    def step(params, h, x):
        return jnp.where(x == 2, x, jax.nn.relu(params["a"] * h + params["b"] + x))

    def loss(params, h, y):
        return jnp.sum(jax.nn.relu(h) * y)

    params, carry, ys = {"a": jnp.ones(H), "b": jnp.ones(H)}, jnp.ones(H), jnp.ones((T, H))
    xs = jnp.broadcast_to(jnp.array([1.0, 1.0, np.nan, 1.0, 2.0, 1.0])[:, None], (T, H))
    credit = np.asarray(g.credit_map(step, loss, params, carry, xs, ys))
    t, k = np.arange(T)[:, None], np.arange(T)[None, :]
    spoiled = ((k <= 2) & (t >= 2)) | ((k <= 3) & (t >= 3) & (k >= 2))
    np.testing.assert_array_equal(np.isnan(credit), spoiled & (k <= t))
    found = jax.jit(lambda *data: g.gradient_by_lag(step, loss, *data, 2))(params, carry, xs, ys)
    for leaf in found.values():
        assert np.all(np.isnan(leaf))


def refused(match, *, step=linear, loss=dot, max_lag=1, batched=False, **changed):
    names = ("params", "carry", "xs", "ys")
    data = dict(zip(names, linear_case(), strict=True)) | changed
    with pytest.raises(UserError, match=match) as caught:
        g.gradient_by_lag(step, loss, *data.values(), max_lag, batched=batched)
    assert "\n" not in str(caught.value)
    if max_lag == 1 and not batched:
        with pytest.raises(UserError, match=match):
            g.credit_map(step, loss, *data.values())


def test_mistakes_are_told_in_one_line():
    params, _, xs, ys = linear_case()
    refused(r"max_lag=6 .* T=6", max_lag=6)
    refused("max_lag=-1", max_lag=-1)
    refused("T=0", xs=xs[:0], ys=ys[:0])
    refused("xs has T=6 steps, ys has T=4", ys=ys[:4])
    refused("int", params={**params, "n": jnp.arange(3)})
    refused("structure", step=lambda p, h, x: (h, h))
    refused("from float64.3. to float64.4.", step=lambda p, h, x: jnp.append(h, 0.0))
    refused("to float32", step=lambda p, h, x: h.astype(jnp.float32))
    refused(r"loss gives float64\[3\]", loss=lambda p, h, y: h)
    refused("loss gives int", loss=lambda p, h, y: jnp.argmax(h))
    refused("loss gives PyTreeDef", loss=lambda p, h, y: (h[0], h[1]))
    both = {"xs": jnp.zeros((T, 2, E)), "ys": jnp.zeros((T, 2, H)), "batched": True}
    refused("B, which is 2, 3", carry=jnp.zeros((3, H)), **both)
    refused("no such axis", carry=jnp.zeros(()), **both)
    refused("B=0", carry=jnp.zeros((0, H)), xs=both["xs"][:, :0], ys=ys[:, :0], batched=True)
