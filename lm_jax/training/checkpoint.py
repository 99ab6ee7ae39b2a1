"""Checkpoints: the arrays of a train state in `checkpoints/STEP/`, with a manifest.

Orbax writes the arrays in the background while training continues. Orbax does not detect damage: a
flipped byte is restored unnoticed, or crashes a thread. A checkpoint therefore consists of

    checkpoints/00000500/arrays/          the files written by Orbax
    checkpoints/00000500/manifest.json    whose they are, and SHA-256 of each file and each array

The folder is written under a temporary name, renamed when all of it is on the disk, and then listed
in the manifest of the run. Restoring takes the newest checkpoint of the run with all digests right.
The arrays are stored flat, under names like `params/layers/0/W_hh`, and restored into a template
with the real structure.

With a vocabulary of a million words a state takes gigabytes, and no second copy is held. A large
state is written directly from its own memory, without compression, because a compressor holds its
input. The leaves are restored in groups: a large leaf alone, many small leaves together.
"""

import contextlib
import gc
import hashlib
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax import files
from lm_jax.settings import UserError
from lm_jax.training import manifest
from lm_jax.training.arrays import Stored, load_arrays, save_arrays
from lm_jax.training.journal import Kept
from lm_jax.training.manifest import Contents, Leaf, Manifest, environment

NEWEST = 2  # checkpoints to keep; the older is a reserve in case the newer is damaged
SPACED = 8, 64  # saves between the older reserves, of which the newest is kept
# 400 MB. On a CPU, a state up to this size is copied, and the copy is written during training. 30
# million parameters with the moments of Adam take 360 MB.
COPIED = 3 * 2**27
AT_ONCE = 2**25  # bytes of the leaves restored together

Loaded = TypeVar("Loaded")


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
        total.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        total.update(_bytes_of(leaf))
    return total.hexdigest()


def _bytes_of(leaf: Any) -> memoryview:
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data


class Checkpoints:
    """Writer of the checkpoints of a run, with a background thread."""

    def __init__(
        self,
        run_dir: Path,
        step: int,
        known: Manifest,
        every: int = 1,
        devices: Sequence[Any] | None = None,
    ):
        """Prepare the folder for a run that resumes from `step`.

        Args:
          run_dir: the run.
          step: step of the state that the run resumes from; newer checkpoints are damaged, and are
            renamed.
          known: the manifest of the run, kept up to date from here on.
          every: updates between two saves.
          devices: the devices of the run; None for those of this process.
        """
        self._devices = devices
        self._run_dir, self._folder = run_dir, run_dir / "checkpoints"
        self._manifest, self._every = known, every
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None
        self._copies: dict[str, np.ndarray] = {}  # for all saves: new memory is slower
        newer = [found for found in _steps(self._folder) if found > step]
        for path in _left_by_a_crash(self._folder):
            files.remove(path)
        for damaged in newer:
            # Renamed, or the damaged checkpoints would count among the newest and be kept.
            path = self._folder / f"{damaged:08d}"
            path.rename(files.free_name(path, "damaged"))

    def save(self, state: Any, rows: Kept, *, diverged: bool = False) -> None:
        """Save a state under its step; return when an update may overwrite the state's memory.

        The state is usually copied and then written in the background. On a CPU, a state of more
        than `COPIED` bytes is not copied, to save memory; the call returns after the write.

        Args:
          state: the state.
          rows: the rows of metrics.jsonl so far, which are on the disk.
          diverged: True if the run has diverged; the state then takes no good state's place.

        Raises:
          OSError, ValueError: this save or the previous save failed, for example because the disk
            is full.
        """
        self.wait()
        # On a CPU the arrays are views.
        arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}
        large = sum(array.nbytes for array in arrays.values()) > COPIED
        if _on_cpu() and not large:
            arrays = self._copied(arrays)
        self._writing = self._writer.submit(self._write, int(state.step), arrays, rows, diverged)
        if _on_cpu() and large:
            self.wait()
            arrays.clear()  # as long as a view exists, JAX copies the memory instead of reusing it

    def _copied(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copy the arrays into memory that all saves share."""
        if not self._copies:
            self._copies = {name: np.empty_like(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            np.copyto(self._copies[name], array)
        return dict(self._copies)

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
          OSError, ValueError: the save failed.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def finish(self, rows: Kept) -> None:
        """Wait as in `wait`, and note the rows of metrics.jsonl at the end of the run."""
        self.wait()
        self._manifest = self._manifest.model_copy(update={"journal": rows})
        manifest.write(self._run_dir, self._manifest)

    def raise_failed(self) -> None:
        """Raise the error of the last save, as `wait` does, if the save has already failed."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Wait as in `wait`, and end the background thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def _write(self, step: int, arrays: dict[str, np.ndarray], rows: Kept, diverged: bool) -> None:
        path = self._folder / f"{step:08d}"
        try:
            self._write_folder(path, step, arrays, rows)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):  # to leave room for others
                files.remove(path.with_suffix(".partial"))
            why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            size = sum(array.nbytes for array in arrays.values())
            free = shutil.disk_usage(self._run_dir).free
            raise OSError(
                f"{path} cannot be saved ({size:,} bytes, {free:,} free): {why}"
            ) from None
        there = _steps(self._folder)
        kept = _to_keep(there, self._every, NEWEST + diverged)
        self._manifest = self._manifest.model_copy(update={"checkpoints": kept, "journal": None})
        manifest.write(self._run_dir, self._manifest)
        for old in sorted({*there} - {*kept}):
            files.discard(self._folder / f"{old:08d}")

    def _write_folder(
        self, path: Path, step: int, arrays: dict[str, np.ndarray], rows: Kept
    ) -> None:
        partial = path.with_suffix(".partial")
        partial.mkdir(parents=True)
        # The lack of room is found before anything is written, and named by the system's own word.
        files.ask_for_room(partial, sum(array.nbytes for array in arrays.values()))
        save_arrays(partial / "arrays", arrays)
        files.tree_to_disk(partial / "arrays")
        contents = Contents(
            step=step,
            config=self._manifest.config,
            corpus=self._manifest.corpus,
            journal=rows,
            environment=environment(self._devices),
            files=_file_digests(partial / "arrays"),
            leaves={name: _leaf(array) for name, array in arrays.items()},
        )
        files.write_sealed(partial / manifest.NAME, contents.model_dump(), None)
        # A checkpoint of the step is damaged, or was saved before the validation at the step.
        files.discard(path, partial)


