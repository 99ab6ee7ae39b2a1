"""The command line: what it prints, and that a mistake is one line and status 2."""

import dataclasses
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_experiment import EXPERIMENT, PROGRAM, told

import lm_jax
from lm_jax.commands import main
from lm_jax.commands.parser import parse
from lm_jax.config import RNN, Builtin, Config, Copy, Data, Train
from lm_jax.experiment import load_experiment
from lm_jax.fields import alternatives, fields
from lm_jax.files import write_sealed
from lm_jax.sweeps import plan
from lm_jax.training.loop import prepared
from lm_jax.training.ngram_run import NGramRun

ROOT = Path(__file__).parents[2]


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
    assert len(out.splitlines()) == 1 + len(tiny.TEXT) + 1 + 9
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


SCORES = {
    "as it is": [],
    "line by line": ["--read", "sentences"],
    "learning": ["--dynamic", "sgd", "--dynamic-rate", 0.5],
    "learning, scaled": ["--dynamic", "rms", "--dynamic-length", 10, "--dynamic-decay", 0.001],
    "remembering": ["--cache", 20, "--cache-weight", 0.2],
}


@pytest.mark.slow
def test_a_text_is_scored_in_every_way(trained, capsys):
    sums = {}
    for name, flags in SCORES.items():
        status, out, _ = told(capsys, "score", "run", "text.txt", "--json", *flags)
        assert status == 0
        found = json.loads(out)
        assert -found["log_p"] == pytest.approx(sum(nats for _, nats in found["by_token"]))
        sums[name] = found.pop("log_p")
        out = told(capsys, "score", "run", "text.txt", "--json", "--by", "sentence", *flags)[1]
        by_line = json.loads(out)["by_sentence"]
        assert [row["line"] for row in by_line] == list(range(1, tiny.TEXT.count("\n") + 1))
        assert sum(row["nats"] for row in by_line) == pytest.approx(-sums[name])
        out = told(capsys, "score", "run", "text.txt", "--by", "none", *flags)[1]
        assert f"\nln P of the text   {sums[name]:.4f}\n" in out
        read = "sentences, each" if "--read" in flags else "one stream, the"
        assert out.startswith(f"read               {read}")
        assert len(out.splitlines()) == 9
    assert len({round(log_p, 6) for log_p in sums.values()}) == len(sums)
    out = told(capsys, "score", "run", "text.txt", "--by", "sentence")[1]
    assert len(out.splitlines()) == 1 + tiny.TEXT.count("\n") + 1 + 9
    assert out.splitlines()[1].endswith("the cat sat on the mat")
    assert "log_p" in json.loads(told(capsys, "score", "run", "text.txt", "--by=none", "--json")[1])


def test_the_exposure_gap_is_told_by_position(trained, capsys):
    status, out, _ = told(capsys, "score", "run", "text.txt", "--exposure", 20)
    assert status == 0
    rows = [line.split() for line in out.splitlines()[1:-1]]
    assert [row[0] for row in rows] == ["0", "1", "2", "4", "8", "16", "19", "all"]
    assert float(rows[0][3]) == 0
    out = told(capsys, "score", "run", "text.txt", "--exposure", 20, "--json", "--greedy")[1]
    found = json.loads(out)
    assert sum(found["by_position"]["tokens"]) == len(tiny.TEXT)
    assert found["gap"] == pytest.approx(found["nats_free"] - found["nats_forced"])


