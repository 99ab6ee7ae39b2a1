"""All results of the gradient tools for a model on a text, or on sequences of a task.

The tools read B sequences of T steps (`lm_jax.analysis.chunks`). A tool for a single example is
mapped over the sequences, and the results are averaged. Gradients are with respect to the
parameters of the recurrent layers.

Letters: T steps of the chunk, B sequences, L lags 0 … L-1, n numbers in the carry of a sequence.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lm_jax.analysis.chunks import Chunk
from lm_jax.data.batches import Batch
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.gradients.credit import credit_map
from lm_jax.gradients.example import SingleExample, masked_loss, restrict_to_layers, single_example
from lm_jax.gradients.horizon import credit_horizon
from lm_jax.gradients.lags import PredictedLagNorms, mean_lag_norms, predicted_lag_norms
from lm_jax.gradients.live_probe import SHARES, split_by_lag
from lm_jax.gradients.lyapunov import finite_time_exponents, lyapunov_convergence
from lm_jax.gradients.sensitivity import Probed, sensitivity_by_probes
from lm_jax.gradients.spectra import RecurrentSpectra, spectra_by_layer
from lm_jax.gradients.truncations import Truncations
from lm_jax.gradients.word_credit import credit_by_class, frequency_bands
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params

BANDS = 4  # bands of word frequency
EXPONENTS = 8  # number of Lyapunov exponents, the largest first
WINDOW = 8  # tokens for a finite-time exponent; fewer if the trajectory is shorter
PROBES = 16  # random directions for the sensitivity
ENDS = 2  # intervals between the first and the last end of the lag norms


class Lags(NamedTuple):
    """Persistence of a change of the state: ‖∂carry_T/∂carry_{T-l}‖₂."""

    measured: np.ndarray
    """[L], the mean over sequences and ends T."""
    predicted: PredictedLagNorms
    """[L] each, the mean over sequences."""


class ByLag(NamedTuple):
    """The gradient of the recurrent weights, split by lag."""

    norms: np.ndarray
    """[T], ‖∂loss/∂W‖ at each lag, in nats per unit of the weights."""
    truncations: Truncations
    """Truncated gradients for k2 = 1 … T."""
    horizon: dict[str, float]
    """Share of the gradient -> number of steps back."""


class Dynamics(NamedTuple):
    """Effect of the recurrence on small changes."""

    spectra: dict[str, RecurrentSpectra]
    """By path of W_hh; a layer without a W_hh of square blocks is left out."""
    convergence: np.ndarray
    """[N, k], the k largest Lyapunov exponents up to each token, in nats per step."""
    windows: np.ndarray
    """[N / w], the largest exponent in each window of w tokens, in nats per step."""
    text: list[str]
    """The tokens of each window."""
    eigenvalues: dict[int, dict[str, list[np.ndarray]]]
    """By update and path of W_hh: the eigenvalues of each block, at some moments of training."""


class Credit(NamedTuple):
    """Credit of the words that a loss depends on."""

    words: list[str]
    """[S], the words read in a sentence; for a task, the inputs of a sequence."""
    targets: list[str]
    """[S], the words to predict; an empty string at a step without a target."""
    map: np.ndarray
    """[S, S], ‖∂J_t/∂carry_k‖, in nats per unit of the state."""
    by_word: np.ndarray | None
    """[bands, T], mean credit over the chunk, by frequency of the input word and by lag; None for a
    task."""
    by_target: np.ndarray | None
    """[bands, T], mean credit by frequency of the target and by lag; None for a task."""
    bands: list[str] | None
    """Description of each band, the most frequent words first; None for a task."""
    horizon: dict[str, float]
    """Share of the credit -> number of steps back, averaged over the chunk's sequences."""


class Reach(NamedTuple):
    """Travel of a gradient through time. A part is None if not asked for."""

    lags: Lags | None = None
    by_lag: ByLag | None = None
    dynamics: Dynamics | None = None
    credit: Credit | None = None
    sensitivity: dict[str, Probed] | None = None
    """‖∂carry_t/∂W‖ along the chunk's first sequence, by weight."""


def reach(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    chunk: Chunk,
    sentence: Batch,
    *,
    slope: float | None = None,
    seed: int = 0,
    only: Collection[str] = Reach._fields,
) -> Reach:
    """Measure how a model's gradient travels through a chunk and through a sentence.

    Args:
      model, params, vocabulary: a trained recurrent model.
      chunk: a chunk of a text, or `sequences` of a task.
      sentence: S steps of a single sequence for the credit map, read from a fresh state.
      slope: the largest derivative of the activation (`lm_jax.gradients.lags.SLOPES`) of an ungated
        network with a single layer, to predict lag norms from W_hh; None for any other model.
      seed: for the random directions.
      only: the parts to measure.

    Raises:
      UserError: the model has no recurrent state.
    """
    example = single_example(model)
    return Reach(
        _lags(example, params, chunk, slope) if "lags" in only else None,
        _by_lag(example, params, chunk) if "by_lag" in only else None,
        _dynamics(example, params, vocabulary, chunk) if "dynamics" in only else None,
        _credit(example, params, vocabulary, chunk, sentence) if "credit" in only else None,
        _sensitivity(example, params, chunk, seed) if "sensitivity" in only else None,
    )


