"""Start or resume a run: from the config to the result."""

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_jax import files, models
from lm_jax.config import LRU, RNN, Config, Model, NGram, NoBlock, in_steps, resolve, train_of
from lm_jax.data.batches import check_length
from lm_jax.data.corpus import Corpus, load
from lm_jax.data.windows import updates_of_epoch
from lm_jax.models.counts import check_order
from lm_jax.settings import UserError, digest
from lm_jax.training import directory, journal, manifest
from lm_jax.training.checkpoint import place_complete
from lm_jax.training.cluster import join
from lm_jax.training.devices import device_count
from lm_jax.training.hosts import ManyProcesses, Processes
from lm_jax.training.journal import Watch
from lm_jax.training.ngram_run import NGramRun
from lm_jax.training.runs import Run, load_run
from lm_jax.training.step import chunk_length
from lm_jax.training.trainer import Trainer, too_few

ONE_INTERRUPT = b"\nsaving, then stopping; press Ctrl-C again to stop at once without saving\n"


def train(
    config: Config,
    run_dir: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    watch: Watch | None = None,
    devices: int | None = None,
    restart: bool = False,
    distributed: bool = False,
) -> Run:
    """Train a model, or resume a run: `lm_jax.train` without a progress bar.

    The arguments, the result and the errors are those of `lm_jax.train`, except that nothing is
    shown if `watch` is None.
    """
    run_dir, processes = Path(run_dir), _processes(config, devices, distributed)
    config, corpus = processes.each(prepared, config, text)
    processes.check_same({"the settings": digest(config), "the text": corpus.digest})
    warn_of_linear_layers(config.model)
    if restart:
        processes.first(_restart, run_dir)
    with (
        stop_signals() as processes.received,
        opened(config, run_dir, corpus, processes, watch) as work,
    ):
        if work is not None:
            processes.run(work)
    del work  # frees the memory of the state before the run is loaded
    leave(processes.received)
    return load_run(run_dir)


@contextlib.contextmanager
def opened(
    config: Config,
    run_dir: Path,
    corpus: Corpus,
    processes: Processes,
    watch: Watch | None = None,
    like: Trainer | None = None,
) -> "Iterator[Trainer | NGramRun | None]":
    """Create or open a run directory, lock the directory, and yield the trainer of the run.

    Args:
      config, corpus: as returned by `prepared`.
      run_dir: directory of the run.
      processes, watch, like: see `Trainer`.

    Yields:
      the trainer, or the run of an n-gram model; None if the run is over.

    Raises:
      UserError: the text or the directory is not usable; nothing has been changed.
    """
    processes.first(directory.refuse_changes, run_dir, config)
    with processes.locked(run_dir):
        begun = processes.first(directory.is_run, run_dir)
        if begun:
            processes.first(place_complete, run_dir)
            processes.first(directory.check_files, run_dir, config, corpus)
        if not processes.first(_goes_on, run_dir, config):
            yield None
            return
        tell = watch or (lambda step, row: None)
        # A config that does not fit the text is refused here, before anything is written.
        if config.train is None:
            work = NGramRun(config, run_dir, corpus, processes.received, tell)
        else:
            work = processes.each(Trainer, config, run_dir, corpus, processes, tell, like)
        if not begun:
            processes.first(directory.write_files, run_dir, config, corpus)
        yield work


def _processes(config: Config, devices: int | None, distributed: bool) -> Processes:
    """The processes of a run.

    Raises:
      UserError: there are fewer devices, or the run cannot be distributed.
    """
    if not distributed:
        return Processes(count=device_count(devices, config.data.batch_size))
    if devices is not None:
        raise UserError(f"devices={devices}: a distributed run takes all devices of all processes")
    if config.train is None:
        raise UserError("model=ngram cannot be distributed: one process counts the n-grams")
    join()
    return ManyProcesses()


def warn_of_linear_layers(model: Model) -> None:
    """Warn if all layers together are a single linear map of their inputs."""
    if not isinstance(model, RNN) or not isinstance(model.block, NoBlock):
        return
    if isinstance(model.cell, LRU) and model.layers > 1:
        warnings.warn(
            f"model.layers={model.layers} of model.cell=lru are one linear map of the inputs: "
            "model.block puts a nonlinear map of each step between them",
            stacklevel=3,
        )


def _restart(run_dir: Path) -> None:
    directory.set_aside(run_dir)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGTERM and SIGINT in a list; a second SIGINT raises KeyboardInterrupt at once.

    In a terminal the first SIGINT is answered with a line on standard error.

    Outside the main thread Python allows no handlers, and the list stays empty.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))
        if number == signal.SIGINT and os.isatty(2):
            os.write(2, ONE_INTERRUPT)  # not print: the signal may interrupt a print

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(received: Sequence[signal.Signals]) -> None:
    """End the process if a signal was received, with the exception of the signal."""
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)
    if signal.SIGINT in received:
        raise KeyboardInterrupt


def prepared(config: Config, text: str | Sequence[str] | None = None) -> tuple[Config, Corpus]:
    """The resolved config, with all derived fields filled in, and the corpus.

    Raises:
      UserError: the text cannot be read, or the config does not fit the text.
    """
    if not isinstance(config.model, NGram):
        train_of(config)
    config = resolve(config)
    corpus = load(config.data, text)
    return completed(config, corpus), corpus


def completed(config: Config, corpus: Corpus, epochs: dict[Any, int] | None = None) -> Config:
    """The resolved config, with the fields that depend on the text filled in.

    Args:
      config: the config.
      corpus: the text.
      epochs: cache of the number of updates per epoch, by data config and length; new numbers are
        added.

    Raises:
      UserError: the config does not fit the text.
    """
    # Refuses a model that does not fit V.
    vocab = models.vocab_of(config.model, corpus.vocabulary)
    models.make(config.model, vocab, regression=config.data.regression)
    if isinstance(config.model, NGram):
        check_order(
            corpus.train.tokens,
            order=config.model.order,
            boundary=corpus.vocabulary.boundary,
            sentence_boundaries=config.model.sentence_boundaries,
        )
    if config.train is None:
        return config
    length = chunk_length(config)
    if config.data.batching == "streams" and corpus.task is None:
        name = "data.length" if length == config.data.length else "train.gradient.k1"
        check_length(len(corpus.train.tokens), config.data.batch_size, length, name)
    if config.train.epochs is None:
        return config
    epochs, way = {} if epochs is None else epochs, (config.data, length)
    if way not in epochs:
        data = config.data
        epochs[way] = updates_of_epoch(corpus, data.batching, data.batch_size, length)
    return in_steps(config, epochs[way])


def _goes_on(run_dir: Path, config: Config) -> bool:
    """True if the run is not over.

    Raises:
      UserError: the run has made more steps than the config asks for.
    """
    path = run_dir / "result.json"
    try:
        run, ended = load_run(run_dir), manifest.read(run_dir).journal
    except UserError:  # the run is new, or the checkpoints are damaged
        return True
    result = run.result
    if result is None and path.exists():
        files.keep_damaged(path)
    if result is None or result["status"] == "stopped" or run.step < result["step"]:
        return True
    if ended is None or not journal.holds(run_dir, ended):
        return True
    if config.train is None:
        return False
    steps = config.train.steps
    if result["status"] in ("diverged", "pruned") or result["step"] == steps:
        return False
    if result["step"] > steps:
        raise too_few(steps, result["step"])
    return not result["stopped_early"]
