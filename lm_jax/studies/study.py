"""Everything that the gradient tools say of one model on one text, or on sequences of one task.

What is looked at is B lanes of T steps (`lm_jax.studies.passage`). Where a tool is about one
example, it is mapped over the lanes and its figures are their mean. The parameters whose gradients
are taken apart are those of the recurrent layers.

Letters: T steps of the chunk, B lanes, L lags 0 … L-1, n numbers in the carry of one lane.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lm_jax.data.batches import Batch
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.gradients.credit import credit_map
from lm_jax.gradients.horizon import credit_horizon
from lm_jax.gradients.lags import PredictedLagNorms, mean_lag_norms, predicted_lag_norms
from lm_jax.gradients.lane import Lane, of_layers, one_lane, where_asked
from lm_jax.gradients.lyapunov import finite_time_exponents, lyapunov_convergence
from lm_jax.gradients.sensitivity import Probed, sensitivity_by_probes
from lm_jax.gradients.spectra import RecurrentSpectra, spectra_by_layer
from lm_jax.gradients.truncations import Truncations
from lm_jax.gradients.word_credit import credit_by_class, frequency_bands
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.studies.live import SHARES, split_by_lag
from lm_jax.studies.passage import Chunk

BANDS = 4  # of frequency
EXPONENTS = 8  # of Lyapunov's spectrum, the largest ones
WINDOW = 8  # tokens of a finite-time exponent, where there are so many
PROBES = 16  # random directions for a sensitivity
ENDS = 2  # places of the chunk at which lag norms end


class Lags(NamedTuple):
    """How long a change of the state lasts: ‖∂carry_T/∂carry_{T-l}‖₂."""

    measured: np.ndarray
    """[L], the mean over lanes and ends."""
    predicted: PredictedLagNorms
    """[L] each, the mean over lanes."""


class ByLag(NamedTuple):
    """How far back the gradient of the recurrent weights comes from."""

    norms: np.ndarray
    """[T], ‖∂loss/∂W‖ of each lag, in nats per unit of the weights."""
    truncations: Truncations
    """Of the lengths k2 = 1 … T."""
    horizon: dict[str, float]
    """Share of the gradient -> steps back."""


class Dynamics(NamedTuple):
    """What the recurrence does to small changes."""

    spectra: dict[str, RecurrentSpectra]
    """By layer; none where a cell has no W_hh."""
    convergence: np.ndarray
    """[N, k], the k largest Lyapunov exponents after each token, in nats a step."""
    windows: np.ndarray
    """[N / w], the largest exponent in each window of w tokens, in nats a step."""
    text: list[str]
    """The windows' tokens."""


class Credit(NamedTuple):
    """Which words a loss looks back to."""

    words: list[str]
    """[S], the words read, of one sentence; of a task, the inputs of one sequence."""
    targets: list[str]
    """[S], the words to be said; empty where nothing is asked for."""
    map: np.ndarray
    """[S, S], ‖∂J_t/∂carry_k‖, in nats per unit of the state."""
    by_word: np.ndarray | None
    """[bands, T], mean credit of a word by its frequency and the lag, over the chunk; None of a
    task, as the next two."""
    by_target: np.ndarray | None
    """[bands, T], the same by the target's frequency."""
    bands: list[str] | None
    """What the bands are, the most frequent words first."""
    horizon: dict[str, float]
    """Share of the credit -> steps back, the mean over the chunk's lanes."""


class Reach(NamedTuple):
    """How a gradient travels through time."""

    lags: Lags
    by_lag: ByLag
    dynamics: Dynamics
    credit: Credit
    sensitivity: dict[str, Probed]
    """‖∂carry_t/∂W‖ over the chunk's first lane, by weight."""


def reach(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    chunk: Chunk,
    sentence: Batch,
    *,
    slope: float | None = None,
    seed: int = 0,
) -> Reach:
    """How a model's gradient travels through a chunk of text and through a sentence, or a task's.

    Args:
      model, params, vocabulary: a trained recurrent model.
      chunk: of a text, or `sequences`.
      sentence: S steps of one lane that the credit map is about, from a fresh state.
      slope: of an ungated network of one layer, the largest derivative of its activation
        (`lm_jax.gradients.lags.SLOPES`), for what is predicted from its W_hh; None: any other.
      seed: of the random directions.

    Raises:
      UserError: the model has no recurrent state.
    """
    lane = one_lane(model)
    return Reach(
        _lags(lane, params, chunk, slope),
        _by_lag(lane, params, chunk),
        _dynamics(lane, params, vocabulary, chunk),
        _credit(lane, params, vocabulary, chunk, sentence),
        _sensitivity(lane, params, chunk, seed),
    )