def _lags(example: SingleExample, params: Params, chunk: Chunk, slope: float | None) -> Lags:
    steps = len(chunk.batch.x)
    max_lag = steps // 2

    def of_sequence(params: Params, carry: Carry, x: Array) -> tuple[Array, PredictedLagNorms]:
        every = max(1, (steps - max_lag) // ENDS)
        measured = mean_lag_norms(example.step, params, carry, x, max_lag, every=every)
        ungated = {} if slope is None else {"W_hh": params["layers"][0]["W_hh"], "slope": slope}
        predicted = predicted_lag_norms(example.step, params, carry, x, max_lag, **ungated)
        return measured, predicted

    found = _over_sequences(of_sequence, params, chunk.carry, chunk.batch.x)
    return Lags(*jax.tree.map(lambda leaf: np.asarray(leaf).mean(axis=0), found))


def _by_lag(example: SingleExample, params: Params, chunk: Chunk) -> ByLag:
    def split(params: Params, carry: Carry) -> tuple[Array, Truncations, dict[str, Array]]:
        return split_by_lag(example, params, carry, chunk.batch)

    norms, found, horizons = jax.jit(split)(params, chunk.carry)
    return ByLag(np.asarray(norms), found, _floats(horizons))


def _dynamics(
    example: SingleExample, params: Params, vocabulary: Vocabulary, chunk: Chunk
) -> Dynamics:
    carry, xs = _first(chunk.carry), jnp.asarray(chunk.path)
    window = min(WINDOW, len(xs))
    count = min(EXPONENTS, optax.tree.size(carry))

    def exponents(params: Params, carry: Carry, xs: Array) -> tuple[Array, Array]:
        convergence = lyapunov_convergence(example.step, params, carry, xs, count)
        windows = finite_time_exponents(example.step, params, carry, xs, 1, window)
        return convergence, windows[:, 0]

    convergence, windows = map(np.asarray, jax.jit(exponents)(params, carry, xs))
    shown = _shown(vocabulary, chunk.path)
    text = [" ".join(shown[n * window : (n + 1) * window]) for n in range(len(windows))]
    return Dynamics(spectra_by_layer({"layers": params["layers"]}), convergence, windows, text, {})


def _credit(
    example: SingleExample, params: Params, vocabulary: Vocabulary, chunk: Chunk, sentence: Batch
) -> Credit:
    def of_sequence(params: Params, carry: Carry, x: Array, y: Array, mask: Array) -> Array:
        return credit_map(example.step, masked_loss(example.loss), params, carry, x, (y, mask))

    bands = None if chunk.counts is None else frequency_bands(chunk.counts, BANDS)

    def over_text(params: Params, carry: Carry, x: Array, y: Array, mask: Array) -> tuple:
        credit = of_sequence(params, carry, x, y, mask)
        classes = None if bands is None else jnp.asarray(bands)
        sums = None if classes is None else credit_by_class(credit, classes[x], classes[y], BANDS)
        return sums, {f"{share:g}": credit_horizon(credit, share) for share in SHARES}

    x, y, mask = (leaf[:, 0] for leaf in sentence[:3])
    whole = jax.jit(of_sequence)(params, example.carry, x, y, mask)
    sums, horizons = _over_sequences(over_text, params, chunk.carry, *chunk.batch[:3])
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


def _sensitivity(
    example: SingleExample, params: Params, chunk: Chunk, seed: int
) -> dict[str, Probed]:
    def probed(params: Params, carry: Carry, x: Array, key: Array) -> dict[str, Probed]:
        step, _, layers = restrict_to_layers(example, params)
        return sensitivity_by_probes(step, layers, carry, x, key=key, probes=PROBES, depth=None)

    return jax.jit(probed)(params, _first(chunk.carry), chunk.batch.x[:, 0], jax.random.key(seed))


def _over_sequences(
    of_sequence: Callable[..., Any], params: Params, carry: Carry, *along: Array
) -> Any:
    """Compiled of_sequence(params, carry, *along) for every sequence; `along` are arrays [T, B]."""
    return jax.jit(jax.vmap(of_sequence, (None, 0, *[1] * len(along))))(params, carry, *along)


def _first(carry: Carry) -> Carry:
    return jax.tree.map(lambda leaf: leaf[0], carry)


def _floats(values: dict[str, Array]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _shown(vocabulary: Vocabulary, values: np.ndarray) -> list[str]:
    """Tokens [S] as words; real numbers [S] or [S, I] as digits."""
    if np.issubdtype(values.dtype, np.integer):
        return [vocabulary.show(int(token)) for token in values]
    return [", ".join(f"{number:.3g}" for number in np.atleast_1d(row)) for row in values]


def _names(bands: np.ndarray, counts: np.ndarray) -> list[str]:
    """Description of each band: the number of tokens, and how often the tokens occur."""
    names = []
    for band in range(BANDS):
        of_band = counts[(bands == band) & (counts > 0)]
        often = f"{of_band.min():,} to {of_band.max():,} times" if of_band.size else "none"
        names.append(f"{of_band.size:,} tokens, {often}")
    return names
