"""A run directory: the lock, the files, and the check that a config may resume the run.

config.json       the resolved config
vocabulary.json   the tokens, and a digest of the corpus
manifest.json     the checkpoints, and whose they are (lm_jax.training.manifest)
metrics.jsonl     one row per record (lm_jax.training.journal)
checkpoints/      train states (lm_jax.training.checkpoint)
result.json       the final result
error.json        the last error of a trial in a sweep, if the trial failed
.lock             the process that holds the directory
"""

import contextlib
import os
import platform
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from lm_jax import files
from lm_jax.config import Config
from lm_jax.data.corpus import Corpus
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.fields import differences
from lm_jax.settings import UserError, digest, from_json, parsed, to_json
from lm_jax.training import manifest
from lm_jax.training.checkpoint import steps_saved
from lm_jax.training.journal import read_result, read_rows
from lm_jax.training.manifest import Manifest

LOCK = ".lock"


@contextlib.contextmanager
def locked_dir(run_dir: Path, what: str = "run", sign: str = "config.json") -> Iterator[None]:
    """Lock the directory against other processes; create the directory if necessary.

    The operating system releases the lock when the process dies, even after kill -9. A user error
    raised before anything is written leaves no new directory behind.

    Args:
      run_dir: the directory.
      what: the kind of content ("run"), for error messages.
      sign: a file present in every directory of this kind.

    Raises:
      UserError: another process holds the directory; the path is a file, or not writable, or holds
        files but no run.
    """
    made = not run_dir.exists()
    with contextlib.ExitStack() as stack:
        try:
            files.make_folder(run_dir)
            foreign = [path.name for path in run_dir.iterdir() if not _is_ours(path.name)]
            if foreign and not (run_dir / sign).exists() and not is_run(run_dir):
                first = sorted(foreign)[0]
                raise UserError(f"{run_dir} holds files but no {what}: {first}, for one")
            lock = stack.enter_context(files.locked(run_dir / LOCK, wait=False))
        except BlockingIOError:
            process = (run_dir / LOCK).read_text().strip() or "unknown"
            raise UserError(f"{run_dir} is in use: process {process} is at work there") from None
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{run_dir} cannot be a {what} directory: there is a file of that name"
            ) from None
        except OSError as error:
            raise UserError(f"{run_dir} cannot be a {what} directory: {error.strerror}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {platform.node()} since {time.strftime('%F %T')}")
        lock.flush()
        try:
            yield
        except UserError:
            if made and [path.name for path in run_dir.iterdir()] == [LOCK]:
                (run_dir / LOCK).unlink()  # nothing was written
                run_dir.rmdir()
            raise


def _is_ours(name: str) -> bool:
    # A run that failed before writing config.json leaves at most these files.
    return name in (LOCK, "vocabulary.json", "error.json") or name.endswith(".partial")


def is_run(run_dir: Path) -> bool:
    """True if the directory holds a run, perhaps a damaged one."""
    return any((run_dir / name).exists() for name in ("config.json", manifest.NAME))


def read_config(run_dir: Path) -> Config:
    """The config of a run.

    Raises:
      UserError: the directory holds no run, or a run of another version, or the file is damaged.
    """
    path = run_dir / "config.json"
    return from_json(Config, files.unsealed(_read(path), str(path)), str(path))


