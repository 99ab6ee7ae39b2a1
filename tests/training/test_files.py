"""Files that a user or a disk has damaged, and links where a run writes: one line, no harm."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import files
from lm_jax.config import BPE, RNN, Config, Data, File, Memory, NGram, resolve
from lm_jax.data import bpe
from lm_jax.data.corpus import cache_folder, load
from lm_jax.data.vectors import read_vectors
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.settings import UserError, from_json, parsed
from lm_jax.sweeps import failures, integers, optuna_search, read_results, worker
from lm_jax.sweeps.halving import Halving
from lm_jax.sweeps.jobs import Job, read_job
from lm_jax.sweeps.optuna_search import ASKED, OptunaSearch
from lm_jax.sweeps.plan import plan, write_or_check_manifest
from lm_jax.sweeps.processes import Processes
from lm_jax.sweeps.ray_nodes import packed, unpack
from lm_jax.sweeps.results import Results
from lm_jax.training import checkpoint, directory, journal
from lm_jax.training.checkpoint import Checkpoints, steps_saved
from lm_jax.training.state import FixedState

DAMAGE = {
    "nested 100,000 deep": b"[" * 100_000,
    "nested 100,000 deep, within": b'{"version": 1, "a": ' + b'{"b": ' * 100_000,
    "5,000 digits": b"1" * 5000,
    "5,000 digits, within": b'{"version": 1, "step": ' + b"1" * 5000 + b"}",
    "not UTF-8": b'{"version": "\xff"}',
    "empty": b"",
    "zeros": bytes(64),
    "a list": b"[1, 2]",
    "a number": b"7",
    "not finite": b"NaN",
    "half of it": b'{"version": 1, "tok',
}
damaged = pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)

COUNTED = Config(data=Data(source=Memory()), model=NGram(order=2))


@pytest.fixture(scope="module")
def counted_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("counted") / "run"
    return lm_jax.train(COUNTED, path, text=tiny.TEXT)


@pytest.fixture
def counted(counted_once, tmp_path):
    """A copy of a run whose files may be damaged."""
    run_dir = shutil.copytree(counted_once.path, tmp_path / "run")
    return counted_once._replace(path=run_dir)


def test_a_byte_order_mark_is_no_part_of_a_run_s_files(counted):
    """An editor that saves a file again may put one there."""
    for name in ("config.json", "vocabulary.json"):
        path = counted.path / name
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert directory.read_config(counted.path) == counted.config
    assert directory.read_vocabulary(counted.path)[0] == counted.vocabulary


READERS = {
    "data.source.train": lambda path: load(Data(source=File(train=path))),
    "data.tokenizer.file": lambda path: load(
        Data(source=Memory(), tokenizer=BPE(file=path)), tiny.TEXT
    ),
    "model.vectors": lambda path: resolve(Config(model=RNN(vectors=path))),
    "vectors": lambda path: read_vectors(path, Vocabulary("word", ("a",)), 2, name=path),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_pipe_or_a_device_is_refused_before_it_is_opened(read, tmp_path):
    """To open a pipe waits for a writer, and a device has no end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero"):
        assert f"{path}: is no file that can be read twice" in refusal(
            lambda at=path: read(str(at))
        )


STATE = FixedState(np.array(7, np.int32), {"a": np.arange(3.0)})
STRANGE = ("²", "٣", "0", "5", "-1", "000000000", "notes.partial", "mine.trash", "7.damaged")