@pytest.mark.slow
def test_samples_are_drawn_in_every_way(trained, capsys):
    flags = ["--prompt", "the ", "--length", 30, "--seed", 5, "--top-k", 9, "--top-p", 0.9]
    streamed = told(capsys, "sample", "run", *flags)[1]
    out = told(capsys, "sample", "run", *flags, "--json", "--count", 3)[1]
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 3
    assert found[0]["text"] + "\n" == streamed
    tokens, nats = zip(*found[0]["by_token"], strict=True)
    shown = "".join(tokens).replace("<unk>", "\N{REPLACEMENT CHARACTER}")
    assert f"the {shown}" == found[0]["text"]
    assert -found[0]["log_p"] == pytest.approx(sum(nats))
    out = told(capsys, "sample", "run", *flags, "--count", 3)[1]
    assert f"=== 2 of 3, ln P {found[1]['log_p']:.4f}\n{found[1]['text']}\n=== 3" in out
    ended = told(capsys, "sample", "run", *flags, "--stop", "\\n")[1]
    assert ended == streamed.partition("\n")[0] + "\n"
    stops = ["--stop", streamed[20:23], "tttt", "--stop", "aaaa"]
    (ended,) = told(capsys, "sample", "run", *flags, "--json", *stops)[1].splitlines()
    assert json.loads(ended)["text"] == streamed[: streamed.index(streamed[20:23], 4)]
    assert json.loads(ended)["stop"] == streamed[20:23]
    searched = told(capsys, "sample", "run", "--length", 5, "--beam", 4, "--json")[1]
    assert len(json.loads(searched)["tokens"]) == 5
    out = told(capsys, "sample", "run", "--length", 5, "--beam", 4)[1]
    assert out.startswith(json.loads(searched)["text"] + "\n=== ln P ")


@pytest.mark.slow
def test_a_probe_prints_in_short_and_writes_numbers_and_a_page(trained, trained_run, capsys):
    flags = ("--sequences", 2, "--length", 6, "--step", 4, "--sentence", "the cat")
    status, out, err = told(capsys, "probe", "run", "--text", "text.txt", *flags)
    assert (status, err) == (0, "")
    assert "steps back, within 10 % of the full gradient" in out
    assert out.endswith("run/report.html\n")
    numbers = json.loads((trained_run / "run" / "probe-4.json").read_text())
    assert (numbers["step"], numbers["length"], numbers["sequences"]) == (4, 6, 2)
    assert len(numbers["reach"]["credit"]["words"]) == len("the cat")
    assert "travels through time: probe-4" in (trained_run / "run" / "report.html").read_text()


def test_a_probe_of_some_parts_shows_nothing_else(trained, trained_run, capsys):
    flags = ("--text", "text.txt", "--sequences", 2, "--length", 6, "--only", "spike", "by_lag")
    status, out, err = told(capsys, "probe", "run", *flags)
    assert (status, err) == (0, "")
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == [
        f"steps back, within {share} % of the full gradient" for share in (50, 10, 1)
    ]
    assert "own batch's loss" in out
    assert out.endswith("run/report.html\n")
    numbers = json.loads((trained_run / "run" / "probe-by_lag-spike.json").read_text())
    assert [*numbers["reach"]] == ["by_lag"]
    assert "updates" not in numbers
    assert numbers["spike"]["step"] in range(6)
    assert "probe-by_lag-spike" in (trained_run / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_probe_of_a_task_takes_no_text(folder, capsys):
    config = Config(
        data=Data(source=Copy(symbols=3, items=2), length=9, batch_size=2),
        model=RNN(embedding_size=None, hidden_size=3),
        train=Train(steps=1),
    )
    lm_jax.train(config, folder / "task")
    status, out, err = told(capsys, "probe", "task", "--text", "text.txt")
    assert (status, out) == (2, "")
    assert err == "error: --text=text.txt: task was trained on sequences that are drawn\n"


def test_a_text_to_score_is_a_text_as_any(trained_run, capsys, monkeypatch, tmp_path):
    """A byte-order mark is no part of it; another format is called what it is, before a table."""
    monkeypatch.chdir(trained_run)
    (tmp_path / "marked.txt").write_text(tiny.TEXT, encoding="utf-8-sig")
    found = [
        told(capsys, "score", "run", path, "--by", "none", "--json")
        for path in ("text.txt", tmp_path / "marked.txt")
    ]
    assert found[0] == found[1]
    assert found[0][0] == 0
    path = tmp_path / "wide.txt"
    path.write_text(tiny.TEXT, encoding="utf-16")
    said = f"error: {path}: is UTF-16, not UTF-8: convert it first, iconv -f UTF-16 -t UTF-8"
    for command in (["score", "run", path], ["probe", "run", "--text", path]):
        status, out, err = told(capsys, *command)
        assert (status, out) == (2, "")
        assert err == f"{said}; data.tokenizer=byte reads any bytes\n"


@pytest.mark.slow
def test_another_family_of_models_brings_its_own_flags(folder, capsys):
    flags = ["--model", "window", "--model.order", 3, "--train.optimizer=sgd"]
    status, _, _ = told(capsys, "train", "lab.py", "--run-dir", "there", *flags)
    assert status == 0
    config = json.loads((folder / "there" / "config.json").read_text())
    assert (config["model"]["kind"], config["model"]["order"]) == ("window", 3)
    assert config["train"]["optimizer"] == {"kind": "sgd"}


def test_help_all_names_every_flag_with_its_default_and_every_alternative(folder, capsys):
    status, out, _ = told(capsys, "train", "lab.py", "--help-all")
    assert status == 0
    every = list(fields(Config()))
    assert out.count("(default:") >= len(every)
    assert "{None}" not in out
    helps = re.split(r" (?=--)", " ".join(out.replace("│", " ").split()))
    for path, _, _ in every:
        flag = "--" + path.replace("_", "-")
        (said,) = [text for text in helps if text.split()[0].rstrip(",") == flag]
        listed = {*re.split(r"[\s{},|()]+", said)}
        assert {*alternatives(Config, path)} <= listed, (path, said)


COMMANDS = ("train", "sweep", "verify", "score", "sample", "probe", "list", "compare", "completion")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_a_screen_and_its_examples_are_right(command, capsys):
    experiment = ["lecture_table"] if command in ("train", "sweep", "verify") else []
    status, out, err = told(capsys, command, *experiment, "--help")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines[: lines.index("examples:")])) <= 80
    assert "{None}" not in out
    assert ("Every model of the lecture on the same tokens" in out) == bool(experiment)
    for line in lines[lines.index("examples:") + 1 :]:
        assert line.startswith(f"  {PROGRAM} {command}")
        called = shlex.split(line.replace("own.py:cell", "gru").partition(" >>")[0])[2:]
        assert callable(parse(called, PROGRAM))


