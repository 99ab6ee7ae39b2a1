"""The command line: what it prints, and that a mistake is one line and status 2."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)

EXPERIMENT = """
from lm_jax.config import Config, Data, RNN, Train

def config():
    return Config(
        data=Data(source="file", train="text.txt", batch_size=4, length=8),
        model=RNN(embedding_size=4, hidden_size=5),
        train=Train(steps=6, log_every=3, checkpoint_every=3, validate_every=3),
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    (tmp_path / "lab.py").write_text(EXPERIMENT)
    return tmp_path


def told(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    try:
        status = run.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_train_score_and_sample_one_after_another(folder, capsys):
    status, out, err = told(capsys, "train", "lab.py", "--train.steps", 8)
    assert status == 0
    (run_dir,) = (folder / "runs").iterdir()
    assert out.rstrip().endswith(f"runs/{run_dir.name}")
    assert "validation" in out
    assert "step 6: validation" in err
    assert json.loads((run_dir / "config.json").read_text())["train"]["steps"] == 8

    # The same command finds the finished run; more steps go on with it.
    status, out, err = told(capsys, "train", "lab.py", "--train.steps", 8)
    assert (status, err) == (0, "")
    assert told(capsys, "train", "lab.py", "--train.steps", 9)[0] == 0
    assert len(list((folder / "runs").iterdir())) == 1

    status, out, _ = told(capsys, "score", run_dir, "text.txt")
    assert status == 0
    assert len(out.splitlines()) == 1 + len(tiny.TEXT) + 1 + 5
    status, out, _ = told(capsys, "score", run_dir, "text.txt", "--json")
    scored = json.loads(out)
    assert scored["tokens"] == len(scored["by_token"]) == len(tiny.TEXT)
    assert -scored["log_p"] == pytest.approx(sum(nats for _, nats in scored["by_token"]))
    assert "".join(token for token, _ in scored["by_token"]) == tiny.TEXT

    status, out, _ = told(capsys, "sample", run_dir, "--prompt", "the ", "--length", 9)
    assert status == 0
    assert out.startswith("the ")
    assert len(out) == 4 + 9 + 1
    assert told(capsys, "sample", run_dir, "--prompt", "the ", "--length", 9)[1] == out


def test_another_family_of_models_brings_its_own_flags(folder, capsys):
    flags = ["--model.kind", "window", "--model.order", 3, "--train.optimizer.kind=sgd"]
    status, _, _ = told(capsys, "train", "lab.py", "--run-dir", "there", *flags)
    assert status == 0
    config = json.loads((folder / "there" / "config.json").read_text())
    assert (config["model"]["kind"], config["model"]["order"]) == ("window", 3)
    assert config["train"]["optimizer"] == {"kind": "sgd"}
    status, out, _ = told(capsys, "train", "lab.py", "--model.kind", "window", "--help")
    assert status == 0
    assert "--model.order" in out
    assert "--model.layers" not in out


def test_help_names_every_flag_with_its_default(folder, capsys):
    from lm_jax.config import Config
    from lm_jax.settings import fields

    status, out, _ = told(capsys, "train", "lab.py", "--help")
    assert status == 0
    for path, _, _ in fields(Config()):
        flag = "--" + path.replace("_", "-")
        assert flag in out
    assert out.count("(default:") >= len(list(fields(Config())))
    for command in ("train", "score", "sample"):
        assert command in told(capsys, "--help")[1]


MISTAKES = [
    (["trian"], "Unrecognized options: trian"),
    (["train", "quickstrat"], "no experiment 'quickstrat'; did you mean 'quickstart'?"),
    (["train", "none.py"], "no experiment 'none.py'"),
    (["train", "lab.py", "--model.hiden-size", "3"], "did you mean --model.hidden-size?"),
    (["train", "lab.py", "--model.hidden-size", "x"], "--model.hidden-size"),
    (["train", "lab.py", "--model.hidden-size", "-3"], "--model.hidden-size=-3: "),
    (["train", "lab.py", "--model.hidden-size"], "--model.hidden-size"),
    (["train", "lab.py", "--model.kind", "rn"], "--model.kind=rn: choose from window, rnn"),
    (["train", "lab.py", "--train.optimizer.kind", "adm"], "did you mean 'adam'?"),
    (["train", "lab.py", "--model.order", "3"], "--model.order"),
    (["train", "lab.py", "--train.optimizer.b1", "2"], "--train.optimizer.b1=2.0: "),
    (["train", "lab.py", "--train.k2", "3"], "train.k2 is read only with"),
    (["train", "lab.py", "--data.length", "5000"], "data.length=5000 is longer than a lane"),
    (["train", "lab.py", "--data.train", "none.txt"], "data.train=none.txt: there is no such file"),
    (["train", "lab.py", "--data.train", "."], "data.train=.: is a directory"),
    (["train", "lab.py", "--data.train", "empty.txt"], "data.train=empty.txt"),
    (["train", "lab.py", "--data.train", "latin.txt"], "not UTF-8 at byte 3"),
    (["train", "lab.py", "--data.train", "nul.txt"], "a NUL at byte 3"),
    (["train", "lab.py", "--data.train", "lines.txt"], "nothing to predict"),
    (["train", "lab.py", "--data.source", "memory", "--data.train", "None"], "lm_jax.train"),
    (["train", "lab.py", "--run-dir", "text.txt"], "text.txt cannot be a run directory"),
    (["train", "lab.py", "--run-dir", "."], "holds files but no run"),
    (["train", "broken.py"], "broken.py: NameError: name 'Confg'"),
    (["train", "other.py"], "other.py: config() gives a int, not a Config"),
    (["train", "nothing.py"], "nothing.py: it has no function config()"),
    (["score", "none", "text.txt"], "none is not a run directory"),
    (["sample", "text.txt"], "text.txt is not a run directory"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=str)
def test_a_mistake_is_one_line_and_status_2_and_nothing_is_left(folder, capsys, arguments, said):
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"caf\xc3\xe9" * 400)
    (folder / "nul.txt").write_bytes(b"abc\0" * 400)
    (folder / "lines.txt").write_text("\n" * 400)
    (folder / "broken.py").write_text("def config():\n    return Confg()\n")
    (folder / "other.py").write_text("def config():\n    return 3\n")
    (folder / "nothing.py").write_text("x = 1\n")
    before = sorted(folder.rglob("*"))
    status, out, err = told(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(folder.rglob("*")) == before


def test_a_diverged_run_is_status_1(folder, capsys):
    flags = ["--train.learning-rate", "1e200", "--model.activation", "relu"]
    status, out, _ = told(capsys, "train", "lab.py", *flags)
    assert status == 1
    assert "the loss was not finite" in out


def test_the_quickstart_is_an_experiment():
    config = run.load_experiment("quickstart")
    assert config.data.source == "builtin"
    assert sys.modules.get("quickstart") is None
