"""Language models: what they compute, and that they never look ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lm_jax import models
from lm_jax.config import (
    GRU,
    RNN,
    AdaptiveInputs,
    AdaptiveSoftmax,
    Convolution,
    Dropout,
    GLUBlock,
    MLPBlock,
    Mogrifier,
    NGram,
    SampledSoftmax,
    Softmax,
    Window,
)

MODELS = {
    "tanh": tiny.rnn(),
    "two layers": tiny.rnn(layers=2, cell__activation="sigmoid"),
    "sizes": tiny.rnn(hidden_size=(6, 3), layers=2, projection=4, readout=Softmax(tied=True)),
    "one-hot": tiny.rnn(embedding_size=None, cell__activation="relu"),
    "window": tiny.window(),
    "one-hot window": tiny.window(embedding_size=None, order=3),
    "bigram": tiny.window(order=2),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def params_of(model):
    return tiny.moved(model.init(jax.random.key(0)))


@every_model
def test_reading_in_chunks_is_reading_at_once(model):
    params, x = params_of(model), tiny.batch().x
    carry = model.init_carry(tiny.B)
    whole_carry, whole = model.hidden(params, carry, x)
    for cut in (1, 4):
        between, first = model.hidden(params, carry, x[:cut])
        after, second = model.hidden(params, between, x[cut:])
        tiny.assert_trees_close(jnp.concatenate([first, second]), whole)
        tiny.assert_trees_close(after, whole_carry)


@every_model
def test_later_inputs_do_not_move_earlier_logits(model):
    params, x = params_of(model), tiny.batch().x
    _, h = model.hidden(params, model.init_carry(tiny.B), x)
    for t in range(tiny.T):
        other = x.at[t:].set((x[t:] + 1) % tiny.V)
        _, moved = model.hidden(params, model.init_carry(tiny.B), other)
        np.testing.assert_array_equal(moved[:t], h[:t])
        assert np.all(np.any(moved[t] != h[t], axis=-1))


@every_model
def test_lanes_do_not_see_each_other(model):
    params, x = params_of(model), tiny.batch().x
    _, together = model.hidden(params, model.init_carry(tiny.B), x)
    _, alone = model.hidden(params, model.init_carry(1), x[:, 1:2])
    tiny.assert_trees_close(together[:, 1:2], alone)


@every_model
def test_zero_output_weights_give_log_v(model):
    params, batch = params_of(model), tiny.batch()
    for part in ("readout", "projection"):
        params[part] = jax.tree.map(jnp.zeros_like, params.get(part))
    _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
    np.testing.assert_allclose(model.nats(params, h, batch.y), np.log(tiny.V), rtol=1e-15)


@every_model
def test_nats_are_minus_the_log_softmax_of_the_logits(model):
    params, batch = params_of(model), tiny.batch()
    _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
    log_p = jax.nn.log_softmax(model.logits(params, h))
    expected = -jnp.take_along_axis(log_p, batch.y[..., None], -1)[..., 0]
    tiny.assert_trees_close(model.nats(params, h, batch.y), expected)


@every_model
def test_restart_makes_the_carry_of_chosen_lanes_fresh(model):
    params, x = params_of(model), tiny.batch().x
    carry, _ = model.hidden(params, model.init_carry(tiny.B), x)
    mixed = models.restart(model, carry, jnp.array([True, False, True]))
    fresh = model.init_carry(tiny.B)
    for new, old, first in zip(*map(jax.tree.leaves, (mixed, carry, fresh)), strict=True):
        np.testing.assert_array_equal(new[::2], first[::2])
        np.testing.assert_array_equal(new[1], old[1])


def test_a_window_model_is_a_causal_convolution():
    model = tiny.window()
    params, x = params_of(model), tiny.batch().x
    _, h = model.hidden(params, model.init_carry(tiny.B), x)
    embedded = params["embedding"]["C"][x]
    z = jax.lax.conv_general_dilated(
        embedded.transpose(1, 0, 2),
        params["W"],
        (1,),
        [(2, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    tiny.assert_trees_close(h, jnp.tanh(z.transpose(1, 0, 2) + params["b"][None, None]))


def test_a_window_model_is_the_paper_s_formula():
    """Bengio et al. (2003), equation 1: concatenated vectors times one matrix."""
    model = tiny.window()
    params, x = params_of(model), np.asarray(tiny.batch().x)
    _, h = model.hidden(params, model.init_carry(tiny.B), jnp.asarray(x))
    C, W = np.asarray(params["embedding"]["C"]), np.asarray(params["W"]).reshape(12, 5)
    for t in range(2, tiny.T):
        for lane in range(tiny.B):
            joined = np.concatenate([C[x[t - 2, lane]], C[x[t - 1, lane]], C[x[t, lane]]])
            expected = np.tanh(joined @ W + np.asarray(params["b"]))
            np.testing.assert_allclose(h[t, lane], expected, rtol=1e-12)


def test_one_hot_is_a_learned_vector_with_the_identity_for_a_table():
    one_hot, learned = tiny.rnn(embedding_size=None), tiny.rnn(embedding_size=tiny.V)
    params, x = params_of(one_hot), tiny.batch().x
    with_table = {**params, "embedding": {"C": jnp.eye(tiny.V)}}
    _, h = one_hot.hidden(params, one_hot.init_carry(tiny.B), x)
    _, same = learned.hidden(with_table, learned.init_carry(tiny.B), x)
    tiny.assert_trees_close(h, same)


def test_layers_of_sizes_of_their_own_and_a_projection_are_products_of_their_shapes(key):
    model = MODELS["sizes"]
    params, batch = params_of(model), tiny.batch()
    shapes = jax.tree.map(jnp.shape, params)
    assert [layer["W_xh"] for layer in shapes["layers"]] == [(4, 6), (6, 3)]
    assert [layer["W_hh"] for layer in shapes["layers"]] == [(6, 6), (3, 3)]
    assert shapes["projection"] == (3, 4)
    _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
    b_y = jnp.broadcast_to(params["readout"]["b_y"], (*batch.x.shape, tiny.V))
    z = h @ params["projection"] @ params["embedding"]["C"].T + b_y
    tiny.assert_trees_close(model.logits(params, h), z)
    exact = optax.softmax_cross_entropy_with_integer_labels(z, batch.y)
    tiny.assert_trees_close(model.loss(params, h, batch.y, batch.mask), jnp.sum(exact))
    tiny.assert_trees_close(
        model.for_training(key).loss(params, h, batch.y, batch.mask), jnp.sum(exact)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": (6, 3)}, "has 2 sizes, and model.layers=1"),
        ({"hidden_size": (6, 3), "layers": 2, "residual": True}, "layers of one size"),
        ({"hidden_size": 5, "readout": Softmax(tied=True)}, "set model.projection to"),
    ],
)
def test_sizes_that_do_not_fit_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RNN(embedding_size=4, **fields)


def test_the_gain_is_every_singular_value_of_the_recurrent_weights(key):
    for gain in (0.5, 1.0, 1.7):
        W_hh = tiny.rnn(cell__gain=gain).init(key)["layers"][0]["W_hh"]
        np.testing.assert_allclose(jnp.linalg.svd(W_hh, compute_uv=False), gain, rtol=1e-12)


def test_the_window_s_pre_activations_start_at_the_gain_s_variance():
    W = tiny.window(hidden_size=400, embedding_size=50, gain=0.5).init(jax.random.key(1))["W"]
    assert W.shape == (3, 50, 400)
    assert float(jnp.std(W) * jnp.sqrt(150)) == pytest.approx(0.5, rel=0.01)


def test_the_parameters_are_as_many_as_the_formula_says(key):
    E, H, V = 4, 5, tiny.V
    assert optax.tree.size(tiny.rnn().init(key)) == V * E + (E + H + 1) * H + (H + 1) * V
    assert optax.tree.size(tiny.rnn(layers=2).init(key)) == (
        V * E + (E + H + 1) * H + (H + H + 1) * H + (H + 1) * V
    )
    assert optax.tree.size(tiny.rnn(embedding_size=None).init(key)) == (V + H + 1) * H + (H + 1) * V
    assert optax.tree.size(tiny.window().init(key)) == V * E + (3 * E + 1) * H + (H + 1) * V


EQUAL = {
    "window": Window(hidden_size=4, skip_connections=True, dropout=Dropout(inputs=0.1)),
    "convolution": Convolution(hidden_size=4, layers=2, pooling=3),
    "n-gram": NGram(order=3),
    **{
        cell: tiny.changed(RNN(hidden_size=4, uniform=0.1), cell=cell)
        for cell in (
            *("elman", "lstm", "gru", "mingru", "minlstm", "lru"),
            *("rglru", "sru", "slstm", "mlstm", "mogrifier"),
        )
    },
    "block": RNN(hidden_size=4, block=GLUBlock()),
    "block of another norm": RNN(hidden_size=4, block=GLUBlock(norm="rms")),
    "block with an MLP": RNN(hidden_size=4, block=MLPBlock()),
    "block with a small MLP": RNN(hidden_size=4, block=MLPBlock(expansion=2)),
    "block without convolution": RNN(hidden_size=4, block=MLPBlock(convolution=None)),
    "reset before": RNN(cell=GRU(reset="before"), hidden_size=4),
    "low rank": RNN(cell=Mogrifier(rank=2), hidden_size=4),
    "adaptive inputs": RNN(hidden_size=4, embedding=AdaptiveInputs(cutoffs=(2, 4))),
    "other bands": RNN(hidden_size=4, embedding=AdaptiveInputs(cutoffs=(2, 4), factor=2)),
    "adaptive": RNN(hidden_size=4, readout=AdaptiveSoftmax(cutoffs=(2, 4))),
    "sampled": RNN(hidden_size=4, readout=SampledSoftmax(samples=3)),
    "smoothed": RNN(
        hidden_size=4, embedding_size=4, readout=Softmax(tied=True, label_smoothing=0.1)
    ),
}


@pytest.mark.parametrize("config", EQUAL.values(), ids=EQUAL.keys())
def test_equal_configs_make_equal_models_and_others_do_not(config):
    """Compiled functions are kept by model: what is equal compiles nothing more."""
    one, two = (models.make(config, tiny.V) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert models.make(config, tiny.V + 1) != one or isinstance(config, NGram)
    assert all(models.make(other, tiny.V) != one for other in EQUAL.values() if other is not config)
    assert models.Mixture(one, one, 0.5) == models.Mixture(two, two, 0.5)
