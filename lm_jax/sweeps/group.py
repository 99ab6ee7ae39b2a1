"""Train the trials of a group side by side.

Each trial is a run in a separate directory, with a separate journal, validation, probes and
checkpoints (`Trainer.events`). Only the updates of all trials are made together, as lanes. A trial
can therefore be stopped, killed and resumed like any other run. If a trial ends or diverges, the
other trials continue undisturbed.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_jax.data.corpus import Corpus
from lm_jax.data.windows import Prefetched
from lm_jax.sweeps.plan import Trial
from lm_jax.sweeps.vmapped_runs import VmappedRuns
from lm_jax.training.hosts import Processes
from lm_jax.training.journal import Watch
from lm_jax.training.loop import opened
from lm_jax.training.trainer import Rung, StepTimer, Trainer

Pruner = Callable[[int, Mapping[Trial, float]], set[Trial]]
"""Maps (update, validation nats of the trials that reached it) to the trials that continue."""


def train_group(
    trials: Sequence[Trial],
    sweep_dir: Path,
    corpus: Corpus,
    received: list[Any],
    *,
    watch: Callable[[Trial], Watch] | None = None,
    prune: Pruner | None = None,
    rungs: Sequence[int] = (),
) -> dict[Trial, Exception]:
    """Trains the trials of a group to their ends, or resumes after an earlier call.

    Args:
      trials: trials whose configs share a shape and a text.
      sweep_dir: directory of the sweep, with the run directories of the trials.
      corpus: the text.
      received: stop signals; the list grows as signals arrive.
      watch: called with each trial as the trial begins; returns the `watch` of `lm_jax.train`.
      prune: chooses at each rung the trials to continue; the others end there as pruned.
      rungs: call `prune` at these updates.

    Returns:
      the exception of each failed trial; a failure does not stop the other trials.
    """
    failed: dict[Trial, Exception] = {}
    with contextlib.ExitStack() as stack:
        works: dict[Trial, Trainer] = {}
        for trial in trials:
            like = next(iter(works.values()), None)
            told = None if watch is None else watch(trial)
            run_dir = sweep_dir / trial.directory
            try:
                held = opened(trial.config, run_dir, corpus, Processes(received), told, like)
                work = stack.enter_context(held)
            except Exception as error:  # fails this trial only
                failed[trial] = error
                continue
            if isinstance(work, Trainer):
                work.rungs = frozenset(rungs)
                works[trial] = work
        if any(isinstance(work.pipeline, Prefetched) for work in works.values()):
            _one_by_one(works, failed)
        elif works:
            _GroupTrainer(works, failed, prune).run()
    return failed


def _one_by_one(works: Mapping[Trial, Trainer], failed: dict[Trial, Exception]) -> None:
    """Trains trials in turn, for a text prefetched in windows."""
    for trial, work in works.items():
        try:
            if work.rungs:
                work.pipeline.whole()  # raises: at a rung all trials must be there at once
            work.run()
        except Exception as error:
            failed[trial] = error


class _GroupTrainer:
    """The training of a group: all trials advance together."""

    def __init__(
        self,
        works: dict[Trial, Trainer],
        failed: dict[Trial, Exception],
        prune: Pruner | None,
    ):
        self.works, self.failed, self.prune = works, failed, prune
        first = next(iter(works.values()))
        self.lanes = VmappedRuns(first.vocab_size, first.source, len(works))
        self.pace = StepTimer()
        self.courses: dict[Trial, Generator[int | Rung, bool | None, None]] = {}
        self.asked: dict[Trial, int | Rung] = {}
        """Request of each running trial: the update to advance to, or a rung to be judged at."""

    def run(self) -> None:
        """Trains until every trial has ended or has been stopped."""
        try:
            for trial, work in self.works.items():
                self.courses[trial] = work.events()
                self._resume(trial, None)
            while self.asked:
                self._judge_rungs()
                due = {t: stop for t, stop in self.asked.items() if isinstance(stop, int)}
                if due:
                    self._advance(due)
        finally:
            for course in self.courses.values():
                course.close()

    def _resume(self, trial: Trial, answer: bool | None) -> None:
        """Runs a trial's work between updates (log, validate, save) up to the next request."""
        self.asked.pop(trial, None)
        try:
            self.asked[trial] = self.courses[trial].send(answer)
        except StopIteration:
            pass
        except Exception as error:  # for example a full disk: the other trials continue
            self.failed[trial] = error

    def _judge_rungs(self) -> None:
        """Judges the trials at the lowest rung, once no other trial is still on the way there."""
        waiting = {t: rung for t, rung in self.asked.items() if isinstance(rung, Rung)}
        if not waiting or self.prune is None:
            return
        if any(self.works[trial].received for trial in waiting):
            # A signal stopped other trials before the rung; a judgement now would miss them.
            for trial in waiting:
                self._resume(trial, None)
            return
        lowest = min(rung.step for rung in waiting.values())
        moving = (trial for trial in self.asked if trial not in waiting)
        if any(int(self.works[trial].state.step) < lowest for trial in moving):
            return
        here = {trial: rung.nats for trial, rung in waiting.items() if rung.step == lowest}
        kept = self.prune(lowest, here)
        for trial in here:
            self._resume(trial, trial in kept)

    def _advance(self, due: dict[Trial, int]) -> None:
        """Makes updates until a trial reaches the requested update or diverges."""
        works = [self.works[trial] for trial in due]
        before = [int(work.state.step) for work in works]
        self.lanes = self.lanes.for_fewer(len(works))
        self.lanes.stack([work.state for work in works], [work.config for work in works])
        for work in works:
            del work.state  # the lanes hold it now
        received, pace, steps = works[0].received, self.pace, before
        while True:
            began = time.perf_counter()
            stops = [pace.until(step, stop) for step, stop in zip(steps, due.values(), strict=True)]
            after, diverged = self.lanes.advance(stops)
            taken = time.perf_counter() - began
            made = [int(step) - old for step, old in zip(after, steps, strict=True)]
            pace.took(max(made), taken)
            for work, more in zip(works, made, strict=True):
                work.trained += taken * more / max(sum(made), 1)
            steps = [int(step) for step in after]
            there = [
                step == stop or ended
                for step, stop, ended in zip(steps, due.values(), diverged, strict=True)
            ]
            if any(there) or received:
                break
            for work, step in zip(works, steps, strict=True):
                work.watch(step, None)
        states = self.lanes.unstack(len(works))
        for trial, work, state, arrived in zip(due, works, states, there, strict=True):
            work.state = state
            if arrived or received:
                self._resume(trial, None)
