"""DropoutMasks of training: what is dropped, where, and that nothing is dropped in use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax.config import Dropout, RecurrentDropout
from lm_jax.models.dropout import NO_DROPOUT, DropoutMasks, mask

EVERYWHERE = DropoutMasks(inputs=0.3, between=0.4, outputs=0.5, embedding=0.6, recurrent=0.7)
ONES = jnp.ones((tiny.T, tiny.B, 50))


def places(noise):
    """What the noise makes of ones, at every place."""
    x = jnp.arange(tiny.T * tiny.B).reshape(tiny.T, tiny.B) % tiny.V
    return {
        "inputs": noise.on_inputs(ONES),
        "between": noise.on_layer(ONES, 0),
        "between, higher": noise.on_layer(ONES, 1),
        "outputs": noise.on_outputs(ONES),
        "embedding": noise.on_words(ONES, x, tiny.V),
        "recurrent": noise.on_recurrent(jnp.ones((50, 100)), 0),
        "recurrent, higher": noise.on_recurrent(jnp.ones((50, 100)), 1),
    }


@pytest.mark.parametrize("noise", [EVERYWHERE, NO_DROPOUT.with_key(jax.random.key(0))])
def test_without_a_key_or_a_chance_it_is_the_identity(noise):
    for name, a in places(noise).items():
        assert np.all(a == 1), name


@pytest.mark.slow
def test_what_is_dropped_is_zero_and_the_mean_stays(key):
    draws = jax.jit(jax.vmap(lambda key: places(EVERYWHERE.with_key(key))))
    for name, a in draws(jax.random.split(key, 2000)).items():
        chance = getattr(EVERYWHERE, name.split(",")[0])
        values = np.unique(a)
        np.testing.assert_allclose(values, [0, 1 / (1 - chance)], rtol=1e-12)
        # Each entry over the keys: 50 tests at once, so within 5 standard errors.
        error = np.sqrt(chance / (1 - chance) / 2000)
        first = np.asarray(a).reshape(2000, -1)[:, :50]
        np.testing.assert_array_less(np.abs(first.mean(0) - 1), 5 * error)


def test_locked_masks_are_constant_over_time_and_fresh_ones_are_not(key):
    for locked in (True, False):
        noise = dataclasses.replace(EVERYWHERE, locked=locked)
        drawn = jax.jit(lambda key, noise=noise: places(noise.with_key(key)))(key)
        for name in ("inputs", "between", "outputs"):
            constant = np.all(drawn[name] == drawn[name][:1])
            assert constant == locked, name
            # Another lane has another mask.
            assert np.any(drawn[name][:, 0] != drawn[name][:, 1])


@pytest.mark.parametrize("locked", [False, True])
def test_steps_that_are_read_apart_have_the_masks_of_their_places(key, locked):
    noise, ones = DropoutMasks(key, locked, inputs=0.5), jnp.ones((6, 3, 8))
    whole = noise.at_step(2).on_inputs(ones)
    parts = [noise.at_step(2).on_inputs(ones[:4]), noise.at_step(6).on_inputs(ones[4:])]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    assert len({step.tobytes() for step in np.asarray(whole)}) == (1 if locked else 6)
    if locked:
        np.testing.assert_array_equal(whole, noise.on_inputs(ones))


def test_places_and_layers_draw_masks_of_their_own(key):
    same = DropoutMasks(inputs=0.5, between=0.5, outputs=0.5, recurrent=0.5)
    drawn = jax.jit(lambda key: places(same.with_key(key)))(key)
    drawn = {name: np.asarray(a) for name, a in drawn.items() if name != "embedding"}
    for name, a in drawn.items():
        for other, b in drawn.items():
            if name < other and a.shape == b.shape:
                # Of independent masks half of the entries agree, within 6 standard errors.
                agree = np.mean(a == b)
                assert abs(agree - 0.5) < 3 / np.sqrt(a.size), (name, other)


def test_word_dropout_zeroes_whole_words_everywhere_in_the_chunk(key):
    x = tiny.batch().x
    vectors = jax.random.normal(key, (tiny.T, tiny.B, 4))
    read = np.asarray(DropoutMasks(key, embedding=0.5).on_words(vectors, x, tiny.V) / vectors)
    for token in range(tiny.V):
        assert len(np.unique(np.round(read[np.asarray(x) == token], 12))) == 1
    assert set(np.unique(np.round(read, 12))) == {0, 2}


def test_recurrent_dropout_multiplies_w_hh_and_nothing_else(key):
    dropped = tiny.rnn(layers=2, dropout=RecurrentDropout(recurrent=0.5)).for_training(key)
    plain = tiny.rnn(layers=2)
    params, x = tiny.moved(plain.init(key)), tiny.batch().x
    noise = DropoutMasks(key, recurrent=0.5)
    masked = [
        {**layer, "W_hh": noise.on_recurrent(layer["W_hh"], number)}
        for number, layer in enumerate(params["layers"])
    ]
    h = dropped.hidden(params, dropped.init_carry(tiny.B), x)
    same = plain.hidden({**params, "layers": masked}, plain.init_carry(tiny.B), x)
    tiny.assert_trees_close(h, same)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_each_place_of_a_two_layer_rnn_is_masked_once(residual, key):
    """The model's noise is that of its places, put in by hand: layer by layer, in NumPy."""
    rates = {"inputs": 0.2, "between": 0.3, "outputs": 0.4, "embedding": 0.2, "recurrent": 0.5}
    dropout = RecurrentDropout(**rates, locked=True)
    model = tiny.rnn(layers=2, dropout=dropout, residual=residual)
    params, batch = tiny.moved(model.init(key)), tiny.batch()
    noisy, noise = model.for_training(key), DropoutMasks(key, locked=True, **rates)
    carry, h = noisy.hidden(params, noisy.init_carry(tiny.B), batch.x)

    vectors = noise.on_words(params["embedding"]["C"][batch.x], batch.x, tiny.V)
    seen = noise.on_inputs(vectors)
    for number, layer in enumerate(params["layers"]):
        W_hh = np.asarray(noise.on_recurrent(layer["W_hh"], number))
        W_xh, b_h = np.asarray(layer["W_xh"]), np.asarray(layer["b_h"])
        state, states = np.zeros((tiny.B, 5)), []
        for x_t in np.asarray(seen):
            state = np.tanh(x_t @ W_xh + state @ W_hh + b_h)
            states.append(state)
        np.testing.assert_allclose(carry[number], state, rtol=1e-12)
        states = np.asarray(seen) + states if residual and number else states
        seen = noise.on_layer(jnp.asarray(states), number)
    np.testing.assert_allclose(h, states, rtol=1e-12)
    loss = noisy.loss(params, h, batch.y, batch.mask)
    expected = jnp.sum(model.nats(params, noise.on_outputs(h), batch.y))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def losses(params, *models):
    """What each model would minimise, by the very same compiled program."""
    batch = tiny.batch()

    def loss(params, model):
        _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
        return model.loss(params, h, batch.y, batch.mask)

    return jax.jit(lambda params: [loss(params, model) for model in models])(params)


