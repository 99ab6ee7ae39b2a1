"""Successive halving: the trials of a sweep that do badly end early.

Rungs lie at r, rη, rη², … updates, below a trial's last; r is `first`, η is `factor`. Of all trials
that have come to a rung so far, whatever their group, the best ⌈n/η⌉ by their validation there go
on. Those that come together are judged together; nobody waits for a trial that is still to come,
so an early one may go on that would not have later. One that is ended is not taken up again.

A judgement is on the disk, a line of rungs.jsonl, before anyone acts on it. A trial that comes to a
rung again, after a kill, is told what is written there; so a sweep in one process judges in the
same way wherever it is killed. Several processes judge one at a time, in the order in which they
come.

Source: Li et al. (2020), "A System for Massively Parallel Hyperparameter Tuning", MLSys, whose
algorithm takes up a trial again where there are more and worse later.
"""

import fcntl
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lm_jax import files
from lm_jax.config import Config
from lm_jax.settings import UserError, fits
from lm_jax.sweeps.group import Judge
from lm_jax.sweeps.plan import Trial
from lm_jax.training import journal

RUNGS = "rungs.jsonl"

Judgement = dict[str, Any]
"""A line: `step`; `nats` of those that came, by their directories; `kept`, those that go on."""


@dataclass(frozen=True)
class Halving:
    """When trials are judged, and how many go on."""

    first: int
    """The update of the first rung."""
    factor: int = 3
    """One in so many goes on, and the next rung is so many times as far."""

    def __post_init__(self):
        for name, value, least in (("first", self.first, 1), ("factor", self.factor, 2)):
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"halving: {name}={value} is not a whole number of at least {least}"
                )

    def rungs(self, steps: int) -> tuple[int, ...]:
        """The updates at which a trial of so many is judged; none, where it is too short."""
        found, rung = [], self.first
        while rung < steps:
            found.append(rung)
            rung *= self.factor
        return tuple(found)

    def check(self, configs: Sequence[Config]) -> None:
        """Refuses trials of which none would be judged.

        Raises:
          UserError: no trial has an update beyond the first rung.
        """
        steps = [config.train.steps for config in configs if config.train is not None]
        if not steps:
            raise UserError("halving: no trial is trained, so that none would be judged")
        if max(steps) <= self.first:
            raise UserError(
                f"halving: first={self.first} is not below train.steps={max(steps)}, so that no "
                "trial would be judged"
            )

    def updates(self, trials: int, steps: int) -> int:
        """What trials of so many updates come to that reach each rung together, in updates.

        Fewer where some diverge; more where they come in several slices.
        """
        spent, before = 0, 0
        for rung in (*self.rungs(steps), steps):
            spent += trials * (rung - before)
            trials, before = -(-trials // self.factor), rung
        return spent

    def judge(self, sweep_dir: Path) -> Judge:
        """What `train_group` asks at each rung; any process of the sweep may have its own."""

        def judged(step: int, nats: Mapping[Trial, float]) -> set[Trial]:
            here = {trial.directory: loss for trial, loss in nats.items()}
            kept = self._decided(sweep_dir / RUNGS, step, here)
            return {trial for trial in nats if trial.directory in kept}

        return judged

    def _decided(self, path: Path, step: int, here: Mapping[str, float]) -> set[str]:
        """Those that go on: as it is written down, or as it is found now and written down."""
        with files.opened(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            before = [row for row in _whole(file) if row["step"] == step]
            come = {name: loss for row in before for name, loss in row["nats"].items()}
            kept = {name for row in before for name in row["kept"]}
            new = {name: loss for name, loss in here.items() if name not in come}
            if new:
                best = survivors(new, self.factor, list(come.values()))
                kept |= best
                row = {"step": step, "nats": new, "kept": sorted(best)}
                file.write(files.as_json(row).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        return kept


def survivors(
    here: Mapping[str, float], factor: int, before: Sequence[float | None] = ()
) -> set[str]:
    """Those that are among the best 1/factor of all, by nats; a loss that is not finite never is.

    Args:
      here: nats of those who are to be judged.
      factor: see `Halving`.
      before: nats of those who were judged earlier, and who have the better of a tie.
    """
    come = [(_rank(loss), "") for loss in before]
    come += [(_rank(loss), name) for name, loss in here.items()]
    best = sorted(come)[: -(-len(come) // factor)]
    return {name for loss, name in best if name and math.isfinite(loss)}


def judgements(sweep_dir: Path) -> list[Judgement]:
    """What has been judged in a sweep so far, in order."""
    path = sweep_dir / RUNGS
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [row for row, _ in journal.whole_rows(file, _is_judgement)]


def _rank(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _whole(file: IO[bytes]) -> list[Judgement]:
    """The rows of a file that is locked; what is torn or damaged is cut off."""
    file.seek(0)
    found = list(journal.whole_rows(file, _is_judgement))
    file.truncate(sum(length for _, length in found))
    return [row for row, _ in found]


def _is_judgement(row: Judgement) -> bool:
    return fits(row, _Judged) and {*row["kept"]} <= {*row["nats"]}


class _Judged(journal.Known):
    step: journal.Step
    nats: dict[str, journal.Figure]
    kept: list[str]
