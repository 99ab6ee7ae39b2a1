"""Progress of a sweep in the terminal."""

import math
from typing import Any

from lm_jax.files import Row
from lm_jax.report.terminal import Bars, formatted, literal
from lm_jax.sweeps import Plan
from lm_jax.training.journal import Watch


class SweepDisplay(Bars):
    """Display of a sweep on standard error: a bar per group in a terminal, else lines.

    Outside a terminal, each validation prints a line. Pass `display.watch` to `lm_jax.sweep`,
    inside `with SweepDisplay(...) as display`.
    """

    def __init__(self, plan: Plan, *, growing: bool = False):
        """Prepare a bar for each group of a plan; if `growing`, trials not in the plan will come,
        and each trial gets its own bar."""
        super().__init__()
        steps = {t.name: t.config.train.steps if t.config.train else 0 for t in plan.trials}
        self._most = max(steps.values())
        groups = [] if growing else plan.groups
        self._groups = [_GroupBar({t.name: steps[t.name] for t in one.trials}) for one in groups]
        for number, group in enumerate(self._groups, 1):
            self._show(group, f"group {number}")

    def _show(self, group: "_GroupBar", name: str) -> None:
        total = sum(group.updates.values())
        group.task = self.progress.add_task(literal(name), total=total, said=group.said())

    def watch(self, name: str) -> Watch:
        """The callback for the trial called `name`; the bars appear at the first call."""
        self.progress.start()
        group = next((own for own in self._groups if name in own.updates), None)
        if group is None:
            group = _GroupBar({name: self._most})
            self._groups.append(group)
            self._show(group, name)

        def told(step: int, row: Row | None) -> None:
            group.take(name, step, row)
            self.progress.update(group.task, completed=sum(group.made.values()), said=group.said())
            judged = row is not None and row["kind"] == "evaluation"
            if row is not None and judged and not self.live:
                self.say(f"{name}: step {step:,}: {formatted(row['nats'], '.4f')}")

        return told


class _GroupBar:
    """Progress of the trials in a group."""

    task: Any

    def __init__(self, updates: dict[str, int]):
        self.updates = updates
        self.made = dict.fromkeys(updates, 0)
        self.best = math.inf
        self.diverged: set[str] = set()

    def take(self, name: str, step: int, row: Row | None) -> None:
        """Record the progress of a trial."""
        self.made[name] = step
        if row is not None and row["kind"] == "restored":
            self.diverged.discard(name)
        if row is None or "nats" not in row:
            return
        if row["nats"] is None:
            self.diverged.add(name)
        elif row["kind"] == "evaluation":
            self.best = min(self.best, row["nats"])

    def said(self) -> str:
        """The text beside the bar."""
        over = sum(self.made[name] >= steps for name, steps in self.updates.items() if steps)
        alive = len(self.updates) - over - len(self.diverged)
        best = "" if math.isinf(self.best) else f", best {self.best:.4f}"
        diverged = f", {len(self.diverged)} diverged" if self.diverged else ""
        return f"{alive} alive{best}{diverged}"
