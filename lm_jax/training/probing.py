"""The gradient study of a run: how far its gradient reaches, and what its next updates would do."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array

from lm_jax.config import RNN, Config, train_of
from lm_jax.data.batches import Batch
from lm_jax.data.formats import BOM
from lm_jax.data.tasks import held_out
from lm_jax.gradients.audit import Apply
from lm_jax.gradients.lags import SLOPES
from lm_jax.gradients.lane import one_lane
from lm_jax.inference.wishes import check_seed
from lm_jax.models.base import Params
from lm_jax.settings import UserError
from lm_jax.studies import passage
from lm_jax.studies.study import Reach, reach
from lm_jax.studies.updates import Updates, updates
from lm_jax.training.descent import Descent
from lm_jax.training.optimizer import learning_rate, optimizer
from lm_jax.training.outcome import kept
from lm_jax.training.replay import Spike, at_work, replayed, spike
from lm_jax.training.runs import Run
from lm_jax.training.state import TrainState
from lm_jax.trees import norm

BATCHES = 8  # updates that are looked at
LANES = 4  # of the text that is looked at
LONGEST = 64  # tokens of the chunk and of the sentence, if nothing else is asked for


class Probe(NamedTuple):
    """What the gradient tools say of a run."""

    step: int
    """Updates made before the ones that are looked at."""
    parameters_step: int
    """Of the parameters whose reach is measured."""
    spike: Spike | None
    """The update at which the loss rose most, where it was looked for."""
    length: int
    """T of the chunk."""
    lanes: int
    """B of the chunk."""
    reach: Reach
    updates: Updates


def probe(
    run: Run,
    *,
    step: int | Literal["spike"] | None = None,
    tokens: np.ndarray | None = None,
    sentence: str | None = None,
    length: int | None = None,
    lanes: int = LANES,
    seed: int = 0,
    text: str | Sequence[str] | None = None,
) -> Probe:
    """How a run's gradient travels through a text, and what its next updates would do.

    A run on sequences that are drawn is looked at on some that it has never read, whole; the credit
    map is of the first.

    Args:
      run: a recurrent model, trained, or stopped on the way; it is only read.
      step: the update before which all is looked at, from 0 to `run.step`, replayed; "spike": that
        at which the loss rose most; None: the reach is that of the run's kept parameters, and the
        updates are those after its last one.
      tokens: [N] of the text that is looked at; None: the run's validation text.
      sentence: for the credit map; None: the text's first line of a fair length.
      length: T; None: that of the run's updates, 64 at most.
      lanes: B; 100 at most where sequences are drawn.
      seed: of whatever is drawn.
      text: with `data.source=memory`, what `lm_jax.train` was given.

    Raises:
      UserError: the model has no recurrent state; a number is out of range; the text or the
        sentence is too short; the sentence is no Unicode; tokens, sentence or length are given for
        sequences that are drawn; as `lm_jax.training.state_at`.
    """
    check_seed(seed)
    drawn = run.config.data.drawn
    asked = {"tokens": tokens, "sentence": sentence, "length": length}
    for name in asked if drawn else ():
        if asked[name] is not None:
            raise UserError(
                f"{name} is of a text, and {run.run_dir} was trained on sequences that are drawn, "
                f"of {run.config.data.steps} steps"
            )
    one_lane(run.model)
    found = spike(run, text=text) if step == "spike" else None
    at = found.step if found else run.step if step is None or step == "spike" else step
    work, rows = at_work(run, text)
    if not 0 <= at <= run.step:
        raise UserError(f"step={at} must be from 0 to the {run.step} updates of {run.run_dir}")
    state = replayed(work, work.restored(at), rows, at)
    params = run.params if step is None else state.params
    if drawn:
        seen = passage.sequences(run.model, held_out(run.config.data, "validation")[0](), lanes)
        line = passage.sequences(run.model, seen.batch, 1).batch
    else:
        tokens = np.asarray(work.corpus.validation.tokens if tokens is None else tokens)
        length = min(work.length, LONGEST) if length is None else length
        seen, line = _of_text(run, params, tokens, sentence, length=length, lanes=lanes)
    slope = _slope(run.config)
    far = reach(run.model, params, run.vocabulary, seen, line, slope=slope, seed=seed)
    carry, _ = work.about(state)
    batches = [work.batch(at + number) for number in range(BATCHES)]
    train = train_of(work.config)
    near = updates(
        run.model,
        state.params,
        carry,
        batches,
        thresholds=(train.clip_norm, train.clip_value, train.clip_delta),
        apply=_optimizer(work, state),
        text=not drawn,
        seed=seed,
    )
    of_params = kept(state)[0] if step is None else at
    return Probe(at, of_params, found, len(seen.batch.x), lanes, far, near)


def _of_text(
    run: Run, params: Params, tokens: np.ndarray, words: str | None, *, length: int, lanes: int
) -> tuple[passage.Chunk, Batch]:
    """The chunk and the sentence of a text that are looked at."""
    vocabulary = run.vocabulary
    try:
        line = (
            _line(tokens, vocabulary.boundary)
            if words is None
            else vocabulary.encode(words.removeprefix(BOM))
        )
    except UnicodeEncodeError:
        raise UserError(f"the sentence {words!r} is not UTF-8") from None
    seen = passage.chunk(run.model, params, vocabulary, tokens, length=length, lanes=lanes)
    return seen, passage.sentence(vocabulary.boundary, line)


def _line(tokens: np.ndarray, boundary: int) -> np.ndarray:
    """The first line of a text with at least half as many tokens as are shown, or its beginning."""
    ends = np.flatnonzero(tokens == boundary) + 1
    for line in np.split(tokens, ends):
        if len(line) >= LONGEST // 2:
            return line[:LONGEST]
    return tokens[:LONGEST]


def _slope(config: Config) -> float | None:
    """γ of an ungated network of one layer."""
    model = config.model
    if isinstance(model, RNN) and model.cell == "elman" and model.layers == 1:
        return SLOPES[model.activation or "tanh"]
    return None


def _optimizer(work: Descent, state: TrainState) -> Apply:
    """The step that the run's optimizer would take from its state, clipping left out."""
    train = train_of(work.config)
    rate = learning_rate(train, state.step, state.step // work.epoch, state.verdict.cut)

    def apply(opt_state: Any, rate: Array, params: Params, grads: Params) -> Params:
        rule = optimizer(train, rate, norm(grads))
        changes, _ = rule.update(grads, opt_state, params)
        return optax.apply_updates(params, changes)

    # Within a closure the state would be a constant of each program, in memory of its own.
    return jax.tree_util.Partial(apply, state.opt_state, rate)
