"""Do a job: train the trials, side by side if possible, and record failures.

As many trials are lanes at once as fit into half of the free memory by the estimate of
`lm_jax.sweeps.memory`. The estimate is made here, in the process that trains, because the process
that divides a sweep among workers may use no device. If a group runs out of memory all the same,
the number of lanes is halved, down to 1 if necessary; each trial resumes from the newest
checkpoint.
"""

import dataclasses
import signal
from collections.abc import Mapping, Sequence

import jax

from lm_jax import models
from lm_jax.config import train_of
from lm_jax.data.corpus import Corpus
from lm_jax.sweeps.failures import Failure, forget, record
from lm_jax.sweeps.group import train_group
from lm_jax.sweeps.jobs import Job, Watcher
from lm_jax.sweeps.memory import lane_bytes, lanes_that_fit
from lm_jax.sweeps.plan import CorpusCache, Trial
from lm_jax.training.hosts import Processes
from lm_jax.training.loop import opened


def run_job(
    job: Job,
    received: list[signal.Signals],
    watch: Watcher | None = None,
    texts: CorpusCache | None = None,
) -> dict[int, Failure]:
    """Trains the trials of a job to their ends, or resumes after an earlier attempt.

    Args:
      job: the job.
      received: stop signals; the list grows as signals arrive. After a signal all trials are saved.
      watch: see `Watcher`.
      texts: cache of the sweep's texts; None: a new cache.

    Returns:
      the failures, by the trial's number, also recorded as error.json in the run directories. A
      failure does not stop the other trials.
    """
    texts = CorpusCache(job.text) if texts is None else texts
    done = _in_rows if job.vectorised else _in_turn
    return done(job, received, watch, texts)


def _in_rows(
    job: Job, received: list[signal.Signals], watch: Watcher | None, texts: CorpusCache
) -> dict[int, Failure]:
    failed: dict[int, Failure] = {}
    left = list(job.trials)
    try:
        corpus = texts.get(left[0].config.data)
        first = left[0].config
        fit = lanes_that_fit(lane_bytes(first, models.vocab_of(first.model, corpus.vocabulary)))
    except Exception as error:  # fails every unfinished trial of the job
        failed = {trial.number: Failure.of(error) for trial in job.unfinished()}
        _note(job, left, failed)
        return failed
    lanes = min(job.lanes or fit, fit, len(left))
    while left and not received:
        now, left = left[:lanes], left[lanes:]
        wrong = _row(job, now, corpus, received, watch)
        if lanes > 1 and any(_out_of_memory(failure) for failure in wrong.values()):
            lanes //= 2
            short = [t for t in now if t.number in wrong and _out_of_memory(wrong[t.number])]
            wrong = {n: failure for n, failure in wrong.items() if not _out_of_memory(failure)}
            left = short + left
        _note(job, now, wrong)
        failed |= wrong
    return failed


def _note(job: Job, trials: Sequence[Trial], wrong: Mapping[int, Failure]) -> None:
    """Records the failures of trials, and forgets earlier failures of the trials that ended."""
    for trial in trials:
        if trial.number in wrong:
            record(job.place(trial), wrong[trial.number], job.attempt)
        elif trial not in job.unfinished():
            forget(job.place(trial))


def _row(
    job: Job,
    trials: Sequence[Trial],
    corpus: Corpus,
    received: list[signal.Signals],
    watch: Watcher | None,
) -> dict[int, Failure]:
    try:
        prune, rungs = None, ()
        if job.halving is not None:
            prune = job.halving.pruner(job.sweep_dir)
            rungs = job.halving.rungs(train_of(trials[0].config).steps)
        wrong = train_group(
            trials, job.sweep_dir, corpus, received, watch=watch, prune=prune, rungs=rungs
        )
        return {trial.number: Failure.of(error) for trial, error in wrong.items()}
    except Exception as error:  # fails every unfinished trial of the row
        failure, left = Failure.of(error), job.unfinished()
        return {trial.number: failure for trial in trials if trial in left}


def _out_of_memory(failure: Failure) -> bool:
    is_xla = failure.type in (jax.errors.JaxRuntimeError.__name__, "XlaRuntimeError")
    return is_xla and "RESOURCE_EXHAUSTED" in failure.error


def _in_turn(
    job: Job, received: list[signal.Signals], watch: Watcher | None, texts: CorpusCache
) -> dict[int, Failure]:
    failed: dict[int, Failure] = {}
    for trial in job.trials:
        if received:
            break
        try:
            if job.halving is not None and trial.config.train is not None:
                # A group of one, to be judged at the rungs.
                alone = dataclasses.replace(job, trials=(trial,))
                failed |= _in_rows(alone, received, watch, texts)
                continue
            corpus = texts.get(trial.config.data)
            told = None if watch is None else watch(trial)
            place = job.place(trial)
            with opened(trial.config, place, corpus, Processes(received), told) as work:
                if work is not None:
                    work.run()
            if trial not in job.unfinished():
                forget(job.place(trial))
        except Exception as error:  # fails this trial only
            failed[trial.number] = Failure.of(error)
            record(job.place(trial), failed[trial.number], job.attempt)
    return failed
