"""After a power cut at any instant, a run or a sweep goes on from its last save or a later one.

recording.c, loaded by LD_PRELOAD, records what a process, its threads in C++ and its child
processes do to the files below a folder. `Disk` replays the record up to a cut, and draws what a
disk may hold that keeps two promises only:

- The content of a file is on the disk as it was when the file was last synced.
- The names in a folder are on the disk as they were when the folder was last synced.

What was done since, to a block of a file, to its size, to a name in a folder, is there or not; a
renaming within a folder is done or not done. Blocks that were not written hold zeros.
"""

import collections
import copy
import ctypes
import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import killed
import pytest

from lm_jax.training import directory
from lm_jax.training.checkpoint import newest, place_complete

CUTS = int(os.environ.get("LM_JAX_CUTS", "4"))  # of each kind of work
LOOKS = 10  # further cuts for each resume, after which only the checkpoint is looked at
SHARES = 0, 0.1, 0.5, 0.9, 1  # of the changes since the last sync that are on the disk
BLOCKS = 512, 4096  # bytes that a disk writes at once
HERE = Path(__file__).parent
COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs cc, on Linux"
)


class File:
    """The content of a file, now and when it was last synced."""

    def __init__(self, content=b""):
        self.now, self.synced = bytearray(content), bytes(content)

    def resize(self, size):
        del self.now[size:]
        self.now.extend(bytes(size - len(self.now)))

    def write(self, at, content):
        self.resize(max(len(self.now), at))
        self.now[at : at + len(content)] = content

    def sync(self):
        self.synced = bytes(self.now)

    def drawn(self, draw, share):
        """A content that the disk may hold, if each change is there with a chance of `share`."""
        if self.now == self.synced:
            return self.synced
        sizes = sorted([len(self.synced), len(self.now)])
        size = len(self.now) if draw.random() < share else len(self.synced)
        if 0 < share < 1 and draw.random() < 0.5:
            size = draw.randint(*sizes)
        block, found = draw.choice(BLOCKS), b""
        for start in range(0, size, block):
            content = self.now if draw.random() < share else self.synced
            found += bytes(content[start : start + block]).ljust(block, b"\0")
        return found[:size]


class Folder:
    """The names in a folder, now and when it was last synced, and the changes in between."""

    def __init__(self):
        self.now, self.synced, self.changes = {}, {}, []

    def change(self, **names):
        """Give names to files and folders; None takes a name away."""
        self.changes.append(names)
        self.now = renamed(self.now, names)

    def sync(self):
        self.synced, self.changes = self.now, []

    def drawn(self, draw, share):
        """Names that the disk may hold, if each change is there with a chance of `share`."""
        found = self.synced
        for names in self.changes:
            if draw.random() < share:
                found = renamed(found, names)
        return found


def renamed(names, changes):
    return {name: node for name, node in {**names, **changes}.items() if node is not None}


class Disk:
    """A folder on a disk, and what of it is synced; all that is there at the beginning.

    Attributes:
      saved: by run, the step of the newest save that the program knows to be complete: the thread
        that wrote the manifest of the run has gone on, or the next save has begun.
    """

    def __init__(self, root):
        self.nodes, self.written, self.saved = {}, {}, {}
        self.root = self._read(root)

    def _read(self, path):
        node = File(path.read_bytes()) if path.is_file() else Folder()
        self.nodes[path.stat().st_ino] = node
        if isinstance(node, Folder):
            node.change(**{inner.name: self._read(inner) for inner in path.iterdir()})
            node.sync()
        return node

    def _at(self, path):
        """The folder of a path, and the name in the folder."""
        *above, name = path.split("/")
        folder = self.root
        for part in above:
            folder = folder.now[part]
        return folder, name

    def do(self, operation):
        """Repeat an operation of the record."""
        thread, kind, inode, a, b, path, content = operation
        for writer, (run, step) in [*self.written.items()]:
            next_save = kind == "folder" and path.startswith(f"{run}/checkpoints/")
            if (kind != "sync" and writer == thread) or next_save:
                self.saved[run] = step
                del self.written[writer]
        if kind in ("file", "folder"):
            node = self.nodes[inode] = File() if kind == "file" else Folder()
            if path:
                folder, name = self._at(path)
                folder.change(**{name: node})
        elif kind == "write":
            self.nodes[inode].write(b, content)
        elif kind == "size":
            self.nodes[inode].resize(a)
        elif kind == "sync":
            self.nodes[inode].sync()
        elif kind == "gone":
            folder, name = self._at(path)
            folder.change(**{name: None})
        else:
            assert kind in ("rename", "link")
            old, new = path.split("\t")
            (folder, name), (to, as_name) = self._at(old), self._at(new)
            node = folder.now[name]
            if kind == "rename" and folder is to:
                folder.change(**{name: None, as_name: node})
            else:
                to.change(**{as_name: node})
                folder.change(**{name: node if kind == "link" else None})
            run, _, last = new.rpartition("/")
            if last == "manifest.json" and "/checkpoints/" not in new:
                self.written[thread] = run, max(json.loads(node.now)["checkpoints"], default=0)

    def cut(self, place, draw, share):
        """Write what a disk may hold now to a place; each change is there with a chance."""
        self._write(self.root, place, draw, share)

    def _write(self, node, place, draw, share):
        found = node.drawn(draw, share)
        if isinstance(node, File):
            place.write_bytes(found)
            return
        place.mkdir()
        for name, inner in found.items():
            self._write(inner, place / name, draw, share)


