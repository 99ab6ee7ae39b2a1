"""Successive halving: end the worse trials of a sweep early.

Rungs lie at r, rη, rη², … updates, below the last update of a trial; r is `first`, η is `factor`.
If n trials have reached a rung so far, in any group, then the best ⌈n/η⌉ by their validation loss
at the rung continue. Trials arriving together are judged together. No trial waits for later trials,
and an early trial may therefore continue although later trials are better. A trial ended at a rung
is never resumed.

A judgement is written to disk, as a line of rungs.jsonl, before any trial acts on the judgement. If
a trial is killed and reaches a rung again, the judgement on disk holds. The judgements of a sweep
in a single process therefore do not depend on when the sweep is killed. Several processes judge in
turn, in order of arrival.

Source: Li et al. (2020), "A System for Massively Parallel Hyperparameter Tuning", MLSys. Their
algorithm resumes a stopped trial after enough worse trials have arrived; this module does not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lm_jax import files
from lm_jax.config import Config
from lm_jax.settings import UserError, fits
from lm_jax.sweeps.group import Pruner
from lm_jax.sweeps.plan import Trial
from lm_jax.training import journal

RUNGS = "rungs.jsonl"

Judgement = dict[str, Any]
"""A line of rungs.jsonl: `step`; `nats` of the judged trials, by directory; `kept`, the
directories of the trials that continue."""


@dataclass(frozen=True)
class Halving:
    """Settings of successive halving."""

    first: int
    """Update of the first rung, r."""
    factor: int = 3
    """η: the best 1/η of the trials continue, and each rung is η times the rung before."""

    def __post_init__(self):
        for name, value, least in (("first", self.first, 1), ("factor", self.factor, 2)):
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"halving: {name}={value} is not a whole number of at least {least}"
                )

    def rungs(self, steps: int) -> tuple[int, ...]:
        """Return the rungs of a trial of `steps` updates; empty if the trial is too short."""
        found, rung = [], self.first
        while rung < steps:
            found.append(rung)
            rung *= self.factor
        return tuple(found)

    def check(self, configs: Sequence[Config]) -> None:
        """Refuses a sweep in which every trial ends at or before the first rung.

        Raises:
          UserError: halving would judge no trial.
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
        """Total updates of `trials` runs of `steps` updates, if all reach each rung together.

        The actual total is smaller if trials diverge, and larger if the trials arrive at a rung in
        several groups.
        """
        spent, before = 0, 0
        for rung in (*self.rungs(steps), steps):
            spent += trials * (rung - before)
            trials, before = -(-trials // self.factor), rung
        return spent

    def pruner(self, sweep_dir: Path) -> Pruner:
        """Make the `prune` of `train_group`; each process of the sweep may make another."""

        def judged(step: int, nats: Mapping[Trial, float]) -> set[Trial]:
            here = {trial.directory: loss for trial, loss in nats.items()}
            kept = self._decided(sweep_dir / RUNGS, step, here)
            return {trial for trial in nats if trial.directory in kept}

        return judged

    def _decided(self, path: Path, step: int, here: Mapping[str, float]) -> set[str]:
        """Directories of the continuing trials: read from rungs.jsonl, or judged and recorded."""
        with files.locked(path, "a+b") as file:
            before = [row for row in _whole(file, path) if row["step"] == step]
            come = {name: loss for row in before for name, loss in row["nats"].items()}
            kept = {name for row in before for name in row["kept"]}
            new = {name: loss for name, loss in here.items() if name not in come}
            if new:
                best = survivors(new, self.factor, list(come.values()))
                kept |= best
                row = {"step": step, "nats": new, "kept": sorted(best)}
                file.write(files.line_of(row).encode())
                files.to_disk(file)
                files.names_to_disk(path.parent)
        return kept


def survivors(
    here: Mapping[str, float], factor: int, before: Sequence[float | None] = ()
) -> set[str]:
    """Names of the trials among the best 1/factor of all, by nats; never a non-finite loss.

    Args:
      here: nats of the trials to judge, by name.
      factor: see `Halving`.
      before: nats of the trials judged earlier; in a tie the earlier trial ranks first.
    """
    come = [(_rank(loss), "") for loss in before]
    come += [(_rank(loss), name) for name, loss in here.items()]
    best = sorted(come)[: -(-len(come) // factor)]
    return {name for loss, name in best if name and math.isfinite(loss)}


def _rank(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _whole(file: IO[bytes], path: Path) -> list[Judgement]:
    """Read the rows of a locked file, and cut off a last line that was not written to its end.

    A power cut may leave zeros in place of a part of the line, even before the line's end.

    Raises:
      UserError: a row is damaged; names the file and the line.
    """
    file.seek(0)
    lines = file.readlines()
    if lines and (not lines[-1].endswith(b"\n") or b"\0" in lines[-1]):
        file.truncate(sum(map(len, lines[:-1])))
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        name = f"{path}: line {number}"
        row = files.read_row(line, name)
        if not fits(row, _Judged) or not {*row["kept"]} <= {*row["nats"]}:
            raise UserError(f"{name} is no judgement")
        rows.append(row)
    return rows


class _Judged(journal.Known):
    step: journal.StepNumber
    nats: dict[str, journal.NumberOrNull]
    kept: list[str]