def test_the_help_shows_the_experiment_s_choices(folder, capsys):
    out = told(capsys, "train", "lab.py", "--model", "window", "-h")[1]
    assert "--model               [window] convolution rnn ngram" in out
    assert re.search(r"  --model.order \[\d\]", out)
    assert "--model.cell" not in out.partition("examples:")[0]
    assert "usage: python run.py score RUN_DIR TEXT [flags]" in told(capsys, "score", "--help")[1]
    out = told(capsys, "--help")[1]
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_the_version_and_a_missing_command(capsys):
    assert told(capsys, "--version") == (0, f"lm_jax {lm_jax.__version__}\n", "")
    status, out, err = told(capsys)
    assert (status, out) == (2, "")
    assert err.startswith("error: a command is missing: train, sweep, ")
    assert told(capsys, "--verison")[2].startswith("error: there is no flag --verison")


def test_experiments_are_listed_with_claim_and_time(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    status, out, err = told(capsys, "list")
    assert (status, err) == (0, "")
    row = next(line for line in out.splitlines() if "quickstart" in line)
    assert "│ A character-level Elman RNN learns CPython's documentation in a minute. " in row
    assert "│ under a minute of training on two CPU cores " in row
    names = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert names.index("zaremba_small") < names.index("word_language_model")


def test_runs_are_compared_by_what_differs(trained_run, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(trained_run)
    for name, flags in {
        "long": ["--train.steps", "9", "--train.clip-norm", "1"],
        "counted": ["--model", "ngram", "--model.order", "2"],
    }.items():
        flags = [*flags, "--run-dir", name, "--quiet"]
        assert told(capsys, "train", "lab.py", *flags)[0] == 0
    status, out, err = told(capsys, "compare", "run", "long", "counted")
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()[3:6]]
    heads = [cell.strip() for cell in out.splitlines()[1].split("┃")[1:-1]]
    table = {head: cells for head, *cells in zip(heads, *rows, strict=True)}
    assert table["run"] == ["run", "long", "counted"]
    assert table["steps"] == ["6", "9", ""]
    assert table["clip norm"] == ["off", "1", ""]
    assert table["order"] == ["", "", "2"]
    assert table["hidden size"] == ["5", "5", ""]
    assert "log every" not in table
    assert "cell" not in table  # the default cell says nothing beside an n-gram model
    best = [cell.endswith("*") for cell in table["test ppl"]]
    assert best == [False, False, True]
    assert out.endswith("* the best of its column\n")
    assert told(capsys, "compare", "lab.py")[0] == told(capsys, "compare")[0] == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_flags_of_all_alternatives_and_experiments(shell, capsys):
    pytest.importorskip("shtab")
    status, out, err = told(capsys, "completion", shell)
    assert (status, err) == (0, "")
    for word in ("compare", "kneser_ney", "temporal-order", "adamw"):
        assert word in out
    for flag in ("run-dir", "model.order", "model.readout.no-tied", "train.optimizer.beta1"):
        assert flag in out


MISTAKES = [
    (["trian"], "there is no command trian; did you mean 'train'?"),
    (["train", "quickstrat"], "no experiment 'quickstrat'; did you mean 'quickstart'?"),
    (["train", "none.py"], "none.py: there is no such file"),
    (["train", "lab.py", "--model.hiden-size", "3"], "did you mean --model.hidden-size 3?"),
    (["train", "lab.py", "--model.hidden-size", "x"], "--model.hidden-size"),
    (["train", "lab.py", "--model.hidden-size", "-3"], "--model.hidden-size=-3: "),
    (["train", "lab.py", "--model.hidden-size"], "--model.hidden-size"),
    (["train", "lab.py", "--model.hidden-size", "3", "x"], "--model.hidden-size 3 x: the flag"),
    (["train", "lab.py", "--model.hidden-size", "3", "0"], "--model.hidden-size=0: input should"),
    (["train", "--data.length", "4", "lab.py"], "comes before the experiment: python run.py train"),
    (["verify", "--seed=1", "lab.py"], "--seed=1 comes before the experiment: python run.py ver"),
    (
        ["train", "lab.py", "--data.source.train", "model"],
        "data.source.train=model: there is no such file",
    ),
    (
        ["train", "lab.py", "--data.source", "markov", "--data.source.order", "99999"],
        "data.source.order=99999",
    ),
    (["train", "lab.py", "--model", "rn"], "--model=rn: choose from window, convo"),
    (["train", "lab.py", "--train.optimizer", "adm"], "did you mean --train.optimizer adam?"),
    (["train", "lab.py", "--model.order", "3"], "--model.order"),
    (["train", "lab.py", "--train.optimizer.beta1", "2"], "--train.optimizer.beta1=2.0: "),
    (["train", "lab.py", "--train.gradient.k2", "3"], "it is read with train.gradient=truncated"),
    (["train", "lab.py", "--data.length", "5000"], "data.length=5000 is longer than a sequence"),
    (
        ["train", "lab.py", "--data.source.train", "none.txt"],
        "data.source.train=none.txt: there is no such file",
    ),
    (["train", "lab.py", "--data.source.train", "."], "data.source.train=.: the folder has"),
    (["train", "lab.py", "--data.source.train", "empty.txt"], "data.source.train=empty.txt"),
    (["train", "lab.py", "--data.source.train", "latin.txt"], "not UTF-8 at byte 3"),
    (["train", "lab.py", "--data.source.train", "nul.txt"], "a NUL at byte 3"),
    (["train", "lab.py", "--data.source.train", "lines.txt"], "nothing to predict"),
    (["train", "lab.py", "--data.source", "memory"], "lm_jax.train"),
    (["train", "lab.py", "--run-dir", "text.txt"], "text.txt cannot be a run directory"),
    (["train", "lab.py", "--run-dir", "."], "holds files but no run"),
    (["train", "broken.py"], "broken.py: NameError: name 'Confg'"),
    (["train", "other.py"], "other.py: config() gives a int, not a Config"),
    (["train", "nothing.py"], "nothing.py: it has no function config()"),
    (["score", "none", "text.txt"], "none is not a run directory"),
    (["sample", "text.txt"], "text.txt is not a run directory"),
    # With a trained run.
    (["score", "run", "empty.txt"], "empty.txt: the file is empty"),
    (["score", "run", "none.txt"], "none.txt: there is no such file"),
    (["score", "run", "text.txt", "--cache", "9", "--dynamic", "sgd"], "--dynamic and --cache do"),
    (["score", "run", "text.txt", "--read=sentences", "--cache", "0"], "--read=sentences and --ca"),
    (["score", "run", "text.txt", "--sentences"], "did you mean --read sentences?"),
    (["score", "run", "text.txt", "--cache", "0", "--dynamic", "sgd"], "--dynamic and --cache do"),
    (["score", "run", "text.txt", "--exposure", "0", "--read", "sentences"], "and --exposure do"),
    (["score", "run", "text.txt", "--cache", "0"], "cache=0 must be from 1"),
    (["score", "run", "text.txt", "--cache-weight", "0.1"], "--cache-weight is read only with"),
    (["score", "run", "text.txt", "--dynamic-rate", "1"], "--dynamic-rate is read only with"),
    (["score", "run", "text.txt", "--dynamic=sgd", "--dynamic-epsilon=1"], "--dynamic-epsilon is"),
    (
        ["score", "run", "text.txt", "--cache", "9", "--cache-weight", "1.5"],
        "cache-weight=1.5",
    ),
    (["score", "run", "text.txt", "--dynamic", "sgd", "--dynamic-rate", "-1"], "dynamic-rate=-1.0"),
    (["score", "run", "text.txt", "--exposure", "0"], "exposure=0 must be from 1"),
    (
        ["score", "run", "text.txt", "--exposure", "9", "--by", "token"],
        "--by and --exposure do",
    ),
    (["score", "run", "text.txt", "--greedy"], "--greedy is read only with --exposure"),
    (["sample", "run", "--top-p", "1.5"], "top-p=1.5 must be above 0 and at most 1"),
    (["sample", "run", "--top-k", "0"], "top-k=0 must be 1 or more"),
    (["sample", "run", "--min-p", "-0.1"], "min-p=-0.1 must be 0 or more and below 1"),
    (["sample", "run", "--temperature", "-1"], "temperature=-1.0 must be 0 or more"),
    (["sample", "run", "--prompt", "the §"], "the prompt holds '§'"),
    (["sample", "run", "--stop", "§"], "stop='§' cannot be written with"),
    (["sample", "run", "--count", "0"], "count=0 must be from 1"),
    (["sample", "run", "--beam", "3", "--temperature", "0.5"], "--beam and --temperature do not"),
    (["sample", "run", "--beam", "3", "--top-k", "2"], "--beam and --top-k do not"),
    (["sample", "run", "--beam", "0"], "beam=0 must be from 1"),
    (["probe", "run", "--step", "last"], "--step=last must be a number of updates, or spike"),
    (["probe", "run", "--step", "²"], "--step=² must be a number of updates, or spike"),
    (["probe", "run", "--step", "9" * 5000], "must be a number of updates, or spike"),
    (["probe", "run", "--step", "7"], "step=7 must be from 0 to the 6 updates of run"),
    (
        ["probe", "run"],
        "39 tokens over sequences=4 make 9 each, and two chunks of length=8 are needed",
    ),
    (["probe", "run", "--sequences", "2", "--sentence", ""], "the sentence is empty"),
    (["probe", "run", "--seed", "-1"], "seed=-1 must be from 0 to 4294967295"),
    (["probe", "run", "--text", "empty.txt"], "empty.txt"),
    (["probe", "run", "--text", "none.txt"], "none.txt"),
    (
        ["probe", "run", "--only", "lags", "credits"],
        "--only=credits: choose from lags, by_lag, dynamics, credit",
    ),
    (["probe", "run", "--only", "credits"], "exposure, spike; did you mean --only credit?"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=lambda case: str(case)[:70])
def test_a_mistake_is_one_line_and_status_2_and_nothing_is_left(
    folder, trained_run, capsys, arguments, said
):
    if arguments[1:2] == ["run"]:
        shutil.copytree(trained_run / "run", folder / "run")
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


def test_what_the_standard_output_has_no_bytes_for_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    monkeypatch.setattr(main.warnings, "showwarning", None)
    monkeypatch.setattr(main.jax.config, "update", lambda *_: None)
    main.set_up()
    print("é\N{REPLACEMENT CHARACTER}\udcff")
    assert written.getvalue() == rb"\xe9\ufffd\udcff" + b"\n"


def test_a_diverged_run_is_status_1(folder, capsys):
    flags = ["--train.learning-rate", "1e200", "--model.cell.activation", "relu"]
    status, _, err = told(capsys, "train", "lab.py", *flags)
    assert status == 1
    assert "loss, gradient or parameters were not finite at step 2" in err


def test_the_quickstart_is_an_experiment():
    config = load_experiment("quickstart").config
    assert config.data.source == Builtin()
    assert sys.modules.get("quickstart") is None


@pytest.mark.slow
def test_two_runs_of_one_vocabulary_are_mixed(trained_run, capsys, monkeypatch):
    monkeypatch.chdir(trained_run)
    flags = ["--model", "ngram", "--model.order", "3"]
    assert told(capsys, "train", "lab.py", "--run-dir", "mixed-in", *flags)[0] == 0

    def log_p(*more):
        status, out, err = told(capsys, "score", "run", "text.txt", "--json", *more)
        assert status == 0, err
        return json.loads(out)["log_p"]

    alone = log_p()
    np.testing.assert_allclose(log_p("--mix", "mixed-in", "--mix-weight", "1"), alone, rtol=1e-6)
    assert log_p("--mix", "mixed-in") > alone
    status, out, _ = told(capsys, "sample", "run", "--mix", "mixed-in", "--length", "20")
    assert status == 0
    assert out.strip()
    for wrong, said in [
        (["--mix-weight", "0.2"], "--mix-weight is read only with --mix"),
        (["--mix", "mixed-in", "--mix-weight", "2"], "--mix-weight=2 must be from 0 to 1, or fit"),
        (
            ["--mix", "mixed-in", "--mix-weight", "half"],
            "--mix-weight=half must be from 0 to 1, or",
        ),
        (["--mix", "nowhere"], "nowhere is not a run directory"),
        (["--mix", "mixed-in", "--dynamic", "sgd"], "learns by gradient descent"),
    ]:
        status, out, err = told(capsys, "score", "run", "text.txt", *wrong)
        assert (status, out) == (2, "")
        assert said in err
    for way in (["--dynamic", "sgd"], ["--cache", "5"], ["--cache", "5", "--by", "sentence"]):
        status, out, err = told(capsys, "score", "mixed-in", "text.txt", *way)
        assert (status, out) == (2, "")
        assert f"{way[0]} needs a model" in err


def test_a_sweep_is_shown_before_it_is_run(folder, capsys):
    (folder / "lab.py").write_text(
        EXPERIMENT + '\ndef sweep():\n    return [{"seed": 1}, {"model": "ngram"}]\n'
    )
    status, out, _ = told(capsys, "sweep", "lab.py", "--dry-run", "--model.hidden-size", "6")
    assert status == 0
    assert "run.py train lab.py --model.hidden-size 6 --seed 1" in out
    assert not (folder / "runs").exists()
    status, out, err = told(capsys, "sweep", "lab.py", "--run-dir", "s", "--model.hidden-size", "6")
    assert status == 0, err
    assert "┃ seed ┃" in out
    assert len((folder / "s" / "results.jsonl").read_text().splitlines()) == 2


def test_an_experiment_without_a_sweep_says_so(folder, capsys):
    status, _, err = told(capsys, "sweep", "lab.py")
    assert (status, err) == (2, "error: lab.py has no sweep()\n")


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ('{"a": 5}', "sweep() gives 5, not a dict from dotted paths to values"),
        ("[{3: 5}]", "sweep() gives {3: 5}, not a dict from dotted paths to values"),
        ("5", "TypeError: 'int' object is not iterable"),
        ("[]", "the sweep has no points"),
        ("{}", "the sweep has no points"),
        ('[{"seed": 1}, {"seed": 1}]', "sweep() gives the same point twice, as 1 and 2: --seed 1"),
        ('[{}, {"seed": 0}]', "points 1 and 2 of the sweep, 'as configured' and '--seed 0', are"),
        (
            '[{}, {"model.hiden_size": 3}]',
            "point 2 of the sweep, '--model.hiden-size 3': there is no field model.hiden_size; "
            "did you mean 'model.hidden_size'?",
        ),
        ('{"a": {}, "b": {"train.learning_rate": -1.0}}', "point 2 of the sweep, 'b': the changed"),
        ('{"a": {"seed": object()}}', "point 1 of the sweep, 'a': Object of type object is not"),
        (
            '{"a": {"data.source.train": "no.txt"}}',
            "point 1 of the sweep, 'a': data.source.train=no.txt",
        ),
        ('{"a": {"train.epochs": 0}}', "point 1 of the sweep, 'a': the changed config"),
        ('lanes({"seed": [1, 2], "model.layers": [1, 2]})', "lanes: model.layers changes the"),
        ('grid({"seed": 3})', "grid: seed=3 must be a list of values"),
    ],
)
def test_a_sweep_that_will_not_do_is_one_line_and_starts_nothing(sweep, said, folder, capsys):
    helpers = "\nfrom lm_jax.sweeps import grid, lanes\n"
    (folder / "lab.py").write_text(f"{EXPERIMENT}{helpers}def sweep():\n    return {sweep}\n")
    status, out, err = told(capsys, "sweep", "lab.py")
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not list((folder / "runs").glob("*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--executor processes --workers 0", "--workers=0 must be 1 or more"),
        ("--executor processes --workers -1", "--workers=-1 must be 1 or more"),
        ("--executor ray --cores 0", "--cores=0 must be 1 or more"),
        ("--lanes 0 --dry-run", "--lanes=0 must be 1 or more"),
        ("--retries -1 --dry-run", "--retries=-1 must be 0 or more"),
        ("--halving-first 0", "--halving-first=0 must be 1 or more"),
        ("--halving-first 2 --halving-factor 1", "--halving-factor=1 must be 2 or more"),
        ("--suggest optuna --batch 0", "--batch=0 must be 1 or more"),
    ],
)
def test_a_number_of_a_sweep_that_is_too_small_is_named(flags, said, folder, capsys):
    (folder / "lab.py").write_text(
        f"{EXPERIMENT}\nfrom lm_jax.sweeps import draw, integers\n"
        'def sweep():\n    return draw({"model.layers": integers(1, 2)}, count=1)\n'
    )
    status, out, err = told(capsys, "sweep", "lab.py", *flags.split())
    assert (status, out, err) == (2, "", f"error: {said}\n")


