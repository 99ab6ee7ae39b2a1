"""A run of a model that is trained by gradients: descend, validate, save, stop and go on.

All that decides what comes next is in the train state, so a run that was stopped, killed or broken
off in the middle of a validation goes on from its newest checkpoint to the very same bits.

What a run does between two updates is its `course`; who makes the updates is told apart from it.
Alone, a run makes its own; in a sweep the updates of many runs are made side by side.
"""

import math
import signal
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax import models
from lm_jax.config import Config, LiveProbe, Network, train_of
from lm_jax.data.batches import Source, sentences, steps_per_epoch, streams
from lm_jax.data.corpus import Corpus, Split
from lm_jax.data.markov import floor
from lm_jax.data.vectors import Vectors, read_vectors
from lm_jax.inference.answers import Answers, answers, summed
from lm_jax.inference.score import Loss, Reading, reading, sentence_reading, token_nats, total
from lm_jax.models.base import Params
from lm_jax.settings import UserError, shape
from lm_jax.studies.live import live
from lm_jax.training import directory, journal
from lm_jax.training.checkpoint import Checkpoints, digest, restore, steps_saved
from lm_jax.training.journal import Watch
from lm_jax.training.step import TrainState, arguments, program

BETWEEN_LOOKS = 1.0  # seconds that the compiled loop may take before the host looks at it

Block = TypeVar("Block")

PLACE = ("step", "kind", "split")  # what a row of metrics.jsonl is about


def source_of(config: Config, corpus: Corpus, length: int) -> Source:
    """The task, or the training text on the device, read as the config says, `length` at a time."""
    if corpus.task is not None:
        return corpus.task
    read = streams if config.data.batching == "streams" else partial(sentences, length=length)
    return read(corpus.train.tokens, corpus.vocabulary.boundary, config.data.batch_size)


class _Stopped(Exception):
    """A signal came while a split was being read."""


class Rung(NamedTuple):
    """A place where a run is asked for, to be judged among others (`Descent.rungs`)."""

    step: int
    nats: float
    """Of the validation at this step, per token."""


class Pace:
    """How many updates the compiled loop makes before the host looks at it: about a second's."""

    def __init__(self):
        self.compiled, self.rate = False, 0.0  # updates a second, once known

    def until(self, step: int, due: int) -> int:
        """Where to look next on the way to `due`; one step to compile, one to learn the rate."""
        return min(due, step + max(1, int(self.rate * BETWEEN_LOOKS)))

    def took(self, steps: int, seconds: float) -> None:
        """Learns how long some updates have taken."""
        if self.compiled and steps:
            self.rate = steps / seconds
        self.compiled = True