def read_vocabulary(run_dir: Path) -> tuple[Vocabulary, str]:
    """The vocabulary of a run, and the digest of its corpus.

    Raises:
      UserError: as `read_config`.
    """
    path = run_dir / "vocabulary.json"
    text = files.unsealed(_read(path), str(path))
    return Vocabulary.from_json(text, str(path)), str(parsed(text, str(path)).get("corpus"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        folder = path.parent
        what = f"it has no {path.name}" if folder.is_dir() else "there is no such directory"
        raise UserError(f"{folder} is not a run directory: {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def known(run_dir: Path, config: Config, corpus: str) -> Manifest:
    """The manifest of a run; built from the other files if manifest.json is damaged or foreign.

    Args:
      run_dir: the run.
      config: config of the run.
      corpus: digest of the corpus of the run.

    Raises:
      UserError: the run was begun on another corpus.
    """
    with contextlib.suppress(UserError):
        found = manifest.read(run_dir)
        if (found.config, found.corpus) == (digest(config), corpus):
            return found
    return _as_found(run_dir, config, corpus)


def _as_found(run_dir: Path, config: Config, corpus: str) -> Manifest:
    """A manifest that lists the checkpoints on the disk, or the last step in the records."""
    try:
        there = read_vocabulary(run_dir)[1]
    except UserError:  # damaged, too
        there = corpus
    if there != corpus:
        raise UserError(
            f"{run_dir} was begun on another text: its content or its tokens have changed since "
            f"(SHA-256 {there[:12]}… there, {corpus[:12]}… here)"
        )
    steps = steps_saved(run_dir)
    made = max((row["step"] for row in read_rows(run_dir / "metrics.jsonl")), default=0)
    ended = read_result(run_dir)
    if not steps and (made or ended):
        steps = [made if ended is None else ended["step"]]
    return manifest.new(config, corpus).model_copy(update={"checkpoints": steps})


def refuse_changes(run_dir: Path, config: Config) -> None:
    """Check that a config may start or resume a run in a directory.

    Raises:
      UserError: the directory holds a run of another config; the message names each field that
        differs.
    """
    try:
        if not is_run(run_dir):
            return
    except OSError as error:
        raise UserError(f"{run_dir} cannot be a run directory: {error.strerror}") from None
    with contextlib.suppress(UserError):
        if manifest.read(run_dir).config == digest(config):
            return  # whatever has become of config.json
    changes = differences(read_config(run_dir), config, adjustable=False)
    if changes:
        raise UserError(
            f"{run_dir} holds a run with other settings (there -> here): {'; '.join(changes)}"
        )


def write_files(run_dir: Path, config: Config, corpus: Corpus) -> None:
    """Write the first files of a run."""
    write_vocabulary(run_dir, corpus)
    write_config(run_dir, config)
    manifest.write(run_dir, manifest.new(config, corpus.digest))


def check_files(run_dir: Path, config: Config, corpus: Corpus) -> None:
    """Check the first files of a run, and write damaged files anew, with a warning.

    A copy of a damaged file is kept as NAME.damaged-N.

    Raises:
      UserError: the run was begun on another corpus, or its checkpoints are gone; nothing has been
        changed.
    """
    found = known(run_dir, config, corpus.digest)
    if found.checkpoints and config.train is not None and not steps_saved(run_dir):
        raise lost(run_dir, found.checkpoints)

    def check_config() -> None:
        if differences(read_config(run_dir), config, adjustable=False):
            raise UserError(f"{run_dir / 'config.json'} belongs to another run")

    def check_manifest() -> None:
        if manifest.read(run_dir) != found:
            raise UserError(f"{run_dir / manifest.NAME} belongs to another run")

    def check_vocabulary() -> None:
        if read_vocabulary(run_dir)[1] != corpus.digest:
            raise UserError(f"{run_dir / 'vocabulary.json'} belongs to another run")

    for name, check, write in (
        ("vocabulary.json", check_vocabulary, lambda: write_vocabulary(run_dir, corpus)),
        ("config.json", check_config, lambda: write_config(run_dir, config)),
        (manifest.NAME, check_manifest, lambda: manifest.write(run_dir, found)),
    ):
        path = run_dir / name
        try:
            check()
        except UserError as error:
            copy = f", as it was: {files.keep_damaged(path)}" if path.exists() else ""
            if copy or found.checkpoints:  # or a process stopped before it wrote the file
                warnings.warn(f"{error} (written anew{copy})", stacklevel=2)
            write()


def lost(run_dir: Path, steps: Iterable[int]) -> UserError:
    """The error for a run without an intact checkpoint, though states have been saved.

    Args:
      run_dir: the run.
      steps: the saved steps.
    """
    return UserError(
        f"{run_dir} has saved its state after {', '.join(map(str, steps))} updates, and no "
        "checkpoint of these is intact: --restart (in Python, restart=True) keeps the directory "
        "under another name and begins anew"
    )


def set_aside(run_dir: Path, what: str = "run", sign: str = "config.json") -> Path | None:
    """Rename a directory to the first free name `run_dir.old-N`; return the new path.

    Returns None, and does nothing, if there is no run, or sweep. Args and Raises: as `locked_dir`.
    """
    if not is_run(run_dir) and not (run_dir / sign).exists():
        return None
    if Path.cwd().is_relative_to(run_dir.resolve()):
        raise UserError(f"{run_dir} cannot be renamed: it is the working directory, or above it")
    with locked_dir(run_dir, what, sign):
        aside = files.free_name(run_dir, "old")
        run_dir.rename(aside)
    return aside


def write_config(run_dir: Path, config: Config) -> None:
    """Write config.json."""
    files.write_whole(run_dir / "config.json", files.sealed(to_json(config)))


def write_vocabulary(run_dir: Path, corpus: Corpus) -> None:
    """Write vocabulary.json."""
    text = corpus.vocabulary.to_json(corpus=corpus.digest)
    files.write_whole(run_dir / "vocabulary.json", files.sealed(text))
