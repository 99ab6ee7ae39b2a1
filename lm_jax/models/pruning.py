"""Leave out n-grams of a model: rare ones, or those that hardly change the distribution.

*Count cut-offs* leave out k-grams that occur t_k times or less. The alpha of an n-gram left out
goes to the gamma of its context, so every distribution still sums to 1. With Kneser-Ney, whose
discounts are of all n-grams, gamma(c) = (Σ_kept D + Σ_others N) / Σ N, as in `lmplz --prune` of
KenLM.

*Entropy pruning* (Stolcke, 1998, "Entropy-based pruning of backoff language models") reads the
model as a back-off model: P(w | h) of each n-gram of the model, and a weight bow(h) for the other
tokens, p(w | h) = bow(h) p(w | h'). Without the n-gram h w, its context has the weight

    bow'(h) = (B(h) + P(w | h)) / (B'(h) + p(w | h')),

where B(h) = 1 - Σ P(v | h) and B'(h) = 1 - Σ p(v | h') are over the tokens v whose n-grams h v are
in the model, and bow(h) = B(h) / B'(h). The relative entropy of the two models is

    D = -P(h) {P(w | h) [ln p(w | h') + ln bow'(h) - ln P(w | h)]
               + B(h) [ln bow'(h) - ln bow(h)]},

with P(h) from the model's own shorter contexts, P(h_1) P(h_2 | h_1) …, and the perplexity rises by
the share exp(D) - 1. An n-gram is left out if this share is below the threshold and no kept
n-gram has it as a context. The decisions are made for each n-gram by itself, the longest n-grams
first, with the weights of the whole model; at the end all weights are computed anew. Where h begins
with the token at a sentence's start, P(h_1) is the probability of a sentence's end. If the n-grams
after h cover the vocabulary, all are kept.

Letters as in `lm_jax.models.nodes`.
"""

from collections.abc import Sequence

import numpy as np

from lm_jax.models.nodes import Nodes, kept

_COVERED = 1e-12
"""B'(h) below which the n-grams cover the vocabulary, up to rounding."""


def cut_off(
    levels: Sequence[Nodes], occurrences: Sequence[np.ndarray], cutoffs: Sequence[int]
) -> list[Nodes]:
    """The levels without the k-grams that occur rarely.

    Args:
      levels: levels 2 … n, with probabilities.
      occurrences: for each level, [M] the number of occurrences of each k-gram.
      cutoffs: for each level, the greatest number of occurrences to leave out, never falling; the
        last one holds for all further levels.
    """
    cutoffs = [*cutoffs, *[cutoffs[-1]] * (len(levels) - len(cutoffs))] if cutoffs else []
    keep = [times > most for times, most in zip(occurrences, cutoffs, strict=True)]
    moved = [
        level._replace(
            gamma=level.gamma
            + np.bincount(level.context[~here], level.alpha[~here], len(level.gamma))
        )
        for level, here in zip(levels, keep, strict=True)
    ]
    return kept(moved, keep)


def backed_off(unigram: np.ndarray, levels: Sequence[Nodes]) -> list[Nodes]:
    """The same model with P of each n-gram as alpha, P = alpha + gamma p_{k-1}.

    Args:
      unigram: [V] P of each token.
      levels: levels 2 … n, of an interpolated model in which gamma leads to the order below, and
        the shorter n-gram of every n-gram is in the model.
    """
    found, below = [], unigram
    for level in levels:
        below = level.alpha + level.gamma[level.context] * below[level.shorter]
        found.append(level._replace(alpha=below))
    return found


def by_entropy(
    unigram: np.ndarray, levels: Sequence[Nodes], threshold: float
) -> tuple[np.ndarray, list[Nodes]]:
    """The logarithms of a back-off model, without the n-grams that hardly change the distribution.

    Args:
      unigram: [V] P of each token.
      levels: as for `backed_off`.
      threshold: the greatest rise of the perplexity, as a share, for which an n-gram is left out.

    Returns:
      ln P of each token, and levels 2 … n with ln P of each n-gram and ln bow of each context.
    """
    levels = backed_off(unigram, levels)
    lower = [unigram, *(level.alpha for level in levels)]
    contexts = [unigram]  # P(h) of each node
    for level in levels[:-1]:
        contexts.append(contexts[-1][level.context] * level.alpha)
    keep: list[np.ndarray] = []
    for place in reversed(range(len(levels))):
        here = perplexity_rise(levels[place], lower[place], contexts[place]) >= threshold
        if keep:  # what is the context of a kept n-gram is kept
            above = levels[place + 1]
            here[above.context[keep[0]]] = True
        keep.insert(0, here)
    with np.errstate(divide="ignore"):  # ln 0 of maximum likelihood
        logs = [
            level._replace(alpha=np.log(level.alpha), gamma=np.log(gamma))
            for level, gamma in zip(levels, _weights(unigram, levels, keep), strict=True)
        ]
        return np.log(unigram), kept(logs, keep)


def perplexity_rise(level: Nodes, lower: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """[M] the rise of the perplexity without each k-gram, as a share of the perplexity.

    Args:
      level: level k, with P and bow.
      lower: P of each node of the level below.
      contexts: P(h) of each context.
    """
    P, Q = level.alpha, lower[level.shorter]
    rest_lower = 1 - np.bincount(level.context, Q, len(level.gamma))  # B'(h)
    rest_lower = np.maximum(rest_lower, 0)[level.context]
    bow = level.gamma[level.context]
    rest = bow * rest_lower
    with np.errstate(divide="ignore", invalid="ignore"):
        new = (rest + P) / (rest_lower + Q)
        moved = P * (np.log(Q) + np.log(new) - np.log(P))
        others = np.where(rest > 0, rest * (np.log(new) - np.log(bow)), 0.0)
        rise = np.expm1(-contexts[level.context] * (moved + others))
    return np.where(np.isnan(rise) | (rest_lower < _COVERED), np.inf, rise)


def _weights(
    unigram: np.ndarray, levels: Sequence[Nodes], keep: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The back-off weights of the kept n-grams, for each level [M'], 1 for other contexts."""
    found = []
    lower, known = unigram, np.ones(len(unigram), bool)  # p of each node of the level below; kept?
    for level, here in zip(levels, keep, strict=True):
        Q = lower[level.shorter]
        size = len(level.gamma)
        rest = 1 - np.bincount(level.context[here], level.alpha[here], size)
        rest_lower = 1 - np.bincount(level.context[here], Q[here], size)
        # If the kept n-grams cover the vocabulary, no token is left for the weight.
        bow = np.divide(
            np.maximum(rest, 0), rest_lower, out=np.ones(size), where=rest_lower > _COVERED
        )
        bow = np.where(known & (np.bincount(level.context[here], minlength=size) > 0), bow, 1.0)
        found.append(bow)
        lower = np.where(here, level.alpha, bow[level.context] * Q)
        known = here
    return found
