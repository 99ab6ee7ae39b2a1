"""A run: what it learns, what it writes down, and that stopping it changes nothing."""

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import rows_of, stopping_at

import lm_jax
from lm_jax import files, scoring
from lm_jax.config import RNN, Elman, LiveProbe, Plateau, Truncated, Window, resolve
from lm_jax.data.batches import streams
from lm_jax.data.sizes import TextSize
from lm_jax.data.text import in_memory
from lm_jax.scoring.score import evaluate, reading
from lm_jax.settings import UserError
from lm_jax.training import driver, evaluator, given, journal, manifest, step
from lm_jax.training.checkpoint import Checkpoints, tree_digest

KINDS = {
    "full": tiny.config(),
    "truncated": tiny.config(train={"gradient": Truncated(k1=4, k2=10)}),
    "sentences": tiny.config(data={"batching": "sentences", "tokenizer": "word", "length": 6}),
    "two layers": tiny.config(model=RNN(embedding_size=4, hidden_size=5, layers=2)),
    "window": tiny.config(model=Window(order=3, embedding_size=4, hidden_size=5)),
    "last parameters": tiny.config(train={"keep_best": False, "gradient__clip_delta": 0.5}),
}


@pytest.mark.quick("truncated")
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_stop_and_resume_is_the_uninterrupted_run(config, tmp_path):
    whole = lm_jax.train(config, tmp_path / "whole", text=tiny.TEXT)
    for at in (3, 10, 16):
        with pytest.raises(SystemExit) as stop:
            lm_jax.train(config, tmp_path / "parts", text=tiny.TEXT, watch=stopping_at(at))
        assert stop.value.code == 143
        assert lm_jax.load_run(tmp_path / "parts").result["status"] == "stopped"
    parts = lm_jax.train(config, tmp_path / "parts", text=tiny.TEXT)
    tiny.assert_trees_equal(parts.params, whole.params)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    clocks = ("seconds", "tokens_per_second")
    clockless = [{k: v for k, v in run.result.items() if k not in clocks} for run in (parts, whole)]
    assert clockless[0] == clockless[1]
    assert whole.step == whole.result["step"] == 20


@pytest.mark.quick("2")
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_stop_in_the_middle_of_a_validation_is_no_stop_at_all(nth, tmp_path, monkeypatch):
    """The first and the second validation, and the reading of the test split at the end."""
    config, readings = KINDS["full"], []
    lm_jax.train(config, tmp_path / "whole", text=tiny.TEXT)

    def interrupted(*arguments):
        readings.append(arguments)
        for block in token_nats(*arguments):
            if len(readings) == nth:
                os.kill(os.getpid(), signal.SIGTERM)
            yield block

    token_nats = evaluator.token_nats
    monkeypatch.setattr(evaluator, "token_nats", interrupted)
    with pytest.raises(SystemExit):
        lm_jax.train(config, tmp_path / "parts", text=tiny.TEXT)
    rows = rows_of(tmp_path / "parts")
    assert len([row for row in rows if row["kind"] == "evaluation"]) == nth - 1
    monkeypatch.setattr(evaluator, "token_nats", token_nats)
    parts = lm_jax.train(config, tmp_path / "parts", text=tiny.TEXT)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert parts.result["splits"] == lm_jax.load_run(tmp_path / "whole").result["splits"]


@pytest.mark.slow
def test_a_validation_is_not_written_down_twice(tmp_path, monkeypatch):
    """Stopped within it, gone on, and killed before the next checkpoint: it is done once more."""

    config = tiny.config(train={"validate_every": 6, "checkpoint_every": 100})
    lm_jax.train(config, tmp_path / "whole", text=tiny.TEXT)
    token_nats = evaluator.token_nats

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return token_nats(*arguments)

    monkeypatch.setattr(evaluator, "token_nats", interrupted)
    with pytest.raises(SystemExit):
        lm_jax.train(config, tmp_path / "parts", text=tiny.TEXT)
    monkeypatch.setattr(evaluator, "token_nats", token_nats)

    def killed(now, row):
        if now == 10:
            shutil.copytree(tmp_path / "parts", tmp_path / "killed", dirs_exist_ok=True)

    lm_jax.train(config, tmp_path / "parts", text=tiny.TEXT, watch=killed)
    assert 6 in [row["step"] for row in rows_of(tmp_path / "killed") if row["kind"] == "evaluation"]
    lm_jax.train(config, tmp_path / "killed", text=tiny.TEXT)
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")


