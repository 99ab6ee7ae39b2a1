"""Vectors of tokens made of shorter ones, against their formulas in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import exchange, generation, models, scoring
from lm_jax.analysis.proof import prove
from lm_jax.config import (
    RNN,
    AdaptiveInputs,
    CharacterInputs,
    Mogrifier,
    RecurrentDropout,
)
from lm_jax.data.characters import word_characters
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models.dropout import NO_DROPOUT
from lm_jax.models.embedding import times
from lm_jax.settings import UserError
from lm_jax.trees import by_name

E = 4
WORDS = Vocabulary("word", ("<unk>", "<eos>", "a", "aa", "eaten", "<b", "naïve"))
KINDS = {
    "adaptive": AdaptiveInputs(cutoffs=(2, 5), factor=2),
    "characters": CharacterInputs(
        character_size=2, widths=(1, 3, 6), filters=(2, 1, 2), highway=2, longest=4
    ),
    "characters, their own": CharacterInputs(
        character_size=2, widths=(8,), filters=(E,), highway=0, longest=9
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind, **fields):
    fields = {"embedding": KINDS[kind], "embedding_size": E, "hidden_size": 5, **fields}
    config = tiny.changed(RNN(), **fields)
    model = models.make(config, models.vocab_of(config, WORDS))
    return model, tiny.moved(model.init(jax.random.key(0)))


def adaptive(p, token):
    """A vector of band 0 has 4 numbers, of band 1 two, of band 2 one."""
    band, place = (0, token) if token < 2 else (1, token - 2) if token < 5 else (2, token - 5)
    own = p["bands"][band]
    assert own["C"].shape == ((2, 4), (3, 2), (2, 1))[band]
    return own["C"][place] @ own["P"]


def characters(p, token, kind="characters"):
    """A word is read as ^word$, of at most four characters of its own, and then zeros."""
    config, word = KINDS[kind], WORDS.tokens[token]
    spelt = [word] if token < 2 else list(word[: config.longest])
    symbols = sorted(
        {c for w in WORDS.tokens[2:] for c in w[: config.longest]} | {*WORDS.tokens[:2]}
    )
    rows = [p["symbols"][n] for n in (1, *(3 + symbols.index(c) for c in spelt), 2)]
    longest = max(3, 2 + max(len(w[: config.longest]) for w in WORDS.tokens[2:]), *config.widths)
    rows += [np.zeros(2)] * (longest - len(rows))
    y = []
    for w, own in zip(config.widths, p["filters"], strict=True):
        windows = [np.concatenate(rows[i : i + w]) for i in range(longest - w + 1)]
        y += list(np.max([np.tanh(window @ own["F"] + own["b"]) for window in windows], axis=0))
    y = np.array(y)
    for own in p["highway"]:
        t = 1 / (1 + np.exp(-(y @ own["W_T"] + own["b_T"])))
        y = t * np.maximum(y @ own["W_H"] + own["b_H"], 0) + (1 - t) * y
    assert ("P" in p) == (kind == "characters")
    return y @ p["P"] if "P" in p else y


FORMULAS = {
    "adaptive": adaptive,
    "characters": characters,
    "characters, their own": functools.partial(characters, kind="characters, their own"),
}


@pytest.mark.quick("adaptive", "characters")
@every_kind
def test_the_vectors_are_the_formula_in_numpy_however_many_are_asked_for(kind):
    """One by one, as a table of all, and by the product of the table with a matrix."""
    model, params = made(kind)
    own, numbers = params["embedding"], np.arange(tiny.V)
    p = jax.tree.map(np.asarray, own)
    wanted = np.stack([FORMULAS[kind](p, token) for token in numbers])
    read = jax.jit(lambda own, x: model.embedding.vectors(own, x, NO_DROPOUT))
    for x in (numbers[::-1].reshape(1, -1), np.array([[3], [6]])):
        np.testing.assert_allclose(read(own, jnp.asarray(x)), wanted[x], 1e-12, 1e-12)
    np.testing.assert_allclose(model.embedding.table(own), wanted, 1e-12, 1e-12)
    W = np.cos(np.arange(E * 3)).reshape(E, 3)
    inputs, matrix = model.embedding.projected(own, jnp.asarray(numbers), NO_DROPOUT, W)
    np.testing.assert_array_equal(inputs, numbers)
    np.testing.assert_allclose(times(inputs, matrix), wanted @ W, 1e-12, 1e-12)


def test_adaptive_vectors_begin_with_entries_of_variance_1():
    model = tiny.rnn(embedding=AdaptiveInputs(cutoffs=(3,), factor=2), embedding_size=400)
    table = model.embedding.table(model.embedding.init(jax.random.key(0)))
    np.testing.assert_allclose(np.var(np.asarray(table), axis=1), 1, atol=0.35)


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
    with pytest.raises(UserError, match=f"{said} does not go with model.embedding={kind[:8]}"):
        made(kind, **fields)


def test_bands_must_lie_within_the_vocabulary_in_order():
    for cutoffs in ((), (5, 2), (2, 2)):
        with pytest.raises(UserError, match=r"model.embedding.cutoffs=\(.*\) must rise, and h"):
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


def test_a_vocabulary_gives_the_characters_of_its_words():
    found = word_characters(WORDS, longest=3)
    spelt = ["", "", "a", "aa", "eat", "<b", "naï"]
    symbols = sorted({*"".join(spelt), "<unk>", "<eos>"})
    assert found.symbols == 3 + len(symbols)
    for row, word, token in zip(found.numbers, spelt, WORDS.tokens, strict=True):
        own = list(word) or [token]
        wanted = [1, *(3 + symbols.index(c) for c in own), 2]
        assert list(row) == wanted + [0] * (5 - len(wanted))
    assert found == word_characters(WORDS, longest=3)
    assert hash(found) == hash(word_characters(WORDS, longest=3))
    assert found != word_characters(WORDS, longest=4)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_characters_are_read_of_words_alone(tokenizer):
    said = f"model.embedding=characters needs words.* data.tokenizer={tokenizer} has none"
    with pytest.raises(UserError, match=said):
        models.vocab_of(RNN(embedding=CharacterInputs()), Vocabulary(tokenizer, ("a", "b")))
    with pytest.raises(UserError, match=r"widths=\(1, 2\) and model.embedding.filters=\(3,\) must"):
        CharacterInputs(widths=(1, 2), filters=(3,))
    with pytest.raises(UserError, match=r"widths=\(1000000,\) must be at most 67: model"):
        CharacterInputs(widths=(1000000,), filters=(3,))


TEXT = 8 * tiny.TEXT
RUNS = {
    "mogrifier": RNN(cell=Mogrifier(rounds=2, rank=2), embedding_size=4, hidden_size=5, layers=2),
    "adaptive": RNN(embedding=KINDS["adaptive"], embedding_size=E, hidden_size=5),
    "characters": RNN(embedding=KINDS["characters"], embedding_size=E, hidden_size=5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_resumed_loaded_sampled_probed_verified_and_exported(name, tmp_path):
    data = {"tokenizer": "word", "length": 6, "batch_size": 4}
    config = tiny.config(data=data, model=RUNS[name], train={"steps": 6, "checkpoint_every": 2})
    whole = lm_jax.train(config, run_dir=tmp_path / "whole", text=TEXT)
    half = tiny.changed(config, train__steps=4)
    lm_jax.train(half, run_dir=tmp_path / "half", text=TEXT)
    resumed = lm_jax.train(config, run_dir=tmp_path / "half", text=TEXT)
    tiny.assert_trees_equal(resumed.params, whole.params)
    run = lm_jax.load_run(tmp_path / "whole")
    tiny.assert_trees_equal(run.params, whole.params)
    given = run.model, run.params, run.vocabulary
    assert generation.sample(*given, length=9, prompt="the cat").startswith("the cat")
    at_once = scoring.score(*given, TEXT[:60])
    tokens = run.vocabulary.encode(TEXT[:60])
    x = jnp.asarray([run.vocabulary.boundary, *tokens[:-1]])[:, None]
    _, h = run.model.hidden(run.params, run.model.init_carry(1), x)
    nats = run.model.nats(run.params, h, jnp.asarray(tokens)[:, None])[:, 0]
    np.testing.assert_allclose(at_once.nats, nats, 1e-9)
    functions = exchange.exported(run.model, run.params, unknown=run.vocabulary.unknown)
    carry = functions["start"].call(x[0])
    _, there = functions["score"].call(by_name(run.params), carry, x, jnp.asarray(tokens)[:, None])
    np.testing.assert_allclose(there[:, 0], nats, 1e-9)
    lm_jax.probe(run, length=5, sequences=2, text=TEXT, only={"by_lag"})
    if name != "mogrifier":  # in tests/gradients/test_proof.py
        assert prove(config, text=TEXT).holds