def _lags(lane: Lane, params: Params, chunk: Chunk, slope: float | None) -> Lags:
    steps = len(chunk.batch.x)
    max_lag = steps // 2

    def of_lane(params: Params, carry: Carry, x: Array) -> tuple[Array, PredictedLagNorms]:
        every = max(1, (steps - max_lag) // ENDS)
        measured = mean_lag_norms(lane.step, params, carry, x, max_lag, every=every)
        ungated = {} if slope is None else {"W_hh": params["layers"][0]["W_hh"], "slope": slope}
        predicted = predicted_lag_norms(lane.step, params, carry, x, max_lag, **ungated)
        return measured, predicted

    found = _over_lanes(of_lane, params, chunk.carry, chunk.batch.x)
    return Lags(*jax.tree.map(lambda leaf: np.asarray(leaf).mean(axis=0), found))


def _by_lag(lane: Lane, params: Params, chunk: Chunk) -> ByLag:
    def split(params: Params, carry: Carry) -> tuple[Array, Truncations, dict[str, Array]]:
        return split_by_lag(lane, params, carry, chunk.batch)

    norms, found, horizons = jax.jit(split)(params, chunk.carry)
    return ByLag(np.asarray(norms), found, _floats(horizons))


def _dynamics(lane: Lane, params: Params, vocabulary: Vocabulary, chunk: Chunk) -> Dynamics:
    carry, xs = _first(chunk.carry), jnp.asarray(chunk.path)
    window = min(WINDOW, len(xs))
    count = min(EXPONENTS, sum(leaf.size for leaf in jax.tree.leaves(carry)))

    def exponents(params: Params, carry: Carry, xs: Array) -> tuple[Array, Array]:
        convergence = lyapunov_convergence(lane.step, params, carry, xs, count)
        windows = finite_time_exponents(lane.step, params, carry, xs, 1, window)
        return convergence, windows[:, 0]

    convergence, windows = map(np.asarray, jax.jit(exponents)(params, carry, xs))
    shown = _shown(vocabulary, chunk.path)
    text = [" ".join(shown[n * window : (n + 1) * window]) for n in range(len(windows))]
    return Dynamics(spectra_by_layer({"layers": params["layers"]}), convergence, windows, text)


def _credit(
    lane: Lane, params: Params, vocabulary: Vocabulary, chunk: Chunk, sentence: Batch
) -> Credit:
    def of_lane(params: Params, carry: Carry, x: Array, y: Array, mask: Array) -> Array:
        return credit_map(lane.step, where_asked(lane.loss), params, carry, x, (y, mask))

    bands = None if chunk.counts is None else frequency_bands(chunk.counts, BANDS)

    def over_text(params: Params, carry: Carry, x: Array, y: Array, mask: Array) -> tuple:
        credit = of_lane(params, carry, x, y, mask)
        classes = None if bands is None else jnp.asarray(bands)
        sums = None if classes is None else credit_by_class(credit, classes[x], classes[y], BANDS)
        return sums, {f"{share:g}": credit_horizon(credit, share) for share in SHARES}

    x, y, mask = (leaf[:, 0] for leaf in sentence[:3])
    whole = jax.jit(of_lane)(params, lane.carry, x, y, mask)
    sums, horizons = _over_lanes(over_text, params, chunk.carry, *chunk.batch[:3])
    by_word = by_target = names = None
    if sums is not None and bands is not None and chunk.counts is not None:
        means = jax.tree.map(lambda leaf: leaf.sum(axis=0), sums).means()
        by_word, by_target = map(np.asarray, means)
        names = _names(bands, chunk.counts)
    said = zip(_shown(vocabulary, np.asarray(y)), np.asarray(mask), strict=True)
    return Credit(
        _shown(vocabulary, np.asarray(x)),
        [word if asked else "" for word, asked in said],
        np.asarray(whole),
        by_word=by_word,
        by_target=by_target,
        bands=names,
        horizon=_floats(jax.tree.map(jnp.mean, horizons)),
    )


def _sensitivity(lane: Lane, params: Params, chunk: Chunk, seed: int) -> dict[str, Probed]:
    def probed(params: Params, carry: Carry, x: Array, key: Array) -> dict[str, Probed]:
        step, _, layers = of_layers(lane, params)
        return sensitivity_by_probes(step, layers, carry, x, key=key, probes=PROBES, depth=None)

    return jax.jit(probed)(params, _first(chunk.carry), chunk.batch.x[:, 0], jax.random.key(seed))


def _over_lanes(of_lane: Callable[..., Any], params: Params, carry: Carry, *along: Array) -> Any:
    """(params, carry, *along) -> figures, compiled, of every lane; `along` are arrays [T, B]."""
    return jax.jit(jax.vmap(of_lane, (None, 0, *[1] * len(along))))(params, carry, *along)


def _first(carry: Carry) -> Carry:
    return jax.tree.map(lambda leaf: leaf[0], carry)


def _floats(values: dict[str, Array]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _shown(vocabulary: Vocabulary, values: np.ndarray) -> list[str]:
    """Tokens [S] as words, and real numbers [S] or [S, I] as their digits."""
    if np.issubdtype(values.dtype, np.integer):
        return [vocabulary.show(int(token)) for token in values]
    return [", ".join(f"{number:.3g}" for number in np.atleast_1d(row)) for row in values]


def _names(bands: np.ndarray, counts: np.ndarray) -> list[str]:
    """How many words a band has, and how often they occur."""
    names = []
    for band in range(BANDS):
        of_band = counts[(bands == band) & (counts > 0)]
        often = f"{of_band.min():,} to {of_band.max():,} times" if of_band.size else "none"
        names.append(f"{of_band.size:,} words, {often}")
    return names
