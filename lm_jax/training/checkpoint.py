"""Checkpoints: the arrays of a train state in `checkpoints/STEP/`, with a digest of every file.

Orbax writes the arrays, in the background, while training goes on. What it does not see is damage:
a flipped byte is restored as it is, or brings down a thread. So a checkpoint is

    checkpoints/00000500/arrays/        what Orbax has written
    checkpoints/00000500/sha256.json    the SHA-256 of each file in it

put together under another name and renamed when it is whole; and restoring takes the newest one
whose files all match. The arrays are stored flat, under names such as `params/layers/0/W_hh`, and
restored into a template with the real structure. This is the only module that knows Orbax.
"""

import hashlib
import json
import re
import shutil
import threading
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm_jax import files
from lm_jax.settings import UserError, parsed
from lm_jax.training import journal

KEPT = 2  # checkpoints; the older one is for when the newer is found damaged

# Orbax is not made for two threads at once: runs side by side, or one that is read while it trains.
_ORBAX = threading.Lock()


class AsStored:
    """A leaf of a template that is restored in whatever shape and type it was saved."""

    shape, dtype, size = None, None, 1


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree under names such as `params/layers/0/W_hh`, empty arrays left out."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
        if leaf.size
    }


def digest(tree: Any) -> str:
    """SHA-256 over the names, types, shapes and contents of a tree's arrays, in order of names."""
    total = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.dtype} {leaf.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


class Checkpoints:
    """The checkpoints of a run that trains: one writer, at work in the background."""

    def __init__(self, run_dir: Path, step: int):
        """Takes the folder over for a run that goes on from `step`."""
        self._folder = run_dir / "checkpoints"
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None
        newer = [found for found in _steps(self._folder) if found > step]
        for path in list(self._folder.iterdir()) if self._folder.exists() else ():
            if re.fullmatch(r"[0-9]{8,}\.(partial|trash)", path.name):  # left by a crash
                files.remove(path)
        for damaged in newer:
            # Out of the way, or they would count among the newest that are kept.
            path = self._folder / f"{damaged:08d}"
            files.remove(path.with_suffix(".damaged"))
            path.rename(path.with_suffix(".damaged"))

    def save(self, state: Any) -> None:
        """Saves a state under its step; returns when it is copied, before it is written.

        Raises:
          OSError, ValueError: the save before this one has failed, because the disk is full, say.
        """
        self.wait()
        # A copy, for the next step takes the state's buffers over.
        arrays = {name: np.array(leaf) for name, leaf in named_leaves(state).items()}
        self._writing = self._writer.submit(self._write, int(state.step), arrays)

    def wait(self) -> None:
        """Returns once the last save is on the disk.

        Raises:
          OSError, ValueError: it has failed.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> None:
        self.wait()
        self._writer.shutdown()

    def _write(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        from orbax.checkpoint import v1 as ocp

        path = self._folder / f"{step:08d}"
        partial = path.with_name(f"{path.name}.partial")
        partial.mkdir(parents=True)
        with _ORBAX:
            ocp.save(str((partial / "arrays").absolute()), arrays)
        journal.write_whole(partial / "sha256.json", json.dumps(_file_digests(partial / "arrays")))
        if path.exists():  # found damaged, or stopped before the validation at its step
            _remove(path)
        partial.rename(path)
        for old in _steps(self._folder)[:-KEPT]:
            _remove(self._folder / f"{old:08d}")


def restore(
    run_dir: Path, template: Any, *, part: bool = False, until: int | None = None
) -> Any | None:
    """The newest state that is whole, or None where there is none.

    A damaged checkpoint is passed over with a warning.

    Args:
      run_dir: the run.
      template: a tree of arrays, `jax.ShapeDtypeStruct` or `AsStored`, structured as the state.
      part: the template is only a part of the state, by its names.
      until: the last step that is new enough; None: whatever is newest.

    Raises:
      UserError: the checkpoint is of another model.
    """
    folder = run_dir / "checkpoints"
    wanted = named_leaves(template)
    for step in reversed(_steps(folder)):
        if until is not None and step > until:
            continue
        path = folder / f"{step:08d}"
        try:
            arrays = _read(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"passing over the damaged checkpoint {path}: {error}", stacklevel=2)
            continue
        _check(path, arrays, wanted, part)
        leaves, structure = jax.tree.flatten(template)
        chosen = iter([arrays[name] for name in wanted])
        return structure.unflatten(
            [next(chosen) if leaf.size else np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        )
    return None


def steps_saved(run_dir: Path) -> list[int]:
    """The steps of a run's checkpoints, damaged ones among them, in rising order."""
    return _steps(run_dir / "checkpoints")


def _steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder; entries of other names are not looked at.

    Raises:
      UserError: the folder, or an entry that has a checkpoint's name, is something else.
    """
    files.refuse_links(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: the checkpoints of a run are in a folder")
    names: Iterable[Path] = folder.iterdir() if folder.exists() else ()
    found = [path for path in names if re.fullmatch(r"[0-9]{8}|[1-9][0-9]{8,}", path.name)]
    return sorted(int(path.name) for path in found if _is_there(path))


def _is_there(path: Path) -> bool:
    """Whether a checkpoint has not been removed meanwhile, by the process that trains."""
    files.refuse_links(path)
    try:
        inside = {inner.name for inner in path.iterdir()}
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        inside = {path.name}
    if inside and not inside & {"arrays", "sha256.json"}:
        raise UserError(f"{path} has the name of a checkpoint and is none: move it elsewhere")
    return True


def _read(path: Path) -> dict[str, np.ndarray]:
    from orbax.checkpoint import v1 as ocp

    known = parsed((path / "sha256.json").read_bytes(), "sha256.json", dict[str, str])
    found = _file_digests(path / "arrays")
    for name in sorted(known.keys() | found.keys()):
        if known.get(name) != found.get(name):
            raise ValueError(f"arrays/{name} does not match its SHA-256")
    with _ORBAX:
        return ocp.load(str((path / "arrays").absolute()))


def _file_digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _check(path: Path, arrays: Mapping[str, Any], wanted: Mapping[str, Any], part: bool) -> None:
    other = sorted(wanted.keys() - arrays.keys() if part else wanted.keys() ^ arrays.keys())
    if other:
        raise UserError(f"{path} is the checkpoint of another model: it differs in {other[0]}")
    for name, leaf in wanted.items():
        there, here = arrays[name], leaf
        if here.shape is not None and (there.shape, there.dtype) != (here.shape, here.dtype):
            raise UserError(
                f"{path} is the checkpoint of another model: {name} is {there.dtype} "
                f"{list(there.shape)} there, {here.dtype} {list(here.shape)} here"
            )


def _remove(path: Path) -> None:
    # Renamed first: what is half deleted must not look like a checkpoint.
    trash = path.with_name(f"{path.name}.trash")
    path.rename(trash)
    shutil.rmtree(trash)
