"""A run directory: the lock, the files, and the check that a config may resume the run.

config.json       the resolved config
vocabulary.json   the tokens, and a digest of the corpus
metrics.jsonl     one row per record (lm_jax.training.journal)
checkpoints/      train states (lm_jax.training.checkpoint)
result.json       the final result
error.json        the last error of a trial in a sweep, if the trial failed
.lock             the process that holds the directory
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from lm_jax import files
from lm_jax.config import Config
from lm_jax.data.corpus import Corpus
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.fields import differences
from lm_jax.files import write_whole
from lm_jax.settings import UserError, from_json, parsed, to_json

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
            run_dir.mkdir(parents=True, exist_ok=True)
            foreign = [path.name for path in run_dir.iterdir() if not _is_ours(path.name)]
            if foreign and not (run_dir / sign).exists():
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
        lock.write(str(os.getpid()))
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


def read_config(run_dir: Path) -> Config:
    """The config of a run.

    Raises:
      UserError: the directory holds no run, or a run of another version.
    """
    return from_json(Config, _read(run_dir, "config.json"), str(run_dir / "config.json"))


def read_vocabulary(run_dir: Path) -> Vocabulary:
    """The vocabulary of a run.

    Raises:
      UserError: the directory holds no run, or a run of another version.
    """
    path = run_dir / "vocabulary.json"
    return Vocabulary.from_json(_read(run_dir, "vocabulary.json"), str(path))


def _read(run_dir: Path, name: str) -> str:
    try:
        return (run_dir / name).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        what = f"it has no {name}" if run_dir.is_dir() else "there is no such directory"
        raise UserError(f"{run_dir} is not a run directory: {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{run_dir / name} cannot be read: {error}") from None


def refuse_changes(run_dir: Path, config: Config) -> None:
    """Check that a config may start or resume a run in a directory.

    Raises:
      UserError: the directory holds a run of another config; the message names each field that
        differs.
    """
    try:
        if not (run_dir / "config.json").exists():
            return
    except OSError as error:
        raise UserError(f"{run_dir} cannot be a run directory: {error.strerror}") from None
    changes = differences(read_config(run_dir), config, adjustable=False)
    if changes:
        raise UserError(
            f"{run_dir} holds a run with other settings (there -> here): {'; '.join(changes)}"
        )


def write_or_check_manifest(run_dir: Path, config: Config, corpus: Corpus) -> None:
    """Write the vocabulary and the config of a new run, or check the text of an existing run.

    Raises:
      UserError: the text has changed since the start of the run.
    """
    if (run_dir / "config.json").exists():
        read_vocabulary(run_dir)
        refuse_other_text(run_dir, corpus)
    else:
        write_whole(run_dir / "vocabulary.json", corpus.vocabulary.to_json(corpus=corpus.digest))
        write_config(run_dir, config)


def refuse_other_text(run_dir: Path, corpus: Corpus) -> None:
    """Compare a corpus with the corpus at the start of the run.

    Raises:
      UserError: the two differ.
    """
    path = run_dir / "vocabulary.json"
    known = parsed(_read(run_dir, "vocabulary.json"), str(path)).get("corpus")
    if known != corpus.digest:
        raise UserError(
            f"{run_dir} was begun on another text: its content or its tokens have changed "
            f"since (SHA-256 {str(known)[:12]}… there, {corpus.digest[:12]}… here)"
        )


def set_aside(run_dir: Path) -> Path | None:
    """Rename a run directory to the first free name `run_dir.old-N`; return the new path.

    Returns None, and does nothing, if there is no run.

    Raises:
      UserError: as `locked_dir`.
    """
    if not (run_dir / "config.json").exists():
        return None
    with locked_dir(run_dir):
        names = (run_dir.with_name(f"{run_dir.name}.old-{n}") for n in itertools.count(1))
        aside = next(path for path in names if not os.path.lexists(path))
        run_dir.rename(aside)
    return aside


def write_config(run_dir: Path, config: Config) -> None:
    """Write config.json."""
    write_whole(run_dir / "config.json", to_json(config))
