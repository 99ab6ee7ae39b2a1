"""The live probe: the gradient tools between two updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax.config import Config, LiveProbe, Train, Window
from lm_jax.gradients.live_probe import SHARES, live
from lm_jax.settings import UserError
from lm_jax.trees import norm

LANES = 2
LIVE = LiveProbe(every=6, lags=True, sequences=LANES)
MODEL = tiny.rnn(cell="lstm")
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)))
# The first lane begins its text, the second goes on; each lacks other targets.
MASK = jnp.ones((tiny.T, tiny.B), bool).at[2, 0].set(False).at[4:, 1].set(False)
BATCH = tiny.batch()._replace(start=jnp.array([True, False, False]), mask=MASK)
CARRY = jax.tree.map(lambda leaf: leaf + 0.2, MODEL.init_carry(tiny.B))


@pytest.fixture(scope="module")
def answers():
    return live(LIVE, MODEL)(PARAMS, CARRY, BATCH)


def test_live_answers_are_the_tools_called_one_by_one(answers):
    lane = g.single_example(MODEL)

    def loss(params, carry, target):
        y, asked = target
        return jnp.where(asked, lane.loss(params, carry, y), 0)

    @jax.jit
    def tools(carry, x, y, mask):
        at = lane.step, loss, PARAMS, carry, x, (y, mask), tiny.T - 1
        lags = g.lag_norms(lane.step, PARAMS, carry, x, tiny.T - 1)
        exponent = g.lyapunov_spectrum(lane.step, PARAMS, carry, x, 1)[0]
        return g.gradient_by_lag(*at), lags, exponent

    carries = lane.carry, jax.tree.map(lambda leaf: leaf[1], CARRY)
    apart = [
        tools(carry, BATCH.x[:, n], BATCH.y[:, n], MASK[:, n]) for n, carry in enumerate(carries)
    ]
    # Means over the T steps of one lane become one over the targets of all.
    targets = jnp.sum(MASK[:, :LANES])
    lags = jax.tree.map(lambda a, b: (a + b) * tiny.T / targets, *[split for split, *_ in apart])
    lags = lags["layers"]
    np.testing.assert_allclose(answers["gradient_by_lag"], norm(lags, kept=1), rtol=1e-10)
    split = g.truncations(lags)
    assert answers["horizon"] == {f"{s:g}": g.horizon(split, s) for s in SHARES}
    assert answers["lag_norms"].shape == (tiny.T,)
    norms = [norms for _, norms, _ in apart]
    np.testing.assert_allclose(answers["lag_norms"], np.mean(norms, axis=0), rtol=1e-10)
    exponents = [exponent for *_, exponent in apart]
    np.testing.assert_allclose(answers["lyapunov"], np.mean(exponents), rtol=1e-10)
    (spectra,) = g.spectra_by_layer({"layers": PARAMS["layers"]}).values()
    for name, figure in (("spectral_radius", "radius"), ("singular_value", "norm")):
        expected = [getattr(block, figure) for block in spectra.blocks]
        np.testing.assert_allclose(answers[name].pop("0"), expected, rtol=1e-4)
        assert answers[name] == {}


def test_the_first_loss_of_a_chunk_has_no_past(answers):
    """With no target but the first of every lane, lag 0 is all of the full gradient."""
    first = jnp.zeros((tiny.T, tiny.B), bool).at[0].set(True)
    found = live(LIVE, MODEL)(PARAMS, CARRY, BATCH._replace(mask=first))
    carry, start = jax.tree.map(lambda leaf: leaf[:LANES], (CARRY, BATCH.start))
    x, y, mask = (a[:, :LANES] for a in (BATCH.x, BATCH.y, first))
    full = jax.jit(g.full_bptt(MODEL).estimate)
    _, _, grads, _ = full(PARAMS, carry, BATCH._replace(x=x, y=y, mask=mask, start=start))
    np.testing.assert_allclose(found["gradient_by_lag"][0], norm(grads["layers"]), rtol=1e-10)
    assert not np.any(found["gradient_by_lag"][1:])
    assert np.all(answers["gradient_by_lag"] > 0)


def test_only_what_is_asked_for_is_answered():
    none = {"by_lag": False, "spectra": False, "lyapunov": False}
    for asked, names in {
        (): set(),
        ("by_lag",): {"gradient_by_lag", "horizon"},
        ("lags",): {"lag_norms"},
        ("spectra",): {"spectral_radius", "singular_value"},
        ("lyapunov",): {"lyapunov"},
    }.items():
        probe = LiveProbe(**{**none, **dict.fromkeys(asked, True)})
        assert set(jax.eval_shape(live(probe, MODEL), PARAMS, CARRY, BATCH)) == names
    two = tiny.rnn(layers=2)
    at = two.init(jax.random.key(0)), two.init_carry(tiny.B), BATCH
    found = jax.eval_shape(live(LiveProbe(**{**none, "spectra": True}), two), *at)
    assert {name: a.shape for name, a in found["spectral_radius"].items()} == {"0": (1,), "1": (1,)}


def test_nan_in_the_parameters_is_nan_in_every_answer():
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    found = live(LIVE, MODEL)(broken, CARRY, BATCH)
    norms = found.pop("lag_norms")
    assert norms[0] == 1  # a state is its own whatever the parameters
    for answer in jax.tree.leaves((found, norms[1:])):
        assert np.all(np.isnan(answer))


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(UserError, match="no recurrent state"):
        live(LIVE, tiny.window())
    with pytest.raises(
        UserError, match=r"train\.probe=live has no meaning with model=window"
    ):
        Config(model=Window(), train=Train(probe=LIVE))
    truncated = {"gradient": "truncated", "k1": 4, "k2": 8}
    with pytest.raises(UserError, match=r"with train\.gradient=truncated it must be False"):
        Train(**truncated, probe=LIVE)
    assert not Train(**truncated, probe=LiveProbe(deltas=False)).probe.deltas