def operations(log):
    """The operations of a record."""
    with log.open("rb") as file:
        while line := file.readline():
            thread, kind, *numbers, path = line[:-1].decode().split(" ", 5)
            inode, a, b = map(int, numbers)
            yield int(thread), kind, inode, a, b, path, file.read(a) if kind == "write" else b""


def recording(folder, log):
    """Record what this process, and those that it starts, do below a folder."""
    os.environ["RECORDED"] = f"{folder}:{log}" if folder else ""
    ctypes.CDLL(os.environ["LD_PRELOAD"]).record()


def recorded_work(name, place, cache, told, log):
    recording(place.parent, log)
    killed.work(name, place, cache, told)


def below(folder):
    """The content of each file below a folder; None for a folder."""
    paths = (path for path in folder.rglob("*") if path.suffix != ".log")
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in paths
    }


def drawn_cut(done, draw):
    """The number of operations before a cut, which comes after any kind of operation on any kind of
    file with the same probability."""
    kinds = collections.defaultdict(list)
    for number, (_, kind, *_, path, _) in enumerate(done, 1):
        kinds[kind, re.sub(r"[0-9a-f]{8,}|[0-9]+", "", path)].append(number)
    return draw.choice(draw.choice(sorted(kinds.values())))


class Recorded(NamedTuple):
    """Record of a finished process: the disk before it, the step that each run would have resumed
    from, and the operations."""

    disk: Disk
    saved: dict[str, int]
    operations: list

    def replayed(self, count=None):
        """The disk after some of the operations; None for all."""
        disk = copy.deepcopy(self.disk)
        for operation in self.operations[:count]:
            disk.do(operation)
        return disk


class Recorder:
    """Records a kind of work in folders of its own, and checks the ends of all processes."""

    def __init__(self, name, places, cache):
        self.name, self.places, self.cache, self.whole = name, places, cache, None

    def record(self, place):
        """Have a process do the work at a place, or go on with it."""
        log, ended = self.places / "log", self.places / "ended"
        log.unlink(missing_ok=True)
        disk, saved, told = Disk(place), self.resumes_from(place), self.places / "told.json"
        given = self.name, place / "run", self.cache, told, log
        assert killed.started(*given, do=recorded_work) == 0
        self.whole = self.whole or killed.contents(place)
        assert killed.contents(place) == self.whole
        recorded = Recorded(disk, saved, list(operations(log)))
        after = recorded.replayed()
        after.cut(ended, random, 1)
        assert below(ended) == below(place)  # the record is complete
        shutil.rmtree(ended)
        after.cut(ended, random, 0)
        assert killed.contents(ended) == self.whole  # at the end all is on the disk
        shutil.rmtree(ended)
        shutil.rmtree(place)
        return recorded

    def cut(self, recorded, left, draw):
        """Draw what a cut leaves, and check that the newest save is there, or a later one."""
        count, share = drawn_cut(recorded.operations, draw), draw.choice(SHARES)
        print(f"cut after {count} of {len(recorded.operations)}, share {share}", flush=True)
        disk = recorded.replayed(count)
        disk.cut(left, draw, share)
        found = self.resumes_from(left)
        for run, step in {**recorded.saved, **disk.saved}.items():
            assert step <= found[run], run

    def resumes_from(self, place):
        """By run below a place, the step that it resumes from."""
        scratch, steps = self.places / "scratch", {}
        shutil.copytree(place, scratch)
        for path in scratch.rglob("manifest.json"):
            run_dir = path.parent
            if run_dir.parent.name == "checkpoints":
                continue
            place_complete(run_dir)
            known = directory.manifest.read(run_dir)
            with warnings.catch_warnings(action="ignore"):
                step = newest(run_dir, known, lambda saved: saved.contents.step)
            steps[str(run_dir.relative_to(scratch))] = step or 0
        shutil.rmtree(scratch)
        return steps


