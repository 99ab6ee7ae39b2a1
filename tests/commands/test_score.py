"""How a text is read by `score`, and the weight of a mixture."""

import json

import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import scoring
from lm_jax.commands import score as command
from lm_jax.commands.main import main
from lm_jax.config import Config, Data, File, Memory, NGram, Word
from lm_jax.data.text import in_memory

WORDS = "the cat sat on the mat and the dog lay by the cat\n"
HELD_OUT = "the dog sat by the mat\nthe cat lay and sat\n"


def run(*words):
    return main(list(words), "run.py")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two n-gram models of a text in files."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("train", WORDS * 9), ("valid", HELD_OUT), ("test", HELD_OUT)):
        (tmp_path / f"{name}.txt").write_text(text)
    files = File(train="train.txt", validation="valid.txt", test="test.txt")
    for order in (1, 2):
        config = Config(data=Data(source=files, tokenizer=Word()), model=NGram(order=order))
        lm_jax.train(config, f"order{order}")
    return tmp_path


def test_a_text_is_read_as_its_run_was_trained_unless_told(folder, capsys, monkeypatch):
    trained_run = lm_jax.load_run("order2")
    text = in_memory("text", HELD_OUT)
    trained = trained_run.model, trained_run.params, trained_run.vocabulary
    nats = {
        "stream": scoring.score(*trained, HELD_OUT).loss.nats,
        "sentences": sum(block.nats.sum() for block in scoring.line_blocks(*trained, text)),
    }

    def read(*flags):
        assert run("score", "order2", "valid.txt", "--json", *flags) == 0
        found = json.loads(capsys.readouterr().out)
        assert -found["log_p"] == pytest.approx(nats[found["read"]])
        return found["read"]

    assert read() == "stream"
    assert read("--read", "sentences") == "sentences"
    data = tiny.changed(trained_run.config.data, batching="sentences")
    by_line = trained_run._replace(config=Config(data=data))
    monkeypatch.setattr(command, "reading_text", lambda run_dir: by_line)
    assert read() == "sentences"
    assert read("--read", "stream") == "stream"


def test_the_weight_of_a_mixture_is_fitted_on_the_validation_text(folder, capsys):
    runs = [lm_jax.load_run(f"order{order}") for order in (1, 2)]
    each = [scoring.score(run.model, run.params, run.vocabulary, HELD_OUT).nats for run in runs]

    def mixed(weight):
        return -np.logaddexp(np.log(weight) - each[0], np.log1p(-weight) - each[1]).sum()

    mix = ["score", "order1", "valid.txt", "--json", "--mix", "order2"]
    assert run(*mix, "--mix-weight", "fit") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    weight = found["mix_weight"]
    assert f"--mix-weight {weight:.4f} gives the validation text of order1 the fewest nats" in err
    assert 0.01 < weight < 0.99
    assert -found["log_p"] == pytest.approx(mixed(weight), rel=1e-6)
    assert mixed(weight) <= min(mixed(w) for w in np.linspace(0.01, 0.99, 99)) + 1e-6
    assert run(*mix) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["mix_weight"] == 0.5
    assert err == "mixed half and half; --mix-weight fit fits the weight to the validation text\n"
    assert run("sample", "order1", "--mix", "order2", "--mix-weight=fit", "--length", "3") == 0
    assert f"--mix-weight {weight:.4f}" in capsys.readouterr().err


def test_a_text_that_is_gone_fits_no_weight(folder, capsys):
    config = Config(data=Data(source=Memory(), tokenizer=Word()), model=NGram(order=2))
    lm_jax.train(config, "memory", text=[WORDS * 9, HELD_OUT, HELD_OUT])
    fit = ["valid.txt", "--mix", "order2", "--mix-weight", "fit"]
    assert run("score", "memory", *fit) == 2
    said = "--mix-weight=fit reads the validation text, which a run of data.source=memory has not"
    assert said in capsys.readouterr().err
    (folder / "valid.txt").write_text(HELD_OUT * 2)
    assert run("score", "order1", *fit) == 2
    assert "another text" in capsys.readouterr().err