def _to_keep(steps: list[int], every: int, newest: int) -> list[int]:
    """The newest checkpoints, and further back the newest of every 8th and every 64th save."""
    spaced = [[step for step in steps if step and step % (n * every) == 0] for n in SPACED]
    return sorted({*steps[-newest:], *(found[-1] for found in spaced if found)})


def _leaf(array: np.ndarray) -> Leaf:
    digest = hashlib.sha256(_bytes_of(array)).hexdigest()
    return Leaf(shape=list(array.shape), dtype=array.dtype.name, sha256=digest)


class Checkpoint:
    """An intact checkpoint.

    Attributes:
      contents: its manifest.
    """

    def __init__(self, path: Path, known: Manifest):
        """Check the files against the checkpoint's manifest, and the manifest against the run's.

        Raises:
          OSError, ValueError: the checkpoint is damaged, or is another run's.
        """
        self._path, self.contents = path, _read(path, known)
        self._stored = {
            name: Stored(tuple(leaf.shape), jnp.dtype(leaf.dtype))
            for name, leaf in self.contents.leaves.items()
        }

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
        found = load_arrays(self._path / "arrays", {name: self._stored[name] for name in names})
        for name, array in found.items():
            if _leaf(array) != self.contents.leaves[name]:
                raise ValueError(f"{name} is not what was saved")
        return found


def newest(
    run_dir: Path,
    known: Manifest,
    use: Callable[[Checkpoint], Loaded],
    *,
    until: int | None = None,
) -> Loaded | None:
    """Apply `use` to the newest intact checkpoint; return None if no checkpoint is intact.

    A checkpoint that is damaged, missing or another run's is skipped with a warning.

    Args:
      run_dir: the run.
      known: the manifest of the run.
      use: function of the checkpoint; the result of the call is returned.
      until: last step to consider; None for no limit.

    Raises:
      OtherModel: the checkpoint belongs to another model.
    """
    folder = run_dir / "checkpoints"
    steps = {*_steps(folder), *known.checkpoints}
    for step in sorted(steps, reverse=True):
        if until is not None and step > until:
            continue
        path = folder / f"{step:08d}"
        try:
            return use(Checkpoint(path, known))
        except OtherModel:
            raise
        except FileNotFoundError:
            warnings.warn(f"passing over the checkpoint {path}: it is gone", stacklevel=2)
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
        complete = (path / manifest.NAME).exists()  # written last
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
    if inside and not inside & {"arrays", manifest.NAME}:
        raise UserError(f"{path} has the name of a checkpoint and is none: move it elsewhere")
    return True


def _read(path: Path, known: Manifest) -> Contents:
    """The manifest of a checkpoint, after a check of all files against it."""
    contents = files.read_sealed(path / manifest.NAME, Contents)
    if (contents.config, contents.corpus) != (known.config, known.corpus):
        raise ValueError("it belongs to a run of another config or text")
    if f"{contents.step:08d}" != path.name:
        raise ValueError(f"it is of step {contents.step}")
    found = _file_digests(path / "arrays")
    for name in sorted(contents.files.keys() | found.keys()):
        if contents.files.get(name) != found.get(name):
            raise ValueError(f"arrays/{name} does not match its SHA-256")
    return contents


def _together(stored: Mapping[str, Stored]) -> list[list[str]]:
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


def _check(path: Path, arrays: Mapping[str, Stored], wanted: Mapping[str, Any], part: bool) -> None:
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
