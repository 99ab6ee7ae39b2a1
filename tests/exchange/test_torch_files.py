"""Runs as safetensors files and back: nothing is lost, and a fault leaves nothing behind."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tiny
from torch_equations import V, drawn

import lm_jax
from lm_jax import exchange, models, scoring
from lm_jax.commands import main
from lm_jax.config import RNN, Char, Config, Data, Elman, Memory, Softmax, Word
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.settings import UserError
from lm_jax.training import journal
from lm_jax.training.imported import write_imported

PROGRAM = "python run.py"
WORDS = ("<eos>", "<unk>", "the", "cat", "sat", "on", "mat")
MODEL = RNN(embedding_size=4, hidden_size=5, layers=2, cell=Elman(activation="relu"))


def run_of(folder, words=WORDS, tokenizer="word", model=MODEL):
    """A run with parameters at random."""
    vocabulary = Vocabulary(tokenizer, tuple(words))
    data = Data(source=Memory(), tokenizer=Char() if tokenizer == "char" else Word())
    params = models.make(model, len(words)).init(jax.random.key(0))
    return write_imported(folder, Config(data=data, model=model, train=None), vocabulary, params)


def nats(run, text="the cat sat\non a mat\n"):
    return scoring.score(run.model, run.params, run.vocabulary, text).nats


@pytest.fixture
def weights(tmp_path):
    """A folder with the arrays of an LSTM in a file, and its words in another."""
    safetensors.numpy.save_file(drawn(), tmp_path / "w.safetensors")
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return tmp_path


def imported(folder, **options):
    return exchange.import_torch(
        folder / "w.safetensors", folder / "run", vocabulary=folder / "words.txt", **options
    )


def test_a_run_exported_and_imported_is_the_same_model(tmp_path, capsys):
    """The file's metadata hold what the arrays do not tell: vocabulary, activation, names."""
    words = ("\n", "<unk>", *"the ca")
    run = run_of(tmp_path / "run", words, "char")
    file, back = str(tmp_path / "w.safetensors"), str(tmp_path / "back")
    names = ["--modules", "embed", "rnn", "out"]
    assert main.main(["export", str(run.path), file, *names], PROGRAM) == 0
    assert main.main(["import", file, back], PROGRAM) == 0
    assert capsys.readouterr().out.splitlines() == [file, back]
    again = lm_jax.load_run(back)
    assert again.vocabulary == run.vocabulary
    assert again.config.model == MODEL
    tiny.assert_trees_equal(again.params, run.params)
    with safetensors.safe_open(file, framework="np") as opened:
        assert "embed.weight" in opened.keys()
        assert json.loads(opened.metadata()["vocabulary"])["tokens"] == list(words)


def test_an_imported_run_is_scored_reported_and_listed(weights, capsys):
    run = imported(weights)
    assert repr(run).endswith("lstm network, 270 parameters, imported at step 0>")
    (weights / "text.txt").write_text("the cat sat\non a mat\n")
    text, folder = str(weights / "text.txt"), str(run.path)
    assert main.main(["score", folder, text, "--by", "none"], PROGRAM) == 0
    assert f"{-nats(run).sum():.4f}" in capsys.readouterr().out
    assert main.main(["compare", folder], PROGRAM) == 0
    assert "(imported)" in capsys.readouterr().out
    assert main.main(["report", folder], PROGRAM) == 0
    assert "imported at update 0" in (run.path / "report.html").read_text()


@pytest.mark.slow
def test_an_imported_run_is_scored_by_dynamic_evaluation_and_has_a_reach(weights):
    run, text = imported(weights), weights / "text.txt"
    text.write_text("the cat sat\non a mat\n")
    words = ["score", str(run.path), str(text), "--dynamic", "sgd", "--by", "none"]
    assert main.main(words, PROGRAM) == 0
    tokens = np.random.default_rng(0).integers(0, V, 200).astype(np.int32)
    given = {"tokens": tokens, "length": 6, "sequences": 2}
    found = lm_jax.probe(run, **given, only=["lags", "dynamics"])
    assert found.reach.lags is not None
    assert list(found.reach.dynamics.eigenvalues) == [0]
    assert (found.step, found.parameters_step, found.length) == (0, 0, 6)


def test_an_imported_run_has_no_updates_and_no_text(weights):
    run, tokens = imported(weights), np.zeros(200, np.int32)
    for given, said in (
        ({"only": ["lags"]}, "was imported without a text: give one"),
        ({"only": ["lags", "clipping"], "tokens": tokens}, "clipping is of updates, and .* was im"),
        ({"only": ["lag"], "tokens": tokens}, "only=lag: choose from"),
        ({"step": "spike", "tokens": tokens}, "step=spike is of updates"),
    ):
        with pytest.raises(UserError, match=said):
            lm_jax.probe(run, **given)


def test_an_imported_run_is_not_trained(weights):
    run = imported(weights)
    with pytest.raises(UserError, match="train=None: this model=rnn was trained elsewhere"):
        lm_jax.train(run.config, run.path, text=tiny.TEXT)
    with pytest.raises(UserError, match="model=rnn needs train"):
        dataclasses.replace(run.config, data=Data())


