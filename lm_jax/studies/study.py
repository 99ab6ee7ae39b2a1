"""Everything that the gradient tools say of one model on one text.

The text is cut into B lanes of which one chunk of T tokens is looked at, the state warmed up on the
chunk before it. Where a tool is about one example, it is mapped over the lanes and its figures are
their mean. The parameters whose gradients are taken apart are those of the recurrent layers.

Letters: T steps of the chunk, B lanes, L lags 0 … L-1, n numbers in the carry of one lane.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lm_jax.data.batches import Batch, batch_at, streams
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.gradients.credit import credit_map, gradient_by_lag
from lm_jax.gradients.horizon import credit_horizon, horizon
from lm_jax.gradients.lags import PredictedLagNorms, mean_lag_norms, predicted_lag_norms
from lm_jax.gradients.lane import Lane, of_layers, one_lane
from lm_jax.gradients.lyapunov import finite_time_exponents, lyapunov_convergence
from lm_jax.gradients.norms import norm
from lm_jax.gradients.sensitivity import Probed, sensitivity_by_probes
from lm_jax.gradients.spectra import RecurrentSpectra, spectra_by_layer
from lm_jax.gradients.truncations import Truncations, truncations
from lm_jax.gradients.word_credit import credit_by_class, frequency_bands
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError
from lm_jax.studies.live import SHARES

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
    """[S], the words read, of one sentence."""
    targets: list[str]
    """[S], the words to be said."""
    map: np.ndarray
    """[S, S], ‖∂J_t/∂carry_k‖, in nats per unit of the state."""
    by_word: np.ndarray
    """[bands, T], mean credit of a word by its frequency and the lag, over the chunk."""
    by_target: np.ndarray
    """[bands, T], the same by the target's frequency."""
    bands: list[str]
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


class Chunk(NamedTuple):
    """What a study looks at."""

    carry: Carry
    """Of B lanes, after the chunk before it."""
    batch: Batch
    """T tokens of each lane; every one has a target, and none is where a text starts."""
    stream: np.ndarray
    """[N] tokens of the first lane from there on, for what needs a long trajectory."""
    counts: np.ndarray
    """[V], how often each token occurs in the text."""


def chunk(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    tokens: np.ndarray,
    *,
    length: int,
    lanes: int,
) -> Chunk:
    """A chunk of a text and the state before it.

    Args:
      model, params, vocabulary: a trained model.
      tokens: [N] of the text.
      length: T.
      lanes: B.

    Raises:
      UserError: the text is too short for two chunks in every lane.
    """
    if length < 2 or lanes < 1:
        raise UserError(f"length={length} must be 2 or more and lanes={lanes} 1 or more")
    share = len(tokens) // lanes
    if share < 2 * length:
        raise UserError(
            f"the text's {len(tokens):,} tokens over lanes={lanes} make {share:,} each, and two "
            f"chunks of length={length} are needed: give a longer text, fewer lanes or a shorter "
            "length"
        )
    # A text is kept in the smallest type that its vocabulary fits; a model reads 32 bits.
    stream = tokens[length - 1 : min(share, 16 * length)].astype(np.int32)
    source = streams(tokens[: share * lanes], vocabulary.boundary, lanes)
    first, batch = (batch_at(source, step, length) for step in range(2))
    carry, _ = jax.jit(model.hidden)(params, model.init_carry(lanes), first.x)
    return Chunk(carry, batch, stream, np.bincount(tokens, minlength=len(vocabulary)))


