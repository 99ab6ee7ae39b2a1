"""Estimate the parameters of an n-gram model from counts.

`lm_jax.models.ngram` gives the recursion p_k = alpha_k + gamma_k p_{k-1} and the estimators. Here
are the two numbers of each: alpha for every n-gram, gamma for every context. Interpolation weights
are fitted on held-out text by EM.

Letters: n order, V tokens of the vocabulary, M k-grams and M' contexts of level k. The constant of
add-k is called `add`, because k is the order of a level.
"""

from collections.abc import Sequence

import numpy as np

from lm_jax.models import pruning
from lm_jax.models.base import Params
from lm_jax.models.counts import Counts, continuations, discounts, locate
from lm_jax.models.nodes import Nodes, pack
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest

SMOOTHINGS = ("none", "add-k", "interpolated", "kneser-ney")
CLOSE = 1e-9  # nats per token; EM is done when a round gains less


def fit(
    counts: Counts,
    *,
    smoothing: str = "kneser-ney",
    add: float = 1.0,
    weights: Sequence[float] | None = None,
    cutoffs: Sequence[int] = (),
    entropy_threshold: float | None = None,
) -> Params:
    """The parameters of an n-gram model, as `lm_jax.models.nodes.pack` describes them.

    Args:
      counts: of the training text (`lm_jax.models.counts.count`).
      smoothing: none (maximum likelihood), add-k, interpolated or kneser-ney.
      add: for add-k: the constant added to each count, above 0.
      weights: for interpolated: λ_1 … λ_n, each from 0 to 1, for example from `held_out_weights`.
      cutoffs: for each order, leave out the k-grams that occur this often or less
        (`lm_jax.models.pruning.cut_off`); empty: none.
      entropy_threshold: leave out n-grams without which the perplexity rises by a smaller share
        (`lm_jax.models.pruning.by_entropy`); the parameters are then of a
        `lm_jax.models.backoff.BackoffModel`. None: leave out none.

    Raises:
      UserError: the smoothing is unknown; the numbers for the smoothing are missing or out of
        range; entropy_threshold is given with add-k, which does not back off; or an order loses all
        its n-grams.
    """
    n, V = len(counts.levels), counts.vocab_size
    if smoothing == "none":
        parts = [_interpolated(counts, k, 1.0) for k in range(1, n + 1)]
    elif smoothing == "add-k":
        if not 0 < add < float("inf"):
            raise UserError(f"add={add} must be above 0, and finite")
        if entropy_threshold is not None:
            raise UserError("entropy_threshold needs a smoothing that backs off, not add-k")
        parts = [_add(counts, k, add) for k in range(1, n + 1)]
    elif smoothing == "interpolated":
        if weights is None or len(weights) != n:
            given = "none" if weights is None else len(weights)
            raise UserError(f"smoothing=interpolated of order={n} takes {n} weights; got {given}")
        if not all(0 <= weight <= 1 for weight in weights):
            raise UserError(f"weights={list(weights)} must be from 0 to 1")
        parts = [_interpolated(counts, k, weight) for k, weight in enumerate(weights, 1)]
    elif smoothing == "kneser-ney":
        parts = [_kneser_ney(counts, k) for k in range(1, n + 1)]
    else:
        raise UserError(f"smoothing={smoothing!r}: there is none{nearest(smoothing, SMOOTHINGS)}")
    alpha, gamma = parts[0]
    unigram = alpha + gamma / V
    levels = [
        Nodes(level.context, level.token, level.shorter, *part)
        for level, part in zip(counts.levels[1:], parts[1:], strict=True)
    ]
    if any(cutoffs):
        occurrences = [level.occurrences for level in counts.levels[1:]]
        levels = pruning.cut_off(levels, occurrences, cutoffs[1:])
        _refuse_empty(levels, f"prune={tuple(cutoffs)}")
    if entropy_threshold is not None:
        unigram, levels = pruning.by_entropy(unigram, levels, entropy_threshold)
        _refuse_empty(levels, f"entropy_threshold={entropy_threshold}")
        return pack(unigram, levels, counts.boundary, absent=(-np.inf, 0.0))
    return pack(unigram, levels, counts.boundary, chained=smoothing != "add-k")


