"""Ω of Pascanu et al., against its equations written out, and as a part of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax.config import RNN, Config, MinGRU, Train, Window
from lm_jax.settings import UserError

MODEL = tiny.rnn(cell="gru")
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)))
LANE = g.single_example(MODEL)
BATCH = tiny.batch()


def pre_activation_step(params, z, x):
    """The state of the paper, whose Jacobian depends on W alone: z' = tanh(z) W + x."""
    return jnp.tanh(z) @ params["W"] + x


def squared(params, z, y):
    return jnp.sum((jnp.tanh(z) - y) ** 2)


def from_the_paper(W, z, xs, ys):
    """Ω and ∂⁺Ω/∂W, equations 9 and 10 with NumPy, each step by itself."""
    zs = [z]
    for x in xs:
        zs.append(np.tanh(zs[-1]) @ W + x)
    delta, omega, gradient = np.zeros_like(z), 0.0, np.zeros_like(W)
    for t in reversed(range(len(xs))):
        f, f_before = np.tanh(zs[t + 1]), np.tanh(zs[t])
        delta = delta + 2 * (f - ys[t]) * (1 - f**2)
        slope = 1 - f_before**2
        before = (W @ delta) * slope
        ratio = np.linalg.norm(before) / np.linalg.norm(delta)
        omega += (ratio - 1) ** 2
        # ‖before‖ = ‖diag(f') W δ‖, differentiated by W with f' and δ held still.
        by_W = np.outer(slope * before, delta) / np.linalg.norm(before)
        gradient += 2 * (ratio - 1) * by_W / np.linalg.norm(delta)
        delta = before
    return omega, gradient


@pytest.mark.slow
def test_it_is_equations_9_and_10_where_the_state_is_the_paper_s():
    rng = np.random.default_rng(0)
    W, z, xs, ys = (rng.standard_normal(s) for s in ((3, 3), 3, (5, 3), (5, 3)))
    given = [jnp.asarray(a) for a in (z, xs, ys)]
    value, grads = g.omega(pre_activation_step, squared, {"W": jnp.asarray(W)}, *given)
    omega, gradient = from_the_paper(W, z, xs, ys)
    np.testing.assert_allclose(value, omega, rtol=1e-12)
    np.testing.assert_allclose(grads["W"], gradient, rtol=1e-10)


def gated_step(params, carry, x):
    """Two states, gates, and parameters that the Jacobian depends on in more ways than one."""
    h, c = carry["h"], carry["c"]
    z = jnp.tanh(h @ params["W"] + params["b"] + x)
    c = jax.nn.sigmoid(h @ params["U"]) * c + z
    return {"h": z * jnp.tanh(c), "c": c}


def gated_loss(params, carry, y):
    return jnp.sum((carry["h"] * params["v"] - y) ** 2)


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
def test_its_gradient_is_that_of_the_immediate_form_by_finite_differences():
    """The states and the δ stay where the unmoved parameters put them."""
    H, T = 3, 5
    shapes = {"W": (H, H), "U": (H, H), "b": (H,), "v": (H,)}
    params = tiny.moved({name: jnp.zeros(shape) for name, shape in shapes.items()}, size=0.7)
    start = {"h": jnp.full(H, 0.3), "c": jnp.full(H, -0.2)}
    xs, ys = jnp.asarray(np.random.default_rng(3).standard_normal((2, T, H)))
    mask = jnp.array([True, False, True, True, False])

    def total(pushes):
        """The whole loss, each state pushed a little where it arises: δ is the gradient by that."""
        carry, nats, states = start, 0.0, [start]
        for t in range(T):
            carry = jax.tree.map(jnp.add, gated_step(params, carry, xs[t]), pushes[t])
            nats += gated_loss(params, carry, ys[t]) * mask[t]
            states.append(carry)
        return nats, states

    none = [jax.tree.map(jnp.zeros_like, start)] * T
    deltas, states = jax.jit(jax.grad(total, has_aux=True))(none)
    assert not np.any(flat(deltas[-1]))

    @jax.jit
    def immediate(params):
        found = 0.0
        for t in range(T - 1):
            J = jax.jacfwd(lambda carry, x=xs[t]: flat(gated_step(params, carry, x)))(states[t])
            back = flat({name: flat(deltas[t]) @ J[name] for name in J})
            found += (jnp.linalg.norm(back) / jnp.linalg.norm(flat(deltas[t])) - 1) ** 2
        return found

    value, grads = g.omega(gated_step, gated_loss, params, start, xs, ys, mask=mask)
    np.testing.assert_allclose(value, immediate(params), rtol=1e-12)
    direction = tiny.moved(jax.tree.map(jnp.zeros_like, params), seed=5, size=1.0)
    size = 1e-5
    ends = [
        immediate(jax.tree.map(lambda p, d, s=sign: p + s * size * d, params, direction))
        for sign in (1, -1)
    ]
    slope = jnp.sum(flat(grads) * flat(direction))
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * size), slope, rtol=1e-6)


def linear_step(params, h, x):
    return h @ params["W"] + x


def linear(W, mask=None, scale=1.0, ys=None):
    ys = jnp.ones((4, len(W)), W.dtype) if ys is None else ys
    return g.omega(
        linear_step,
        lambda params, h, y: scale * jnp.sum(h * y),
        {"W": W},
        jnp.ones(len(W), W.dtype),
        jnp.ones((4, len(W)), W.dtype),
        ys,
        mask=mask,
    )


