"""Checkpoints: the arrays of a train state in `checkpoints/STEP/`, with a digest of every file.

Orbax writes the arrays in the background while training continues. Orbax does not detect damage: a
flipped byte is restored unnoticed, or crashes a thread. A checkpoint therefore consists of

    checkpoints/00000500/arrays/        the files written by Orbax
    checkpoints/00000500/sha256.json    the SHA-256 of each file in arrays/

The folder is written under a temporary name and renamed when complete. Restoring takes the newest
checkpoint with all digests right. The arrays are stored flat, under names like
`params/layers/0/W_hh`, and restored into a template with the real structure. No other module uses
Orbax.

With a vocabulary of a million words a state takes gigabytes, and no second copy is held. A state is
written directly from its own memory, without compression, because a compressor holds its input. The
leaves are restored in groups: a large leaf alone, many small leaves together.
"""

import gc
import hashlib
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax import files
from lm_jax.settings import UserError

KEPT = 2  # checkpoints to keep; the older is a reserve in case the newer is damaged
COPIED = 2**27  # bytes; on a CPU, a state up to this size is copied and written during training
AT_ONCE = 2**25  # bytes of the leaves restored together

Loaded = TypeVar("Loaded")

# Orbax does not support two threads: several runs in one process, or loading a run in training.
_ORBAX = threading.Lock()


class OtherModel(UserError):
    """The checkpoint is intact but belongs to another model."""


class AsStored:
    """A leaf of a template to be restored in the shape and type of the saved array."""

    shape, dtype, size = None, None, 1


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree under names like `params/layers/0/W_hh`, without empty arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
        if leaf.size
    }


def tree_digest(tree: Any) -> str:
    """SHA-256 over the names, types, shapes and contents of a tree's arrays, sorted by name."""
    total = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.dtype} {leaf.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


class Checkpoints:
    """Writer of the checkpoints of a run, with a background thread."""

    def __init__(self, run_dir: Path, step: int):
        """Prepare the folder for a run that resumes from `step`."""
        self._folder = run_dir / "checkpoints"
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None
        newer = [found for found in _steps(self._folder) if found > step]
        for path in _left_by_a_crash(self._folder):
            files.remove(path)
        for damaged in newer:
            # Renamed, or the damaged checkpoints would count among the newest and be kept.
            path = self._folder / f"{damaged:08d}"
            files.remove(path.with_suffix(".damaged"))
            path.rename(path.with_suffix(".damaged"))

    def save(self, state: Any) -> None:
        """Save a state under its step; return when an update may overwrite the state's memory.

        The state is usually copied and then written in the background. On a CPU, a state of more
        than `COPIED` bytes is not copied, to save memory; the call returns after the write.

        Raises:
          OSError, ValueError: this save or the previous save failed, for example because the disk
            is full.
        """
        self.wait()
        # On a CPU the arrays are views.
        arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}
        large = sum(array.nbytes for array in arrays.values()) > COPIED
        if _on_cpu() and not large:
            arrays = {name: array.copy() for name, array in arrays.items()}
        self._writing = self._writer.submit(self._write, int(state.step), arrays)
        if _on_cpu() and large:
            self.wait()
            arrays.clear()  # as long as a view exists, JAX copies the memory instead of reusing it

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
          OSError, ValueError: the save failed.
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
        context = ocp.Context()
        context.memory.deepcopy_host_arrays = False
        context.array.saving.use_compression = False
        with _ORBAX, context:
            ocp.save(str((partial / "arrays").absolute()), arrays)
        files.write_json(partial / "sha256.json", _file_digests(partial / "arrays"))
        # A checkpoint of the step is damaged, or was saved before the validation at the step.
        files.discard(path, partial)
        for old in _steps(self._folder)[:-KEPT]:
            files.discard(self._folder / f"{old:08d}")


