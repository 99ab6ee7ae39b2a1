"""A run from its config to its result, made or gone on with."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_jax import models
from lm_jax.config import Config, NGram, in_steps, resolve
from lm_jax.data.batches import check_length
from lm_jax.data.corpus import Corpus, load
from lm_jax.models.counts import check_order
from lm_jax.settings import UserError
from lm_jax.training import directory, journal
from lm_jax.training.counted import Counting
from lm_jax.training.descent import Descent, too_few
from lm_jax.training.devices import device_count
from lm_jax.training.feed import feed_of
from lm_jax.training.journal import Watch
from lm_jax.training.runs import Run, load_run
from lm_jax.training.signals import stop_signals


def train(
    config: Config,
    run_dir: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    watch: Watch | None = None,
    devices: int | None = None,
) -> Run:
    """Trains a model, or goes on where an earlier call on the same directory stopped.

    SIGTERM saves and raises SystemExit(143); SIGINT saves and raises KeyboardInterrupt. In both
    cases, and after a crash of any kind, the same call goes on.

    Args:
      config: what to train; in a directory with a run, the config of that run but for fields that
        are `lm_jax.settings.Adjustable`.
      run_dir: where the run lives; made if it does not exist.
      text: with `data.source="memory"`, one text, or three (training, validation, test).
      watch: called as watch(step, row) about once a second, with a row of metrics.jsonl where one
        was written and else with None.
      devices: how many share the lanes of a batch, whose size they divide; None: all there are. It
        is no part of the config: a run may go on with another number, but for the last bits.

    Returns:
      the run, as `load_run` gives it.

    Raises:
      UserError: the config, the text or the directory will not do; nothing has been changed.
    """
    run_dir = Path(run_dir)
    config, corpus = prepared(config, text)
    count = device_count(devices)
    with (
        stop_signals() as received,
        opened(config, run_dir, corpus, received, watch, devices=count) as work,
    ):
        if work is not None:
            work.run()
    del work  # and its state with it, which is no more needed than it was as it ended
    leave(received)
    return load_run(run_dir)


@contextlib.contextmanager
def opened(
    config: Config,
    run_dir: Path,
    corpus: Corpus,
    received: list[signal.Signals],
    watch: Watch | None = None,
    like: Descent | None = None,
    devices: int = 1,
) -> "Iterator[Descent | Counting | None]":
    """A run's directory, made if need be and kept from other processes, and the work that is left.

    Args:
      config, corpus: as `prepared` gives them.
      run_dir: where the run lives.
      received, watch, like, devices: see `Descent`.

    Yields:
      what will do the work; None where the run is over.

    Raises:
      UserError: the text or the directory will not do; nothing has been changed.
    """
    directory.refuse_changes(run_dir, config)
    with directory.claimed(run_dir):
        if (run_dir / "config.json").exists():
            directory.settle(run_dir, config, corpus)
        if not _goes_on(run_dir, config):
            yield None
            return
        tell = watch or (lambda step, row: None)
        # Whatever does not fit the text is refused before anything is written.
        if config.train is None:
            work = Counting(config, run_dir, corpus, received, tell)
        else:
            work = Descent(config, run_dir, corpus, received, tell, like, devices)
        directory.settle(run_dir, config, corpus)
        yield work


def leave(received: Sequence[signal.Signals]) -> None:
    """Ends the process as it was told to, where it was."""
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)
    if signal.SIGINT in received:
        raise KeyboardInterrupt


def prepared(config: Config, text: str | Sequence[str] | None = None) -> tuple[Config, Corpus]:
    """The config with all that follows from it and its text filled in, and the text.

    Raises:
      UserError: the text cannot be had, or the config does not fit it.
    """
    config = resolve(config)
    corpus = load(config.data, text)
    return fitted(config, corpus), corpus


def fitted(config: Config, corpus: Corpus, epochs: dict[Any, int] | None = None) -> Config:
    """The resolved config with all that follows from its text filled in.

    Args:
      config: the config.
      corpus: its text.
      epochs: updates in an epoch, as far as they are known of ways to read the corpora; what is
        found is added, for to count them takes the whole text to the device.

    Raises:
      UserError: the config does not fit the text.
    """
    # Refuses what does not fit V.
    models.make(config.model, len(corpus.vocabulary), real=config.data.real)
    if isinstance(config.model, NGram):
        check_order(
            corpus.train.tokens,
            order=config.model.order,
            boundary=corpus.vocabulary.boundary,
            bounded=config.model.bounded,
        )
    if config.train is None:
        return config
    k1 = config.train.k1
    length = k1 or config.data.length
    if config.data.batching == "streams" and corpus.task is None:
        name = "data.length" if k1 is None else "train.k1"
        check_length(len(corpus.train.tokens), config.data.batch_size, length, name)
    if config.train.epochs is None:
        return config
    epochs, way = {} if epochs is None else epochs, (config.data, length)
    if way not in epochs:
        epochs[way] = feed_of(config, corpus, length).epoch
    return in_steps(config, epochs[way])


def _goes_on(run_dir: Path, config: Config) -> bool:
    """Whether there is anything left to do for a run.

    Raises:
      UserError: it has made more steps than the config asks for.
    """
    result = journal.read_result(run_dir)
    if result is None or result["status"] == "stopped":
        return True
    try:
        if load_run(run_dir).step < result["step"]:
            return True
    except UserError:  # what it had come to is damaged
        return True
    if config.train is None:
        return False
    steps = config.train.steps
    if result["status"] in ("diverged", "pruned") or result["step"] == steps:
        return False
    if result["step"] > steps:
        raise too_few(steps, result["step"])
    return not result["stopped_early"]
