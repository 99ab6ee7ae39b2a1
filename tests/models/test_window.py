"""The window model against Bengio et al. (2003), and how it grows with n."""

import jax
import numpy as np
import optax
import pytest
import tiny

from lm_jax.config import Dropout, Window
from lm_jax.settings import UserError

E, H = 4, 5


def hidden(model, params, x):
    return jax.jit(lambda p: model.hidden(p, model.init_carry(tiny.B), x)[1])(params)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("direct", [False, True])
def test_the_window_model_is_equation_1(direct, layers):
    """y = b + W x + U tanh(d + H x), with the paper's letters, its x newest first, and here further
    hidden layers between. Before the text's beginning x is zero."""
    n = 4
    model = tiny.window(order=n, skip_connections=direct, layers=layers)
    params, tokens = tiny.moved(model.init(jax.random.key(0))), np.asarray(tiny.batch().x)
    h = hidden(model, params, tiny.batch().x)
    y = np.asarray(model.logits(params, h))
    C, ours = np.asarray(params["embedding"]["C"]), np.asarray(params["readout"]["W_hy"])
    newest_first = slice(None, None, -1)
    H_ = np.concatenate(np.asarray(params["W"])[newest_first]).T
    U = ours[-H:].T
    W = np.zeros((tiny.V, (n - 1) * E))
    if direct:
        W = np.concatenate(ours[:-H].reshape(n - 1, E, tiny.V)[newest_first]).T
    b, d = np.asarray(params["readout"]["b_y"]), np.asarray(params["b"])
    for t, lane in np.ndindex(tokens.shape):
        past = [C[tokens[t - i, lane]] if t >= i else np.zeros(E) for i in range(n - 1)]
        x = np.concatenate(past)
        a = np.tanh(d + H_ @ x)
        for above in params["layers"]:
            a = np.tanh(a @ np.asarray(above["W"]) + np.asarray(above["b"]))
        np.testing.assert_allclose(y[t, lane], b + W @ x + U @ a, 1e-12, 1e-12)


@pytest.mark.parametrize("direct", [False, True])
def test_a_place_more_is_a_block_more(direct, key):
    """(n - 1) E H numbers in W, and (n - 1) E V more where the readout sees the window."""

    def count(order):
        return optax.tree.size(
            tiny.window(order=order, skip_connections=direct, layers=2).init(key)
        )

    V = tiny.V
    for n in (2, 3, 6):
        seen = (n - 1) * E if direct else 0
        assert count(n) == V * E + (n - 1) * E * H + H + (H + 1) * H + (H + seen + 1) * V


def test_both_uses_of_the_window_see_the_same_dropped_inputs():
    dropout = Dropout(inputs=0.5, embedding=0.2)
    model = tiny.window(order=3, skip_connections=True, dropout=dropout).for_training(
        jax.random.key(7)
    )
    params = tiny.moved(model.init(jax.random.key(0)))
    h = np.asarray(hidden(model, params, tiny.batch().x))
    x, a = h[..., :-H], h[..., -H:]
    W = np.asarray(params["W"]).reshape(-1, H)
    np.testing.assert_allclose(a, np.tanh(x @ W + np.asarray(params["b"])), 1e-12, 1e-12)
    # A vector is dropped once, for all the windows that hold it.
    np.testing.assert_array_equal(x[1:, :, :E], x[:-1, :, E:])
    assert 0.2 < np.mean(x[1:] == 0) < 0.9


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"model\.skip_connections needs learned vectors"):
        Window(skip_connections=True, embedding_size=None)
    with pytest.raises(UserError, match=r"model\.dropout\.between needs model\.layers of 2"):
        Window(dropout=Dropout(between=0.5))