def test_a_stop_is_heeded_within_about_a_second_of_slow_steps(tmp_path, monkeypatch):
    """However far the next record is, the loop runs for as many steps as it has learnt to fit."""

    looks = []
    monkeypatch.setattr(driver, "SECONDS_PER_CALL", 0.0)
    config = tiny.config(train={"steps": 7, "log_every": 7, "validate_every": 7})
    lm_jax.train(config, tmp_path, text=tiny.TEXT, watch=lambda step, row: looks.append(step))
    assert looks[:7] == [1, 2, 3, 4, 5, 6, 7]


def test_more_steps_go_on_as_if_they_had_been_asked_for_at_once(tmp_path):
    long = lm_jax.train(tiny.config(train={"steps": 30}), tmp_path / "long", text=tiny.TEXT)
    for steps in (10, 20, 30):
        run = lm_jax.train(tiny.config(train={"steps": steps}), tmp_path / "run", text=tiny.TEXT)
        assert run.result["step"] == steps
    tiny.assert_trees_equal(run.params, long.params)
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "long")


def test_one_run_directory_one_process(tmp_path):
    refusals = []

    def watch(now, row):
        if not refusals:
            with pytest.raises(UserError, match=f"process {os.getpid()} ") as refusal:
                lm_jax.train(tiny.config(), tmp_path / "run", text=tiny.TEXT)
            refusals.append(refusal)

    lm_jax.train(tiny.config(train={"steps": 2}), tmp_path / "run", text=tiny.TEXT, watch=watch)
    assert refusals


def test_another_config_is_refused_field_by_field(tmp_path):
    lm_jax.train(tiny.config(train={"steps": 2}), tmp_path, text=tiny.TEXT)
    before = contents(tmp_path)
    other = tiny.config(train={"steps": 4, "learning_rate": 0.01}, seed=3)
    with pytest.raises(UserError) as refusal:
        lm_jax.train(other, tmp_path, text=tiny.TEXT)
    assert "train.learning_rate: 0.003 -> 0.01; seed: 0 -> 3" in str(refusal.value)
    assert "steps" not in str(refusal.value)
    with pytest.raises(UserError, match="another text"):
        lm_jax.train(tiny.config(train={"steps": 2}), tmp_path, text=tiny.TEXT + "more\n")
    with pytest.raises(UserError, match=r"train\.steps=1 is less than the 2"):
        lm_jax.train(tiny.config(train={"steps": 1}), tmp_path, text=tiny.TEXT)
    assert contents(tmp_path) == before


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = lm_jax.train(tiny.config(train={"steps": 2}), tmp_path, text=tiny.TEXT)
    calls = []
    again = lm_jax.train(
        tiny.config(train={"steps": 2}), tmp_path, text=tiny.TEXT, watch=lambda *a: calls.append(a)
    )
    assert calls == []
    assert again.result == first.result
    tiny.assert_trees_equal(again.params, first.params)


def test_a_path_that_cannot_be_a_run_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="there is a file of that name"):
            lm_jax.train(tiny.config(), path, text=tiny.TEXT)
    with pytest.raises(UserError, match="holds files but no run: file"):
        lm_jax.train(tiny.config(), tmp_path, text=tiny.TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path in ("/proc/run", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be a run directory"):
            lm_jax.train(tiny.config(), path, text=tiny.TEXT)


def test_a_text_that_will_not_do_leaves_no_directory(tmp_path):
    for data, text, said in [
        ({"length": 9999}, tiny.TEXT, "data.length=9999 is longer than a sequence"),
        ({}, None, "takes its text from lm_jax.train"),
        ({}, "", "is empty"),
        ({}, ["a b", "c"], "2 texts"),
    ]:
        with pytest.raises(UserError, match=said):
            lm_jax.train(tiny.config(data=data), tmp_path / "run", text=text)
    assert not (tmp_path / "run").exists()


# --- checkpoints ----------------------------------------------------------------------------------


def damage(checkpoint):
    """Flips a bit in the middle of each file of arrays."""
    for path in checkpoint.rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(tmp_path):
    whole = lm_jax.train(tiny.config(), tmp_path / "whole", text=tiny.TEXT)
    run_dir = tmp_path / "run"
    with pytest.raises(SystemExit):
        lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT, watch=stopping_at(15))
    _, newer = sorted((run_dir / "checkpoints").iterdir())
    damage(newer)
    with pytest.warns(UserWarning, match="passing over the damaged checkpoint"):
        again = lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT)
    tiny.assert_trees_equal(again.params, whole.params)
    assert rows_of(run_dir) == rows_of(tmp_path / "whole")


