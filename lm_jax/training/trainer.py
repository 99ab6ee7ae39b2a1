"""The trainer of a model trained by gradients: update, validate, save, stop and resume.

The next step depends on the train state alone. A run stopped, killed or interrupted during a
validation therefore resumes from the newest checkpoint and reaches the same result, bit for bit.

The generator `events` decides what comes next, and a driver does what needs the whole train state:
updates and evaluations (`lm_jax.training.driver`). `run` drives a single run; a sweep drives many
runs and makes their updates and evaluations side by side.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax import generation, models
from lm_jax.config import Config, LiveProbe, RestoreCheckpoint, train_of
from lm_jax.data.batches import Batch, Source
from lm_jax.data.characters import size_of
from lm_jax.data.corpus import Corpus
from lm_jax.data.windows import InMemory, InputPipeline, Part, input_pipeline
from lm_jax.files import Row
from lm_jax.gradients.live_probe import live
from lm_jax.models.base import Carry
from lm_jax.scoring.score import Loss
from lm_jax.scoring.task_metrics import TaskMetrics
from lm_jax.settings import UserError
from lm_jax.training import directory, journal
from lm_jax.training.checkpoint import Checkpoints, newest, steps_saved
from lm_jax.training.devices import on_the_host
from lm_jax.training.driver import (
    Advance,
    Answer,
    Evaluation,
    OwnState,
    Request,
    Reset,
    Rung,
    StateHolder,
    StepTimer,
)
from lm_jax.training.evaluator import Evaluator, Stopped
from lm_jax.training.given import given_params
from lm_jax.training.hosts import Processes
from lm_jax.training.journal import Watch
from lm_jax.training.manifest import compare_environment, environment
from lm_jax.training.run_metrics import kept_params, result, train_row
from lm_jax.training.state import Summary, TrainState
from lm_jax.training.step import (
    after_validation,
    batch_of,
    chunk_length,
    eval_model,
    init,
    peek_batch,
    reset_metrics,
    run_until,
    shard,
)

PLACE = ("step", "kind", "split")  # the columns that identify a row of metrics.jsonl

Events = Generator[Request, Answer, None]


def pipeline_of(config: Config, corpus: Corpus, part: Part | None = None) -> InputPipeline:
    """The input pipeline of a run; `part` names the sequences of one process, None all."""
    data, length = config.data, chunk_length(config)
    pipeline = input_pipeline(
        corpus, data.batching, data.batch_size, length, data.window_updates, part
    )
    if data.jitter is not None and not isinstance(pipeline, InMemory):
        raise UserError(
            f"data.jitter={data.jitter} needs the whole text on the device, and the text is read "
            "in windows: it takes more than a quarter of the free memory, or several processes "
            "share it"
        )
    return pipeline


class Trainer:
    """Trainer of a run; in each process of the run, if there are several.

    The methods `update_until`, `clear_metrics`, `count_validation`, `restore`, `scale_rate`,
    `whole_state` and `whole_batch` compute on the devices of all processes, and are called in every
    process (`lm_jax.training.hosts`). All else is done in process 0.

    Attributes:
      holder: the train state; a driver of many runs puts a holder of its own here.
      trained: seconds spent on the updates since the last record; the driver adds the seconds.
      known: manifest of the run, read with the state.
      resumed: contents of the checkpoint that the state was read from, if any.
      rungs: at these steps the run validates and asks the driver for permission to continue.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        corpus: Corpus,
        processes: Processes,
        watch: Watch,
        like: "Trainer | None" = None,
    ):
        """Prepare the trainer.

        Args:
          config: a resolved config.
          run_dir: the directory of the run.
          corpus: the text of the run.
          processes: the processes of the run, and the signals that they have received.
          watch: see `lm_jax.train`.
          like: another trainer on the same text; the two trainers share arrays.
        """
        self.config, self.run_dir, self.corpus = config, run_dir, corpus
        self.processes, self.watch = processes, watch
        self.received = processes.received
        self.vocab = models.vocab_of(config.model, corpus.vocabulary)
        self.mesh = processes.mesh(config.data.batch_size)
        self.length = chunk_length(config)
        self.model = eval_model(config, self.vocab)
        part = processes.part(self.mesh, config.data.batch_size)
        self.pipeline = pipeline_of(config, corpus, part) if like is None else like.pipeline
        self.steps_per_epoch = self.pipeline.steps_per_epoch
        self.settings = train_of(config)
        self.validate_every = self.settings.validate_every or self.steps_per_epoch
        known = None if like is None else like.evaluator
        self.evaluator = Evaluator(config.data, corpus, self.length, processes.stopping, known)
        self.given = None if steps_saved(run_dir) else given_params(config, corpus)
        self.rungs: frozenset[int] = frozenset()
        self.holder: StateHolder = OwnState(config, processes.local)

    @property
    def state(self) -> TrainState:
        """The current train state."""
        return self.holder.state

    @state.setter
    def state(self, state: TrainState) -> None:
        self.holder.state = state

    @property
    def summary(self) -> Summary:
        """The summary of the current train state, on the host."""
        return self.holder.summary

    def run(self) -> None:
        """Train until the run ends or a signal arrives, and write result.json."""
        pace, events = StepTimer(), self.events()
        answer: Answer = None
        with contextlib.closing(events):
            while True:
                try:
                    request = events.send(answer)
                except StopIteration:
                    return
                answer = None
                if isinstance(request, Advance):
                    self._make_updates(request.step, pace)
                elif isinstance(request, Evaluation):
                    answer = self._evaluated(request.split)
                else:
                    assert request is Reset.METRICS  # there are no rungs
                    self.processes.call(self.clear_metrics)

    def _make_updates(self, due: int, pace: StepTimer) -> None:
        step = int(self.summary.step)
        began = time.perf_counter()
        _, end = self.pipeline.at(step)
        stop = min(pace.until(step, due), end)
        self.processes.call(self.update_until, stop)
        taken = time.perf_counter() - began
        self.trained += taken
        pace.took(stop - step, taken)

    def update_until(self, stop: int) -> None:
        """Make the updates up to step `stop`, all read from the source of the next update."""
        source, _ = self.pipeline.at(int(self.state.step))
        self.state = self.advance(self.state, source, stop)
        self.state.step.block_until_ready()

    def clear_metrics(self) -> None:
        """Empty the record of the state."""
        self.state = reset_metrics(self.config, self.state)

    def count_validation(self, nats: float) -> None:
        """Take the mean loss per token of a validation into the state."""
        self.state = after_validation(self.config, self.state, jnp.asarray(nats, float))

    def _evaluated(self, split: Literal["validation", "test"]) -> Loss | TaskMetrics | None:
        validates = split == "validation"
        state = self.processes.local(self.state)
        params = state.eval_params if validates else kept_params(state)[1]
        del state  # else the state would stand beside the next one
        try:
            loss = self.evaluator.evaluate(self.model, params, split)
        except Stopped:
            return None
        if validates:
            self.processes.call(self.count_validation, loss.nats_per_token)
        return loss

    def advance(self, state: TrainState, source: Source, stop: int) -> TrainState:
        """The state after `stop` updates, all read from `source`; the given state is consumed."""
        return run_until(self.config, state, source, stop, self.vocab, self.mesh)

    def replay_until(self, state: TrainState, stop: int) -> TrainState:
        """The state after `stop` updates, made from `state`, an earlier state that is consumed."""
        step = int(state.step)
        while True:
            source, end = self.pipeline.at(step)
            step = min(stop, end)
            state = self.advance(state, source, step)
            if step == stop:
                return state
            state.step.block_until_ready()  # or many windows would pile up on the device

    def batch(self, step: int) -> Batch:
        """The batch of the update after `step` updates."""
        return batch_of(self.config, self.pipeline.at(step)[0], step)

    def next_batch(self, state: TrainState) -> tuple[Carry, Batch]:
        """The model's carry and the batch of the next update."""
        source, _ = self.pipeline.at(int(state.step))
        return peek_batch(self.config, state, source, self.vocab)

    @property
    def source(self) -> Source:
        """The whole training data, on the device.

        Raises:
          UserError: the training text is read in windows.
        """
        return self.pipeline.whole()

    def events(self) -> Events:
        """Everything in the run except the requests, from the current state to result.json.

        Yields:
          requests; the driver sends the answer of each (`lm_jax.training.driver`).
        """
        self.processes.call(self.restore)
        if self.resumed is not None:
            compare_environment(self.resumed.environment, environment(self.processes.devices))
        if self.summary.step > self.settings.steps:
            raise too_few(self.settings.steps, int(self.summary.step))
        directory.write_config(self.run_dir, self.config)
        (self.run_dir / "result.json").unlink(missing_ok=True)
        self._open()
        try:
            try:
                status = yield from self._events_of_training()
                self._save(diverged=status == "diverged")
                splits = (yield from self._splits()) if status == "finished" else {}
            except Stopped:
                status, splits = "stopped", {}
                self._save()
            self.journal.sync()
            self.checkpoints.finish(self.journal.whole)
            last = result(
                self.settings.steps,
                self.processes.local(self.state),
                self.journal,
                status=status,
                splits=splits,
                floor=self.corpus.floor,
            )
            journal.write_result(self.run_dir, last)
        finally:
            self._close()

    def _open(self) -> None:
        """Open the journal and the checkpoints at the restored state."""
        step = int(self.summary.step)
        rows = journal.NO_ROWS if self.resumed is None else self.resumed.journal
        self.journal = journal.Journal(self.run_dir, rows)
        every = self.settings.checkpoint_every
        devices = self.processes.devices
        self.checkpoints = Checkpoints(self.run_dir, step, self.known, every, devices)
        self.saved = None if self.resumed is None else self._moment()
        for row in [] if self.given is None else self.given.rows:
            self._write(row)
        self.given = None  # frees as much memory as the parameters take
        self._start_clock()

    def _close(self) -> None:
        try:
            self.journal.close()
        finally:
            self.checkpoints.close()

    def _restore(self, rule: RestoreCheckpoint) -> None:
        """Return from a divergence to the newest saved state, with a lower learning rate."""
        diverged = int(self.summary.step)
        self._close()
        self.processes.call(self.restore)
        self._open()
        scale = rule.factor * float(self.summary.early_stopping.lr_scale)
        self.processes.call(self.scale_rate, scale)
        place = dict(zip(PLACE, (int(self.summary.step), "restored", "train"), strict=True))
        self._write({**place, "diverged": diverged, "lr_scale": scale})
        self._save()

    def restore(self) -> None:
        """Take the newest saved state, or the first state.

        Raises:
          UserError: as `restored`; or the processes have found different states.
        """
        self.state = self.processes.each(self.restored)
        self.processes.check_same({"the newest intact checkpoint": int(self.summary.step)})

    def scale_rate(self, lr_scale: float) -> None:
        """Take another factor on the learning rate."""
        self.state = self.state.with_lr_scale(lr_scale)

    def restored(self, until: int | None = None) -> TrainState:
        """The newest saved state, at `until` or earlier; without a checkpoint, the first state.

        Raises:
          UserError: the run has saved updates, and has no intact checkpoint.
        """
        self.known = directory.known(self.run_dir, self.config, self.corpus.digest)
        found = newest(
            self.run_dir,
            self.known,
            lambda saved: (saved.restored(self.template), saved.contents),
            until=until,
        )
        if found is not None:
            state, self.resumed = found
            self.given = None
            return shard(self.config, state, self.vocab, self.mesh)
        steps = sorted({*steps_saved(self.run_dir), *self.known.checkpoints})
        if steps and until is None:
            raise directory.lost(self.run_dir, steps)
        # If checkpoints exist but none is intact, the files have not been read yet.
        self.resumed = None
        self.given = self.given or given_params(self.config, self.corpus)
        with on_the_host():
            state = init(self.config, self.vocab, self.given.params or None)
        if self.mesh is None:
            return state
        return shard(self.config, state, self.vocab, self.mesh)

    @property
    def template(self) -> TrainState:
        """Shapes and types of the state; nothing is computed."""
        return init.eval_shape(self.config, self.vocab)

    def _events_of_training(self) -> Generator[Request, Answer, str]:
        train = self.settings
        while True:
            step = int(self.summary.step)
            last = step >= train.steps
            due = step % self.validate_every == 0 or last or step in self.rungs
            if (
                step
                and due
                and int(self.summary.early_stopping.step) < step
                and not self._diverged(step)
            ):
                yield from self._validate()
            if self._diverged(step):
                rule = train.on_divergence
                if not isinstance(rule, RestoreCheckpoint):
                    return "diverged"
                if len(self.journal.of_kind("restored")) >= rule.limit:
                    return "diverged"
                self._restore(rule)
                continue
            self._probe(step, last)
            if (
                train.patience is not None
                and int(self.summary.early_stopping.since_best) >= train.patience
            ):
                return "finished"
            if last:
                return "finished"
            goes_on: Answer = True
            if step in self.rungs:
                goes_on = yield Rung(step, self._validated(step))
            if goes_on is False:
                return "pruned"
            if goes_on is None or self.received:
                raise Stopped
            if step and step % train.checkpoint_every == 0:
                self._save()
            self.checkpoints.raise_failed()
            yield Advance(self._next(step))
            step = int(self.summary.step)
            due = step % train.log_every == 0 or step in (1, train.steps) or not self.summary.sound
            if due and self.summary.record.steps:  # none if all batches were left out
                self._log()
                yield Reset.METRICS
            else:
                self.watch(step, None)

    def _next(self, step: int) -> int:
        """The first step after `step` with a record, validation, probe or checkpoint due."""
        train = self.settings
        if step == 0:  # a separate first record shows ln V, and that the run is alive
            return 1
        every = [train.log_every, self.validate_every, train.checkpoint_every]
        if isinstance(train.probe, LiveProbe):
            every.append(train.probe.every)
        rungs = (rung for rung in self.rungs if rung > step)
        return min(train.steps, *(step + n - step % n for n in every), *rungs)

    def _diverged(self, step: int) -> bool:
        """True if a loss or the gradient recorded at `step` is not finite, or a parameter.

        The journal's rows are read because writing a record clears the record in the state.
        """
        rows = self._rows_at(step)
        figures = [row[name] for row in rows for name in ("nats", "grad_norm") if name in row]
        return not self.summary.sound or any(
            value is None or not math.isfinite(value) for value in figures
        )

    def _rows_at(self, step: int) -> list[Row]:
        """The journal's rows of a step, which are its last rows."""
        return [row for row in self.journal.last if row["step"] == step]

    def _validated(self, step: int) -> float:
        """Validation loss at `step`, in nats per token."""
        for row in self._rows_at(step):
            if row["kind"] == "evaluation":
                return row["nats"]
        # The row was lost.
        params = self.processes.local(self.state.eval_params)
        return self.evaluator.evaluate(self.model, params, "validation").nats_per_token

    def _log(self) -> None:
        here = int(self.summary.step) - self.logged
        row = train_row(
            self.summary,
            steps_per_epoch=self.steps_per_epoch,
            made=here,
            trained=self.trained,
            seconds=self.journal.seconds + self.trained,
        )
        self.journal.seconds += self.trained
        self._start_clock()
        self._write(row)

    def _start_clock(self) -> None:
        self.trained, self.logged = 0.0, int(self.summary.step)

    def _validate(self) -> Events:
        """Have the validation split evaluated, and write the row."""
        loss = yield from self._loss("validation")
        place = dict(zip(PLACE, (int(self.summary.step), "evaluation", "validation"), strict=True))
        self._write({**place, **loss.row(), **self._sample()})

    def _loss(
        self, split: Literal["validation", "test"]
    ) -> Generator[Request, Answer, Loss | TaskMetrics]:
        """The answer to an `Evaluation`.

        Raises:
          Stopped: a signal arrived during the evaluation.
        """
        loss = yield Evaluation(split)
        if loss is None:
            raise Stopped
        assert isinstance(loss, Loss | TaskMetrics)
        return loss

    def _sample(self) -> Row:
        """A text that the model writes, as an entry of a row; empty if none is asked for."""
        length = self.settings.sample_length
        if length is None:
            return {}
        params = self.processes.local(self.state.eval_params)
        trained = (self.model, params, self.corpus.vocabulary)
        return {"sample": generation.sample(*trained, length=length, seed=self.config.seed)}

    def _probe(self, step: int, last: bool) -> None:
        """Measure the reach of the gradient on the next batch; the state does not change."""
        probe = self.settings.probe
        if not isinstance(probe, LiveProbe) or (step % probe.every and not last):
            return
        if not (probe.by_lag or probe.lags or probe.spectra or probe.lyapunov):
            return
        params = self.processes.local(self.state.params)
        answers = live(probe, self.model)(params, *self.processes.call(self.whole_batch))
        place = dict(zip(PLACE, (step, "probe", "train"), strict=True))
        self._write({**place, **jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), answers)})

    def _write(self, row: Row) -> None:
        self.journal.write(row)
        self.watch(row["step"], row)

    def _save(self, *, diverged: bool = False) -> None:
        if self.saved != self._moment():
            self.journal.sync()
            state = self.processes.call(self.whole_state)
            self.checkpoints.save(state, self.journal.kept, diverged=diverged)
            self.saved = self._moment()

    def whole_state(self) -> TrainState:
        """The state with the carries of all sequences."""
        return self.processes.whole(self.state)

    def whole_batch(self) -> tuple[Carry, Batch]:
        """The model's carry and the next batch, with all sequences."""
        return self.processes.whole(self.next_batch(self.state))

    def _moment(self) -> tuple[int, int, float]:
        """The steps of the state and of the last validation, and the factor on the learning rate;
        together they identify the state."""
        step, validations = int(self.summary.step), self.summary.early_stopping
        return step, int(validations.step), float(validations.lr_scale)

    def _splits(self) -> Generator[Request, Answer, dict[str, Row]]:
        """Metrics of the kept parameters: validation from the journal, test computed now."""
        step, params = kept_params(self.processes.local(self.state))
        judged = {row["step"]: row for row in self.journal.of_kind("evaluation")}
        known = judged.get(step)
        if known is None:  # the journal was lost
            known = self.evaluator.evaluate(self.model, params, "validation").row()
        known = {name: value for name, value in known.items() if name not in (*PLACE, "sample")}
        del params  # frees a copy while the split is read
        loss = yield from self._loss("test")
        guess = math.log(size_of(self.vocab))
        if not self.config.data.regression and loss.nats_per_token > 2 * guess:
            warnings.warn(
                f"the run has learned nothing: {loss.nats_per_token:.6g} nats per token on test, "
                f"where a uniform guess has ln V = {guess:.3g}; the learning rate may be too high",
                stacklevel=2,
            )
        return {
            "validation": {**known, "unknown": self.corpus.validation.size.unknown},
            "test": {**loss.row(), "unknown": self.corpus.test.size.unknown},
        }


def too_few(steps: int, made: int) -> UserError:
    """The error for a run that has made more updates than `train.steps`."""
    return UserError(f"train.steps={steps} is less than the {made} of this run so far")