def _refuse_empty(levels: Sequence[Nodes], setting: str) -> None:
    for order, level in enumerate(levels, 2):
        if not len(level.token):
            raise UserError(
                f"{setting} leaves no {order}-grams: prune less, or take order={order - 1}"
            )


def held_out_weights(counts: Counts, held_out: np.ndarray) -> tuple[float, ...]:
    """The weights λ_1 … λ_n of linear interpolation with maximum held-out likelihood, by EM.

    The generative model: from order n down, draw a token by order k's relative frequencies with
    probability λ_k, else pass to the order below; pass over an order with an unseen context. The
    E-step computes the probability that each order drew each token. The M-step sets λ_k to the
    share drawn by order k, among the tokens passed down to order k. EM starts from weights of 1/2
    and stops when a round gains less than 1e-9 nats per token.

    Args:
      counts: of the training text.
      held_out: [N] tokens of a text outside the training text.

    Raises:
      UserError: the held-out text is empty, or a token is not below V.
    """
    drawn, asked = [], []  # [N] for each order: P by relative frequencies; context was seen
    for k, found in enumerate(locate(counts, held_out), 1):
        frequency, unseen = _interpolated(counts, k, 1.0)
        p, seen = np.zeros(len(held_out)), np.zeros(len(held_out), bool)
        p[found.places] = np.append(frequency, 0.0)[found.nodes]
        seen[found.places] = np.append(unseen, 1.0)[found.contexts] == 0
        drawn.append(p)
        asked.append(seen)
    weights = np.full(len(drawn), 0.5)
    last = np.inf
    while True:
        below = [np.full(len(held_out), 1 / counts.vocab_size)]
        for weight, p, seen in zip(weights, drawn, asked, strict=True):
            below.append(np.where(seen, weight * p + (1 - weight) * below[-1], below[-1]))
        loss = -float(np.mean(np.log(below[-1])))
        if last - loss < CLOSE:
            return tuple(map(float, weights))
        last = loss
        came = np.ones(len(held_out))  # the share passed down to order k
        for k in reversed(range(len(drawn))):
            stays = np.where(asked[k], came * weights[k] * drawn[k] / below[k + 1], 0.0)
            arrived = np.sum(came[asked[k]])
            # Rounding may push the share above 1, or the rest below 0.
            weights[k] = min(np.sum(stays) / arrived, 1.0) if arrived > 0 else weights[k]
            came = np.maximum(came - stays, 0.0)


def _interpolated(counts: Counts, order: int, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """alpha [M] and gamma [M'] of an order; a weight of 1 is maximum likelihood."""
    level = counts.levels[order - 1]
    total = np.bincount(level.context, level.occurrences, counts.contexts(order))
    alpha = weight * level.occurrences / total[level.context]
    return alpha, np.where(total > 0, 1 - weight, 1.0)


def _add(counts: Counts, order: int, add: float) -> tuple[np.ndarray, np.ndarray]:
    level = counts.levels[order - 1]
    total = np.bincount(level.context, level.occurrences, counts.contexts(order))
    total += add * counts.vocab_size
    return level.occurrences / total[level.context], add * counts.vocab_size / total


def _kneser_ney(counts: Counts, order: int) -> tuple[np.ndarray, np.ndarray]:
    level, adjusted = counts.levels[order - 1], continuations(counts, order)
    total = np.bincount(level.context, adjusted, counts.contexts(order))
    lost = discounts(adjusted)[np.minimum(adjusted, 3)]
    left = np.bincount(level.context, lost, counts.contexts(order))
    gamma = np.divide(left, total, out=np.ones_like(left), where=total > 0)
    return (adjusted - lost) / total[level.context], gamma