@pytest.mark.quick(
    "damaged-True",
    "gone-False",
    "each gone-True",
    "gone with the journal-True",
    "gone with the manifest-True",
)
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "lost", ["damaged", "gone", "each gone", "gone with the journal", "gone with the manifest"]
)
def test_a_run_without_an_intact_checkpoint_is_refused_and_restarts_beside(
    lost, finished, tmp_path
):
    run_dir = tmp_path / "run"
    if finished:
        lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT)
    else:
        with pytest.raises(SystemExit):
            lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT, watch=stopping_at(15))
    for checkpoint in (run_dir / "checkpoints").iterdir():
        if lost == "damaged":
            damage(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    if lost.startswith("gone"):
        (run_dir / "checkpoints").rmdir()
    if lost == "gone with the journal":
        (run_dir / "metrics.jsonl").unlink()
    if lost == "gone with the manifest":
        (run_dir / "manifest.json").unlink()
    before = contents(run_dir)
    saved = "(15, )?20" if finished else "(10, )?15"
    said = f"run has saved its state after {saved} updates, and no checkpoint of these is intact"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=rf"{said}.*--restart"):
            lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT)
    assert contents(run_dir) == before
    again = lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT, restart=True)
    assert again.step == 20
    assert contents(tmp_path / "run.old-1") == before


