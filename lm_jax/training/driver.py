"""The two sides of a run: the trainer decides what comes next, the driver holds the train state.

`Trainer.events` yields requests, and the driver sends back the answers. A driver may hold the
states of many runs on the devices, and answer equal requests of many runs in a single call
(`lm_jax.sweeps.group`). Between two requests the trainer reads the `Summary` of the state; the
whole state is read only to save, sample or probe.
"""

from collections.abc import Callable
from enum import Enum
from typing import Literal, NamedTuple, Protocol

import jax
import numpy as np

from lm_jax.config import Config
from lm_jax.scoring.score import Loss
from lm_jax.scoring.task_metrics import TaskMetrics
from lm_jax.training.state import Summary, TrainState
from lm_jax.training.step import summary

SECONDS_PER_CALL = 1.0


class Advance(NamedTuple):
    """Request for updates, without an answer.

    The driver makes updates up to the step, or fewer, or until the run diverges.
    """

    step: int


class Evaluation(NamedTuple):
    """Request for the loss of a split; the answer is None if a signal arrived meanwhile.

    The validation split is evaluated with `TrainState.eval_params`, and the driver applies
    `after_validation` to the state. The test split is evaluated with the kept parameters.
    """

    split: Literal["validation", "test"]


class Rung(NamedTuple):
    """Request for a judgement at a step where trials are compared (`Trainer.rungs`).

    The answer is True to continue the run, False to prune the run, or None if nobody decides. After
    None the run is saved and stopped; a resumed run yields the same rung again.
    """

    step: int
    nats: float
    """Mean nats per token of the validation at this step."""


class Reset(Enum):
    """Request without an answer for `reset_metrics`, after a record has been written."""

    METRICS = 0


Request = Advance | Evaluation | Rung | Reset
Answer = Loss | TaskMetrics | bool | None


class StateHolder(Protocol):
    """Protocol: the train state of a run, wherever the state lies."""

    @property
    def summary(self) -> Summary:
        """The summary of the state, as NumPy arrays."""
        ...

    @property
    def state(self) -> TrainState:
        """The whole state."""
        ...

    @state.setter
    def state(self, state: TrainState) -> None: ...


class OwnState:
    """The state of a single run."""

    def __init__(self, config: Config, local: Callable[[TrainState], TrainState]):
        """Prepare to hold a state.

        Args:
          config: of the run.
          local: the state as this process holds it (`lm_jax.training.hosts.Processes.local`).
        """
        self._config, self._local = config, local
        self._state: TrainState | None = None
        self._summary: Summary | None = None

    @property
    def summary(self) -> Summary:
        """See `StateHolder`."""
        if self._summary is None:
            self._summary = to_host(summary(self._config, self._local(self.state)))
        return self._summary

    @property
    def state(self) -> TrainState:
        """See `StateHolder`."""
        assert self._state is not None
        return self._state

    @state.setter
    def state(self, state: TrainState) -> None:
        self._state, self._summary = state, None


def to_host(summary: Summary) -> Summary:
    """Copy a summary to the host; views of the arrays would keep JAX from reusing their memory."""
    return jax.tree.map(np.array, jax.device_get(summary))


class StepTimer:
    """The speed of updates; plans calls of the compiled loop that take about a second."""

    def __init__(self):
        self.compiled, self.rate = False, 0.0  # updates per second; 0 if unknown

    def until(self, step: int, due: int) -> int:
        """The last step of the next call, at most `due`; the first two calls make one step each."""
        return min(due, step + max(1, int(self.rate * SECONDS_PER_CALL)))

    def took(self, steps: int, seconds: float) -> None:
        """Record the time of a call; the first call is ignored because of compilation."""
        if self.compiled and steps:
            self.rate = steps / seconds
        self.compiled = True