def test_a_directory_of_another_sweep_is_one_line(folder, capsys):
    (folder / "lab.py").write_text(EXPERIMENT + '\ndef sweep():\n    return [{"seed": 1}]\n')
    (folder / "s").mkdir()
    trials = {"--seed 1": {"point": {"seed": 1}, "digest": "1"}}
    write_sealed(folder / "s" / "sweep.json", {"halving": None, "trials": trials})
    status, _, err = told(capsys, "sweep", "lab.py", "--run-dir", "s")
    said = "s holds another sweep: point 1, '--seed 1', has other settings"
    assert (status, err) == (2, f"error: {said}\n")


SWEEP = """
from lm_jax.sweeps import chain, grid

def sweep():
    return chain(
        grid({"train.learning_rate": [0.001, 1e-05], "train.clip_norm": [None, 2.0]}),
        [{"model.readout": "adaptive", "model.readout.cutoffs": (5, 9)}],
        [{"model": "ngram", "model.sentence_boundaries": True}],
    )
"""


def test_a_dry_run_shows_trials_that_can_be_reproduced_their_groups_and_memory(folder, capsys):
    (folder / "lab.py").write_text(EXPERIMENT + SWEEP)
    words = ("sweep", "lab.py", "--train.epochs", "2", "--run-dir", "there")
    status, out, _ = told(capsys, *words, "--dry-run")
    assert status == 0
    assert not (folder / "there").exists()
    *trials, one, two, three, four = out.splitlines()
    assert re.fullmatch(
        r"group 1: 2 trials in one program, about \d\d kB each, of which [\d,]+ fit; "
        r"model.readout=softmax, model=rnn, train.clip_norm off",
        one,
    )
    assert two.endswith("train.clip_norm on")
    assert "1 trial by itself" in three
    assert "model.readout=adaptive" in three
    assert four.startswith("group 4: 1 trial, counted; model=ngram")
    config, points, *_ = load_experiment("lab.py")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=2))
    for line, trial in zip(trials, plan(config, points).trials, strict=True):
        _, command = line.split(": ", 1)
        assert command.startswith("python run.py train lab.py --")
        called = parse(shlex.split(command)[2:], PROGRAM)
        found = next(
            value for value in [*called.args, *called.keywords.values()] if is_config(value)
        )
        assert line.startswith(f"{trial.number} {trial.name}: ")
        assert prepared(found)[0] == trial.config


