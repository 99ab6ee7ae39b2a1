"""Backpropagation that keeps √T states is backpropagation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax.config import (
    RNN,
    Config,
    Data,
    Explicit,
    RecurrentDropout,
    SampledSoftmax,
    Train,
    Window,
)
from lm_jax.settings import UserError

NOISE = RecurrentDropout(locked=True, inputs=0.3, between=0.3, outputs=0.3, embedding=0.3)


def agree(ours, plain):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)  # noqa: E731
    jax.tree.map(close, ours, plain)


def both_ways(model, batch, key, *, estimator=g.explicit_bptt, **kwargs):
    params = tiny.moved(model.init(key))
    made = [estimator(model, recompute=recompute, **kwargs) for recompute in (True, False)]
    carry = jax.tree.map(lambda leaf: leaf + 0.1, model.init_carry(batch.mask.shape[1]))
    return [jax.jit(estimate)(params, carry, batch) for estimate in made]


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 9, 11])
@pytest.mark.parametrize("estimator", [g.explicit_bptt, g.full_bptt])
def test_segments_change_no_gradient(length, estimator, key):
    """With masks, lanes that start anew and others that go on, and ‖δ_t‖.

    T = 11 is two segments of four steps and one of three.
    """
    batch = tiny.batch(length=length)
    batch = batch._replace(
        mask=batch.mask.at[length // 2 :, 1].set(False), start=jnp.array([True, False, True])
    )
    model = tiny.rnn(cell="lstm", layers=2)
    agree(*both_ways(model, batch, key, estimator=estimator, delta_norms=True))


@pytest.mark.slow
def test_neither_do_they_where_deltas_are_clipped(key):
    batch = tiny.batch(length=11)
    model = tiny.rnn(cell="gru")
    ours, plain = both_ways(model, batch, key, clip_delta=0.05)
    agree(ours, plain)
    free, _ = both_ways(model, batch, key)
    change = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), free[2], plain[2])
    assert max(jax.tree.leaves(change)) > 1e-3


@pytest.mark.slow
def test_neither_do_they_where_all_steps_share_their_noise(key):
    model = tiny.rnn(
        cell="gru", layers=2, dropout=NOISE, activation_penalty=0.1,
        readout=SampledSoftmax(samples=3),
    )  # fmt: skip
    agree(*both_ways(model.for_training(jax.random.key(5)), tiny.batch(length=11), key))


@pytest.mark.slow
def test_four_times_the_steps_take_about_twice_the_memory(key):
    """Without segments it is four times; weights and their gradients are small beside it."""
    model = tiny.rnn(cell="gru", hidden_size=16)
    params = model.init(key)

    def bytes_of(length, recompute):
        estimator = g.explicit_bptt(model, recompute=recompute)
        batch = tiny.batch(length=length, lanes=32)
        lowered = jax.jit(estimator.estimate).lower(params, model.init_carry(32), batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    short, long, plain = bytes_of(256, True), bytes_of(1024, True), bytes_of(1024, False)
    assert long < 2.6 * short
    assert plain > 6 * long


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (RNN(change_penalty=1.0), r"model\.change_penalty=1"),
        (RNN(dropout=RecurrentDropout(outputs=0.5)), r"set model\.dropout\.locked"),
        (Window(), r"train\.gradient\.recompute=sqrt has no meaning"),
    ],
)
def test_what_segments_would_change_is_refused(model, said):
    with pytest.raises(UserError, match=said):
        Config(data=Data(), model=model, train=Train(gradient=Explicit(recompute="sqrt")))