class Descent:
    """One process at work on a run.

    Attributes:
      state: where the run stands; who drives its `course` puts the next one here.
      trained: seconds that the updates since the last record have taken; the driver adds to it.
      rungs: updates at which the run validates and asks whether to go on.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        corpus: Corpus,
        received: list[signal.Signals],
        watch: Watch,
        like: "Descent | None" = None,
    ):
        """Makes ready to work.

        Args:
          config: resolved.
          run_dir: where the run lives.
          corpus: its text.
          received: signals to stop, as they come in.
          watch: see `lm_jax.train`.
          like: another run's work on the same text, whose arrays serve this one, too.
        """
        self.config, self.run_dir, self.corpus = config, run_dir, corpus
        self.received, self.watch = received, watch
        self.program = program(shape(config), len(corpus.vocabulary))
        length = self.program.length
        self.source = source_of(config, corpus, length) if like is None else like.source
        self.epoch = steps_per_epoch(self.source, length)
        self.settings = train_of(config)
        self.validate_every = self.settings.validate_every or self.epoch
        self.numbers = arguments(config)
        if like is not None:
            self.validation = like.validation
        else:
            self.validation = None if corpus.task else self._reading(corpus.validation)
        self.vectors = None if steps_saved(run_dir) else self._pretrained()
        self.rungs: frozenset[int] = frozenset()

    def run(self) -> None:
        """Trains until the run is over or a signal comes, and writes result.json."""
        pace = Pace()
        for due in self.course():
            assert isinstance(due, int)  # there are no rungs
            step = int(self.state.step)
            stop = pace.until(step, due)
            began = time.perf_counter()
            self.state = self.program.advance(self.state, self.source, self.numbers, stop)
            self.state.step.block_until_ready()
            taken = time.perf_counter() - began
            self.trained += taken
            pace.took(stop - step, taken)

    def course(self) -> "Generator[int | Rung, bool | None, None]":
        """The whole run but its updates, from where it stands to its result.json.

        Yields:
          an update: the driver makes updates until that one, or less, or until the loss is not
          finite; or a rung, in answer to which the driver sends whether the run is to go on.
        """
        self.state = self.restored()
        step = int(self.state.step)
        if step > self.settings.steps:
            raise too_few(self.settings.steps, step)
        directory.write_config(self.run_dir, self.config)
        (self.run_dir / "result.json").unlink(missing_ok=True)
        self.journal = journal.Journal(self.run_dir, step, int(self.state.verdict.step))
        self.checkpoints = Checkpoints(self.run_dir, step)
        self.saved = self._moment() if step else None
        if self.vectors is not None:
            place = {"step": 0, "kind": "vectors", "split": "train"}
            found, of = self.vectors.found, len(self.corpus.vocabulary)
            self._write({**place, "found": found, "of": of, "covered": self.vectors.covered})
        self._start_clock()
        try:
            try:
                status = yield from self._train()
                self._save()
                splits = self._splits() if status == "finished" else {}
            except _Stopped:
                status, splits = "stopped", {}
                self._save()
            self.checkpoints.wait()
            journal.write_result(self.run_dir, self._result(status, splits))
        finally:
            self.journal.close()
            self.checkpoints.close()

    def restored(self, until: int | None = None) -> TrainState:
        """The newest state that was saved, at `until` or before it, or that before the start."""
        template = jax.eval_shape(self.program.init, self.numbers)
        state = restore(self.run_dir, template, until=until)
        if state is not None:
            self.vectors = None
            return jax.tree.map(jnp.asarray, state)
        # Where checkpoints are saved but none is whole, the vectors were not read yet.
        self.vectors = self.vectors or self._pretrained()
        table = None if self.vectors is None else jnp.asarray(self.vectors.table)
        return self.program.init(self.numbers, table)

    def _pretrained(self) -> Vectors | None:
        """The vectors that a fresh run begins with, where its config names some."""
        model = self.config.model
        if not isinstance(model, Network) or model.vectors is None or model.embedding_size is None:
            return None
        vocabulary = self.corpus.vocabulary
        return read_vectors(
            model.vectors,
            vocabulary,
            model.embedding_size,
            name=f"model.vectors={model.vectors}",
            seed=self.config.seed,
            counts=np.bincount(self.corpus.train.tokens, minlength=len(vocabulary)),
        )

    def _train(self) -> "Generator[int | Rung, bool | None, str]":
        train = self.settings
        while True:
            step = int(self.state.step)
            last = step >= train.steps
            due = step % self.validate_every == 0 or last or step in self.rungs
            if step and due and int(self.state.verdict.step) < step:
                if not math.isfinite(self._validate()):
                    return "diverged"
            self._probe(step, last)
            if train.patience is not None and int(self.state.verdict.stale) >= train.patience:
                return "finished"
            if last:
                return "finished"
            if step in self.rungs and not (yield Rung(step, self._validated(step))):
                return "pruned"
            if self.received:
                raise _Stopped
            if step and step % train.checkpoint_every == 0:
                self._save()
            yield self._next(step)
            if not math.isfinite(float(self.state.record.nats)):
                self._log()
                return "diverged"
            step = int(self.state.step)
            if step % train.log_every == 0 or step in (1, train.steps):
                self._log()
            else:
                self.watch(step, None)

    def _next(self, step: int) -> int:
        """The update after `step` at which something is due."""
        train = self.settings
        if step == 0:  # a record of its own: it shows ln V, and that the run is alive
            return 1
        every = [train.log_every, self.validate_every, train.checkpoint_every]
        if isinstance(train.probe, LiveProbe):
            every.append(train.probe.every)
        rungs = (rung for rung in self.rungs if rung > step)
        return min(train.steps, *(step + n - step % n for n in every), *rungs)

    def _validated(self, step: int) -> float:
        """What was validated at a step, in nats per token."""
        rows = (row for row in self.journal.rows if row["kind"] == "evaluation")
        return next(row["nats"] for row in rows if row["step"] == step)

    def _log(self) -> None:
        record = jax.tree.map(np.asarray, self.state.record)
        steps, step = int(record.steps), int(self.state.step)
        here = (step - self.logged) / steps  # the share of the record that this process has made
        row = {
            "step": step,
            "kind": "train",
            "split": "train",
            "epoch": step / self.epoch,
            "nats": float(record.nats / record.tokens),
            "grad_norm": float(record.grad_norm / steps),
            "grad_norm_max": float(record.grad_norm_max),
            "grad_norm_clipped": float(record.clipped_norm / steps),
            "clipped": float(record.clipped / steps),
            "learning_rate": float(record.learning_rate),
            "tokens": int(record.tokens),
            "tokens_per_second": float(record.tokens) * here / max(self.trained, 1e-9),
            "seconds": self.journal.seconds + self.trained,
        }
        if record.deltas is not None:
            row["delta_norms"] = (record.deltas / steps).tolist()
        self.journal.seconds += self.trained
        self._start_clock()
        self.state = self.program.clear(self.state)
        self._write(row)

    def _start_clock(self) -> None:
        self.trained, self.logged = 0.0, int(self.state.step)

    def _validate(self) -> float:
        """Judges the parameters by their mean nats on the validation split."""
        loss = self._judged(self.state.judged, "validation")
        nats = jnp.asarray(loss.nats_per_token, float)
        self.state = self.program.judge(self.state, nats, self.numbers)
        place = dict(zip(PLACE, (int(self.state.step), "evaluation", "validation"), strict=True))
        self._write({**place, **loss.row()})
        return loss.nats

    def _probe(self, step: int, last: bool) -> None:
        """Asks how far the gradient reaches, of the batch that comes next; changes nothing."""
        probe = self.settings.probe
        if not isinstance(probe, LiveProbe) or (step % probe.every and not last):
            return
        if not (probe.by_lag or probe.lags or probe.spectra or probe.lyapunov):
            return
        carry, batch = self.program.about(self.state, self.source, self.numbers)
        answers = live(probe, self.program.model)(self.state.params, carry, batch)
        place = dict(zip(PLACE, (step, "probe", "train"), strict=True))
        self._write({**place, **jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), answers)})

    def _reading(self, split: Split) -> Reading:
        data = self.config.data
        if data.batching == "streams":
            return reading(split.tokens, self.corpus.vocabulary)
        return sentence_reading(
            split.tokens, self.corpus.vocabulary, data.batch_size, self.program.length
        )

    def _judged(self, params: Params, name: str) -> Loss | Answers:
        """The figures of the validation or the test split."""
        model, task, split = self.program.model, self.corpus.task, getattr(self.corpus, name)
        if task:
            asked = answers(model, params, task, self.config.data, name)
            return summed(self._until_stopped(asked), task)
        known = self.validation if name == "validation" else None
        blocks = token_nats(model, params, known or self._reading(split))
        return total(self._until_stopped(blocks), split.characters)

    def _until_stopped(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            if self.received:
                raise _Stopped
            yield block

    def _write(self, row: journal.Row) -> None:
        self.journal.write(row)
        self.watch(row["step"], row)

    def _save(self) -> None:
        if self.saved != self._moment():
            self.journal.sync()
            self.checkpoints.save(self.state)
            self.saved = self._moment()

    def _moment(self) -> tuple[int, int]:
        """What changes with the state: its step, or the validation at that step."""
        return int(self.state.step), int(self.state.verdict.step)

    def _kept(self) -> tuple[int, Params]:
        """The parameters that the run ends with, and their step."""
        if self.state.best_params is None or int(self.state.verdict.step) == 0:
            return int(self.state.step), self.state.judged
        return int(self.state.verdict.best_step), self.state.best_params

    def _splits(self) -> dict[str, journal.Row]:
        """The kept parameters' figures; those of validation are in the journal."""
        step, params = self._kept()
        judged = {row["step"]: row for row in self.journal.rows if row["kind"] == "evaluation"}
        known = {name: value for name, value in judged[step].items() if name not in PLACE}
        loss = self._judged(params, "test")
        return {
            "validation": {**known, "unknown": self.corpus.validation.unknown},
            "test": {**loss.row(), "unknown": self.corpus.test.unknown},
        }

    def _result(self, status: str, splits: dict[str, journal.Row]) -> journal.Row:
        (kept, params), step = self._kept(), int(self.state.step)
        vectors = {
            row["kind"]: {name: row[name] for name in ("found", "of", "covered")}
            for row in self.journal.rows
            if row["kind"] == "vectors"
        }
        return {
            "status": status,
            "step": step,
            "stopped_early": status == "finished" and step < self.settings.steps,
            "parameters_step": kept,
            "splits": splits,
            "parameters": models.count(params),
            "sha256": digest(params),
            "seconds": self.journal.seconds,
            "tokens_per_second": self._speed(),
            **vectors,
            **floor(self.config.data),
        }

    def _speed(self) -> float:
        """Training tokens a second: the median over the records, one of which compiles."""
        speeds = [row["tokens_per_second"] for row in self.journal.rows if row["kind"] == "train"]
        return float(np.median(speeds)) if speeds else 0.0


def too_few(steps: int, made: int) -> UserError:
    """What is said of a run that has made more updates than it is asked for."""
    return UserError(f"train.steps={steps} is less than the {made} of this run so far")