def is_config(value):
    return isinstance(value, Config)


def test_a_sweep_shows_the_best_first_and_what_broke_off(folder, capsys, monkeypatch):
    (folder / "lab.py").write_text(
        EXPERIMENT + "\ndef sweep():\n    return {str(n): "
        '{"model": "ngram", "model.order": n} for n in (1, 2, 3)}\n'
    )
    real = NGramRun.run

    def broken(self):
        if self.config.model.order == 3:
            raise MemoryError("no memory")
        real(self)

    monkeypatch.setattr(NGramRun, "run", broken)
    status, out, err = told(capsys, "sweep", "lab.py", "--run-dir", "s", "--retries", "0")
    assert status == 1
    shown = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert shown == ["2", "1", "3 (failed)"]
    assert "failed: 3: MemoryError: no memory (trials/003-" in err
    again = "python run.py sweep lab.py --run-dir s --retries 0"
    assert err.endswith(f"to try 1 of 3 trials again: {again}\n")
    assert "itself: python run.py train lab.py --model ngram --model.order 2\n" in out
    monkeypatch.setattr(NGramRun, "run", real)
    assert told(capsys, "sweep", "lab.py", "--run-dir", "s")[0] == 0


@pytest.mark.slow
def test_a_task_is_named_by_one_flag_and_its_model_reads_no_text(folder, capsys):
    words = ("train", "lab.py")
    task = ("--data.source", "copy", "--data.source.items", "2", "--data.length", "7")
    status, out, err = told(capsys, *words, *task, "--run-dir", "copied")
    assert status == 0
    assert "right" in out
    assert "a sample" not in out
    assert "of the sequences right" in err
    assert json.loads((folder / "copied" / "result.json").read_text())["splits"]["test"]["chance"]
    for command in (("score", "copied", "text.txt"), ("sample", "copied")):
        status, out, err = told(capsys, *command)
        assert (status, out) == (2, "")
        assert err == "error: a model of a task reads no text: it can neither score nor sample\n"
    status, _, err = told(capsys, *words, "--data.source", "cpy")
    assert (status, err.startswith("error: --data.source=cpy: choose from")) == (2, True)
    assert err.endswith("; did you mean --data.source copy?\n")
    status, _, err = told(capsys, *words, *task[:-1], "4")
    assert status == 2
    assert "data.length=4 is too short for data.source=copy, which takes 5 steps or more" in err


