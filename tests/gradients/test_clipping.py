"""What clipping does to a gradient, audited, against the same done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax import models
from lm_jax.config import NGram
from lm_jax.settings import UserError

MODEL = tiny.rnn()
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)))
CARRY = MODEL.init_carry(tiny.B)
RATE = 0.5
FULL = jax.jit(g.full_bptt(MODEL))
# The text begins in the first, goes on in the second and third, and the fourth holds no target.
BATCHES = [tiny.batch(seed, start=seed == 0) for seed in range(4)]
BATCHES[2] = BATCHES[2]._replace(mask=jnp.arange(tiny.T)[:, None] < jnp.array([6, 4, 1])[None])
BATCHES[3] = BATCHES[3]._replace(mask=BATCHES[3].mask & False)


@jax.jit
def audited(norm, value, delta):
    return g.clip_audit(
        MODEL, PARAMS, CARRY, BATCHES, norm=norm, value=value, delta=delta, apply=g.sgd(RATE)
    )


@pytest.fixture(scope="module")
def highest():
    """The largest norm, entry and δ of all updates."""
    return g.quantile_thresholds(MODEL, PARAMS, CARRY, BATCHES, share=0.0)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def by_hand(clipped_of):
    """g, g' and the losses of every update, the batches taken one by one."""
    carry, found = CARRY, []
    for batch in BATCHES:
        before, after, grads, _ = FULL(PARAMS, carry, batch)
        clipped = clipped_of(carry, batch, grads)
        losses = [
            FULL(jax.tree.map(lambda p, d: p - RATE * d, PARAMS, step), carry, batch)[0]
            for step in (clipped, grads)
        ]
        found.append((flat(grads), flat(clipped), before, *losses))
        carry = after
    return found


def norms():
    return np.array([np.linalg.norm(g) for g, *_ in by_hand(lambda carry, batch, grads: grads)])


def cut_by_value(threshold):
    def cut(carry, batch, grads):
        return jax.tree.map(lambda leaf: jnp.clip(leaf, -threshold, threshold), grads)

    return cut


def cut_by_delta(threshold):
    estimate = jax.jit(g.full_bptt(MODEL, clip_delta=threshold))
    return lambda carry, batch, grads: estimate(PARAMS, carry, batch)[2]


def assert_as_by_hand(audit, kind, clipped_of):
    clipped = audit.kinds[kind]
    for n, (grads, cut, before, after, unclipped) in enumerate(by_hand(clipped_of)[:3]):
        lengths = np.linalg.norm(grads), np.linalg.norm(cut)
        cosine = grads @ cut / np.prod(lengths)
        np.testing.assert_allclose(audit.norm[n], lengths[0], rtol=1e-10)
        np.testing.assert_allclose(clipped.ratio[n], lengths[1] / lengths[0], rtol=1e-10)
        np.testing.assert_allclose(clipped.cosine[n], cosine, rtol=1e-10)
        np.testing.assert_allclose(clipped.angle[n], np.degrees(np.arccos(cosine)), rtol=1e-6)
        np.testing.assert_allclose(audit.before[n], before, rtol=1e-12)
        np.testing.assert_allclose(audit.unclipped[n], unclipped, rtol=1e-10)
        np.testing.assert_allclose(clipped.after[n], after, rtol=1e-10)


@pytest.mark.slow
def test_clipping_by_norm_shortens_to_the_threshold_and_never_turns():
    lengths = norms()[:3]
    threshold = float(np.median(lengths)) * (1 + 1e-9)  # rounding cuts none of that length
    audit = audited(threshold, 1.0, 1.0)
    clipped = audit.kinds["norm"]
    np.testing.assert_allclose(clipped.ratio[:3], np.minimum(1, threshold / lengths), rtol=1e-10)
    np.testing.assert_allclose(clipped.cosine[:3], 1, rtol=1e-12)
    np.testing.assert_allclose(clipped.angle[:3], 0, atol=1e-10)
    np.testing.assert_array_equal(clipped.cut[:3], lengths > threshold)


def test_clipping_by_value_and_by_delta_is_what_it_is_by_hand(highest):
    value, delta = float(highest.value) / 3, float(highest.delta) / 2
    audit = audited(1.0, value, delta)
    assert_as_by_hand(audit, "value", cut_by_value(value))
    assert_as_by_hand(audit, "delta", cut_by_delta(delta))
    for n, (grads, *_) in enumerate(by_hand(cut_by_value(value))):
        np.testing.assert_allclose(audit.kinds["value"].cut[n], np.mean(np.abs(grads) > value))
    assert np.all(np.asarray(audit.kinds["value"].angle[:3]) > 1)


