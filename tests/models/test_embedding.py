"""Vectors of tokens made of shorter ones, against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax.config import AdaptiveInputs, RecurrentDropout
from lm_jax.models.dropout import NO_DROPOUT
from lm_jax.models.embedding import times
from lm_jax.settings import UserError

E = 4
KINDS = {"adaptive": AdaptiveInputs(cutoffs=(2, 5), factor=2)}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind, **fields):
    model = tiny.rnn(**{"embedding": KINDS[kind], "embedding_size": E, **fields})
    return model, tiny.moved(model.init(jax.random.key(0)))


def adaptive(p, token):
    """A vector of band 0 has 4 numbers, of band 1 two, of band 2 one."""
    band, place = (0, token) if token < 2 else (1, token - 2) if token < 5 else (2, token - 5)
    own = p["bands"][band]
    assert own["C"].shape == ((2, 4), (3, 2), (2, 1))[band]
    return own["C"][place] @ own["P"]


FORMULAS = {"adaptive": adaptive}


@every_kind
def test_the_vectors_are_the_formula_in_numpy_however_many_are_asked_for(kind):
    """One by one, as a table of all, and by the product of the table with a matrix."""
    model, params = made(kind)
    own, numbers = params["embedding"], np.arange(tiny.V)
    p = jax.tree.map(np.asarray, own)
    wanted = np.stack([FORMULAS[kind](p, token) for token in numbers])
    read = jax.jit(lambda own, x: model.embedding.vectors(own, x, NO_DROPOUT))
    for x in (numbers, numbers[::-1].reshape(1, -1), np.array([[3], [6]])):
        np.testing.assert_allclose(read(own, jnp.asarray(x)), wanted[x], 1e-12, 1e-12)
    np.testing.assert_allclose(model.embedding.table(own), wanted, 1e-12, 1e-12)
    W = np.cos(np.arange(E * 3)).reshape(E, 3)
    inputs, matrix = model.embedding.projected(own, jnp.asarray(numbers), NO_DROPOUT, W)
    np.testing.assert_array_equal(inputs, numbers)
    np.testing.assert_allclose(times(inputs, matrix), wanted @ W, 1e-12, 1e-12)


@every_kind
def test_the_gradient_reaches_what_the_tokens_read_alone(kind):
    """Finite differences of every parameter, on tokens of a part of the vocabulary."""
    model, params = made(kind)
    x, own = jnp.array([[0, 3], [3, 0]]), params["embedding"]
    weights = np.cos(np.arange(4 * E)).reshape(2, 2, E)
    loss = jax.jit(lambda own: jnp.vdot(model.embedding.of_tokens(own, x), weights))
    grads, step = jax.grad(loss)(own), 1e-6
    leaves, tree = jax.tree.flatten(own)
    for place, leaf in enumerate(leaves):
        for at in np.ndindex(leaf.shape):
            ends = [
                loss(tree.unflatten([*leaves[:place], leaf.at[at].add(s), *leaves[place + 1 :]]))
                for s in (step, -step)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(jax.tree.leaves(grads)[place][at], slope, atol=1e-8)


def test_adaptive_vectors_begin_with_entries_of_variance_1():
    model = tiny.rnn(embedding=AdaptiveInputs(cutoffs=(3,), factor=2), embedding_size=400)
    table = model.embedding.table(model.embedding.init(jax.random.key(0)))
    np.testing.assert_allclose(np.var(np.asarray(table), axis=1), 1, atol=0.75)


@every_kind
@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("model.embedding_size=None", {"embedding_size": None}),
        ("model.readout.tied=True", {"readout__tied": True, "hidden_size": E}),
        ("model.vectors=a.vec", {"vectors": "a.vec"}),
    ],
)
def test_what_needs_one_table_is_refused(kind, said, fields):
    with pytest.raises(UserError, match=f"{said} does not go with model.embedding={kind}"):
        made(kind, **fields)


def test_bands_must_lie_within_the_vocabulary_in_order():
    for cutoffs in ((), (5, 2), (2, 2)):
        with pytest.raises(UserError, match=r"model.embedding.cutoffs=\(.*\) must rise, one of t"):
            tiny.rnn(embedding=AdaptiveInputs(cutoffs=cutoffs))
    with pytest.raises(UserError, match=r"model.embedding.cutoffs=\(2, 7\) must stay below V=7"):
        tiny.rnn(embedding=AdaptiveInputs(cutoffs=(2, 7)))


@every_kind
def test_dropout_of_words_drops_the_whole_vector(kind):
    model, params = made(kind, dropout=RecurrentDropout(embedding=0.5))
    model = model.for_training(jax.random.key(3))
    found = np.asarray(model.vectors(params, jnp.arange(tiny.V)[:, None]))[:, 0]
    whole = np.asarray(model.embedding.table(params["embedding"]))
    dropped = ~found.any(axis=1)
    assert 0 < dropped.sum() < tiny.V
    np.testing.assert_allclose(found[~dropped], 2 * whole[~dropped], 1e-12)
