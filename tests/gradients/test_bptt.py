"""Backpropagation through time, against finite differences and against its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax.config import RecurrentDropout
from lm_jax.data.batches import Batch
from lm_jax.models.base import EdgeHook

MODEL = tiny.rnn(layers=2)
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)))
BATCH = tiny.batch()
CARRY = jax.tree.map(lambda a: a + 0.1, MODEL.init_carry(tiny.B))


def going_on(batch):
    return batch._replace(start=jnp.zeros_like(batch.start))


def mean_nats(params, carry, batch, model=MODEL):
    _, h = model.hidden(params, carry, batch.x)
    return jnp.mean(model.nats(params, h, batch.y))


@pytest.mark.parametrize("model", [MODEL, tiny.window()], ids=["rnn", "window"])
def test_full_bptt_agrees_with_finite_differences(model):
    params = tiny.moved(model.init(jax.random.key(0)))
    carry = model.init_carry(tiny.B)
    loss, _, grads, _ = jax.jit(g.full_bptt(model))(params, carry, BATCH)
    direction = tiny.moved(jax.tree.map(jnp.zeros_like, params), seed=5, size=1.0)
    size = 1e-5

    @jax.jit
    def at(distance):
        there = jax.tree.map(lambda p, d: p + distance * d, params, direction)
        return mean_nats(there, carry, BATCH, model)

    slope = jax.jit(optax.tree.vdot)(grads, direction)
    np.testing.assert_allclose((at(size) - at(-size)) / (2 * size), slope, rtol=1e-6)
    np.testing.assert_allclose(loss, at(0.0), rtol=1e-14)


def test_the_loss_is_the_mean_over_real_tokens():
    mask = jnp.arange(tiny.T)[:, None] < jnp.array([6, 2, 0])[None, :]
    loss, _, grads, _ = g.full_bptt(MODEL)(PARAMS, CARRY, BATCH._replace(mask=mask))
    _, h = MODEL.hidden(PARAMS, MODEL.init_carry(tiny.B), BATCH.x)
    nats = MODEL.nats(PARAMS, h, BATCH.y)
    np.testing.assert_allclose(loss, nats[mask].sum() / 8, rtol=1e-14)
    # What the masked tokens are makes no difference.
    other = BATCH._replace(mask=mask, y=jnp.where(mask, BATCH.y, 0), x=jnp.where(mask, BATCH.x, 0))
    _, _, same, _ = g.full_bptt(MODEL)(PARAMS, CARRY, other)
    tiny.assert_trees_close(grads, same)


def test_a_batch_without_tokens_has_no_loss_and_no_gradient():
    loss, _, grads, _ = g.full_bptt(MODEL)(PARAMS, CARRY, BATCH._replace(mask=BATCH.mask & False))
    assert loss == 0
    tiny.assert_trees_equal(grads, jax.tree.map(jnp.zeros_like, grads))


def test_a_lane_that_starts_again_forgets_its_carry():
    _, fresh, _, _ = g.full_bptt(MODEL)(PARAMS, MODEL.init_carry(tiny.B), BATCH)
    _, again, _, _ = g.full_bptt(MODEL)(PARAMS, CARRY, BATCH)
    tiny.assert_trees_equal(fresh, again)
    _, on, _, _ = g.full_bptt(MODEL)(PARAMS, CARRY, going_on(BATCH))
    assert not np.allclose(on[0], fresh[0])


@pytest.mark.quick("2")
@pytest.mark.parametrize("k1", [1, 2, 3, 6])
def test_truncation_as_long_as_the_chunk_is_full_bptt(k1):
    batch = going_on(BATCH)
    full = g.full_bptt(MODEL)(PARAMS, CARRY, batch)
    if k1 == tiny.T:
        estimator = g.truncated_bptt(MODEL, k1=k1, k2=tiny.T)
        tiny.assert_trees_close(estimator(PARAMS, CARRY, batch), full)
        return
    # With k1 < T the estimator holds a history; the text starts here, so the history is empty.
    estimator = g.truncated_bptt(MODEL, k1=k1, k2=tiny.T)
    loss, _, grads, _ = estimator(PARAMS, estimator.init_carry(tiny.B), BATCH)
    expected_loss, _, expected, _ = g.full_bptt(MODEL)(PARAMS, CARRY, BATCH)
    tiny.assert_trees_close((loss, grads), (expected_loss, expected))


@pytest.mark.quick("2")
@pytest.mark.parametrize("k2", [1, 2, 5])
def test_truncation_leaves_loss_and_carry_alone_and_changes_the_gradient(k2):
    batch = going_on(BATCH)
    loss, carry, grads, _ = g.full_bptt(MODEL)(PARAMS, CARRY, batch)
    estimator = g.truncated_bptt(MODEL, k1=tiny.T, k2=k2)
    short_loss, short_carry, short, _ = estimator(PARAMS, CARRY, batch)
    tiny.assert_trees_close((loss, carry), (short_loss, short_carry))
    tiny.assert_trees_close(grads["readout"], short["readout"])
    for full, cut in zip(grads["layers"], short["layers"], strict=True):
        assert not np.allclose(full["W_hh"], cut["W_hh"], rtol=1e-3)


def by_definition(k1, k2, tokens, start):
    """(1/N) Σ over blocks of ∂(the block's nats)/∂θ, the state k2 steps before its end constant.

    For the last block of `tokens` only; a Python loop over time, one step at a time.
    """
    x, y = tokens[:-1], tokens[1:]
    end, reach = len(x), max(0, len(x) - k2)

    def nats(params):
        carry, total = start, 0.0
        for t in range(end):
            held = jax.lax.stop_gradient(params) if t < reach else params
            carry, h = MODEL.hidden(held, carry, x[t : t + 1])
            if t < reach:
                carry, h = jax.lax.stop_gradient((carry, h))
            if t >= end - k1:
                total += jnp.sum(MODEL.nats(params, h, y[t : t + 1]))
        return total

    return jax.tree.map(lambda a: a / (k1 * tokens.shape[1]), jax.jit(jax.grad(nats))(PARAMS))


@pytest.mark.quick("3-7")
@pytest.mark.parametrize(("k1", "k2"), [(2, 4), (2, 5), (3, 7), (3, 2), (1, 3)])
def test_truncated_bptt_is_its_definition_across_the_chunk_s_edge(k1, k2):
    """Successive updates of k1 tokens, each reaching back k2 steps, beyond its own chunk."""
    updates = 3
    tokens = jnp.asarray(
        np.random.default_rng(2).integers(0, tiny.V, (updates * k1 + 1, tiny.B)), jnp.int32
    )
    estimator = g.truncated_bptt(MODEL, k1=k1, k2=k2)
    estimate = jax.jit(estimator)
    carry = estimator.init_carry(tiny.B)
    for update in range(updates):
        first = update * k1
        chunk = tokens[first : first + k1 + 1]
        batch = Batch(
            chunk[:-1], chunk[1:], jnp.ones((k1, tiny.B), bool), jnp.full(tiny.B, update == 0)
        )
        _, carry, grads, _ = estimate(PARAMS, carry, batch)
        expected = by_definition(k1, k2, tokens[: first + k1 + 1], MODEL.init_carry(tiny.B))
        tiny.assert_trees_close(grads, expected)


NOISY = tiny.rnn(
    layers=2, dropout=RecurrentDropout(inputs=0.5, between=0.3, outputs=0.3, recurrent=0.3)
).for_training(jax.random.key(7))


def test_the_blocks_of_a_batch_draw_masks_of_their_own():
    """Without a past and of one token, blocks differ by their masks alone."""
    layers = [{**layer, "W_hh": 0 * layer["W_hh"]} for layer in PARAMS["layers"]]
    ones = jnp.ones_like(BATCH.x)
    estimate = jax.jit(g.truncated_bptt(NOISY, k1=3, k2=3).estimate)
    early, late = (
        estimate({**PARAMS, "layers": layers}, CARRY, Batch(ones, ones, mask, BATCH.start))[0]
        for mask in (BATCH.mask.at[3:].set(False), BATCH.mask.at[:3].set(False))
    )
    assert abs(early - late) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("k1", "k2"), [(2, 6), (3, 7), (6, 4), (4, 6)])
def test_the_masks_of_a_step_do_not_depend_on_where_a_text_is_cut(k1, k2):
    """Losses are those of one reading, and so are the gradients where they reach the start."""
    batch = tiny.batch(length=12) if k1 == 4 else BATCH
    estimator = g.truncated_bptt(NOISY, k1=k1, k2=k2)
    found = jax.jit(estimator.estimate)(PARAMS, estimator.init_carry(tiny.B), batch)
    whole = NOISY.at_step((-(-k2 // k1) - 1) * k1)
    full = jax.jit(g.full_bptt(whole).estimate)(PARAMS, NOISY.init_carry(tiny.B), batch)
    np.testing.assert_allclose(found[0], full[0], rtol=1e-12)
    if k2 >= tiny.T and k1 < 4:
        tiny.assert_trees_close(found[2], full[2])


@pytest.mark.slow
def test_the_state_before_a_batch_has_been_read_with_the_masks_of_its_update():
    estimator = g.truncated_bptt(NOISY, k1=2, k2=6)
    carry = estimator.init_carry(tiny.B)
    for seed in range(3):
        before = carry
        _, carry, _, _ = estimator(PARAMS, carry, tiny.batch(seed, length=2, start=not seed))
    # Its last two blocks are the two that stand before the batch.
    state, _ = NOISY.at_step(0).hidden(PARAMS, before.carry, before.x.reshape(4, tiny.B))
    fresh = jnp.zeros(tiny.B, bool)
    before = before._replace(start=jnp.stack([fresh, fresh]))
    tiny.assert_trees_close(estimator.model_carry(PARAMS, before), state)


def test_the_gradient_does_not_reach_over_the_start_of_a_text():
    """What stood before a restart, which a history still holds, changes nothing after it."""
    k1, k2 = 2, 6
    estimator = g.truncated_bptt(MODEL, k1=k1, k2=k2)
    estimate = jax.jit(estimator)
    before, other = (tiny.batch(seed, length=k1) for seed in (3, 4))
    after = [tiny.batch(7, length=k1), going_on(tiny.batch(8, length=k1))]
    results = []
    for first in (before, other):
        carry = estimator.init_carry(tiny.B)
        for batch in (first, going_on(first), *after):
            loss, carry, grads, _ = estimate(PARAMS, carry, batch)
        results.append((loss, grads))
    tiny.assert_trees_equal(*results)


def test_a_block_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="k1=4 does not divide the batch's T=6"):
        g.truncated_bptt(MODEL, k1=4, k2=4)(PARAMS, CARRY, BATCH)
    with pytest.raises(ValueError, match="k2=0"):
        g.truncated_bptt(MODEL, k1=1, k2=0)


def test_clipping_within_bptt_is_clipping_delta_at_every_step():
    """Against a backward pass written out by hand for one Elman layer, each δ_t clipped."""
    model = tiny.rnn()
    params = tiny.moved(model.init(jax.random.key(0)))
    carry = model.init_carry(tiny.B)
    threshold = 0.9
    _, _, grads, _ = g.full_bptt(model, clip_delta=threshold)(params, carry, BATCH)

    _, h = model.hidden(params, carry, BATCH.x)
    h, W_hh, W_hy = (
        np.asarray(a) for a in (h, params["layers"][0]["W_hh"], params["readout"]["W_hy"])
    )
    p = np.asarray(jax.nn.softmax(model.logits(params, jnp.asarray(h))))
    error = p - np.eye(tiny.V)[np.asarray(BATCH.y)]
    delta, clipped_steps, W_grad = np.zeros((tiny.B, 5)), 0, np.zeros((5, 5))
    for t in reversed(range(tiny.T)):
        delta = delta + error[t] @ W_hy.T
        norm = np.linalg.norm(delta, axis=1, keepdims=True)
        clipped_steps += np.sum(norm > threshold)
        delta = delta * np.minimum(1, threshold / norm)
        z_delta = delta * (1 - h[t] ** 2)
        W_grad += (h[t - 1] if t else np.zeros_like(h[0])).T @ z_delta
        delta = z_delta @ W_hh.T
    assert 0 < clipped_steps < tiny.T * tiny.B
    np.testing.assert_allclose(
        grads["layers"][0]["W_hh"], W_grad / (tiny.T * tiny.B), rtol=1e-10, atol=1e-12
    )


def test_an_infinite_threshold_changes_nothing():
    plain = g.full_bptt(MODEL)(PARAMS, CARRY, BATCH)
    tiny.assert_trees_close(g.full_bptt(MODEL, clip_delta=jnp.inf)(PARAMS, CARRY, BATCH), plain)
    truncated = g.truncated_bptt(MODEL, k1=6, k2=6, clip_delta=jnp.inf)
    tiny.assert_trees_close(truncated(PARAMS, CARRY, BATCH), plain)


def test_a_zero_gradient_is_clipped_to_zero_and_not_to_nan():
    cotangent = jax.grad(lambda c: 0.0 * jnp.sum(g.clip_cotangent(c, 1.0)))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(cotangent, jnp.zeros((2, 3)))


@pytest.mark.parametrize("estimator", [g.explicit_bptt, g.full_bptt])
def test_the_norms_of_delta_are_those_of_the_loss_s_gradient_with_respect_to_each_state(estimator):
    """And with the norms no bit of the rest changes."""
    model = tiny.rnn(cell="lstm")
    params, batch = tiny.moved(model.init(jax.random.key(0))), tiny.batch()
    carry = model.init_carry(tiny.B)

    def loss(shifts):
        between = EdgeHook(lambda carry, shift: jax.tree.map(jnp.add, carry, shift), shifts)
        _, h = model.hidden(params, carry, batch.x, between)
        return model.loss(params, h, batch.y, batch.mask) / batch.mask.sum()

    *found, info = jax.jit(estimator(model, delta_norms=True))(params, carry, batch)
    *plain, without = jax.jit(estimator(model))(params, carry, batch)
    tiny.assert_trees_equal(found, plain)
    assert without.delta_norms is None
    zeros = jax.tree.map(lambda leaf: jnp.zeros((tiny.T, *leaf.shape)), carry[0])
    deltas = jax.tree.leaves(jax.jit(jax.grad(loss))(zeros))
    tiny.assert_trees_close(
        info.delta_norms, jnp.sqrt(sum(jnp.sum(d**2, axis=(1, 2)) for d in deltas))
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_norms_of_delta_and_clipped_deltas_hold_where_their_squares_do_not(scale):
    """A loss so many times as large has δ_t and thresholds so many times as large."""
    large = tiny.altered(MODEL, loss=lambda *at: scale * MODEL.loss(*at))
    for threshold in (None, 0.01):
        plain = jax.jit(g.explicit_bptt(MODEL, clip_delta=threshold, delta_norms=True))
        bounds = None if threshold is None else scale * threshold
        found = jax.jit(g.explicit_bptt(large, clip_delta=bounds, delta_norms=True))
        _, _, grads, info = found(PARAMS, CARRY, BATCH)
        _, _, expected, as_is = plain(PARAMS, CARRY, BATCH)
        np.testing.assert_allclose(info.delta_norms / scale, as_is.delta_norms, rtol=1e-10)
        scaled = jax.tree.map(lambda leaf: leaf / scale, grads)
        tiny.assert_trees_close(scaled, expected, 1e-10)


@pytest.mark.slow
def test_delta_counts_the_layer_above_and_the_gradient_in_the_state_does_not():
    """Two quantities: δ_t of a layer, and ∂J/∂carry_t, in the state that step t hands on.

    What layer 2 reads of layer 1 within step t is in the first, and a part of the step in the
    second. The top layer's two are one, and so are those of a model of one layer.
    """
    model = tiny.rnn(layers=2)
    params, batch = tiny.moved(model.init(jax.random.key(0))), tiny.batch(lanes=1)
    lane = g.single_example(model)
    x, y = batch.x[:, 0], batch.y[:, 0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros((tiny.T, *leaf.shape)), lane.carry)

    def by_state(shifts):
        """The loss, with a shift added to the state after each step is over."""
        carry, nats = lane.carry, 0.0
        for t in range(tiny.T):
            carry = lane.step(params, carry, x[t])
            carry = jax.tree.map(lambda a, b, t=t: a + b[t], carry, shifts)
            nats += lane.loss(params, carry, y[t])
        return nats / tiny.T

    in_state = jax.jit(jax.grad(by_state))(zeros)
    estimate = jax.jit(g.explicit_bptt(model, delta_norms=True))
    norms = estimate(params, model.init_carry(1), batch)[3].delta_norms

    def by_layer(taps):
        _, h = model.hidden(params, model.init_carry(1), batch.x, None, taps)
        return model.loss(params, h, batch.y, batch.mask) / tiny.T

    deltas = jax.jit(jax.grad(by_layer))(jnp.zeros((tiny.T, 1, 2)))[:, 0]
    np.testing.assert_allclose(norms, jnp.linalg.norm(deltas, axis=1), rtol=1e-12)
    below, above = (jnp.linalg.norm(leaf, axis=1) for leaf in in_state)
    np.testing.assert_allclose(deltas[:, 1], above, rtol=1e-12)
    assert np.all(np.abs(deltas[:, 0] / below - 1)[:-1] > 0.01)
    assert below[-1] == 0  # nothing comes after, and layer 2 has read it within the step

    # The credit map is about the state: its row of the last loss is that loss's gradient.
    def last_loss(params, carry, target):
        return jnp.where(target[1], lane.loss(params, carry, target[0]), 0) / tiny.T

    at = y, jnp.arange(tiny.T) == tiny.T - 1
    credit = jax.jit(lambda *at: g.credit_map(lane.step, last_loss, *at))
    row = credit(params, lane.carry, x, at)[-1]

    def of_last(shifts):
        carry = lane.carry
        for t in range(tiny.T):
            carry = lane.step(params, carry, x[t])
            carry = jax.tree.map(lambda a, b, t=t: a + b[t], carry, shifts)
        return lane.loss(params, carry, y[-1]) / tiny.T

    blamed = jnp.concatenate(jax.tree.leaves(jax.jit(jax.grad(of_last))(zeros)), axis=1)
    np.testing.assert_allclose(row, jnp.linalg.norm(blamed, axis=1), rtol=1e-12)
