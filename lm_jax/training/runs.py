"""A run loaded from a run directory, for use in programs."""

import dataclasses
import warnings
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm_jax import models
from lm_jax.config import (
    ASGD,
    RNN,
    Config,
    CustomCell,
    Model,
    NGram,
    Train,
    custom,
    train_of,
    unrounded,
)
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.files import Row
from lm_jax.frames import Kind, frame
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.settings import UserError
from lm_jax.training import directory, journal, ngram_run
from lm_jax.training.checkpoint import AsStored, Checkpoint, newest, tree_digest


class Run(NamedTuple):
    """A finished run, or a run in training."""

    config: Config
    vocabulary: Vocabulary
    model: LanguageModel
    params: Params
    """The parameters with the lowest validation loss; the last parameters before the first
    validation or without keep_best."""
    step: int
    """Number of updates made at the newest checkpoint."""
    result: Row | None
    """Contents of result.json, or None if the run has not ended."""
    path: Path
    """The directory of the run."""

    def metrics(self, kind: Kind = "polars") -> Any:
        """The rows of metrics.jsonl as a data frame (`lm_jax.frames.frame`)."""
        return frame(journal.read_rows(self.path / "metrics.jsonl"), kind)

    def __repr__(self) -> str:
        return f"<Run {self.path}: {', '.join(self._in_words())}>"

    def _repr_html_(self) -> str:
        """The run for a notebook, with a link to its page."""
        page = self.path / "report.html"
        link = f' <a href="{escape(str(page))}">report.html</a>' if page.exists() else ""
        items = "".join(f"<li>{escape(words)}</li>" for words in self._in_words())
        return f"<b>{escape(str(self.path))}</b>{link}<ul>{items}</ul>"

    def _in_words(self) -> list[str]:
        model = self.config.model
        kind = f"{model.cell.kind} network" if isinstance(model, RNN) else f"{model.kind} model"
        said = [kind, f"{optax.tree.size(self.params):,} parameters"]
        if self.result is None:
            return [*said, f"saved at step {self.step:,}"]
        said.append(f"{self.result['status']} at step {self.step:,}")
        for split in ("validation", "test"):
            if split in self.result["splits"]:
                nats = self.result["splits"][split]["nats"]
                said.append(f"{split} loss {'not finite' if nats is None else f'{nats:.4f}'}")
        return said


def load_run(run_dir: str | Path) -> Run:
    """Load a finished or unfinished run from a run directory.

    If the file of a custom cell has changed, the model uses the present file, with a warning.

    Raises:
      UserError: the directory holds no run, or no intact checkpoint, or the file of the custom cell
        is gone.
    """
    run_dir = Path(run_dir)
    config = directory.read_config(run_dir)
    vocabulary, corpus = directory.read_vocabulary(run_dir)
    known = directory.known(run_dir, config, corpus)
    settings = _as_it_is_now(config.model, run_dir)
    model = models.make(
        unrounded(settings),
        models.vocab_of(settings, vocabulary),
        regression=config.data.regression,
    )

    if isinstance(config.model, NGram):
        template = ngram_run.template(config.model)
        found = newest(run_dir, known, lambda saved: saved.restored(template))
    elif config.train is None:
        params = jax.eval_shape(model.init, jax.random.key(0))
        template = {"step": AsStored(), "params": params}
        found = newest(run_dir, known, lambda saved: saved.restored(template))
    else:
        found = newest(run_dir, known, lambda saved: _trained(saved, train_of(config), model))
    if found is None:
        raise UserError(f"{run_dir} has no checkpoint to load")
    params, step, result = found["params"], int(found["step"]), journal.read_result(run_dir)
    if result is not None and result["step"] == step and result["sha256"] != tree_digest(params):
        warnings.warn(f"{run_dir / 'result.json'} belongs to other parameters", stacklevel=2)
        result = None
    return Run(config, vocabulary, model, params, step, result, run_dir)


def _trained(saved: Checkpoint, train: Train, model: LanguageModel) -> dict[str, Any]:
    """The step and the kept parameters; nothing else is read from the checkpoint."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    found = saved.restored({"step": step, "early_stopping": {"step": step}}, part=True)
    params = jax.eval_shape(model.init, jax.random.key(0))
    if train.keep_best and found["early_stopping"]["step"] > 0:
        kept = saved.restored({"best_params": params}, part=True)["best_params"]
    elif isinstance(train.optimizer, ASGD) or train.ema_decay is not None:
        kept = saved.restored({"average": {"params": params}}, part=True)["average"]["params"]
    else:
        kept = saved.restored({"params": params}, part=True)["params"]
    return {"step": found["step"], "params": kept}


def _as_it_is_now(model: Model, run_dir: Path) -> Model:
    """The model's settings with the present file of a custom cell; warn if the file changed."""
    if not isinstance(model, RNN) or not isinstance(model.cell, CustomCell):
        return model
    then = model.cell.sha256
    cell = custom.resolved(dataclasses.replace(model.cell, sha256=None))
    if cell.sha256 != then:
        warnings.warn(
            f"{run_dir}: {cell} has changed since the run began (SHA-256 {str(then)[:12]}… then, "
            f"{str(cell.sha256)[:12]}… now): it is taken as it is now",
            stacklevel=3,
        )
    return dataclasses.replace(model, cell=cell)