def contents(folder):
    """The content of each file, but of the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder): path.read_bytes() for path in files}


def forget_checkpoints(run_dir):
    """The manifest as it was before the first save."""
    known = manifest.read(run_dir)
    manifest.write(run_dir, known.model_copy(update={"checkpoints": []}))


def test_a_run_killed_before_its_first_checkpoint_begins_at_its_first_update(tmp_path):
    whole = lm_jax.train(tiny.config(), tmp_path / "whole", text=tiny.TEXT)
    run_dir = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "result.json").unlink()
    rows = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    early = [row for row in rows if json.loads(row)["step"] <= 10]
    (run_dir / "metrics.jsonl").write_text("".join(early))
    forget_checkpoints(run_dir)
    again = lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT)
    tiny.assert_trees_equal(again.params, whole.params)


@pytest.mark.slow
def test_a_run_stopped_before_its_first_update_and_killed_later_goes_on(tmp_path):
    whole = lm_jax.train(tiny.config(), tmp_path / "whole", text=tiny.TEXT)
    run_dir, config = tmp_path / "run", resolve(tiny.config())
    state = step.init(config, len(whole.vocabulary))
    shutil.copytree(tmp_path / "whole", run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "result.json").unlink()
    forget_checkpoints(run_dir)
    writer = Checkpoints(run_dir, 0, manifest.read(run_dir))
    writer.save(state, journal.NO_ROWS)
    writer.close()
    again = lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT)
    tiny.assert_trees_equal(again.params, whole.params)


def test_a_checkpoint_written_but_not_yet_placed_when_the_process_was_killed_counts(tmp_path):
    whole = lm_jax.train(tiny.config(), tmp_path / "whole", text=tiny.TEXT)
    run_dir = tmp_path / "run"
    with pytest.raises(SystemExit):
        lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT, watch=stopping_at(5))
    only = run_dir / "checkpoints" / "00000005"
    assert [*only.parent.iterdir()] == [only]
    shutil.copytree(only, only.with_suffix(".trash"))
    only.rename(only.with_suffix(".partial"))
    (run_dir / "result.json").unlink()
    seen = []
    lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT, watch=lambda step, _: seen.append(step))
    assert min(seen) >= 5
    tiny.assert_trees_equal(lm_jax.load_run(run_dir).params, whole.params)
    assert rows_of(run_dir) == rows_of(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, monkeypatch):
    whole, room = lm_jax.train(tiny.config(), tmp_path / "whole", text=tiny.TEXT), [1, 1]

    def ask(folder, size):
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        room.pop()

    monkeypatch.setattr(files, "ask_for_room", ask)
    said = r"run/checkpoints/00000015 cannot be saved \([\d,]+ bytes, [\d,]+ free\): No space"
    with pytest.raises(OSError, match=said):
        lm_jax.train(tiny.config(), tmp_path / "run", text=tiny.TEXT)
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["00000005", "00000010"]
    monkeypatch.undo()
    again = lm_jax.train(tiny.config(), tmp_path / "run", text=tiny.TEXT)
    tiny.assert_trees_equal(again.params, whole.params)
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_a_finished_run_whose_end_is_damaged_is_finished_once_more(tmp_path):
    first = lm_jax.train(tiny.config(), tmp_path, text=tiny.TEXT)
    damage(tmp_path / "checkpoints" / "00000020")
    with pytest.warns(UserWarning, match="damaged"):
        assert lm_jax.load_run(tmp_path).step == 15
    with pytest.warns(UserWarning, match="damaged"):
        again = lm_jax.train(tiny.config(), tmp_path, text=tiny.TEXT)
    assert again.step == 20
    tiny.assert_trees_equal(again.params, first.params)


@pytest.mark.slow
def test_before_the_first_validation_a_run_has_its_last_parameters(tmp_path):
    config = tiny.config(train={"validate_every": 15})
    with pytest.raises(SystemExit):
        lm_jax.train(config, tmp_path / "run", text=tiny.TEXT, watch=stopping_at(5))
    last = tiny.config(train={"validate_every": 15, "keep_best": False, "steps": 5})
    stopped = lm_jax.load_run(tmp_path / "run")
    expected = lm_jax.train(last, tmp_path / "last", text=tiny.TEXT)
    tiny.assert_trees_equal(stopped.params, expected.params)
    assert stopped.result["parameters_step"] == 5
    assert stopped.result["sha256"] == expected.result["sha256"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    small = lm_jax.train(tiny.config(train={"steps": 1}), tmp_path / "small", text=tiny.TEXT)
    large = tiny.config(train={"steps": 1}, model=RNN(embedding_size=4, hidden_size=6))
    lm_jax.train(large, tmp_path / "large", text=tiny.TEXT)
    (small.path / "config.json").write_text((tmp_path / "large" / "config.json").read_text())
    with (
        pytest.warns(UserWarning, match="it belongs to a run of another config"),
        pytest.raises(UserError, match="no checkpoint to load"),
    ):
        lm_jax.load_run(small.path)


def test_a_restored_state_is_the_saved_one_with_its_structure(tmp_path):
    config = resolve(KINDS["truncated"])
    run = lm_jax.train(config, tmp_path, text=tiny.TEXT)
    template = step.init.eval_shape(config, len(run.vocabulary))
    state = tiny.restored(tmp_path, template, manifest.read(tmp_path))
    assert jax.tree.structure(state) == jax.tree.structure(template)
    for leaf, form in zip(jax.tree.leaves(state), jax.tree.leaves(template), strict=True):
        assert (leaf.shape, leaf.dtype) == (form.shape, form.dtype)
    assert tree_digest(run.params) == run.result["sha256"]


@pytest.mark.filterwarnings("ignore:.*result.json is damaged")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "finished"}', "null"])
def test_a_lost_result_is_found_again(content, tmp_path):
    first = lm_jax.train(tiny.config(train={"steps": 2}), tmp_path, text=tiny.TEXT)
    (tmp_path / "result.json").write_text(content)
    again = lm_jax.train(tiny.config(train={"steps": 2}), tmp_path, text=tiny.TEXT)
    assert {**again.result, "seconds": 0} == {**first.result, "seconds": 0}


def test_load_run_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="there is no such directory"):
        lm_jax.load_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"it has no config\.json"):
        lm_jax.load_run(tmp_path)
    run = lm_jax.train(tiny.config(train={"steps": 1}), tmp_path / "run", text=tiny.TEXT)
    for checkpoint in (run.path / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    with (
        pytest.warns(UserWarning, match="00000001: it is gone"),
        pytest.raises(UserError, match="no checkpoint to load"),
    ):
        lm_jax.load_run(run.path)


# --- what is written down -------------------------------------------------------------------------


CLIP = 0.6  # some of the norms are above, some below


def test_a_record_is_what_its_steps_did(tmp_path):
    """Loss and norms of a record, against the steps done one by one by hand."""
    config = tiny.config(train={"steps": 7, "clip_norm": CLIP, "log_every": 5, "keep_best": False})
    lm_jax.train(config, tmp_path, text=tiny.TEXT)
    rows = [row for row in rows_of(tmp_path) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 5, 7]

    from lm_jax import data, gradients
    from lm_jax.training.trainer import pipeline_of

    corpus = data.load(config.data, tiny.TEXT)
    source = pipeline_of(config, corpus).whole()
    V = len(corpus.vocabulary)
    losses, norms = [], []
    for done in range(7):
        state = step.run_until(config, step.init(config, V), source, done, V)
        batch = data.batch_at(source, done, 8)
        loss, _, grads, _ = gradients.full_bptt(step.eval_model(config, V))(
            state.params, state.carry, batch
        )
        losses.append(float(loss))
        norms.append(math.sqrt(sum(float(np.sum(g**2)) for g in jax.tree.leaves(grads))))
    for row, span in zip(rows, (slice(0, 1), slice(1, 5), slice(5, 7)), strict=True):
        clipped = np.minimum(norms[span], CLIP)
        assert row["nats"] == pytest.approx(np.mean(losses[span]), rel=1e-12)
        assert row["grad_norm"] == pytest.approx(np.mean(norms[span]), rel=1e-12)
        assert row["grad_norm_max"] == pytest.approx(np.max(norms[span]), rel=1e-12)
        assert row["grad_norm_clipped"] == pytest.approx(np.mean(clipped), rel=1e-12)
        assert row["clipped"] == np.mean(np.array(norms[span]) > CLIP)
        assert row["learning_rate"] == 0.003
        assert row["tokens"] == len(losses[span]) * 32
    assert 0 < sum(norm > CLIP for norm in norms) < 7, norms


def test_a_step_compiles_once_whatever_its_numbers(tmp_path):
    configs = [
        tiny.config(train={"clip_norm": 1.0, "learning_rate": rate}, seed=seed)
        for rate, seed in ((0.01, 0), (0.02, 7))
    ]
    compiled = step.init, step.run_until, step.after_validation, step.reset_metrics
    for function in compiled:
        function.clear_cache()
    for number, config in enumerate(configs):
        lm_jax.train(config, tmp_path / str(number), text=tiny.TEXT)
        assert [function._cache_size() for function in compiled] == [1, 1, 1, 1]
    rates = {row["learning_rate"] for row in rows_of(tmp_path / "1") if row["kind"] == "train"}
    assert rates == {0.02}


def test_a_diverged_run_says_so_and_writes_strict_json(tmp_path):
    config = tiny.config(train={"learning_rate": 1e200}, model=RNN(cell=Elman(activation="relu")))
    run = lm_jax.train(config, tmp_path, text=tiny.TEXT)
    assert run.result["status"] == "diverged"
    assert run.step == run.result["step"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]
    bad = [None in (row["nats"], row.get("grad_norm", 0)) for row in rows]
    assert bad == [False] * (len(rows) - 1) + [True]
    assert lm_jax.train(config, tmp_path, text=tiny.TEXT).result == run.result


@pytest.mark.slow
def test_a_run_diverges_at_the_same_step_wherever_it_is_looked_at(tmp_path, monkeypatch):

    found, relu = [], RNN(embedding_size=4, hidden_size=5, cell=Elman(activation="relu"), layers=2)
    for seconds in (0.0, 100.0):
        monkeypatch.setattr(driver, "SECONDS_PER_CALL", seconds)
        config = tiny.config(train={"learning_rate": 1e100, "log_every": 20}, model=relu)
        run = lm_jax.train(config, tmp_path / str(seconds), text=tiny.TEXT)
        found.append((run.result["status"], run.result["step"], rows_of(run.path)))
    assert found[0] == found[1]
    assert found[0][0] == "diverged"
    assert 1 < found[0][1] < 10


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_run_that_diverged_and_lost_its_result_ends_the_same(where, tmp_path, monkeypatch):
    relu = RNN(embedding_size=4, hidden_size=5, cell=Elman(activation="relu"))
    config = tiny.config(train={"learning_rate": 1e200} if where == "training" else {}, model=relu)
    if where == "validation":
        monkeypatch.setattr(evaluator, "token_nats", lambda *_: iter([np.full((4, 1), np.inf)]))
    run = lm_jax.train(config, tmp_path, text=tiny.TEXT)
    assert run.result["status"] == "diverged"
    rows, result = rows_of(tmp_path), {**run.result, "tokens_per_second": 0}
    (tmp_path / "result.json").unlink()
    again = lm_jax.train(config, tmp_path, text=tiny.TEXT).result
    assert rows_of(tmp_path) == rows
    assert {**again, "tokens_per_second": 0} == result


@pytest.mark.filterwarnings("ignore:.*rows are lost")
def test_a_run_that_lost_its_rows_and_its_result_is_judged_once_more(tmp_path):
    config = tiny.config()
    run = lm_jax.train(config, tmp_path, text=tiny.TEXT)
    (tmp_path / "result.json").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    assert lm_jax.train(config, tmp_path, text=tiny.TEXT).result["splits"] == run.result["splits"]


@pytest.mark.slow
def test_a_stop_before_the_first_update_keeps_what_was_found_of_the_vectors(tmp_path, monkeypatch):
    (tmp_path / "vectors.txt").write_text("a 1 2 3 4\ne 4 3 2 1\n")
    vectors = str(tmp_path / "vectors.txt")
    config = tiny.config(model=RNN(embedding_size=4, hidden_size=5, vectors=vectors))
    whole = lm_jax.train(config, tmp_path / "whole", text=tiny.TEXT)
    read = given.read_vectors

    def interrupted(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(*arguments, **named)

    monkeypatch.setattr(given, "read_vectors", interrupted)
    with pytest.raises(SystemExit):
        lm_jax.train(config, tmp_path / "parts", text=tiny.TEXT)
    monkeypatch.setattr(given, "read_vectors", read)
    parts = lm_jax.train(config, tmp_path / "parts", text=tiny.TEXT)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert parts.result["vectors"] == whole.result["vectors"]


def test_a_torn_last_line_is_taken_away(tmp_path):
    path = tmp_path / "metrics.jsonl"
    one, two = ({"step": step, **tiny.RECORD} for step in (1, 2))
    lines = [journal.line_of(number, row) for number, row in enumerate((one, two))]
    path.write_text(f'{lines[0]}{lines[1]}{{"step": 3, "na')
    assert journal.read_rows(path) == [one, two]
    opened = journal.Journal(tmp_path, journal.Kept(1, files.sha256(files.seal_of(lines[0]))))
    opened.write({**two, "nats": math.nan})
    opened.close()
    assert journal.read_rows(path) == [one, {**two, "nats": None}]


# --- validation -----------------------------------------------------------------------------------


def test_evaluation_is_its_definition_one_token_after_another(tmp_path):
    """(1/N) Σ -ln p(s_t | s_0 … s_{t-1}), the state going on from the first token to the last."""
    run = lm_jax.train(tiny.config(train={"steps": 3}), tmp_path, text=tiny.TEXT)
    tokens = run.vocabulary.encode(tiny.TEXT[:300])
    carry, total, before = run.model.init_carry(1), 0.0, run.vocabulary.boundary

    @jax.jit
    def one(carry, x, y):
        carry, h = run.model.hidden(run.params, carry, x[None, None])
        return carry, run.model.nats(run.params, h, y[None, None])[0, 0]

    for token in tokens:
        carry, nats = one(carry, np.int32(before), np.int32(token))
        total, before = total + float(nats), token
    whole = reading(tokens, run.vocabulary)
    in_chunks = evaluate(run.model, run.params, whole._replace(length=32), TextSize(300))
    assert in_chunks.nats == pytest.approx(total, rel=1e-12)
    loss = evaluate(run.model, run.params, whole, TextSize(300))
    assert loss.tokens == len(tokens)
    assert loss.nats == pytest.approx(total, rel=1e-12)
    assert loss.perplexity == pytest.approx(math.exp(total / len(tokens)), rel=1e-12)
    assert loss.bits_per_character == pytest.approx(total / math.log(2) / 300, rel=1e-12)


def test_each_split_has_the_loss_of_its_own_text(tmp_path):
    texts = [tiny.TEXT, "the cat lay still\n" * 3, "all sat by the dog\n" * 4]
    run = lm_jax.train(tiny.config(train={"steps": 2}), tmp_path, text=texts)
    for name, text in zip(("validation", "test"), texts[1:], strict=True):
        expected = lm_jax.scoring.score(run.model, run.params, run.vocabulary, text).loss
        assert run.result["splits"][name]["nats"] == pytest.approx(expected.nats_per_token)


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_batch_size(tmp_path):
    losses = []
    for lanes in (2, 5):
        config = tiny.config(data={"batch_size": lanes, "length": 4}, train={"steps": 1})
        run = lm_jax.train(config, tmp_path / str(lanes), text=tiny.TEXT)
        tokens = run.vocabulary.encode(tiny.TEXT)
        params = run.model.init(jax.random.key(0))
        read = reading(tokens, run.vocabulary)
        losses.append(evaluate(run.model, params, read, TextSize(len(tokens))))
    assert losses[0] == losses[1]


def test_sentences_are_judged_each_by_itself_and_whole(tmp_path):
    data = {"batching": "sentences", "tokenizer": "word", "length": 6, "batch_size": 3}
    run = lm_jax.train(tiny.config(data=data, train={"steps": 2}), tmp_path, text=[tiny.TEXT] * 3)

    @jax.jit
    def nats(x, y):
        _, h = run.model.hidden(run.params, run.model.init_carry(1), x[:, None])
        return jnp.sum(run.model.nats(run.params, h, y[:, None]))

    total = 0.0
    for line in tiny.TEXT.splitlines():
        tokens = run.vocabulary.encode(line + "\n")
        x = np.concatenate([[run.vocabulary.boundary], tokens[:-1]]).astype(np.int32)
        total += float(nats(jnp.asarray(x), jnp.asarray(tokens)))
    row = run.result["splits"]["validation"]
    assert row["nats"] * row["tokens"] == pytest.approx(total, rel=1e-12)
    blocks = scoring.line_blocks(
        run.model, run.params, run.vocabulary, in_memory("text", tiny.TEXT)
    )
    assert sum(block.nats.sum() for block in blocks) == pytest.approx(total, rel=1e-12)


def validation_nats(run):
    """The parameters of a run, judged anew."""
    from lm_jax import data

    split = data.load(run.config.data, tiny.TEXT).validation
    read = reading(split.tokens, run.vocabulary)
    loss = evaluate(run.model, run.params, read, split.size)
    return loss.nats_per_token


def test_the_best_on_validation_is_kept(tmp_path):
    config = tiny.config(
        train={"steps": 40, "validate_every": 4, "learning_rate": 0.3, "keep_best": True}
    )
    run = lm_jax.train(config, tmp_path / "best", text=tiny.TEXT)
    judged = {r["step"]: r["nats"] for r in rows_of(tmp_path / "best") if r["kind"] == "evaluation"}
    best = min(judged, key=judged.get)
    assert best < 40  # or the test shows nothing
    assert run.result["parameters_step"] == best
    assert run.result["splits"]["validation"]["nats"] == pytest.approx(judged[best], rel=1e-12)
    last = tiny.config(
        train={"steps": 40, "validate_every": 4, "learning_rate": 0.3, "keep_best": False}
    )
    assert validation_nats(run) == pytest.approx(judged[best], rel=1e-12)
    run = lm_jax.train(last, tmp_path / "last", text=tiny.TEXT)
    assert run.result["splits"]["validation"]["nats"] == judged[40]
    assert validation_nats(run) == pytest.approx(judged[40], rel=1e-12)


def test_patience_ends_a_run_and_plateaus_cut_the_learning_rate(tmp_path):
    config = tiny.config(
        train={
            "steps": 400,
            "validate_every": 4,
            "log_every": 4,
            "learning_rate": 0.3,
            "patience": 5,
            "schedule": Plateau(factor=0.5, patience=2),
        }
    )
    run = lm_jax.train(config, tmp_path, text=tiny.TEXT)
    assert run.result["stopped_early"]
    rows = rows_of(tmp_path)
    judged = [row["nats"] for row in rows if row["kind"] == "evaluation"]
    rates = {row["step"]: row["learning_rate"] for row in rows if row["kind"] == "train"}
    assert run.result["step"] == 4 * len(judged)
    best, stale, waited, cut = math.inf, 0, 0, 1.0
    for number, nats in enumerate(judged):
        step_now = 4 * (number + 1)
        assert rates[step_now] == 0.3 * cut
        stale, waited = (0, 0) if nats < best else (stale + 1, waited + 1)
        best = min(best, nats)
        if waited == 2:
            waited, cut = 0, cut * 0.5
        assert (stale == 5) == (number == len(judged) - 1)
    assert cut < 1


# --- signals and threads --------------------------------------------------------------------------


def test_a_first_interrupt_saves_and_a_second_one_interrupts(tmp_path):
    before = signal.getsignal(signal.SIGINT)  # ignored in what a shell runs in the background

    def once(now, row):
        if now == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        lm_jax.train(tiny.config(train={"log_every": 1}), tmp_path, text=tiny.TEXT, watch=once)
    assert lm_jax.load_run(tmp_path).step == 3
    assert signal.getsignal(signal.SIGINT) is before

    def twice(now, row):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        lm_jax.train(tiny.config(train={"log_every": 1}), tmp_path, text=tiny.TEXT, watch=twice)
    assert lm_jax.train(tiny.config(), tmp_path, text=tiny.TEXT).step == 20


@pytest.mark.slow
def test_runs_side_by_side_in_one_process_do_not_disturb_each_other(tmp_path):
    """Two threads, each saving after every step, and the first one's run read all the while."""
    config = tiny.config(train={"steps": 12, "checkpoint_every": 1})
    alone = lm_jax.train(config, tmp_path / "alone", text=tiny.TEXT)
    runs, done = {}, threading.Event()

    def train(name):
        runs[name] = lm_jax.train(config, tmp_path / name, text=tiny.TEXT)

    def read():
        while not done.is_set():
            with contextlib.suppress(UserError), warnings.catch_warnings():
                # Before there is a checkpoint, and where it is removed while it is read.
                warnings.simplefilter("ignore")
                lm_jax.load_run(tmp_path / "a")

    threads = [threading.Thread(target=train, args=(name,)) for name in ("a", "b")]
    reader = threading.Thread(target=read)
    for thread in [*threads, reader]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    for name in ("a", "b"):
        tiny.assert_trees_equal(runs[name].params, alone.params)