@pytest.fixture
def saved(tmp_path):
    """A run directory with a checkpoint of step 7, and something outside it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    run_dir = tmp_path / "run"
    _save(run_dir, -1)
    return run_dir


def _save(run_dir, step, state=STATE):
    checkpoints = Checkpoints(run_dir, step, tiny.KNOWN)
    checkpoints.save(state, journal.NO_ROWS)
    checkpoints.close()


def refusal(action):
    with pytest.raises(UserError) as refused:
        action()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    return str(refused.value)


@damaged
@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "manifest.json"])
def test_what_a_run_is_is_named_where_it_is_damaged_and_written_anew(name, content, counted):
    path = counted.path / name
    whole = path.read_bytes()
    path.write_bytes(content)
    if name == "manifest.json":  # all that it says is there as well
        assert lm_jax.load_run(counted.path).result == counted.result
    else:
        assert str(path) in refusal(lambda: lm_jax.load_run(counted.path))
    with pytest.warns(UserWarning, match=rf"{name}.*\(written anew, as it was: .*damaged-1\)"):
        lm_jax.train(COUNTED, counted.path, text=tiny.TEXT)
    assert path.read_bytes() == whole
    assert path.with_name(f"{name}.damaged-1").read_bytes() == content


@pytest.mark.filterwarnings("ignore")
def test_what_a_run_came_to_is_had_again_where_its_file_is_damaged(counted):
    for content in DAMAGE.values():
        for name in ("result.json", "metrics.jsonl"):
            (counted.path / name).write_bytes(content)
        assert journal.read_result(counted.path) is None
        assert journal.read_rows(counted.path / "metrics.jsonl") == []
    again = lm_jax.train(COUNTED, counted.path, text=tiny.TEXT)
    assert again.result["splits"] == counted.result["splits"]
    assert len(journal.read_rows(counted.path / "metrics.jsonl")) == 2
    assert (counted.path / "result.json.damaged-1").read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"status": 3},
        {"step": "0"},
        {"splits": []},
        {"splits": {"test": 3}},
        {"splits": {"test": {"nats": 1.0}}},
        {"seconds": None},
        {"seconds": 10**400},
        {"tokens_per_second": "1"},
        {"vectors": {"found": 1}},
        {"ngrams": "x"},
        {"entropy_rate": "x"},
    ],
    ids=str,
)
def test_a_result_of_other_types_is_as_good_as_lost(change, counted):
    path = counted.path / "result.json"
    files.write_sealed(path, {**counted.result, **change})
    with pytest.warns(UserWarning, match="it is no result"):
        assert journal.read_result(counted.path) is None


def test_a_row_without_its_numbers_is_left_out(tmp_path):
    good = {"step": 1, "kind": "evaluation", "split": "validation", "nats": None}
    bad = ({"nats": "1"}, {"kind": "other"}, {"kind": []}, {"split": 3}, {"step": 1.5})
    path = tmp_path / "metrics.jsonl"
    changed = [good | change for change in ({"nats": 10**400}, *bad)]
    changed += [tiny.RECORD | change for change in ({"step": 0}, {"step": 1, "seconds": None})]
    changed.append({"step": 1, **tiny.RECORD})
    del changed[-1]["tokens_per_second"]
    place = {"step": 1, "split": "train"}
    probes = ({"lag_norms": []}, {"lag_norms": 5}, {"spectral_radius": 3}, {"lyapunov": "x"})
    changed += [{**place, "kind": "probe", **answers} for answers in probes]
    changed.append({**place, "kind": "vectors", "found": None, "of": None, "covered": None})
    for row in changed:
        lines = [json.dumps({**line, "row": n}) + "\n" for n, line in enumerate((good, row, good))]
        path.write_text("".join(map(files.sealed, lines)))
        with pytest.warns(UserWarning, match="line 2 is no row"):
            assert journal.read_rows(path) == [good, good], row


def test_a_changed_number_breaks_the_seal():
    text = files.sealed('{"a": 1}\n')
    assert files.unsealed(text, "it") == '{"a": 1}\n'
    said = refusal(lambda: files.unsealed(text.replace("1", "2", 1), "it"))
    assert said == "it is damaged: its content does not match its seal"


def test_a_byte_too_many_in_a_file_of_arrays_is_found(saved):
    """Orbax does not see the byte."""
    path = saved / "checkpoints/00000007"
    for file in (path / "arrays").rglob("d/*"):
        content = file.read_bytes()
        file.write_bytes(content + b"\0")
        with pytest.raises(ValueError, match="does not match its SHA-256"):
            checkpoint.Checkpoint(path, tiny.KNOWN)
        file.write_bytes(content)
    assert checkpoint.Checkpoint(path, tiny.KNOWN).contents.step == 7


def test_digests_that_are_damaged_are_a_damaged_checkpoint(saved):
    for content in DAMAGE.values():
        (saved / "checkpoints/00000007/manifest.json").write_bytes(content)
        with pytest.warns(UserWarning, match="passing over the damaged checkpoint"):
            assert tiny.restored(saved, STATE) is None


@damaged
def test_what_a_sweep_has_written_is_named_where_it_is_damaged(content, tmp_path):
    trials = plan(tiny.config(), {"a": {"seed": 1}}, tiny.TEXT).trials
    (tmp_path / "sweep.json").write_bytes(content)
    assert refusal(lambda: write_or_check_manifest(tmp_path, trials)).startswith(
        f"{tmp_path}/sweep.json is damaged"
    )
    (tmp_path / "results.jsonl").write_bytes(content + b"\n")
    said = refusal(lambda: read_results(tmp_path))
    assert said.startswith(f"{tmp_path}/results.jsonl is damaged (line 1")
    (tmp_path / "error.json").write_bytes(content)
    assert failures.read(tmp_path) == {"error": "error.json is damaged", "traceback": ""}
    later = files.line_of({"step": 1, "nats": {}, "kept": []}).encode()  # than the damaged line
    (tmp_path / "rungs.jsonl").write_bytes(content + b"\n" + later)
    said = refusal(lambda: Halving(1).pruner(tmp_path)(1, {trials[0]: 1.0}))
    assert said.startswith(f"{tmp_path}/rungs.jsonl: line 1 is damaged")
    job = Job(tmp_path, trials, vectorised=False)
    path = worker.written(job, 1)
    path.with_suffix(".outcome.json").write_bytes(content)
    assert worker.ended(job, path, "it ended") == (job, {}, "it ended")
    path.write_bytes(content)
    assert str(path) in refusal(lambda: read_job(path))


ROW = {
    "number": 1,
    "name": "a",
    "trial": "trials/001",
    "point": {},
    "settings": {},
    "status": "failed",
    "step": 0,
    "splits": {},
    "best_validation": None,
    "last_validation": None,
    "test": None,
    "seconds": 1.5,
}


@pytest.mark.parametrize(
    "change",
    [
        {"number": "1"},
        {"status": None},
        {"test": "1"},
        {"splits": {"test": 1}},
        {"settings": []},
        {"probe": "x"},
        {"gradient": {"clipped": "x"}},
        {"tokens_per_second": "x"},
        {"seconds": 10**400},
    ],
    ids=str,
)
def test_a_row_of_a_sweep_that_lacks_something_is_named(change, tmp_path):
    files.write_rows(tmp_path / "results.jsonl", [ROW])
    assert read_results(tmp_path) == [ROW]
    files.write_rows(tmp_path / "results.jsonl", [ROW, ROW | change])
    assert "results.jsonl is damaged (line 2" in refusal(lambda: read_results(tmp_path))


def test_a_result_says_nothing_of_what_a_sweep_knows_better(counted, tmp_path):
    trials = plan(COUNTED, {"a": {"model.order": 2}}, tiny.TEXT).trials
    run_dir = tmp_path / trials[0].directory
    shutil.copytree(counted.path, run_dir)
    (row,) = Results(tmp_path, trials).rows
    path = run_dir / "result.json"
    spoiled = {"number": "x", "name": "zz", "settings": 5, "best_validation": 0.001, "test": "x"}
    files.write_sealed(path, files.read_sealed(path) | spoiled)
    assert Results(tmp_path, trials).rows == [row]


@damaged
def test_a_damaged_search_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna_search, "_optuna", lambda: None)  # which has no say in reading
    space, path = {"seed": integers(1, 9)}, tmp_path / ASKED
    path.write_bytes(content)
    said = refusal(lambda: OptunaSearch(space, 2, tmp_path))
    assert said in (f"{path} is damaged", f"{path} is of another search: its space is another")


@damaged
def test_text_that_is_no_settings_no_vocabulary_and_no_tokeniser_is_refused(content, tmp_path):
    text = content.decode(errors="replace")
    assert refusal(lambda: from_json(Config, text, "FILE")).startswith("FILE")
    assert refusal(lambda: Vocabulary.from_json(text, "FILE")).startswith("FILE holds no voc")
    (tmp_path / "tokenizer.json").write_bytes(content)
    said = refusal(lambda: bpe.read(str(tmp_path / "tokenizer.json"), "FILE"))
    assert said.startswith("FILE")


@damaged
def test_a_damaged_entry_of_the_cache_is_built_anew(content, tmp_path):
    (tmp_path / "a.txt").write_text(tiny.TEXT)
    data = Data(source=File(train=str(tmp_path / "a.txt")))
    load(data)
    (path,) = cache_folder().glob("tokens/*/corpus.json")
    whole = path.read_bytes()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"the tokens in {path.parent} are damaged"):
        load(data)
    assert path.read_bytes() == whole


def test_a_vocabulary_of_characters_has_no_longer_ones():
    text = json.dumps({"version": 4, "tokenizer": "char", "tokens": ["<unk>", "\n", "ab"]})
    assert "holds no vocabulary" in refusal(lambda: Vocabulary.from_json(text))
    text = json.dumps({"version": 4, "tokenizer": "word", "tokens": ["<unk>", "<eos>", 3]})
    assert "holds no vocabulary" in refusal(lambda: Vocabulary.from_json(text))


def test_rules_that_the_library_cannot_read_are_refused():
    assert refusal(lambda: bpe.encoder('{"version": "1.0"}')).startswith("the rules of the vocab")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version": 4, "seed": ' + "1" * 4000 + "}", "seed=11111"),
        ('{"version": 4, "model": ' + "[" * 150 + "]" * 150 + "}", "there: model"),
        ('{"version": 4, "train": {"learning_rate": NaN}}', "train.learning_rate=nan"),
        ('{"version": 4, "model": {"kind": 3}}', "model"),
    ],
    ids=["digits", "deep", "not a number", "kind"],
)
def test_a_value_that_is_refused_is_shown_in_short(text, said):
    assert said in refusal(lambda: from_json(Config, text, "there"))


def test_an_integer_that_cannot_be_written_is_refused_in_a_line():
    assert refusal(lambda: Config(seed=10**5000)).startswith("seed=(int): input should be less")


def test_json_says_where_it_is_not_what_it_should_be():
    said = refusal(lambda: parsed('{"a": 3}', "FILE", dict[str, str]))
    assert said == "FILE: a: input should be a valid string"
    assert parsed(b"[1]", "FILE", list[int]) == [1]


# --- what stands in checkpoints/ ---


def test_entries_of_checkpoints_that_are_no_checkpoints_are_let_be(saved):
    for name in STRANGE:
        (saved / "checkpoints" / name).mkdir()
        (saved / "checkpoints" / name / "mine").write_text("mine")
    (saved / "checkpoints" / "dangling").symlink_to("nowhere")
    (saved / "checkpoints" / "loop").symlink_to("loop")
    (saved / "checkpoints" / "readme.txt").write_text("mine")
    assert steps_saved(saved) == [7]
    assert tiny.restored(saved, STATE).step == 7
    for step in (8, 9, 10):
        _save(saved, step - 1, STATE._replace(step=np.array(step, np.int32)))
    assert steps_saved(saved) == [8, 9, 10]  # 8 as the newest of every eighth
    assert tiny.restored(saved, STATE).step == 10
    for name in STRANGE:
        assert (saved / "checkpoints" / name / "mine").read_text() == "mine"


def test_older_checkpoints_are_kept_at_wider_spaces():
    kept = []
    for step in range(5, 1000, 5):
        kept = checkpoint._to_keep([*kept, step], 5, 2)
    assert kept == [960, 990, 995]  # the 192nd save is one of every eighth and of every 64th


def test_a_folder_or_a_file_under_a_checkpoint_s_name_is_named_and_let_be(saved):
    for name in ("00000000", "00000009"):
        path = saved / "checkpoints" / name
        path.mkdir()
        (path / "mine").write_text("mine")
        for action in (
            lambda: tiny.restored(saved, STATE),
            lambda: steps_saved(saved),
            lambda: Checkpoints(saved, 7, tiny.KNOWN),
            lambda: Checkpoints(saved, -1, tiny.KNOWN),
        ):
            assert refusal(action).startswith(f"{path} has the name of a checkpoint and is none")
        assert (path / "mine").read_text() == "mine"
        (path / "mine").unlink()
        path.rmdir()
        path.write_text("mine")
        assert str(path) in refusal(lambda: Checkpoints(saved, 7, tiny.KNOWN))
        path.unlink()
    (saved / "checkpoints" / "00000007" / ".DS_Store").write_text("of the file manager")
    assert tiny.restored(saved, STATE).step == 7


@pytest.mark.parametrize("target", ["outside", "outside/kept", "nowhere", "00000009"])
def test_a_link_under_a_checkpoint_s_name_is_named_and_not_followed(target, saved):
    link = saved / "checkpoints" / "00000009"
    link.symlink_to(saved.parent / target if target != link.name else target)
    for action in (lambda: tiny.restored(saved, STATE), lambda: Checkpoints(saved, 7, tiny.KNOWN)):
        assert refusal(action).startswith(f"{link} is a link to ")
    assert (saved.parent / "outside" / "kept").read_text() == "kept"


@pytest.mark.parametrize("name", ["00000009.partial", "00000009.trash"])
@pytest.mark.parametrize("kind", ["link", "dangling", "file", "folder"])
def test_what_a_crash_has_left_is_removed_whatever_it_is(kind, name, saved):
    outside, path = saved.parent / "outside", saved / "checkpoints" / name
    if kind == "folder":
        (path / "inside").mkdir(parents=True)
        (path / "inside" / "link").symlink_to(outside)
    elif kind == "file":
        path.write_text("")
    else:
        path.symlink_to(outside if kind == "link" else "nowhere")
    _save(saved, 7, STATE._replace(step=np.array(9, np.int32)))
    Checkpoints(saved, 8, tiny.KNOWN).close()  # which sets the checkpoint of step 9 aside
    assert steps_saved(saved) == [7]
    assert (saved / "checkpoints" / "00000009.damaged-1" / "manifest.json").is_file()
    assert (outside / "kept").read_text() == "kept"


@pytest.mark.parametrize("kind", ["link", "loop", "file"])
def test_checkpoints_that_are_no_folder_are_named(kind, tmp_path):
    place, outside = tmp_path / "run" / "checkpoints", tmp_path / "outside"
    place.parent.mkdir()
    outside.mkdir()
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(outside if kind == "link" else place)
    for action in (
        lambda: Checkpoints(place.parent, 0, tiny.KNOWN),
        lambda: tiny.restored(place.parent, STATE),
    ):
        assert str(place) in refusal(action)
    assert not list(outside.iterdir())


# --- links where a run, a sweep or the cache writes ---


@pytest.mark.filterwarnings("ignore:.*(result.json is damaged|rows are lost)")
def test_a_run_writes_through_no_link(counted):
    run_dir, outside = counted.path, counted.path.parent / "outside"
    outside.write_text("kept")
    names = ["config.json", "metrics.jsonl", "result.json"]
    for name in (*names, *(f"{name}.partial" for name in names)):
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).symlink_to(outside)
    # The config is a link to what is no config: that of a copy is.
    (run_dir / "config.json").unlink()
    directory.write_config(run_dir, counted.config)
    again = lm_jax.train(COUNTED, run_dir, text=tiny.TEXT)
    assert again.result["splits"] == counted.result["splits"]
    assert outside.read_text() == "kept"
    assert not any((run_dir / name).is_symlink() for name in names)


@pytest.mark.parametrize("target", ["outside", "nowhere"])
def test_a_lock_that_is_a_link_is_refused_and_not_followed(target, counted):
    outside = counted.path.parent / "outside"
    outside.write_text("kept")
    (counted.path / ".lock").unlink()
    (counted.path / ".lock").symlink_to(outside.with_name(target))
    said = refusal(lambda: lm_jax.train(COUNTED, counted.path, text=tiny.TEXT))
    assert said.startswith(f"{counted.path}/.lock is a link to ")
    assert outside.read_text() == "kept"
    assert not outside.with_name("nowhere").exists()


def test_a_sweep_writes_through_no_link(tmp_path, monkeypatch):
    trials = plan(COUNTED, {"a": {"model.order": 1}}, tiny.TEXT).trials
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    for name in ("trials", "jobs", trials[0].directory):
        sweep_dir = tmp_path / name.replace("/", "-")
        (sweep_dir / name).parent.mkdir(parents=True)
        (sweep_dir / name).symlink_to(outside)
        assert f"{name} is a link to" in refusal(
            lambda at=sweep_dir: write_or_check_manifest(at, trials)
        )
        assert not (sweep_dir / "sweep.json").exists()
    (tmp_path / "rungs.jsonl").symlink_to(outside / "kept")
    judge = Halving(1).pruner(tmp_path)
    assert "rungs.jsonl is a link to" in refusal(lambda: judge(1, {trials[0]: 1.0}))
    job = Job(tmp_path, trials, vectorised=False)
    path = worker.written(job, 1)
    path.with_suffix(".log").symlink_to(outside / "kept")
    monkeypatch.setattr(sys, "executable", shutil.which("true"))  # a worker that does nothing
    list(Processes(1).run([job], []))
    assert not path.with_suffix(".log").is_symlink()
    assert [file.name for file in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "kept"


def test_a_parcel_is_unpacked_beside_links_and_not_through_them(tmp_path):
    trials = plan(COUNTED, {"a": {"model.order": 1}}, tiny.TEXT).trials
    job = Job(tmp_path / "sweep", trials, vectorised=False)
    place, outside = job.place(trials[0]), tmp_path / "outside"
    outside.mkdir()
    place.mkdir(parents=True)
    (place / "error.json").write_text("{}")
    archive = packed(job)
    (tmp_path / "sweep" / "jobs").mkdir()
    (tmp_path / "sweep" / "jobs" / f"{job.name}.archive").symlink_to(outside)
    place.with_name(f"{place.name}.trash").symlink_to(outside)
    unpack(job, archive)
    assert (place / "error.json").read_text() == "{}"
    assert not list(outside.iterdir())


def test_the_cache_is_built_beside_links_and_not_through_them(tmp_path):
    (tmp_path / "a.txt").write_text(tiny.TEXT)
    (tmp_path / "outside").mkdir()
    data = Data(source=File(train=str(tmp_path / "a.txt")))
    load(data)
    (folder,) = (path for path in cache_folder().glob("tokens/*") if path.is_dir())
    files.remove(folder)
    folder.with_suffix(".partial").symlink_to(tmp_path / "outside")
    load(data)
    assert not list((tmp_path / "outside").iterdir())
    files.remove(folder)
    folder.with_suffix(".lock").unlink()
    folder.with_suffix(".lock").symlink_to(tmp_path / "none")
    assert ".lock is a link to" in refusal(lambda: load(data))
    assert not (tmp_path / "none").exists()


def test_what_is_made_is_as_private_as_other_files(tmp_path):
    before = os.umask(0o027)
    try:
        files.created(tmp_path / "a", "w").close()
        files.opened(tmp_path / "b", "a").close()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