@pytest.mark.quick("start1-python -m lm_jax")
@pytest.mark.parametrize(
    ("start", "program"),
    [(["run.py"], "python run.py"), (["-m", "lm_jax"], "python -m lm_jax")],
)
def test_the_program_is_named_as_it_was_started(start, program):
    command = [sys.executable, *start, "train", "--seed=1", "quickstart"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = f"--seed=1 comes before the experiment: {program} train EXPERIMENT [flags]"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {said}\n")


def test_the_installed_program_is_the_same_command_line(capsys, monkeypatch):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["lm-jax"].partition(":")
    monkeypatch.setattr(main, "set_up", lambda: None)
    monkeypatch.setattr(sys, "argv", ["lm-jax", "sample", "--help"])
    with pytest.raises(SystemExit) as stop:
        getattr(importlib.import_module(module), function)()
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: lm-jax sample RUN_DIR")


def test_a_sweep_names_the_program_as_it_was_started(folder, capsys):
    (folder / "lab.py").write_text(EXPERIMENT + '\ndef sweep():\n    return [{"seed": 1}]\n')
    own = "--run-dir s --retries=3 --dry_run --lanes 2 --halving-first 2 --executor here"
    words = ["sweep", "lab.py", "--model.layers", "2", *own.split(), "--train.steps=5"]
    assert main.main(words, "lm-jax") == 0
    lines = capsys.readouterr().out.splitlines()
    command = "lm-jax train lab.py --model.layers 2 --train.steps=5 --seed 1"
    assert lines[0] == f"1 --seed 1: {command}"


def test_the_library_does_not_import_the_command_line():
    asked = (
        "import sys, lm_jax; print([m for m in sys.modules if m in ('tyro', 'lm_jax.commands')])"
    )
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
