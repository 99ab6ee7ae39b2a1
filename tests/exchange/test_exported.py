"""Exported functions, for any numbers of steps and sequences, without lm_jax."""

import ast
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import exchange, generation, models, scoring
from lm_jax.config import (
    GRU,
    LSTM,
    RNN,
    Char,
    Config,
    Convolution,
    Data,
    Memory,
    MixtureOfSoftmaxes,
    NGram,
    RecurrentDropout,
    Window,
)
from lm_jax.data import bpe
from lm_jax.data.vocabulary import BYTES, Vocabulary
from lm_jax.settings import UserError
from lm_jax.training.imported import write_imported
from lm_jax.trees import by_name

SERVE = Path(__file__).parents[2] / "docs" / "serving" / "serve.py"
MODELS = {
    "lstm": RNN(cell=LSTM(), layers=2, embedding_size=4, hidden_size=5),
    "linear": tiny.changed(RNN(embedding_size=4, hidden_size=6), cell="lru"),
    "before": RNN(cell=GRU(reset="before"), embedding_size=None, hidden_size=5),
    "window": Window(order=3, embedding_size=4, hidden_size=5),
    "zoneout": RNN(
        cell=LSTM(),
        layers=2,
        embedding_size=4,
        hidden_size=(5, 3),
        dropout=RecurrentDropout(zoneout=0.1, zoneout_cell=0.2),
        projection=4,
    ),
    "mixture": RNN(embedding_size=4, readout=MixtureOfSoftmaxes(components=2, size=3)),
    "convolution": Convolution(embedding_size=4, hidden_size=5),
    "block": tiny.changed(RNN(embedding_size=4, hidden_size=5), cell="mingru", block="mlp"),
}
CHARS = Vocabulary("char", ("\n", "<unk>", *"the ca"))
TEXT = "the cat\nate that cheese\n" * 5


def run_of(folder, vocabulary=CHARS, model=MODELS["lstm"]):
    """A run with parameters at random."""
    made = models.make(model, len(vocabulary))
    params = tiny.moved(made.init(jax.random.key(0)))
    data = Data(source=Memory(), tokenizer=Char())
    return write_imported(folder, Config(data=data, model=model, train=None), vocabulary, params)


def tokens(T, B):
    return jnp.asarray(np.random.default_rng(T).integers(0, tiny.V, (T, B)), jnp.int32)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_exported_functions_are_the_model_for_any_numbers_of_steps_and_sequences(name):
    model = models.make(MODELS[name], tiny.V)
    params = tiny.moved(model.init(jax.random.key(0)))
    found = exchange.exported(model, params, unknown=1)
    assert all(one.platforms == ("cpu", "cuda", "tpu") for one in found.values())
    for T, B in ((5, 2), (3, 4)):
        x, y = tokens(T, B), tokens(T + 1, B)[1:]
        carry = found["start"].call(x[0])
        tiny.assert_trees_equal(carry, jax.tree.leaves(model.init_carry(B)))
        carry, nats = found["score"].call(by_name(params), carry, x, y)
        last, h = model.hidden(params, model.init_carry(B), x)
        tiny.assert_trees_close(nats, model.nats(params, h, y))
        tiny.assert_trees_close(carry, jax.tree.leaves(last))
        key, warmth = jax.random.key(3), jnp.asarray(0.7)
        given = by_name(params), carry, x[0], jax.random.key_data(key)
        carry, drawn, logits = found["draw"].call(*given, warmth)
        last, h = model.hidden(params, last, x[:1])
        tiny.assert_trees_close(logits, model.logits(params, h)[0])
        tiny.assert_trees_close(carry, jax.tree.leaves(last))
        barred = logits.at[:, 1].set(-jnp.inf)
        wanted = jnp.argmax(barred / warmth + jax.random.gumbel(key, logits.shape), axis=-1)
        np.testing.assert_array_equal(drawn, wanted)
        _, drawn, _ = found["draw"].call(*given, jnp.zeros(()))
        np.testing.assert_array_equal(drawn, jnp.argmax(barred, axis=-1))


