"""What is on the disk before what: a power cut leaves whole files, whole folders and their rows."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import files
from lm_jax.sweeps.jobs import Job
from lm_jax.sweeps.plan import Trial
from lm_jax.sweeps.ray_nodes import packed, unpack
from lm_jax.training import journal
from lm_jax.training.checkpoint import Checkpoints
from lm_jax.training.state import FixedState


class Disk:
    """The bytes of each file, and the names of each folder, that have been synced, by inode."""

    def __init__(self):
        self.synced, self.order = {}, []

    def fsync(self, handle):
        status = os.fstat(handle)
        self.synced[status.st_ino] = status.st_size
        self.order.append(("synced", status.st_ino))

    def holds(self, path):
        """True if all of a file, or of each file and folder below a folder, is on the disk."""
        below = [path, *path.rglob("*")]
        sizes = {place.stat().st_ino: place.stat().st_size for place in below}
        return all(self.synced.get(inode) == size for inode, size in sizes.items())


@pytest.fixture
def disk(monkeypatch):
    found = Disk()
    monkeypatch.setattr(os, "fsync", found.fsync)
    return found


def renamed_by(monkeypatch, see):
    """Call `see` with the old and the new path before each renaming."""
    rename, replace = Path.rename, Path.replace

    def seen(path, target, do):
        see(path, Path(target))
        return do(path, target)

    monkeypatch.setattr(Path, "rename", lambda *paths: seen(*paths, rename))
    monkeypatch.setattr(Path, "replace", lambda *paths: seen(*paths, replace))


def test_a_file_is_on_the_disk_before_it_has_its_name(disk, monkeypatch, tmp_path):
    def see(path, target):
        assert disk.holds(path)
        disk.order.append(("renamed", path.stat().st_ino))

    renamed_by(monkeypatch, see)
    path = tmp_path / "file"
    for content in ("one", "another"):
        disk.order.clear()
        files.write_whole(path, content)
        inode, folder = path.stat().st_ino, tmp_path.stat().st_ino
        assert disk.order == [("synced", inode), ("renamed", inode), ("synced", folder)]
        assert path.read_text() == content


def test_the_copy_of_a_damaged_file_is_on_the_disk_before_the_file_is_written_anew(disk, tmp_path):
    path = tmp_path / "file"
    path.write_text("damaged")
    kept = files.keep_damaged(path)
    assert disk.holds(kept)
    assert disk.order[-1] == ("synced", tmp_path.stat().st_ino)


def test_the_runs_from_another_node_are_on_the_disk_before_they_have_their_names(
    disk, monkeypatch, tmp_path
):
    places = []

    def see(path, target):
        if "archive" in str(path):
            places.append(target)
            assert disk.holds(path)

    trial = Trial(1, "a", {}, tiny.config(), "trials/001")
    there, here = (Job(tmp_path / name, (trial,), vectorised=False) for name in ("there", "here"))
    (there.place(trial) / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "checkpoints/arrays"):
        (there.place(trial) / name).write_text(name)
    here.sweep_dir.mkdir()
    renamed_by(monkeypatch, see)
    unpack(here, packed(there))
    assert places == [here.place(trial)]
    assert disk.holds(here.place(trial).parent)
    assert ("synced", here.sweep_dir.stat().st_ino) in disk.order  # the name of the folder of runs


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(disk, monkeypatch, tmp_path):
    saved = []

    def see(path, target):
        if target.name == "00000007":
            saved.append(disk.holds(path / "arrays") and disk.holds(path / "manifest.json"))

    renamed_by(monkeypatch, see)
    checkpoints = Checkpoints(tmp_path, 0, tiny.KNOWN)
    checkpoints.save(FixedState(np.array(7, np.int32), {"a": np.arange(3.0)}), journal.NO_ROWS)
    checkpoints.close()
    assert saved == [True]


def test_the_rows_of_a_checkpoint_are_on_the_disk_before_it_is_saved(disk, monkeypatch, tmp_path):
    steps, save = [], Checkpoints.save

    def saving(self, state, rows, **more):
        assert disk.holds(tmp_path / "run" / "metrics.jsonl")
        steps.append(int(state.step))
        return save(self, state, rows, **more)

    monkeypatch.setattr(Checkpoints, "save", saving)
    config = tiny.config(train={"steps": 4, "log_every": 1, "checkpoint_every": 2})
    lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)
    assert steps == [2, 4]


def test_a_folder_loses_its_name_after_its_successor_s_is_on_the_disk(disk, monkeypatch, tmp_path):
    for name in ("folder", "new"):
        (tmp_path / name).mkdir()
    renamed_by(monkeypatch, lambda path, target: disk.order.append((path.name, target.name)))
    files.discard(tmp_path / "folder", tmp_path / "new")
    synced = "synced", tmp_path.stat().st_ino
    assert disk.order == [synced, ("folder", "folder.trash"), ("new", "folder"), synced]


@pytest.mark.parametrize("successor", [None, "new"])
def test_a_crash_leaves_no_half_removed_folder_under_its_name(successor, monkeypatch, tmp_path):
    class Crash(Exception):
        pass

    def removed_in_part(path, ignore_errors=False):
        (Path(path) / "a").unlink()
        raise Crash

    folder, other = tmp_path / "folder", successor and tmp_path / successor
    for place in filter(None, (folder, other)):
        place.mkdir()
        for name in "ab":
            (place / name).write_text(place.name)
    monkeypatch.setattr(shutil, "rmtree", removed_in_part)
    with pytest.raises(Crash):
        files.discard(folder, other)
    left = {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}
    assert left == ({"a": "new", "b": "new"} if successor else {})
