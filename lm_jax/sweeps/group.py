"""Train the trials of a group side by side.

Each trial is a run in a separate directory, with a separate journal, probes and checkpoints
(`Trainer.events`). The train states of all trials stay on the devices as lanes, and the updates and
evaluations of all trials are made together. A trial can be stopped, killed and resumed like any
other run. If a trial ends or diverges, the other trials continue undisturbed.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lm_jax.data.corpus import Corpus
from lm_jax.data.windows import Prefetched
from lm_jax.sweeps.evaluation import losses
from lm_jax.sweeps.plan import Trial
from lm_jax.sweeps.vmapped_runs import Lane, VmappedRuns
from lm_jax.training.driver import Advance, Answer, Evaluation, Request, Reset, Rung, StepTimer
from lm_jax.training.evaluator import Stopped
from lm_jax.training.hosts import Processes
from lm_jax.training.journal import Watch
from lm_jax.training.loop import opened
from lm_jax.training.trainer import Events, Trainer

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
    """The training of a group: the driver of all its trials (`lm_jax.training.driver`)."""

    def __init__(
        self,
        works: dict[Trial, Trainer],
        failed: dict[Trial, Exception],
        prune: Pruner | None,
    ):
        self.works, self.failed, self.prune = works, failed, prune
        first = next(iter(works.values()))
        self.received = first.received
        configs = [work.config for work in works.values()]
        self.lanes = VmappedRuns(first.vocab, first.source, configs)
        self.runs = {trial: run for run, trial in enumerate(works)}
        for trial, work in works.items():
            work.holder = Lane(self.lanes, self.runs[trial])
        self.pace = StepTimer()
        self.events: dict[Trial, Events] = {}
        self.asked: dict[Trial, Request] = {}
        """Request of each running trial."""

    def run(self) -> None:
        """Trains until every trial has ended or has been stopped."""
        try:
            for trial, work in self.works.items():
                self.events[trial] = work.events()
                self._resume(trial, None)
            while self.asked:
                # Updates come last: until then more trials may ask to be evaluated together.
                if not (self._reset() or self._evaluate("validation") or self._evaluate("test")):
                    self._judge_rungs()
                    self._advance()
        finally:
            for events in self.events.values():
                events.close()

    def _resume(self, trial: Trial, answer: Answer) -> None:
        """Runs a trial's work between updates (log, save, …) up to the next request."""
        self.asked.pop(trial, None)
        try:
            self.asked[trial] = self.events[trial].send(answer)
        except StopIteration:
            pass
        except Exception as error:  # for example a full disk: the other trials continue
            self.failed[trial] = error

    def _reset(self) -> bool:
        """Empties the records of the trials that ask so; returns True if there are any."""
        trials = [trial for trial, request in self.asked.items() if request is Reset.METRICS]
        if trials:
            self.lanes.reset_metrics([self.runs[trial] for trial in trials])
        for trial in trials:
            self._resume(trial, None)
        return bool(trials)

    def _evaluate(self, split: Literal["validation", "test"]) -> bool:
        """Evaluates the trials that ask so on a split; returns True if there are any."""
        trials = [trial for trial, request in self.asked.items() if request == Evaluation(split)]
        if not trials:
            return False
        works = {self.runs[trial]: self.works[trial] for trial in trials}
        found: dict[int, Any] = {}
        with contextlib.suppress(Stopped):
            found = losses(self.lanes, works, split)
            if split == "validation":
                self.lanes.after_validation(
                    {run: loss.nats_per_token for run, loss in found.items()}
                )
        for trial in trials:
            self._resume(trial, found.get(self.runs[trial]))
        return True

    def _judge_rungs(self) -> None:
        """Judges the trials at the lowest rung, once no other trial is still on the way there."""
        waiting = {t: rung for t, rung in self.asked.items() if isinstance(rung, Rung)}
        if not waiting or self.prune is None:
            return
        if self.received:
            # A signal stopped other trials before the rung; a judgement now would miss them.
            for trial in waiting:
                self._resume(trial, None)
            return
        lowest = min(rung.step for rung in waiting.values())
        moving = (trial for trial in self.asked if trial not in waiting)
        if any(int(self.works[trial].summary.step) < lowest for trial in moving):
            return
        here = {trial: rung.nats for trial, rung in waiting.items() if rung.step == lowest}
        kept = self.prune(lowest, here)
        for trial in here:
            self._resume(trial, trial in kept)

    def _advance(self) -> None:
        """Makes updates until a trial reaches the requested update or diverges."""
        due = {t: request.step for t, request in self.asked.items() if isinstance(request, Advance)}
        if not due:
            return
        self.lanes.keep([self.runs[trial] for trial in self.asked])
        pace, works = self.pace, {trial: self.works[trial] for trial in due}
        steps = {trial: int(work.summary.step) for trial, work in works.items()}
        while True:
            began = time.perf_counter()
            stops = {self.runs[t]: pace.until(steps[t], stop) for t, stop in due.items()}
            self.lanes.advance(stops)
            taken = time.perf_counter() - began
            summaries = {trial: work.summary for trial, work in works.items()}
            made = {trial: int(summaries[trial].step) - steps[trial] for trial in due}
            pace.took(max(made.values()), taken)
            for trial, work in works.items():
                work.trained += taken * made[trial] / max(sum(made.values()), 1)
                steps[trial] += made[trial]
            there = [t for t in due if steps[t] == due[t] or summaries[t].diverged]
            if there or self.received:
                break
            for trial, work in works.items():
                work.watch(steps[trial], None)
        for trial in due if self.received else there:
            self._resume(trial, None)