def cut_and_resume(name, places, cache, cuts):
    """Cut the power of a kind of work so many times, and resume each time.

    Every second cut is one of the process that resumed last.
    """
    draw, recorder, left = random.Random(name), Recorder(name, places, cache), places / "left"
    left.mkdir()
    first = last = recorder.record(left)
    for turn in range(cuts):
        for _ in range(LOOKS):
            recorder.cut(first, left, draw)
            shutil.rmtree(left)
        recorder.cut(last if turn % 2 else first, left, draw)
        last = recorder.record(left)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a process that can be recorded."""
    library = tmp_path_factory.mktemp("library") / "recording.so"
    source = HERE / "recording.c"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    return {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": path}


WRITES = """
import os, subprocess, sys
def write(name, content, how=os.O_CREAT | os.O_TRUNC, sync=False):
    handle = os.open(name, os.O_WRONLY | how)
    os.write(handle, content)
    if sync:
        os.fsync(handle)
    os.close(handle)
write("synced", b"a" * 5000, sync=True)
write("without a name", b"b", sync=True)
write("old", b"c" * 5000)
os.mkdir("folder")
folder = os.open(".", os.O_RDONLY)
os.rename("without a name", "named", src_dir_fd=folder)
os.fsync(folder)
write("synced", b"d" * 9000, how=0)
write("synced", b"e", how=os.O_APPEND)
os.rename("old", "new")
subprocess.run([sys.executable, "-c", "open('folder/child', 'w').write('f')"], check=True)
write("later", b"g")
os.unlink("later")
"""


@needs_compiler
def test_what_is_synced_stays_and_the_rest_is_drawn(environment, tmp_path):
    """The last synced state, the last state, and all states in between that a disk may hold."""
    place, log = tmp_path / "place", tmp_path / "log"
    place.mkdir()
    disk, recorded = Disk(place), {**environment, "RECORDED": f"{place}:{log}"}
    subprocess.run([sys.executable, "-c", WRITES], env=recorded, cwd=place, check=True)
    for operation in operations(log):
        disk.do(operation)
    disk.cut(tmp_path / "all", random, 1)
    assert below(tmp_path / "all") == below(place)
    disk.cut(tmp_path / "none", random, 0)
    synced = {"synced": b"a" * 5000, "named": b"b", "old": b"", "folder": None}
    assert below(tmp_path / "none") == synced
    seen = collections.defaultdict(set)
    for seed in range(100):
        disk.cut(tmp_path / str(seed), random.Random(seed), 0.5)
        found = below(tmp_path / str(seed))
        assert ("old" in found) != ("new" in found)
        assert found["named"] == b"b"
        seen["renamed"].add("new" in found)
        seen["content"].add(found.get("old", found.get("new")))
        seen["child"].add(found.get("folder/child"))
        seen["later"].add(found.get("later"))
        seen["first"].add(found["synced"][:1])
        seen["sizes"].add(len(found["synced"]))
        seen["rest"] |= {*found["synced"][5000:]}
    assert seen["renamed"] == {True, False}
    assert {b"", bytes(5000), b"c" * 5000} <= seen["content"]
    assert seen["child"] == {None, b"", b"\0", b"f"}
    assert seen["later"] == {None, b"", b"\0", b"g"}
    assert seen["first"] == {b"a", b"d"}
    assert {5000, 9001} < seen["sizes"] <= {*range(5000, 9002)}
    assert seen["rest"] == {*b"\0de"}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", killed.WORK)
def test_after_a_power_cut_it_ends_as_if_nothing_had_been(name, environment, tmp_path, kept_cache):
    done = subprocess.run(
        [sys.executable, __file__, name, tmp_path, kept_cache, str(CUTS)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]


if __name__ == "__main__":
    cut_and_resume(sys.argv[1], *map(Path, sys.argv[2:4]), int(sys.argv[4]))
