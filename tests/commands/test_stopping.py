"""What a run or a sweep says when a signal stops it, and the command that goes on."""

import json
import shlex

import pytest
import tiny
from tiny_experiment import EXPERIMENT, PROGRAM, told

import lm_jax
from lm_jax.commands import main
from lm_jax.report import lines
from lm_jax.sweeps.results import Results
from lm_jax.training import journal, loop
from lm_jax.training.trainer import Trainer


def stopped(capsys, *words):
    """What a command that a signal stops says at last."""
    status, _, err = told(capsys, *words)
    return status, err.splitlines()[-2:]


def test_a_run_that_is_stopped_says_what_is_saved_and_its_command_goes_on(
    folder, capsys, monkeypatch
):
    real = lm_jax.train
    monkeypatch.setattr(lm_jax, "train", lambda *a, **k: real(*a, **{**k, "watch": stop}))
    stop, words = tiny.stopping_at(4), ["train", "lab.py", "--run-dir", "my run", "--restart"]
    status, (saved, command) = stopped(capsys, *words)
    assert status == 143
    assert saved == "stopped and saved: my run holds step 6"
    # Not with --restart, which would begin anew.
    assert command == "to go on: python run.py train lab.py --run-dir 'my run'"
    assert journal.read_result(folder / "my run")["status"] == "stopped"
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main.main(shlex.split(command)[5:], PROGRAM) == 0
    assert journal.read_result(folder / "my run")["status"] == "finished"


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit(143)])
def test_before_anything_is_saved_the_words_are_others(signal, folder, capsys, monkeypatch):
    def interrupted(*given, **more):
        raise signal

    monkeypatch.setattr(lm_jax, "train", interrupted)
    status, said = stopped(capsys, "train", "lab.py", "--run-dir", "mine")
    assert status == (130 if signal is KeyboardInterrupt else 143)
    assert said == [
        "stopped before anything was saved",
        "to go on: python run.py train lab.py --run-dir mine",
    ]


def test_a_second_interrupt_names_the_last_save(folder, capsys, monkeypatch):
    def interrupted(self, state, *given):
        if state.step >= 4:
            raise KeyboardInterrupt
        return real(self, state, *given)

    real = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", interrupted)
    status, (saved, _) = stopped(
        capsys, "train", "lab.py", "--run-dir", "r", "--train.log-every", "2"
    )
    assert (status, saved) == (130, "stopped at once: r holds step 3, the last save")


def test_the_old_run_is_restarted_by_the_same_words_until_it_is_set_aside(
    trained_run, monkeypatch, capsys
):
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.chdir(trained_run)
    monkeypatch.setattr(loop, "prepared", interrupted)
    _, (saved, command) = stopped(capsys, "train", "lab.py", "--run-dir", "run", "--restart")
    assert saved == "stopped, but the run is over: run holds step 6 and the result"
    assert command.endswith("--run-dir run --restart")


def test_an_interrupted_process_ends_with_its_status_whatever_is_left_in_memory(monkeypatch):
    """Python's own exit has crashed in JAX after a second Ctrl-C during tracing."""

    def ended(status):
        raise SystemExit(("at once", status))

    monkeypatch.setattr(main, "set_up", lambda: None)
    monkeypatch.setattr(main.os, "_exit", ended)
    for status, code in [(130, ("at once", 130)), (0, 0), (2, 2)]:
        monkeypatch.setattr(main, "main", lambda *_, status=status: status)
        with pytest.raises(SystemExit) as stop:
            main.start()
        assert stop.value.code == code


@pytest.mark.quick("steps")
@pytest.mark.parametrize("length", ["steps", "epochs"])
def test_the_command_for_more_updates_continues_the_same_run(length, folder, capsys):
    flags = ["--train.schedule", "cosine", f"--train.{length}", "2", "--data.batch-size", "30"]
    out = told(capsys, "train", "lab.py", *flags)[1]
    more = next(line for line in out.splitlines() if line.startswith("for more updates: "))
    (run_dir,) = (folder / "runs").iterdir()
    steps = json.loads((run_dir / "result.json").read_text())["step"]
    assert main.main([*shlex.split(more)[5:], "--quiet"], PROGRAM) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"runs/{run_dir.name}\n", "")
    assert json.loads((run_dir / "result.json").read_text())["step"] == 2 * steps


def test_a_stopped_sweep_counts_its_trials(folder, capsys, monkeypatch):
    sweep = "\ndef sweep():\n    return [{'model.layers': n} for n in (1, 2, 3)]\n"
    (folder / "lab.py").write_text(EXPERIMENT + sweep)

    def ended(self, trial):
        real(self, trial)
        raise KeyboardInterrupt

    real = Results.ended
    monkeypatch.setattr(Results, "ended", ended)
    status, said = stopped(capsys, "sweep", "lab.py", "--run-dir", "s")
    assert status == 130
    assert said == [
        "stopped: 1 of 3 trials are over, in s",
        "to go on: python run.py sweep lab.py --run-dir s",
    ]


def test_a_reader_that_closes_the_pipe_stops_the_run(folder, capsys, monkeypatch):
    """As `train --json | head -1` does."""
    left = [BrokenPipeError]

    def closed(row):
        if left:
            raise left.pop()

    monkeypatch.setattr(lines, "print_json", closed)
    monkeypatch.setattr(lines, "silence", lambda: None)
    status, said = stopped(capsys, "train", "lab.py", "--run-dir", "r", "--json")
    assert (status, said[0]) == (143, "stopped and saved: r holds step 1")  # the first row
    assert said[1] == "to go on: python run.py train lab.py --run-dir r --json"


def test_a_sweep_is_no_run_to_compare(folder, capsys):
    (folder / "results.jsonl").touch()
    said = "error: . is a sweep: compare its trials, trials/*, or report it\n"
    assert told(capsys, "compare", ".") == (2, "", said)


def test_json_is_each_row_then_the_result_and_quiet_is_the_directory(folder, capsys):
    (folder / "lab.py").write_text(EXPERIMENT + "\ndef sweep():\n    return [{'seed': 1}]\n")
    status, out, err = told(capsys, "train", "lab.py", "--run-dir", "r", "--json")
    assert (status, err) == (0, "")
    *rows, result = [json.loads(line) for line in out.splitlines()]
    assert rows == journal.read_rows(folder / "r" / "metrics.jsonl")
    assert (result["kind"], result["run_dir"], result["step"]) == ("result", "r", 6)
    assert told(capsys, "train", "lab.py", "--run-dir", "r", "--quiet") == (0, "r\n", "")
    status, out, err = told(capsys, "sweep", "lab.py", "--run-dir", "s", "--json")
    assert (status, err) == (0, "")
    *rows, result = [json.loads(line) for line in out.splitlines()]
    assert {row["name"] for row in rows} == {"--seed 1"}
    assert (result["kind"], result["status"]) == ("result", "finished")
    assert told(capsys, "sweep", "lab.py", "--run-dir", "s", "--quiet") == (0, "s\n", "")
    said = "error: --quiet and --json do not go together\n"
    assert told(capsys, "train", "lab.py", "--quiet", "--json") == (2, "", said)