def test_an_orthogonal_linear_transition_has_none():
    value, grads = linear(jnp.array([[0.6, 0.8], [-0.8, 0.6]]))
    np.testing.assert_allclose(value, 0, atol=1e-28)
    np.testing.assert_allclose(grads["W"], np.zeros((2, 2)), atol=1e-13)
    # Of W = a I each step hands back a times what it got.
    value, grads = linear(3 * jnp.eye(2))
    np.testing.assert_allclose(value, 4 * 2.0**2, rtol=1e-14)
    np.testing.assert_allclose(jnp.trace(grads["W"]), 4 * 2 * 2.0, rtol=1e-12)


def test_where_no_gradient_comes_back_it_counts_nothing_and_is_no_nan():
    W = 3 * jnp.eye(2)
    for asked, steps in (([0, 1, 0, 0], 2), ([0, 0, 0, 0], 0), ([1, 0, 0, 1], 4)):
        value, grads = linear(W, mask=jnp.array(asked, bool))
        np.testing.assert_allclose(value, 4.0 * steps, rtol=1e-14)
        np.testing.assert_allclose(jnp.trace(grads["W"]), 4.0 * steps, rtol=1e-12, atol=0)


def test_a_step_that_hands_nothing_back_counts_one_and_gives_no_nan():
    value, grads = linear(jnp.zeros((2, 2)))
    assert value == 4
    assert np.all(np.isfinite(grads["W"]))


def test_a_gradient_too_small_to_square_has_its_ratio_all_the_same():
    W = (3 * jnp.eye(2)).astype(jnp.float32)
    value, _ = linear(W, scale=jnp.float32(1e-30))
    np.testing.assert_allclose(value, 16, rtol=1e-5)


@pytest.mark.parametrize("a", [1e-30, 1e-12, 1e12])
def test_a_step_too_small_to_square_still_has_its_gradient(a):
    """Of h' = a h + x, Ω = T (a - 1)² and its gradient 2 T (a - 1)."""
    value, grads = linear(jnp.full((1, 1), a, jnp.float32))
    np.testing.assert_allclose(value, 4 * (a - 1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(grads["W"][0, 0], 8 * (a - 1), rtol=1e-5)


def test_nan_in_the_trajectory_is_nan():
    ys = jnp.ones((4, 2)).at[2, 0].set(jnp.nan)
    value, grads = linear(3 * jnp.eye(2), ys=ys)
    assert np.isnan(value)
    assert np.isnan(grads["W"]).any()


@pytest.mark.slow
def test_an_estimator_gets_the_mean_over_steps_and_lanes_on_the_recurrent_weights_alone():
    plain = g.full_bptt(MODEL)
    with_and_without = jax.jit(lambda *at: (g.with_omega(plain, MODEL, 0.7)(*at), plain(*at)))
    by_itself = jax.jit(lambda *at: g.omega(LANE.step, LANE.loss, PARAMS, *at)[1])
    # A lane without targets has no step that counts.
    mask = jnp.ones_like(BATCH.mask).at[:, 2].set(False)
    carry = jax.tree.map(lambda leaf: leaf + 0.1, MODEL.init_carry(tiny.B))
    for start in (True, False):
        batch = BATCH._replace(mask=mask, start=jnp.full(tiny.B, start))
        found, without = with_and_without(PARAMS, carry, batch)
        (loss, after, grads, _), (own_loss, own_after, own, _) = found, without
        tiny.assert_trees_equal((loss, after), (own_loss, own_after))
        more = jax.tree.map(jnp.subtract, grads, own)
        total = 0
        for lane in range(2):
            before = LANE.carry if start else jax.tree.map(lambda leaf, i=lane: leaf[i], carry)
            one = by_itself(before, batch.x[:, lane], batch.y[:, lane])
            total = total + one["layers"][0]["W_hh"]
        expected = 0.7 * total / (2 * tiny.T)
        np.testing.assert_allclose(more["layers"][0].pop("W_hh"), expected, rtol=1e-9, atol=1e-15)
        tiny.assert_trees_equal(more, jax.tree.map(jnp.zeros_like, more))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ys": jnp.zeros((3, 2))}, "xs has T=4 steps, ys has T=3"),
        ({"xs": jnp.zeros((0, 2)), "ys": jnp.zeros((0, 2))}, "xs holds T=0 time steps"),
        ({"carry": jnp.zeros(2, int)}, "carry is of type int64"),
        ({"step": lambda W, h, x: jnp.ones(3)}, "step changes carry"),
        ({"loss": lambda W, h, y: h}, "not one floating-point number a step"),
        ({"mask": jnp.ones(3, bool)}, r"mask is of shape \[3\], and xs has T=4"),
    ],
)
def test_what_is_wrong_with_an_argument_is_said_in_one_line(changed, said):
    right = {
        "step": lambda W, h, x: h @ W + x,
        "loss": lambda W, h, y: jnp.sum(h * y),
        "params": jnp.eye(2),
        "carry": jnp.zeros(2),
        "xs": jnp.ones((4, 2)),
        "ys": jnp.ones((4, 2)),
    }
    with pytest.raises(UserError, match=said):
        g.omega(**{**right, **changed})


def test_inputs_may_be_a_tree():
    at = jnp.eye(2), jnp.zeros(2), {"x": jnp.ones((4, 2))}, jnp.ones((4, 2))
    value, _ = g.omega(lambda W, h, x: h @ W + x["x"], lambda W, h, y: jnp.sum(h * y), *at)
    np.testing.assert_allclose(value, 0, atol=1e-15)


def test_what_has_no_recurrent_weights_is_refused():
    with pytest.raises(UserError, match="no recurrent state"):
        g.with_omega(g.full_bptt(tiny.window()), tiny.window(), 1.0)
    with pytest.raises(UserError, match=r"train\.omega=1\.0 has no meaning with model=window"):
        Config(model=Window(), train=Train(omega=1.0))
    with pytest.raises(UserError, match=r"only with model\.cell=elman or lstm or gru"):
        Config(model=RNN(cell=MinGRU()), train=Train(omega=1.0))