@pytest.mark.parametrize("make", [tiny.rnn, tiny.window])
def test_without_rates_a_noisy_model_is_the_model(key, make):
    model = make()
    params, batch = tiny.moved(model.init(key)), tiny.batch()

    def loss_and_grads(model):
        def loss(params):
            _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
            return model.loss(params, h, batch.y, batch.mask)

        return jax.value_and_grad(loss)(params)

    noisy, plain = jax.jit(
        lambda: (loss_and_grads(model.for_training(key)), loss_and_grads(model))
    )()
    tiny.assert_trees_equal(noisy, plain)


@pytest.mark.quick("rnn")
@pytest.mark.parametrize("make", [tiny.rnn, tiny.window])
def test_dropout_is_seen_in_training_and_not_in_use(key, make):
    rates = {"inputs": 0.2, "between": 0.3, "outputs": 0.4, "embedding": 0.2}
    kind = RecurrentDropout if make is tiny.rnn else Dropout
    plain = make(layers=2)
    dropped = make(layers=2, dropout=kind(**rates), activation_penalty=2.0)
    params = tiny.moved(plain.init(key))
    noisy = [dropped.for_training(jax.random.key(seed)) for seed in (0, 1)]
    without, in_use, one, other = losses(params, plain, dropped, *noisy)
    assert without == in_use
    assert len({float(one), float(other), float(in_use)}) == 3