def test_words_may_have_other_names_for_the_boundary_and_for_unknown_words(weights):
    run = imported(weights)
    other = [{"<eos>": "</s>", "<unk>": "UNK"}.get(word, word) for word in WORDS]
    (weights / "words.txt").write_text("\r\n".join(other))
    (weights / "again").mkdir()
    again = exchange.import_torch(
        weights / "w.safetensors",
        weights / "again",
        vocabulary=weights / "words.txt",
        boundary="</s>",
        unknown="UNK",
    )
    assert again.vocabulary == run.vocabulary
    # The vocabulary of a run, of any kind of tokens.
    chars = Vocabulary("char", ("\n", "<unk>", *"abcde"))
    (weights / "vocabulary.json").write_text(chars.to_json())
    third = exchange.import_torch(
        weights / "w.safetensors", weights / "third", vocabulary=weights / "vocabulary.json"
    )
    assert third.vocabulary == chars


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        ("a b", {}, "words.txt has no line <eos>: name the word that takes its part by --boundary"),
        ("a b", {"boundary": "a"}, "has no line <unk>: name the word .* by --unknown"),
        ("a b", {"boundary": "c", "unknown": "b"}, "words.txt has no line c"),
        ("<eos> <unk> a a", {}, "line 4 repeats 'a', line 3"),
        ("<eos> <unk> a <eos>", {"boundary": "a"}, "line 3 repeats|line 4 repeats '<eos>'"),
        ("<eos> <unk> \n b", {}, "line 3 is empty"),
        ("<eos> <unk> b", {}, "the embedding has 7 rows, and .*words.txt 3 tokens"),
        ("\ud800", {}, "words.txt is not UTF-8"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(weights, words, options, said):
    lines = words.split(" ")
    content = "".join("\n" if line == "\n" else f"{line}\n" for line in lines)
    (weights / "words.txt").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=said):
        imported(weights, **options)
    assert not (weights / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("import w.safetensors new", "w.safetensors holds no vocabulary: name a file"),
        ("import w.safetensors new --boundary a", "holds no vocabulary"),
        ("import w.safetensors full --vocabulary words.txt", "full holds files"),
        ("import w.safetensors words.txt --vocabulary words.txt", "words.txt cannot be a new dir"),
        ("import words.safetensors new", "words.safetensors: there is no such file"),
        ("import bad.safetensors new", "bad.safetensors is no safetensors file of numbers"),
        ("import model.pt new", "model.pt is a pickle, .* safetensors.torch.save_file"),
        ("import words.txt new", r"words.txt: the name must end in \.safetensors"),
        (
            "import w.safetensors new --vocabulary words.txt --layout awd-lstm-lm",
            "w.safetensors: no array is of the module rnns; .* did you mean 'rnn'",
        ),
        (
            "export run words.txt",
            "words.txt: the name must end in .safetensors or .arpa or",
        ),
        ("export run w.safetensors", "w.safetensors is there already"),
        ("export run no/w.safetensors", "there is no folder no"),
        ("export run full", "full holds files"),
        ("export run new --layout torch", "--layout is read only with a .safetensors file"),
        ("export run new.safetensors --layout awd-lstm-lm", "elman has no place in awd-lstm-lm"),
        ("export run a.safetensors --layout torchh", "--layout=torchh: choose from torch, word_la"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_line(weights, monkeypatch, capsys, words, said):
    monkeypatch.chdir(weights)
    (weights / "full").mkdir()
    (weights / "full" / "notes.txt").write_text("mine")
    (weights / "bad.safetensors").write_bytes(b"PK\x03\x04 no such thing")
    if words.startswith("export"):
        run_of(weights / "run")
    before = {path.name for path in weights.rglob("*")}
    assert main.main(words.split(), PROGRAM) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(said, error), error
    assert {path.name for path in weights.rglob("*")} == before


def test_an_array_that_is_written_once_under_the_other_of_its_two_names_is_found(weights):
    """As `safetensors.torch.save_model` writes a tied model."""
    arrays = drawn(tied=True)
    del arrays["encoder.weight"]
    told = {"encoder.weight": "decoder.weight"}
    safetensors.numpy.save_file(arrays, weights / "w.safetensors", told)
    assert imported(weights).config.model.readout.tied


def test_the_vocabulary_of_a_task_is_refused(weights):
    told = {"vocabulary": Vocabulary("task", tuple("abcdefg")).to_json()}
    safetensors.numpy.save_file(drawn(), weights / "w.safetensors", told)
    with pytest.raises(UserError, match="has the vocabulary of a task"):
        exchange.import_torch(weights / "w.safetensors", weights / "run")


def test_a_fault_in_the_middle_leaves_nothing(weights, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    run = run_of(weights / "mine", model=dataclasses.replace(MODEL, readout=Softmax(bias=False)))
    before = sorted(path.name for path in weights.iterdir())
    monkeypatch.setattr(journal, "write_result", full)
    with pytest.raises(OSError, match="No space"):
        imported(weights)
    monkeypatch.setattr("lm_jax.files.to_disk", full)
    with pytest.raises(OSError, match="No space"):
        exchange.export_torch(run, weights / "mine.safetensors")
    with pytest.raises(OSError, match="No space"):
        exchange.export_functions(run, weights / "served")
    assert sorted(path.name for path in weights.iterdir()) == before