def reach(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    chunk: Chunk,
    sentence: np.ndarray,
    *,
    slope: float | None = None,
    seed: int = 0,
) -> Reach:
    """How a model's gradient travels through a chunk of text and through a sentence.

    Args:
      model, params, vocabulary: a trained recurrent model.
      chunk: of a text.
      sentence: [S] tokens that the credit map is about, from a fresh state.
      slope: of an ungated network of one layer, the largest derivative of its activation
        (`lm_jax.gradients.lags.SLOPES`), for what is predicted from its W_hh; None: any other.
      seed: of the random directions.

    Raises:
      UserError: the model has no recurrent state, or the sentence is empty.
    """
    lane = one_lane(model)
    if not len(sentence):
        raise UserError("the sentence is empty")
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
    batch = chunk.batch

    def split(params: Params, carry: Carry) -> tuple[Array, Truncations, dict[str, Array]]:
        step, loss, layers = of_layers(lane, params)
        target, last = (batch.y, batch.mask), len(batch.x) - 1
        lags = gradient_by_lag(step, loss, layers, carry, batch.x, target, last, lanes=True)
        found = truncations(lags)
        return norm(lags, kept=1), found, {f"{s:g}": horizon(found, s) for s in SHARES}

    norms, found, horizons = jax.jit(split)(params, chunk.carry)
    return ByLag(np.asarray(norms), found, _floats(horizons))


def _dynamics(lane: Lane, params: Params, vocabulary: Vocabulary, chunk: Chunk) -> Dynamics:
    carry, xs = _first(chunk.carry), jnp.asarray(chunk.stream[:-1])
    window = min(WINDOW, len(xs))
    count = min(EXPONENTS, sum(leaf.size for leaf in jax.tree.leaves(carry)))

    def exponents(params: Params, carry: Carry, xs: Array) -> tuple[Array, Array]:
        convergence = lyapunov_convergence(lane.step, params, carry, xs, count)
        windows = finite_time_exponents(lane.step, params, carry, xs, 1, window)
        return convergence, windows[:, 0]

    convergence, windows = map(np.asarray, jax.jit(exponents)(params, carry, xs))
    cut = np.asarray(xs[: len(windows) * window]).reshape(-1, window)
    text = [" ".join(vocabulary.show(int(token)) for token in tokens) for tokens in cut]
    return Dynamics(spectra_by_layer({"layers": params["layers"]}), convergence, windows, text)


def _credit(
    lane: Lane, params: Params, vocabulary: Vocabulary, chunk: Chunk, sentence: np.ndarray
) -> Credit:
    sentence = sentence.astype(np.int32)
    read = np.append(np.int32(vocabulary.boundary), sentence[:-1])
    of_map = jax.jit(lambda p, c, x, y: credit_map(lane.step, lane.loss, p, c, x, y))
    whole = of_map(params, lane.carry, jnp.asarray(read), jnp.asarray(sentence))

    bands = frequency_bands(chunk.counts, BANDS)
    x, y = chunk.batch.x, chunk.batch.y

    def of_lane(params: Params, carry: Carry, x: Array, y: Array) -> tuple[Any, dict[str, Array]]:
        credit = credit_map(lane.step, lane.loss, params, carry, x, y)
        classes = jnp.asarray(bands)
        sums = credit_by_class(credit, classes[x], classes[y], BANDS)
        return sums, {f"{share:g}": credit_horizon(credit, share) for share in SHARES}

    sums, horizons = _over_lanes(of_lane, params, chunk.carry, x, y)
    by_word, by_target = jax.tree.map(lambda leaf: leaf.sum(axis=0), sums).means()
    return Credit(
        [vocabulary.show(int(token)) for token in read],
        [vocabulary.show(int(token)) for token in sentence],
        np.asarray(whole),
        by_word=np.asarray(by_word),
        by_target=np.asarray(by_target),
        bands=_names(bands, chunk.counts),
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


def _names(bands: np.ndarray, counts: np.ndarray) -> list[str]:
    """How many words a band has, and how often they occur."""
    names = []
    for band in range(BANDS):
        of_band = counts[(bands == band) & (counts > 0)]
        often = f"{of_band.min():,} to {of_band.max():,} times" if of_band.size else "none"
        names.append(f"{of_band.size:,} words, {often}")
    return names