def test_penalties_are_the_mean_squares_of_what_the_readout_sees_and_of_its_changes(key):
    """The first step of a chunk has no change; targets outside the mask count for nothing. The
    changes are fewer than the tokens: both means are times the tokens, as the loss is a sum."""
    alpha, beta = 1.7, 0.6
    model = tiny.rnn(
        dropout=RecurrentDropout(outputs=0.5), activation_penalty=alpha, change_penalty=beta
    ).for_training(key)
    bare = tiny.rnn(dropout=RecurrentDropout(outputs=0.5)).for_training(key)
    params, y = tiny.moved(model.init(key)), tiny.batch().y
    h = jax.random.normal(key, (tiny.T, tiny.B, 5))
    real = np.arange(tiny.T)[:, None] < np.array([[tiny.T, 4, 1]])
    seen = np.asarray(DropoutMasks(key, outputs=0.5).on_outputs(h))
    expected, changes = 0.0, real[1:].sum()
    for t, lane in np.argwhere(real):
        expected += alpha * np.mean(seen[t, lane] ** 2)
        if t > 0:
            square = np.mean((np.asarray(h)[t, lane] - np.asarray(h)[t - 1, lane]) ** 2)
            expected += beta * square * real.sum() / changes
    real = jnp.asarray(real)
    added = jax.jit(lambda: model.loss(params, h, y, real) - bare.loss(params, h, y, real))()
    np.testing.assert_allclose(added, expected, rtol=1e-12)


def test_a_chance_of_zero_drops_nothing(key):
    assert np.all(mask(key, 0.0, (1000,)) == 1)


def test_zoneout_keeps_units_in_training_and_their_share_in_use(key):
    """Krueger et al. (2017), equations 3 and 4, one step after another in NumPy."""
    rates = {"zoneout": 0.3, "zoneout_cell": 0.6}
    model = tiny.rnn(cell="lstm", dropout=RecurrentDropout(**rates))
    params, x = tiny.moved(model.init(key)), tiny.batch().x
    own = jax.tree.map(np.asarray, params["layers"][0])
    carry = tiny.moved(model.init_carry(tiny.B))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    for of in (model.for_training(key), model):
        zones = np.asarray(of.dropout.kept(jax.tree.leaves(carry[0]), x, 0))
        if of is model:
            np.testing.assert_array_equal(zones, np.repeat([0.3, 0.6], 5) * np.ones_like(zones))
        else:
            assert set(np.unique(zones)) == {0, 1}
        h, c = (np.asarray(leaf) for leaf in carry[0])
        _, found = of.hidden(params, carry, x)
        for t in range(tiny.T):
            vectors = np.asarray(params["embedding"]["C"])[np.asarray(x[t])]
            z = vectors @ own["W_xh"] + h @ own["W_hh"] + own["b_h"]
            i, f, g, o = np.split(z, 4, axis=-1)
            new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            new_h = sigmoid(o) * np.tanh(new_c)
            h = zones[t, :, :5] * h + (1 - zones[t, :, :5]) * new_h
            c = zones[t, :, 5:] * c + (1 - zones[t, :, 5:]) * new_c
            np.testing.assert_allclose(found[t], h, rtol=1e-12, atol=1e-14)


def test_zoneout_draws_by_the_place_of_a_step_and_at_its_rate(key):
    masks = DropoutMasks(key, zoneout=0.25)
    leaves, x = [jnp.zeros((50, 100))], jnp.zeros((8, 50))
    whole = masks.kept(leaves, x, 1)
    np.testing.assert_allclose(jnp.mean(whole), 0.25, atol=0.01)
    parts = [masks.at_step(first).kept(leaves, x[:4], 1) for first in (0, 4)]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    assert np.any(np.asarray(masks.kept(leaves, x, 0)) != whole)