class Checkpoint:
    """An intact checkpoint."""

    def __init__(self, path: Path):
        """Check the digests and read the shapes and types of the arrays.

        Raises:
          OSError, ValueError: the checkpoint is damaged.
        """
        self._path, self._stored = path, _read(path)

    def restored(self, template: Any, *, part: bool = False) -> Any:
        """The state, in memory owned by JAX.

        Args:
          template: a tree of arrays, `jax.ShapeDtypeStruct` or `AsStored`, structured as the state.
          part: True if the template is a part of the state, selected by name; only this part is
            read.

        Raises:
          OtherModel: the checkpoint belongs to another model.
          OSError, ValueError: the checkpoint is gone.
        """
        wanted = named_leaves(template)
        _check(self._path, self._stored, wanted, part)
        found: dict[str, jax.Array] = {}
        groups = _together({name: self._stored[name] for name in wanted})
        for names in groups:
            found |= {name: _owned(array) for name, array in self._load(names).items()}
            if len(groups) > 1:
                gc.collect()  # Orbax leaves reference cycles that hold the arrays
        leaves, structure = jax.tree.flatten(template)
        chosen = iter([found[name] for name in wanted])
        return structure.unflatten(
            [next(chosen) if leaf.size else jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        )

    def _load(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        from orbax.checkpoint import v1 as ocp

        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with _ORBAX, context:
            named = {name: self._stored[name] for name in names}
            return ocp.load(str((self._path / "arrays").absolute()), named)


def restore(run_dir: Path, template: Any, *, until: int | None = None) -> Any | None:
    """The state of the newest intact checkpoint, or None if no checkpoint is intact (`newest`).

    Args:
      run_dir: the run.
      template: see `Checkpoint.restored`.
      until: last step to consider; None for no limit.

    Raises:
      OtherModel: the checkpoint belongs to another model.
    """
    return newest(run_dir, lambda checkpoint: checkpoint.restored(template), until=until)


def newest(
    run_dir: Path, use: Callable[[Checkpoint], Loaded], *, until: int | None = None
) -> Loaded | None:
    """Apply `use` to the newest intact checkpoint; return None if no checkpoint is intact.

    A damaged checkpoint is skipped with a warning.

    Args:
      run_dir: the run.
      use: function of the checkpoint; the result of the call is returned.
      until: last step to consider; None for no limit.
    """
    folder = run_dir / "checkpoints"
    for step in reversed(_steps(folder)):
        if until is not None and step > until:
            continue
        path = folder / f"{step:08d}"
        try:
            return use(Checkpoint(path))
        except OtherModel:
            raise
        except (OSError, ValueError) as error:
            warnings.warn(f"passing over the damaged checkpoint {path}: {error}", stacklevel=2)
    return None


def place_complete(run_dir: Path) -> None:
    """Rename each checkpoint that a killed process had written but not yet renamed.

    A save of a step that has a checkpoint takes the old one away first; a process killed then has
    left only the new one, under its temporary name.
    """
    for path in _left_by_a_crash(run_dir / "checkpoints"):
        place = path.with_suffix("")
        complete = (path / "sha256.json").exists()  # written last
        taken = path.is_symlink() or place.exists()
        if path.suffix == ".partial" and complete and not taken:
            path.rename(place)


def _left_by_a_crash(folder: Path) -> list[Path]:
    """The checkpoints under a temporary name."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return [path for path in paths if re.fullmatch(r"[0-9]{8,}\.(partial|trash)", path.name)]


def steps_saved(run_dir: Path) -> list[int]:
    """The steps of a run's checkpoints in increasing order, including damaged checkpoints."""
    return _steps(run_dir / "checkpoints")


def _steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, sorted; entries with other names are ignored.

    Raises:
      UserError: the folder is a file, or an entry has the name of a checkpoint but is none.
    """
    files.refuse_links(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: the checkpoints of a run are in a folder")
    names: Iterable[Path] = folder.iterdir() if folder.exists() else ()
    found = [path for path in names if re.fullmatch(r"[0-9]{8}|[1-9][0-9]{8,}", path.name)]
    return sorted(int(path.name) for path in found if _is_there(path))


def _is_there(path: Path) -> bool:
    """True unless the training process has removed the checkpoint in the meantime."""
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


def _read(path: Path) -> dict[str, Any]:
    """The shape and type of each array, after a check of all files against the digests."""
    from orbax.checkpoint import v1 as ocp

    known = files.read_json(path / "sha256.json", dict[str, str])
    found = _file_digests(path / "arrays")
    for name in sorted(known.keys() | found.keys()):
        if known.get(name) != found.get(name):
            raise ValueError(f"arrays/{name} does not match its SHA-256")
    with _ORBAX:
        return dict(ocp.metadata(str((path / "arrays").absolute())).metadata)


def _together(stored: Mapping[str, Any]) -> list[list[str]]:
    """The names of the arrays in groups of at most `AT_ONCE` bytes; a larger array is alone."""
    groups, room = [], 0
    for name, array in stored.items():
        size = math.prod(array.shape) * array.dtype.itemsize
        if size > room:
            groups.append([])
            room = AT_ONCE
        groups[-1].append(name)
        room -= size
    return groups


def _owned(array: np.ndarray) -> jax.Array:
    """The array, in memory that an update may overwrite."""
    put = jax.device_put(array)
    if _on_cpu() and put.unsafe_buffer_pointer() == array.ctypes.data:
        put = jnp.copy(put)  # JAX must not overwrite NumPy's memory
    return jax.block_until_ready(put)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


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
        has = "holds" if other[0] in arrays else "does not hold"
        raise OtherModel(
            f"{path} is the checkpoint of another model, or of another version of lm_jax: "
            f"it {has} {other[0]}"
        )
    for name, leaf in wanted.items():
        there, here = arrays[name], leaf
        if here.shape is not None and (there.shape, there.dtype) != (here.shape, here.dtype):
            raise OtherModel(
                f"{path} is the checkpoint of another model: {name} is {there.dtype} "
                f"{list(there.shape)} there, {here.dtype} {list(here.shape)} here"
            )