def test_infinite_thresholds_change_nothing():
    audit = audited(jnp.inf, jnp.inf, jnp.inf)
    for clipped in audit.kinds.values():
        np.testing.assert_array_equal(clipped.cut, 0)
        np.testing.assert_allclose(clipped.ratio[:3], 1, rtol=1e-12)
        np.testing.assert_allclose(clipped.angle[:3], 0, atol=1e-6)
        np.testing.assert_allclose(clipped.after, audit.unclipped, rtol=1e-12)


@pytest.mark.slow
def test_the_share_of_deltas_is_one_of_all_below_the_largest_and_all_above_zero(highest):
    """The largest ‖δ_t‖ stands at one step of one lane, and what is cut is counted there."""
    tokens = np.array([18, 18, 11, 1])
    for factor, cuts in ((1 - 1e-9, 1), (1 + 1e-9, 0)):
        cut = audited(1.0, 1.0, factor * highest.delta).kinds["delta"].cut
        np.testing.assert_allclose(np.sum(cut * tokens), cuts, atol=1e-12)
    np.testing.assert_array_equal(audited(1.0, 1.0, 0.0).kinds["delta"].cut, [1, 1, 1, 0])


@pytest.mark.slow
def test_a_delta_is_counted_at_every_step_that_a_target_s_gradient_reaches():
    """With one target at the end of some lanes, most of δ is at steps without one."""
    last = jnp.zeros((tiny.T, tiny.B), bool).at[-1, 0].set(True).at[2, 1].set(True)
    asked = [batch._replace(mask=last) for batch in BATCHES]
    audited = jax.jit(
        lambda delta: g.clip_audit(MODEL, PARAMS, CARRY, asked, delta=delta, apply=g.sgd(RATE))
    )
    highest, half = (
        g.quantile_thresholds(MODEL, PARAMS, CARRY, asked, share=share).delta
        for share in (0.0, 0.5)
    )
    assert g.clip_summary(audited(half))["delta"].often == 0.5
    one = audited((1 - 1e-9) * highest).kinds["delta"].cut
    np.testing.assert_allclose(jnp.sum(one), 1 / (tiny.T + 3), rtol=1e-12)


def test_an_update_without_a_gradient_has_no_direction_and_is_left_out_of_the_summary():
    audit = audited(0.5, 0.01, 0.1)
    for kind, total in g.clip_summary(audit).items():
        clipped = audit.kinds[kind]
        assert np.isnan(clipped.cosine[3])
        assert np.isnan(clipped.ratio[3])
        assert audit.norm[3] == audit.before[3] == clipped.after[3] == 0
        np.testing.assert_allclose(total.often, np.mean(np.asarray(clipped.cut[:3]) > 0))
        np.testing.assert_allclose(total.share, np.mean(clipped.cut[:3]))
        np.testing.assert_allclose(total.ratio, np.mean(clipped.ratio[:3]))
        np.testing.assert_allclose(total.least_ratio, np.min(clipped.ratio[:3]))
        np.testing.assert_allclose(total.cosine, np.mean(clipped.cosine[:3]))
        np.testing.assert_allclose(total.least_cosine, np.min(clipped.cosine[:3]))
        np.testing.assert_allclose(total.angle, np.mean(clipped.angle[:3]))
        np.testing.assert_allclose(total.largest_angle, np.max(clipped.angle[:3]))
        np.testing.assert_allclose(total.before, np.mean(audit.before[:3]))
        np.testing.assert_allclose(total.after, np.mean(clipped.after[:3]))
        np.testing.assert_allclose(total.unclipped, np.mean(audit.unclipped[:3]))


def test_a_gradient_that_is_not_a_number_stays_in_sight():
    audit = audited(0.5, 0.01, 0.1)
    broken = audit._replace(norm=audit.norm.at[1].set(jnp.nan))
    broken.kinds["norm"] = audit.kinds["norm"]._replace(ratio=audit.norm * jnp.nan)
    total = g.clip_summary(broken)["norm"]
    assert np.isnan(total.ratio)
    assert np.isnan(total.least_ratio)


@pytest.mark.slow
def test_thresholds_of_a_share_cut_that_share(highest):
    np.testing.assert_allclose(highest.norm, np.max(norms()), rtol=1e-10)
    half = g.quantile_thresholds(MODEL, PARAMS, CARRY, BATCHES, share=0.5)
    np.testing.assert_allclose(half.norm, np.median(norms()), rtol=1e-10)
    audit = audited(*half)
    for clipped in audit.kinds.values():
        assert np.sum(np.asarray(clipped.cut) > 0) == 2


