"""The gradient analysis of a run: the reach of the gradient, the effect of the next updates."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import optax
from jaxtyping import Array

from lm_jax.analysis import chunks
from lm_jax.analysis.next_updates import PARTS, Updates, updates
from lm_jax.analysis.reach import Reach, reach
from lm_jax.analysis.replay import Spike, at_work, replayed, spike
from lm_jax.config import RNN, Config, Elman, NGram, NoBlock, train_of
from lm_jax.data.batches import Batch
from lm_jax.data.formats import BOM
from lm_jax.data.tasks import held_out
from lm_jax.generation.sampling_options import check_seed
from lm_jax.gradients.clipping_audit import Apply
from lm_jax.gradients.example import single_example
from lm_jax.gradients.lags import SLOPES
from lm_jax.gradients.spectra import spectra_by_layer
from lm_jax.models.base import Params
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest
from lm_jax.training.checkpoint import steps_saved
from lm_jax.training.optimizer import learning_rate, optimizer
from lm_jax.training.run_metrics import kept_params
from lm_jax.training.runs import Run
from lm_jax.training.state import TrainState
from lm_jax.training.trainer import Trainer
from lm_jax.trees import norm

BATCHES = 8  # number of updates to analyse
LANES = 4  # default number of sequences in the chunk
LONGEST = 64  # most tokens of the chunk and of the sentence, by default

Part = Literal[
    "lags",
    "by_lag",
    "dynamics",
    "credit",
    "sensitivity",
    "estimators",
    "clipping",
    "cliff",
    "exposure",
    "spike",
]
"""A part of the analysis: a field of `Reach` or of `Updates`, or the update of the spike."""


class Probe(NamedTuple):
    """Results of the gradient tools for a run."""

    step: int
    """Step before the first analysed update."""
    parameters_step: int
    """Step of the parameters used to measure the reach."""
    spike: Spike | None
    """The update that raised the loss most; None unless `step="spike"` or the part was given."""
    length: int | None
    """T of the chunk; None if no part reads the chunk."""
    sequences: int | None
    """B of the chunk; None if no part reads the chunk."""
    reach: Reach
    updates: Updates


def probe(
    run: Run,
    *,
    step: int | Literal["spike"] | None = None,
    tokens: np.ndarray | None = None,
    sentence: str | None = None,
    length: int | None = None,
    sequences: int = LANES,
    seed: int = 0,
    text: str | Sequence[str] | None = None,
    only: Collection[str] | None = None,
) -> Probe:
    """Measure the reach of a run's gradient through a text, and the effect of its next updates.

    A run on generated sequences is analysed on whole held-out sequences; the credit map then reads
    the first sequence. An imported run has no updates and no text: its reach is measured on
    `tokens`.

    Args:
      run: the run of a recurrent model, finished or stopped; its files do not change.
      step: the step to analyse, from 0 to `run.step`; its state is replayed. With "spike", the
        step before the update that raised the loss most. With None, the reach is measured with the
        run's kept parameters, and the updates follow the run's last update.
      tokens: [N], the text to analyse; None for the run's validation text.
      sentence: the sentence of the credit map; None for the text's first line of 32 tokens or more.
      length: T; None for the length of the run's updates, at most 64.
      sequences: B; at most 100 for generated sequences.
      seed: seed of the random probes and samples.
      text: with `data.source=memory`, the text given to `lm_jax.train`.
      only: the parts to measure (`Part`), at least one; the other parts of the result are None. If
        `only` is None, all parts, and the spike only with `step="spike"`.

    Raises:
      UserError: the model has no recurrent state; a number is out of range; the text or the
        sentence is too short; the sentence is not Unicode; tokens, sentence or length are given for
        generated sequences, or the part `exposure`; a part is unknown; the run is imported, and
        tokens are not given, or a part is of updates; as `lm_jax.analysis.state_at`.
    """
    check_seed(seed)
    if run.config.train is None and not isinstance(run.config.model, NGram):
        return _of_imported(run, step, tokens, sentence, length, sequences, seed=seed, only=only)
    drawn = run.config.data.generated
    asked = {"tokens": tokens, "sentence": sentence, "length": length}
    for name in asked if drawn else ():
        if asked[name] is not None:
            raise UserError(
                f"{name} is of a text, and {run.path} was trained on sequences that are drawn, "
                f"of {run.config.data.steps} steps"
            )
    parts = _parts(only, drawn)
    single_example(run.model)
    found = spike(run, text=text) if "spike" in (step, *parts) else None
    if step == "spike":
        at = run.step if found is None else found.step
    else:
        at = run.step if step is None else step
    work, rows = at_work(run, text)
    if not 0 <= at <= run.step:
        raise UserError(f"step={at} must be from 0 to the {run.step} updates of {run.path}")
    state = replayed(work, work.restored(at), rows, at)
    params = run.params if step is None else state.params
    far, near, seen = Reach(), Updates(), None
    if {*parts} & {*Reach._fields}:
        if drawn:
            held = held_out(run.config.data, "validation")[0]()
            seen = chunks.of_batch(run.model, held, sequences)
            line = chunks.of_batch(run.model, seen.batch, 1).batch
        else:
            tokens = np.asarray(work.corpus.validation.tokens if tokens is None else tokens)
            length = min(work.length, LONGEST) if length is None else length
            seen, line = _of_text(run, params, tokens, sentence, length=length, sequences=sequences)
        given = {"slope": _slope(run.config), "seed": seed, "only": parts}
        far = reach(run.model, params, run.vocabulary, seen, line, **given)
    of_params = kept_params(state)[0] if step is None else at
    if far.dynamics is not None:
        moments = _moments(work, run.step) | {of_params: params}
        found_at = {moment: _eigenvalues(moments[moment]) for moment in sorted(moments)}
        far = far._replace(dynamics=far.dynamics._replace(eigenvalues=found_at))
    if {*parts} & {*PARTS}:
        carry, _ = work.next_batch(state)
        batches = [work.batch(at + number) for number in range(BATCHES)]
        train = train_of(work.config)
        clip_delta = getattr(train.gradient, "clip_delta", None)
        near = updates(
            run.model,
            state.params,
            carry,
            batches,
            thresholds=(train.clip_norm, train.clip_value, clip_delta),
            apply=_optimizer(work, state),
            text=not drawn,
            seed=seed,
            only=parts,
        )
    steps = None if seen is None else len(seen.batch.x)
    return Probe(at, of_params, found, steps, None if seen is None else sequences, far, near)


def _of_imported(
    run: Run,
    step: int | Literal["spike"] | None,
    tokens: np.ndarray | None,
    sentence: str | None,
    length: int | None,
    sequences: int,
    *,
    seed: int,
    only: Collection[str] | None,
) -> Probe:
    """The study of a run without updates: the reach through a text."""
    single_example(run.model)
    parts = Reach._fields if only is None else _parts(only, drawn=False)
    of_updates = [name for name in parts if name not in Reach._fields]
    if of_updates or step not in (None, 0):
        what = of_updates[0] if of_updates else f"step={step}"
        raise UserError(f"{what} is of updates, and {run.path} was imported without any")
    if tokens is None:
        raise UserError(f"{run.path} was imported without a text: give one (probe --text FILE)")
    length = LONGEST if length is None else length
    seen, line = _of_text(run, run.params, tokens, sentence, length=length, sequences=sequences)
    given = {"slope": _slope(run.config), "seed": seed, "only": parts}
    far = reach(run.model, run.params, run.vocabulary, seen, line, **given)
    if far.dynamics is not None:
        found = {0: _eigenvalues(run.params)}
        far = far._replace(dynamics=far.dynamics._replace(eigenvalues=found))
    return Probe(0, 0, None, len(seen.batch.x), sequences, far, Updates())


def _moments(work: Trainer, last: int) -> dict[int, Params]:
    """The parameters before the first update, and at each checkpoint that the run keeps."""
    steps = [step for step in steps_saved(work.run_dir) if step <= last]
    states = [work.restored(step) for step in (0, *steps)]
    return {int(state.step): {"layers": state.params["layers"]} for state in states}


def _eigenvalues(params: Params) -> dict[str, list[np.ndarray]]:
    """The eigenvalues of each block of each W_hh, by path."""
    spectra = spectra_by_layer({"layers": params["layers"]})
    return {path: [block.eigenvalues for block in one.blocks] for path, one in spectra.items()}


def _parts(only: Collection[str] | None, drawn: bool) -> Collection[str]:
    """The parts to measure; all parts except the spike if `only` is None."""
    if only is None:
        return (*Reach._fields, *PARTS)
    known = get_args(Part)
    for name in only or ("",):
        if name not in known:
            raise UserError(f"only={name}: choose from {', '.join(known)}{nearest(name, known)}")
    if drawn and "exposure" in only:
        raise UserError("exposure is of a text: on a task the model does not read its answers")
    return only


def _of_text(
    run: Run, params: Params, tokens: np.ndarray, words: str | None, *, length: int, sequences: int
) -> tuple[chunks.Chunk, Batch]:
    """The chunk of a text to analyse, and the sentence of the credit map."""
    vocabulary = run.vocabulary
    try:
        line = (
            _line(tokens, vocabulary.boundary)
            if words is None
            else vocabulary.encode(words.removeprefix(BOM))
        )
    except UnicodeEncodeError:
        raise UserError(f"the sentence {words!r} is not UTF-8") from None
    seen = chunks.chunk(run.model, params, vocabulary, tokens, length=length, sequences=sequences)
    return seen, chunks.sentence(vocabulary.boundary, line)


def _line(tokens: np.ndarray, boundary: int) -> np.ndarray:
    """The first line with at least LONGEST / 2 tokens, else the text; at most LONGEST tokens."""
    ends = np.flatnonzero(tokens == boundary) + 1
    for line in np.split(tokens, ends):
        if len(line) >= LONGEST // 2:
            return line[:LONGEST]
    return tokens[:LONGEST]


def _slope(config: Config) -> float | None:
    """γ, the largest slope of the activation, of a one-layer Elman network; None for others."""
    model = config.model
    if not isinstance(model, RNN) or not isinstance(model.cell, Elman) or model.layers > 1:
        return None
    return SLOPES[model.cell.activation] if isinstance(model.block, NoBlock) else None


def _optimizer(work: Trainer, state: TrainState) -> Apply:
    """The update of the run's optimizer from `state`, without clipping."""
    train = train_of(work.config)
    rate = learning_rate(
        train, state.step, state.step // work.steps_per_epoch, state.early_stopping.lr_scale
    )

    def apply(opt_state: Any, rate: Array, params: Params, grads: Params) -> Params:
        rule = optimizer(train, rate, norm(grads))
        changes, _ = rule.update(grads, opt_state, params)
        return optax.apply_updates(params, changes)

    # In a closure the state would be a constant of each program and take memory once more.
    return jax.tree_util.Partial(apply, state.opt_state, rate)