def test_train_works_outside_the_main_thread(tmp_path):
    runs = []
    thread = threading.Thread(
        target=lambda: runs.append(
            lm_jax.train(tiny.config(train={"steps": 2}), tmp_path, text=tiny.TEXT)
        )
    )
    thread.start()
    thread.join()
    assert runs[0].result["status"] == "finished"


def test_probes_that_are_off_leave_the_very_same_program():
    """Those of every update, the norms of delta, change it where they are asked for."""

    def text(**probe):
        config = resolve(tiny.config(train={"probe": LiveProbe(**probe)} if probe else {}))
        state = step.init.eval_shape(config, tiny.V)
        source = jax.eval_shape(lambda: streams(np.zeros(200, np.int32), 0, 4))
        return step.run_until.lower(config, state, source, 3, tiny.V).as_text()

    assert text() == text(deltas=False) != text(deltas=True)


def test_two_runs_are_the_same_bits_and_another_seed_or_prng_is_not(tmp_path):
    """They depend on config and text, and on what the checkpoint notes of the environment."""
    config = tiny.config(train={"steps": 10})
    one = lm_jax.train(config, tmp_path / "one", text=tiny.TEXT)
    two = lm_jax.train(config, tmp_path / "two", text=tiny.TEXT)
    tiny.assert_trees_equal(one.params, two.params)
    assert rows_of(one.path) == rows_of(two.path)
    other = lm_jax.train(tiny.config(train={"steps": 10}, seed=1), tmp_path / "3", text=tiny.TEXT)
    assert other.result["sha256"] != one.result["sha256"]

    saved = one.path / "checkpoints" / "00000010" / "manifest.json"
    noted = files.read_sealed(saved, manifest.Contents).environment
    assert {"python", "jax", "devices", "cores", "XLA_FLAGS", "PRNG"} < {*noted}
    longer = tiny.config(train={"steps": 12})
    with jax.default_prng_impl("rbg"), pytest.raises(UserError, match="by threefry2x32, and this"):
        lm_jax.train(longer, tmp_path / "one", text=tiny.TEXT)
    assert lm_jax.train(longer, tmp_path / "one", text=tiny.TEXT).step == 12


def test_the_working_directory_is_not_renamed(tmp_path, monkeypatch):
    config = tiny.config(train={"steps": 2})
    lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(UserError, match="cannot be renamed: it is the working directory"):
        lm_jax.train(config, ".", text=tiny.TEXT, restart=True)
