"""Gradient flossing as a part of training, and what an estimator keeps when a penalty joins it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import gradients as g
from lm_jax.config import RNN, Config, LiveProbe, Train, Window
from lm_jax.settings import UserError

MODEL = tiny.rnn(cell="gru")
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)))
LANE = g.single_example(MODEL)
WEIGHT, COUNT = 0.7, 2
# One lane goes on from an earlier text, the others begin theirs.
BATCH = tiny.batch()._replace(start=jnp.array([True, False, True]))
CARRY = jax.tree.map(lambda leaf: leaf + 0.3, MODEL.init_carry(tiny.B))


def dot(a, b):
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_its_gradient_joins_the_loss_s_and_is_that_of_finite_differences():
    plain = g.full_bptt(MODEL)
    both = jax.jit(lambda *at: (g.with_flossing(plain, MODEL, WEIGHT, COUNT)(*at), plain(*at)))
    (loss, after, grads, _), (own_loss, own_after, own, _) = both(PARAMS, CARRY, BATCH)
    tiny.assert_trees_equal((loss, after), (own_loss, own_after))
    before = jax.tree.map(lambda leaf: leaf.at[jnp.array([0, 2])].set(0), CARRY)

    @jax.jit
    def penalty(params):
        lanes = [
            jnp.mean(g.lyapunov_spectrum(LANE.step, params, own, BATCH.x[:, lane], COUNT) ** 2)
            for lane in range(tiny.B)
            for own in [jax.tree.map(lambda leaf, lane=lane: leaf[lane], before)]
        ]
        return sum(lanes) / tiny.B

    direction = tiny.moved(jax.tree.map(jnp.zeros_like, PARAMS), seed=5, size=1.0)
    size = 1e-5
    ends = [
        penalty(jax.tree.map(lambda p, d, s=sign: p + s * size * d, PARAMS, direction))
        for sign in (1, -1)
    ]
    more = jax.tree.map(jnp.subtract, grads, own)
    expected = WEIGHT * (ends[0] - ends[1]) / (2 * size)
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(dot(more, direction), expected, rtol=1e-6)
    # The exponents do not depend on what is said, only on what is read.
    tiny.assert_trees_equal(more["readout"], jax.tree.map(jnp.zeros_like, more["readout"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "remedy",
    [
        lambda estimator: g.with_flossing(estimator, MODEL, WEIGHT, COUNT),
        lambda estimator: g.with_omega(estimator, MODEL, WEIGHT),
    ],
    ids=["flossing", "omega"],
)
def test_a_remedy_keeps_the_estimator_s_info(remedy):
    """The norms of δ are the loss's own; the gradient beside them is that with the penalty."""
    plain = g.explicit_bptt(MODEL, delta_norms=True)
    ways = jax.jit(lambda *at: (remedy(plain)(*at), plain(*at)))
    (*_, info), (*_, own) = ways(PARAMS, CARRY, BATCH)
    np.testing.assert_allclose(info.delta_norms, own.delta_norms, rtol=1e-12)


@pytest.mark.slow
def test_a_run_is_trained_with_it_and_watched(tmp_path):
    def trained(name, **train):
        probe = LiveProbe(by_lag=False, spectra=False, lyapunov=False)
        config = tiny.config(train={"steps": 2, "probe": probe, **train})
        run = lm_jax.train(config, tmp_path / name, text=tiny.TEXT)
        assert run.result["status"] == "finished"
        return run

    plain = trained("plain")
    flossed = trained("flossed", flossing=WEIGHT, flossing_exponents=COUNT)
    before, after = (run.params["layers"][0]["W_hh"] for run in (plain, flossed))
    assert np.max(np.abs(before - after)) > 1e-6
    rows = [lm_jax.training.journal.read_rows(r.path / "metrics.jsonl") for r in (plain, flossed)]
    first = [next(row for row in found if row["kind"] == "train") for found in rows]
    assert first[0]["nats"] == first[1]["nats"]
    assert first[0]["grad_norm"] != first[1]["grad_norm"]
    np.testing.assert_allclose(first[0]["delta_norms"], first[1]["delta_norms"], rtol=1e-12)


def test_what_it_has_no_meaning_for_is_refused():
    with pytest.raises(UserError, match="no recurrent state"):
        g.with_flossing(g.full_bptt(tiny.window()), tiny.window(), 1.0, 1)
    with pytest.raises(UserError, match=r"train\.flossing=1\.0 has no meaning with model=wi"):
        Config(model=Window(), train=Train(flossing=1.0))
    with pytest.raises(UserError, match=r"train\.flossing_exponents=8 must be at most"):
        Config(model=RNN(hidden_size=5), train=Train(flossing=1.0))
