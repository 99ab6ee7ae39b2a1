"""A text of known entropy, drawn from a Markov chain of order m.

A table holds p(s | c), the distribution of the next symbol s after each context c of m symbols.
With π the stationary distribution of the contexts, the chain's entropy rate

    H = -Σ_c π(c) Σ_s p(s | c) ln p(s | c)   nats a symbol

is the least mean loss of any predictor (Shannon, 1948). A predictor that knows the table reaches H.
The difference between a model's loss and H is therefore the part left to learn.

The table is softmax(sharpness · z) with z standard normal. Every symbol has a positive probability
after every context, and π is the only solution of π P = π, Σ π = 1. This linear system is solved
directly.

Letters: K symbols, m the order, C = K^m contexts. The digits of a context in base K are its
symbols, the newest last.
"""

import bisect
import functools
import string
from typing import NamedTuple

import numpy as np

from lm_jax.config import Markov

LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits


class Chain(NamedTuple):
    """A Markov chain of symbols."""

    table: np.ndarray
    """[C, K]: p(symbol | context)."""
    stationary: np.ndarray
    """[C]: π, the share of each context in a long text."""
    entropy_rate: float
    """H, nats a symbol."""


@functools.lru_cache(maxsize=4)
def chain(config: Markov) -> Chain:
    """Draw the chain of a config."""
    K, C = config.symbols, config.symbols**config.order
    z = config.sharpness * np.random.default_rng(config.seed).standard_normal((C, K))
    table = np.exp(z - z.max(axis=1, keepdims=True))
    table /= table.sum(axis=1, keepdims=True)
    stationary = stationary_of(table)
    rows = -np.sum(table * np.log(table), axis=1)
    return Chain(table, stationary, float(stationary @ rows))


def stationary_of(table: np.ndarray) -> np.ndarray:
    """Return the stationary distribution of the contexts.

    Args:
      table: [C, K], p(symbol | context), no entry zero.

    Returns:
      [C], with sum 1.
    """
    C, K = table.shape
    P = np.zeros((C, C))
    contexts = np.arange(C)
    for symbol in range(K):
        P[contexts, (contexts * K + symbol) % C] += table[:, symbol]
    # One equation is redundant; Σ π = 1 takes its place.
    equations = P.T - np.eye(C)
    equations[-1] = 1
    return np.linalg.solve(equations, np.eye(C)[-1])


def symbols(config: Markov) -> np.ndarray:
    """Draw the text as symbol numbers, [N]; the first context follows π."""
    found, C = chain(config), config.symbols**config.order
    draws = np.random.default_rng([config.seed, 1]).random(config.characters + 1).tolist()
    rows = np.cumsum(found.table, axis=1)[:, :-1].tolist()
    context = min(bisect.bisect(np.cumsum(found.stationary).tolist(), draws[0]), C - 1)
    numbers = []
    for draw in draws[1:]:
        symbol = bisect.bisect(rows[context], draw)
        numbers.append(symbol)
        context = (context * config.symbols + symbol) % C
    return np.array(numbers, np.int64)


def text(config: Markov) -> str:
    """Draw the text, one letter a symbol."""
    return "".join(map(LETTERS.__getitem__, symbols(config).tolist()))