def test_without_a_recurrent_state_there_is_no_delta():
    window = tiny.window()
    params, carry = window.init(jax.random.key(0)), window.init_carry(tiny.B)
    found = g.quantile_thresholds(window, params, carry, BATCHES[:1])
    assert found.delta is None
    assert found.norm > found.value > 0
    with pytest.raises(UserError, match=r"no recurrent state .* model=rnn"):
        g.clip_audit(window, params, carry, BATCHES, delta=1.0, apply=g.sgd(RATE))


def test_what_cannot_be_audited_is_refused():
    def audit(batches, model=MODEL, params=PARAMS, **thresholds):
        g.clip_audit(model, params, CARRY, batches, apply=g.sgd(RATE), **thresholds)

    with pytest.raises(UserError, match="give a threshold, norm, value or delta"):
        audit(BATCHES)
    with pytest.raises(UserError, match="there is no batch"):
        audit([], norm=1.0)
    with pytest.raises(UserError, match=r"batch 1 has \[T, B\]=\[5, 3\] and batch 0 \[6, 3\]"):
        audit([BATCHES[0], tiny.batch(length=5)], norm=1.0)
    counted = models.make(NGram(order=2), tiny.V)
    with pytest.raises(UserError, match="not floating-point: a model that is counted"):
        audit(BATCHES, counted, {"counts": jnp.ones(3, jnp.int32)}, norm=1.0)
    with pytest.raises(UserError, match=r"share=1.5 must be from 0 to 1"):
        g.quantile_thresholds(MODEL, PARAMS, CARRY, BATCHES, share=1.5)


@pytest.mark.slow
def test_a_gradient_of_nan_is_neither_cut_nor_left():
    """A run that diverged is not one that was never clipped."""
    spoiled = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    audit = g.clip_audit(
        MODEL, spoiled, CARRY, BATCHES[:1], norm=1.0, value=1.0, delta=1.0, apply=g.sgd(RATE)
    )
    for summary in g.clip_summary(audit).values():
        assert all(np.isnan(figure) for figure in summary)


def as_large(model, scale):
    """The model whose losses, and so gradients, are `scale` times as large."""
    return tiny.altered(
        model, nats=lambda *at: scale * model.nats(*at), loss=lambda *at: scale * model.loss(*at)
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_an_audit_is_the_same_at_every_size_of_the_gradient(highest, scale):
    """The squares of these gradients pass the largest float, or the smallest."""
    thresholds = [float(threshold) / 3 for threshold in highest]
    plain = audited(*thresholds)
    model = as_large(MODEL, scale)
    there = [scale * threshold for threshold in thresholds]
    found = jax.jit(
        lambda norm, value, delta: g.clip_audit(
            model, PARAMS, CARRY, BATCHES,
            norm=norm, value=value, delta=delta, apply=g.sgd(RATE / scale),
        )
    )(*there)  # fmt: skip
    np.testing.assert_allclose(found.norm / scale, plain.norm, rtol=1e-10)
    for kind, clipped in found.kinds.items():
        for name in ("cut", "ratio", "cosine", "angle"):
            here, expected = getattr(clipped, name), getattr(plain.kinds[kind], name)
            np.testing.assert_allclose(here, expected, rtol=1e-8, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(clipped.after / scale, plain.kinds[kind].after, rtol=1e-8)
    drawn = g.quantile_thresholds(model, PARAMS, CARRY, BATCHES, share=0.0)
    np.testing.assert_allclose(np.array(drawn) / scale, np.array(highest), rtol=1e-10)


@pytest.mark.slow
def test_the_threshold_of_a_stack_is_that_of_its_largest_delta_in_any_layer():
    """Each layer's δ_t is clipped by itself, so with it no update is cut, and just below it one."""
    stack = tiny.rnn(layers=2)
    params, carry = tiny.moved(stack.init(jax.random.key(0))), stack.init_carry(tiny.B)
    delta = g.quantile_thresholds(stack, params, carry, BATCHES, share=0.0).delta
    for factor, updates in ((1 - 1e-9, 1), (1 + 1e-9, 0)):
        audit = g.clip_audit(stack, params, carry, BATCHES, delta=factor * delta, apply=g.sgd(RATE))
        assert np.sum(np.asarray(audit.kinds["delta"].cut) > 0) == updates


@pytest.mark.slow
def test_a_mixture_has_no_delta():
    """It has no layers of its own, though its parts have."""
    mixed = models.Mixture(MODEL, tiny.rnn(cell="gru"), 0.5)
    params, carry = mixed.init(jax.random.key(0)), mixed.init_carry(tiny.B)
    assert g.quantile_thresholds(mixed, params, carry, BATCHES[:1]).delta is None
    *_, info = g.explicit_bptt(mixed, delta_norms=True)(params, carry, BATCHES[0])
    np.testing.assert_array_equal(info.delta_norms, 0)
