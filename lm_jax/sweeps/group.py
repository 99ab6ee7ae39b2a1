"""Trials that share a program, trained side by side.

Each trial is a run in a directory of its own and goes its own course (`Descent.course`): it writes
its own journal, validates, probes and saves by itself. Only its updates are made together with
those of the others, as lanes. So a trial can be stopped, killed and gone on with as any other run,
and the others neither wait for one that is over nor notice one that diverges.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_jax.data.corpus import Corpus
from lm_jax.data.windows import Windows
from lm_jax.sweeps.mapped import Lanes
from lm_jax.sweeps.plan import Trial
from lm_jax.training.descent import Descent, Pace, Rung
from lm_jax.training.journal import Watch
from lm_jax.training.loop import opened

Judge = Callable[[int, Mapping[Trial, float]], set[Trial]]
"""(update, validation nats of the trials that have come there) -> those that go on."""


def train_group(
    trials: Sequence[Trial],
    sweep_dir: Path,
    corpus: Corpus,
    received: list[Any],
    *,
    watch: Callable[[Trial], Watch] | None = None,
    judge: Judge | None = None,
    rungs: Sequence[int] = (),
    width: int | None = None,
) -> dict[Trial, Exception]:
    """Trains trials of one group to their ends, or goes on where an earlier call stopped.

    Args:
      trials: whose configs have one shape and read one text.
      sweep_dir: where their directories are.
      corpus: the text.
      received: signals to stop, as they come in.
      watch: called with each trial as it begins, for what `lm_jax.train` is to tell of it.
      judge: says at each rung which trials go on; the others end there as pruned.
      rungs: the updates at which it is asked.
      width: see `Lanes`.

    Returns:
      what went wrong with a trial, if anything did; the others have gone on.
    """
    failed: dict[Trial, Exception] = {}
    with contextlib.ExitStack() as stack:
        works: dict[Trial, Descent] = {}
        for trial in trials:
            like = next(iter(works.values()), None)
            told = None if watch is None else watch(trial)
            run_dir = sweep_dir / trial.directory
            try:
                held = opened(trial.config, run_dir, corpus, received, told, like)
                work = stack.enter_context(held)
            except Exception as error:  # whatever it is, it is this trial's
                failed[trial] = error
                continue
            if isinstance(work, Descent):
                work.rungs = frozenset(rungs)
                works[trial] = work
        if any(isinstance(work.feed, Windows) for work in works.values()):
            _one_by_one(works, failed)
        elif works:
            _Crew(works, failed, judge, width).run()
    return failed


def _one_by_one(works: Mapping[Trial, Descent], failed: dict[Trial, Exception]) -> None:
    """Trains runs whose text does not fit on the device, each from windows of its own."""
    for trial, work in works.items():
        try:
            if work.rungs:
                work.feed.whole()  # refuses: at a rung all must be there at once
            work.run()
        except Exception as error:
            failed[trial] = error


class _Crew:
    """The works of a group, on their common way."""

    def __init__(
        self,
        works: dict[Trial, Descent],
        failed: dict[Trial, Exception],
        judge: Judge | None,
        width: int | None,
    ):
        self.works, self.failed, self.judge = works, failed, judge
        first = next(iter(works.values()))
        self.lanes = Lanes(first.vocab_size, first.source, len(works), width=width)
        self.pace = Pace()
        self.courses: dict[Trial, Generator[int | Rung, bool | None, None]] = {}
        self.asked: dict[Trial, int | Rung] = {}
        """What each trial that goes on is waiting for: its updates, or a verdict."""

    def run(self) -> None:
        """Until every trial is over, or has been stopped."""
        try:
            for trial, work in self.works.items():
                self.courses[trial] = work.course()
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
        """Lets a trial do what it has to between updates."""
        self.asked.pop(trial, None)
        try:
            self.asked[trial] = self.courses[trial].send(answer)
        except StopIteration:
            pass
        except Exception as error:  # a full disk, say: the others go on
            self.failed[trial] = error

    def _judge_rungs(self) -> None:
        """Answers those at the lowest rung, once nobody is on the way to it."""
        waiting = {t: rung for t, rung in self.asked.items() if isinstance(rung, Rung)}
        if not waiting or self.judge is None:
            return
        if any(self.works[trial].received for trial in waiting):
            # Others have stopped on their way here: these would be judged without them.
            for trial in waiting:
                self._resume(trial, None)
            return
        lowest = min(rung.step for rung in waiting.values())
        moving = (trial for trial in self.asked if trial not in waiting)
        if any(int(self.works[trial].state.step) < lowest for trial in moving):
            return
        here = {trial: rung.nats for trial, rung in waiting.items() if rung.step == lowest}
        kept = self.judge(lowest, here)
        for trial in here:
            self._resume(trial, trial in kept)

    def _advance(self, due: dict[Trial, int]) -> None:
        """Makes updates until a trial is where it wants to be, or its loss is not finite."""
        works = [self.works[trial] for trial in due]
        before = [int(work.state.step) for work in works]
        self.lanes = self.lanes.for_fewer(len(works))
        self.lanes.put([work.state for work in works], [work.config for work in works])
        for work in works:
            del work.state  # the lanes have it
        received, pace, steps = works[0].received, self.pace, before
        while True:
            began = time.perf_counter()
            stops = [pace.until(step, stop) for step, stop in zip(steps, due.values(), strict=True)]
            after, finite = self.lanes.advance(stops)
            taken = time.perf_counter() - began
            made = [int(step) - old for step, old in zip(after, steps, strict=True)]
            pace.took(max(made), taken)
            for work, more in zip(works, made, strict=True):
                work.trained += taken * more / max(sum(made), 1)
            steps = [int(step) for step in after]
            there = [
                step == stop or not sound
                for step, stop, sound in zip(steps, due.values(), finite, strict=True)
            ]
            if any(there) or received:
                break
            for work, step in zip(works, steps, strict=True):
                work.watch(step, None)
        states = self.lanes.take(len(works))
        for trial, work, state, arrived in zip(due, works, states, there, strict=True):
            work.state = state
            if arrived or received:
                self._resume(trial, None)
