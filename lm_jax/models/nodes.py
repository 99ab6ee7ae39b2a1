"""The n-grams of a model as plain arrays, before they become parameters.

A level k = 2 … n is a `Nodes`: M k-grams, sorted by context, then by token, with two numbers that
`lm_jax.models.ngram` (probabilities) or `lm_jax.models.backoff` (their logarithms) reads. Level 1
is a number for each of the V tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lm_jax.models.base import Params


class Nodes(NamedTuple):
    """The k-grams of a level k, from 2 to n, and their contexts."""

    context: np.ndarray
    """[M] the node, at the level below, of all tokens but the last."""
    token: np.ndarray
    """[M] the last token."""
    shorter: np.ndarray
    """[M] the node, at the level below, of all tokens but the first; -1: not in the model."""
    alpha: np.ndarray
    """[M] the number of each k-gram."""
    gamma: np.ndarray
    """[M'] the number of each context, the nodes of the level below."""


def kept(levels: Sequence[Nodes], keep: Sequence[np.ndarray]) -> list[Nodes]:
    """The levels without some n-grams.

    Args:
      levels: levels 2 … n.
      keep: for each level, [M] True for the k-grams to keep. A k-gram is kept only if its context
        is kept.
    """
    found = []
    below = np.ones(len(levels[0].gamma), bool) if levels else np.zeros(0, bool)
    for level, here in zip(levels, keep, strict=True):
        number = np.append(np.where(below, np.cumsum(below) - 1, -1), -1)  # -1 stays -1
        found.append(
            Nodes(
                context=number[level.context[here]],
                token=level.token[here],
                shorter=number[level.shorter[here]],
                alpha=level.alpha[here],
                gamma=level.gamma[below],
            )
        )
        below = here
    return found


def pack(
    unigram: np.ndarray,
    levels: Sequence[Nodes],
    boundary: int,
    *,
    chained: bool = True,
    absent: tuple[float, float] = (0.0, 1.0),
) -> Params:
    """The parameters of an n-gram model.

    {"unigram": [V], "chained": True if gamma leads to the order below, "boundary": the token that
    ends a line, "levels": [...]}. Level k = 2 … n, of M k-grams and M' contexts, is {"token": [M],
    "alpha": [M + 1], "begin": [M' + 2], "gamma": [M' + 1]}. The children of context c are
    begin[c] … begin[c + 1] - 1; the last entries represent unseen k-grams and contexts.

    Args:
      unigram: [V] the numbers of level 1.
      levels: levels 2 … n.
      boundary: the token that ends a line.
      chained: True if gamma leads to the order below, False if to the uniform distribution.
      absent: alpha of an unseen k-gram, and gamma of an unseen context.
    """
    return {
        "unigram": jnp.asarray(unigram, float),
        "chained": jnp.asarray(chained),
        "boundary": jnp.asarray(boundary, jnp.int32),
        "levels": [
            {
                "token": jnp.asarray(level.token, jnp.int32),
                "alpha": jnp.asarray(np.append(level.alpha, absent[0]), float),
                "begin": jnp.asarray(
                    np.searchsorted(level.context, np.arange(len(level.gamma) + 2)), jnp.int32
                ),
                "gamma": jnp.asarray(np.append(level.gamma, absent[1]), float),
            }
            for level in levels
        ],
    }


def unpack(params: Params) -> tuple[np.ndarray, list[Nodes]]:
    """The numbers of level 1, and levels 2 … n, of a model's parameters: the inverse of `pack`."""
    unigram = np.asarray(params["unigram"], float)
    V, levels = len(unigram), []
    # Of the level below: the node of all tokens but the first; the nodes' keys, in rising order.
    shorter, known = np.arange(V), np.zeros(0, np.int64)
    for place, packed in enumerate(params["levels"]):
        begin, token = np.asarray(packed["begin"][:-1]), np.asarray(packed["token"])
        context = np.repeat(np.arange(len(begin) - 1), np.diff(begin))
        keys = context.astype(np.int64) * V + token
        if place == 0:
            shorter = token
        else:
            wanted = shorter[context].astype(np.int64) * V + token
            shorter = np.searchsorted(known, wanted)
            found = known[np.minimum(shorter, len(known) - 1)] == wanted
            shorter = np.where(found & (shorter < len(known)), shorter, -1)
        alpha, gamma = (np.asarray(packed[name][:-1], float) for name in ("alpha", "gamma"))
        levels.append(Nodes(context, token, shorter, alpha, gamma))
        known = keys
    return unigram, levels