def test_only_networks_are_exported(tmp_path):
    run = run_of(tmp_path / "run")
    counted = run._replace(config=Config(model=NGram()))
    with pytest.raises(UserError, match="model=ngram cannot be exported"):
        exchange.export_functions(counted, tmp_path / "served")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run, and the folder of its exported functions."""
    folder = tmp_path_factory.mktemp("served")
    run = run_of(folder / "run")
    exchange.export_functions(run, folder / "functions")
    return run, folder / "functions"


def loaded(folder):
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(serve := importlib.util.module_from_spec(spec))
    return serve.Model(folder)


def test_the_folder_says_shapes_and_vocabulary(served):
    run, folder = served
    about = json.loads((folder / "about.json").read_text())
    assert about["functions"]["score"]["arguments"][2:] == ["int32[T,B]", "int32[T,B]"]
    assert about["functions"]["score"]["returns"] == [["float64[B,5]"] * 4, "float64[T,B]"]
    assert about["functions"]["draw"]["arguments"][0]["layers.0.W_hh"] == "float64[5,20]"
    assert about["vocabulary"] == {
        "tokenizer": "char",
        "tokens": list(run.vocabulary.tokens),
        "boundary": 0,
        "unknown": 1,
        "rules": "",
    }


def test_the_served_example_scores_as_lm_jax_does_and_draws_by_its_seed(served):
    """In chunks of 64 tokens, the last one padded."""
    run, folder = served
    trained, model = (run.model, run.params, run.vocabulary), loaded(folder)
    text = TEXT + "zzz"
    found, wanted = model.nats(text), scoring.score(*trained, text)
    assert found["tokens"] == wanted.tokens.tolist()
    np.testing.assert_allclose(found["nats"], wanted.nats, 1e-12, 1e-12)
    assert found["total"] == pytest.approx(wanted.loss.nats, rel=1e-12)
    said = [model.text("the c", length=20, seed=seed)["text"] for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    assert all(text.startswith("the c") and len(text) == 25 for text in said)


def test_the_served_example_reads_and_writes_every_kind_of_tokens(served):
    model, rules = loaded(served[1]), bpe.train([TEXT], 270)
    kinds = (
        BYTES,
        CHARS,
        Vocabulary("word", ("<eos>", "<unk>", "the", "cat", "ate", "cheese")),
        Vocabulary("bpe", bpe.tokens(rules), rules),
    )
    for kind in kinds:
        model.kind, model.numbers = kind.tokenizer, kind.numbers
        model.vocabulary = {"tokens": kind.tokens, "rules": kind.rules, "unknown": kind.unknown}
        for ended in (True, False):
            numbers = kind.encode(TEXT + "\n the cat", ended=ended)
            assert model.encode(TEXT + "\n the cat", ended) == numbers.tolist()
        assert model.decode(numbers.tolist()) == kind.decode(numbers)


@pytest.mark.parametrize(
    ("path", "asked", "said"),
    [
        ("/other", {}, "/other is not served, only /score and /sample"),
        ("/score", None, "the body is no JSON object"),
        ("/score", ["the cat"], "the body is no JSON object"),
        ("/score", {}, "text is missing"),
        ("/score", {"text": ""}, "text is missing"),
        ("/score", {"text": 5}, "text=5 is of another type"),
        ("/sample", {"seed": "1"}, 'seed="1" is of another type'),
        ("/sample", {"seed": True}, "seed=true is of another type"),
        ("/sample", {"length": -1}, "length=-1 must be from 0 to 2^31 - 1"),
        ("/sample", {"temperature": float("nan")}, "temperature=nan must be from 0 to 2^31 - 1"),
        ("/sample", {"stop": "x"}, "stop is not read, only prompt, length, temperature, seed"),
        ("/sample", {"temperature": 0, "seed": 3}, None),
    ],
)
def test_the_served_example_says_what_is_wrong(path, asked, said):
    assert runpy.run_path(str(SERVE))["problem"](path, asked) == said


def test_the_served_example_needs_no_lm_jax_and_fits_on_two_screens():
    lines = SERVE.read_text().splitlines()
    assert len(lines) <= 130
    for node in ast.walk(ast.parse("\n".join(lines))):
        named = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
        assert not any(name.startswith("lm_jax") for name in [*named, getattr(node, "module", "")])


@pytest.mark.slow
def test_the_server_answers_in_a_process_without_lm_jax(served):
    run, folder = served
    start = "import runpy, sys; sys.modules['lm_jax'] = None; sys.argv = sys.argv[1:]; "
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", start, str(SERVE), str(folder), "0"]
    here = {**os.environ, "JAX_ENABLE_X64": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=here) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split()[-1])

            def ask(path, **asked):
                content = json.dumps(asked).encode()
                with urllib.request.urlopen(f"http://localhost:{port}{path}", content) as answer:
                    return json.load(answer)

            wanted = scoring.score(run.model, run.params, run.vocabulary, TEXT)
            found = ask("/score", text=TEXT)
            np.testing.assert_allclose(found["nats"], wanted.nats, 1e-12, 1e-12)
            given = {"prompt": "the c", "length": 20, "temperature": 0.0}
            wanted = generation.sample(run.model, run.params, run.vocabulary, **given)
            assert ask("/sample", **given) == {"text": wanted}
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask("/score", txt="")
            assert refused.value.code == 400
            assert json.load(refused.value) == {"error": "txt is not read, only text"}
        finally:
            server.terminate()
