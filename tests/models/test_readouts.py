"""Readouts: each is exact where it is judged, and learns what the exact softmax learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lm_jax import models
from lm_jax.config import (
    RNN,
    AdaptiveSoftmax,
    MixtureOfSoftmaxes,
    NoiseContrastive,
    SampledSoftmax,
    Softmax,
)
from lm_jax.models import adaptive, sampled
from lm_jax.models.mixture_of_softmaxes import MixtureOfSoftmaxesReadout
from lm_jax.settings import UserError

V, H, SHAPE = 11, 8, (5, 3)
ADAPTIVE = adaptive.AdaptiveSoftmaxReadout(V, cutoffs=(3, 6), factor=2)


def reading(readout, seed=0, vocab_size=V):
    """Parameters, hidden states and targets."""
    params = tiny.moved(readout.init(jax.random.key(seed), H))
    draws = np.random.default_rng(seed)
    h = jnp.asarray(draws.normal(size=(*SHAPE, H)))
    return params, h, jnp.asarray(draws.integers(0, vocab_size, SHAPE), jnp.int32)


def close_to_mean(values, expected, errors=5.0):
    """Whether the mean over the first axis is as expected, within so many standard errors."""
    error = np.std(values, axis=0) / np.sqrt(len(values))
    np.testing.assert_array_less(np.abs(np.mean(values, axis=0) - expected), errors * error + 1e-12)


# The softmax


def test_label_smoothing_is_the_mean_of_the_target_and_of_every_token():
    readout, s = models.SoftmaxReadout(V, label_smoothing=0.3), 0.3
    params, h, y = reading(readout)
    log_p = np.log(np.asarray(jax.nn.softmax(h @ params["W_hy"] + params["b_y"][None, None])))
    exact = -np.take_along_axis(log_p, np.asarray(y)[..., None], -1)[..., 0]
    expected = (1 - s) * exact - s * log_p.mean(-1)
    tiny.assert_trees_close(readout.loss(params, h, y, None), expected)
    tiny.assert_trees_close(readout.nats(params, h, y), exact)


def test_a_tied_model_s_gradient_is_the_sum_of_both_uses_of_the_table(key):
    tied, apart = (
        tiny.rnn(embedding_size=5, readout=Softmax(tied=tied, bias=tied)) for tied in (True, False)
    )
    params, batch = tiny.moved(tied.init(key)), tiny.batch()
    assert set(params["readout"]) == {"b_y"}
    params["readout"] = {}
    tied = tiny.rnn(embedding_size=5, readout=Softmax(tied=True, bias=False))
    both = {**params, "readout": {"W_hy": params["embedding"]["C"].T}}
    loss, grads = value_and_grad(tied, params, batch)
    same_loss, parts = value_and_grad(apart, both, batch)
    tiny.assert_trees_close(loss, same_loss)
    C = parts["embedding"]["C"] + parts["readout"]["W_hy"].T
    tiny.assert_trees_close(grads["embedding"]["C"], C)
    tiny.assert_trees_close(grads["layers"], parts["layers"])


def value_and_grad(model, params, batch):
    def loss(params):
        _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
        return model.loss(params, h, batch.y, batch.mask)

    return jax.jit(jax.value_and_grad(loss))(params)


# The adaptive softmax


def test_adaptive_logits_are_the_formula_in_numpy():
    params, h, _ = reading(ADAPTIVE)

    def softmax(own, x):
        e = np.exp(x @ np.asarray(own["W_hy"]) + np.asarray(own["b_y"]))
        return e / e.sum(-1, keepdims=True)

    head = softmax(params, np.asarray(h))
    parts = [head[..., :3]]
    for i, own in enumerate(params["clusters"]):
        assert own["P"].shape == (H, H // 2 ** (i + 1))
        within = softmax(own, np.asarray(h) @ np.asarray(own["P"]))
        parts.append(head[..., 3 + i, None] * within)
    p = np.concatenate(parts, -1)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(jnp.exp(ADAPTIVE.logits(params, h)), p, rtol=1e-12)


@pytest.mark.quick("4")
@pytest.mark.parametrize("block", [4, 64])
def test_adaptive_nats_and_their_gradient_are_those_of_the_logits(monkeypatch, block):
    monkeypatch.setattr(adaptive, "BLOCK", block)
    params, h, y = reading(ADAPTIVE)

    def fast(params, h, y):
        nats = ADAPTIVE.nats(params, h, y)
        return jnp.sum(nats**2), nats

    def plain(params, h, y):
        nats = -jnp.take_along_axis(ADAPTIVE.logits(params, h), y[..., None], -1)[..., 0]
        return jnp.sum(nats**2), nats

    fast, plain = (jax.jit(jax.grad(f, (0, 1), has_aux=True)) for f in (fast, plain))
    # Mixed; every target in one cluster, which fills all blocks; none in any.
    for targets in (y, jnp.full_like(y, 10), jnp.full_like(y, 2)):
        tiny.assert_trees_close(fast(params, h, targets), plain(params, h, targets))


def test_a_cluster_without_a_target_is_not_read():
    params, h, y = reading(ADAPTIVE)
    params["clusters"][1] = jax.tree.map(lambda a: a * jnp.nan, params["clusters"][1])
    nats_and_grads = jax.jit(jax.value_and_grad(lambda p: jnp.sum(ADAPTIVE.nats(p, h, y % 6))))
    for leaf in jax.tree.leaves(nats_and_grads(params)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("cutoffs", [(3, V), (2000, 10000)])
def test_cutoffs_that_do_not_fit_are_refused(cutoffs):
    with pytest.raises(UserError, match=rf"model.readout.cutoffs=.*{cutoffs[-1]}.* V=11: give"):
        adaptive.AdaptiveSoftmaxReadout(V, cutoffs=cutoffs)


# Drawing tokens


def test_the_proposal_is_a_distribution_and_is_what_is_drawn(key):
    q = np.exp(sampled.log_zipf(jnp.arange(V), V))
    np.testing.assert_allclose(q.sum(), 1, rtol=1e-12)
    drawn = np.asarray(sampled.draw(key, V, 40_000))
    close_to_mean(np.eye(V)[drawn], q)


def test_tokens_drawn_without_replacement_weighted_by_their_counts_stand_for_all(key):
    """E Σ_{k drawn} f(k) / π(k) = Σ_k f(k) for every f (Duffield et al., 2007)."""

    @jax.jit
    @jax.vmap
    def weights(key):
        drawn, log_count = sampled.draw_distinct(key, V, 4)
        return jnp.zeros(V).at[drawn].add(jnp.exp(-log_count(drawn))), drawn

    weight, drawn = weights(jax.random.split(key, 20_000))
    assert all(len(set(row)) == 4 for row in np.asarray(drawn[:100]).tolist())
    close_to_mean(np.asarray(weight), 1)


# The sampled softmax


def test_sampled_softmax_of_all_tokens_is_the_softmax(key):
    readout, exact = sampled.SampledSoftmaxReadout(V, samples=V), models.SoftmaxReadout(V)
    params, h, y = reading(exact)

    def both(readout):
        total = lambda p, h: jnp.sum(readout.loss(p, h, y, key))  # noqa: E731
        return jax.jit(jax.value_and_grad(total, (0, 1)))

    tiny.assert_trees_close(both(readout)(params, h), both(exact)(params, h))


@pytest.mark.quick("True")
@pytest.mark.parametrize("bias", [True, False])
def test_sampled_softmax_is_the_softmax_over_the_target_and_the_drawn_others(key, bias):
    readout = sampled.SampledSoftmaxReadout(V, samples=6, bias=bias)
    params, h, y = reading(readout)
    assert ("b_y" in params) == bias
    drawn, log_count = sampled.draw_distinct(key, V, 6)
    corrected = np.asarray(readout.logits(params, h) - log_count(jnp.arange(V))[None, None])
    loss = readout.loss(params, h, y, key)
    for place in np.ndindex(*SHAPE):
        target = int(y[place])
        candidates = [target] + [k for k in np.asarray(drawn).tolist() if k != target]
        z = corrected[place][candidates]
        np.testing.assert_allclose(loss[place], np.log(np.exp(z).sum()) - z[0], rtol=1e-12)


def mean_gradients(readout, z, keys):
    """d E_{y ~ P}[loss] / dz, for each z and each key; the readout has no inputs but a bias."""

    def loss(b, key):
        params = {"W_hy": jnp.zeros((1, V)), "b_y": b}
        nats = readout.loss(params, jnp.zeros((V, 1)), jnp.arange(V), key)
        return jnp.sum(jnp.exp(LOG_P) * nats)

    each_key = jax.vmap(jax.grad(loss), (None, 0))
    return np.asarray(jax.jit(jax.vmap(each_key, (0, None)))(z, keys))


LOG_P = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(3).normal(size=V)))
LOGITS = jnp.asarray(np.random.default_rng(4).normal(size=V))


def test_the_mean_gradient_of_the_sampled_softmax_nears_that_of_the_softmax(key):
    """Anywhere, as K grows; and it is zero where the model is right, up to what K fixed does."""
    exact = np.asarray(jax.nn.softmax(LOGITS) - jnp.exp(LOG_P))
    bias = {}
    for samples in (3, 10):
        readout = sampled.SampledSoftmaxReadout(V, samples=samples)
        z = jnp.stack([LOGITS, LOG_P + 0.7])
        away, right = mean_gradients(readout, z, jax.random.split(key, 4000)).mean(1)
        bias[samples] = np.linalg.norm(away - exact) / np.linalg.norm(exact)
        assert np.linalg.norm(right) < 0.04 * np.linalg.norm(exact)
    assert bias[10] < 0.03 < 0.3 < bias[3]


# Noise-contrastive estimation


def test_nce_is_the_cross_entropy_of_telling_data_from_noise(key):
    K = 6
    readout = sampled.NoiseContrastiveReadout(V, samples=K)
    params, h, y = reading(readout)
    q = np.exp(sampled.log_zipf(jnp.arange(V), V))
    p = np.exp(readout.logits(params, h)) / V
    real = p / (p + K * q)
    loss = readout.loss(params, h, y, key)
    noise = np.asarray(sampled.draw(key, V, K))
    for place in np.ndindex(*SHAPE):
        expected = -np.log(real[place][int(y[place])]) - np.log(1 - real[place][noise]).sum()
        np.testing.assert_allclose(loss[place], expected, rtol=1e-12)


@pytest.mark.slow
def test_the_mean_gradient_of_nce_is_a_weighted_likelihood_s_and_nears_it(key):
    """Mnih & Teh (2012), section 3: exact for every K; zero at the truth; w → 1 for K → ∞."""
    q, p = np.exp(sampled.log_zipf(jnp.arange(V), V)), np.exp(LOG_P)
    z = jnp.stack([LOGITS, LOG_P + np.log(V)])
    model = np.exp(z) / V
    for samples, draws in ((3, 2000), (20_000, 20)):
        readout = sampled.NoiseContrastiveReadout(V, samples=samples)
        expected = (model - p) * samples * q / (samples * q + model)
        grads = mean_gradients(readout, z, jax.random.split(key, draws))
        for each, wanted in zip(grads, expected, strict=True):
            close_to_mean(each, wanted)
    np.testing.assert_allclose(expected, model - p, rtol=1e-3, atol=1e-12)


# All of them


LEARNERS = {
    "adaptive": AdaptiveSoftmax(cutoffs=(2, 4), factor=2),
    "sampled": SampledSoftmax(samples=3),
    "nce": NoiseContrastive(samples=4),
}


@pytest.mark.slow
def test_every_readout_learns_nearly_what_the_softmax_learns(key):
    """A text where each token has two likely followers, and a model that sees one token."""
    x = np.random.default_rng(0).integers(0, tiny.V, 400)
    y = np.where(np.arange(400) % 3 > 0, 2 * x, x * x + 1) % tiny.V
    x, y = (jnp.asarray(a[:, None], jnp.int32) for a in (x, y))

    def nats(readout):
        model = tiny.window(order=2, hidden_size=12, readout=readout)
        optimizer = optax.adam(optax.linear_schedule(0.05, 0, 300))

        def mean(model, params):
            _, h = model.hidden(params, model.init_carry(1), x)
            return model.loss(params, h, y, jnp.ones_like(y, bool)) / 400

        def step(state, key):
            params, opt_state = state
            grads = jax.grad(lambda params: mean(model.for_training(key), params))(params)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        @jax.jit
        def run(params, keys):
            params, _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)[0]
            return mean(model, params)

        return float(run(model.init(key), jax.random.split(key, 300)))

    exact = nats(Softmax())
    assert exact < 0.8 < np.log(tiny.V)
    for name, readout in LEARNERS.items():
        learned = nats(readout)
        assert abs(learned - exact) < 0.05, name


@pytest.mark.parametrize("readout", [SampledSoftmax(), NoiseContrastive(samples=tiny.V)])
def test_as_many_draws_as_tokens_are_refused(readout):
    with pytest.raises(UserError, match=rf"model.readout.samples={readout.samples} .* V=7: draw"):
        tiny.rnn(readout=readout)


# The mixture of softmaxes


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_mixture_of_softmaxes_is_the_weighted_sum_of_its_softmaxes(tied):
    K, D = 3, 4
    readout = MixtureOfSoftmaxesReadout(V, components=K, size=D, tied=tied)
    params, h, y = reading(readout)
    if tied:
        params["C"] = jnp.asarray(np.random.default_rng(3).normal(size=(V, D)))
    given = {name: np.asarray(leaf) for name, leaf in params.items()}
    softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)  # noqa: E731
    pi = softmax(np.asarray(h) @ given["W_pi"])
    W_hy = given["C"].T if tied else given["W_hy"]
    p = 0.0
    for k in range(K):
        part = slice(k * D, (k + 1) * D)
        latent = np.tanh(np.asarray(h) @ given["W_k"][:, part] + given["b_k"][part])
        p = p + pi[..., [k]] * softmax(latent @ W_hy + given["b_y"])
    tiny.assert_trees_close(readout.logits(params, h), np.log(p))
    exact = -np.log(np.take_along_axis(p, np.asarray(y)[..., None], -1)[..., 0])
    mask = jnp.arange(SHAPE[0])[:, None] < jnp.array([[5, 2, 0]])
    total, grads = jax.value_and_grad(readout.total_nats)(params, h, y, mask)
    tiny.assert_trees_close(total, np.sum(exact * np.asarray(mask)))
    pushed = jax.jvp(
        lambda params: readout.total_nats(params, h, y, mask), (params,), (tiny.moved(params),)
    )
    slope = sum(jnp.vdot(grads[name], leaf) for name, leaf in tiny.moved(params).items())
    np.testing.assert_allclose(slope, pushed[1], rtol=1e-10)


def test_a_tied_mixture_reads_as_many_numbers_as_a_vector_has():
    with pytest.raises(UserError, match=r"size=5 to be model\.embedding_size=4"):
        RNN(embedding_size=4, readout=MixtureOfSoftmaxes(tied=True, size=5))
    model = tiny.rnn(readout=MixtureOfSoftmaxes(tied=True, components=2))
    params, batch = tiny.moved(model.init(jax.random.key(0))), tiny.batch()
    _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
    np.testing.assert_allclose(jnp.exp(model.logits(params, h)).sum(-1), 1, rtol=1e-12)
