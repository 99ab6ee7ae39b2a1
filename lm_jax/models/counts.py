"""N-gram counts of a text, as a trie built by sorting.

A text s_1 … s_N follows the boundary token s_0 (`lm_jax.data.vocabulary`). A token ends a k-gram
for every k up to the token's *reach*, 1 + the number of tokens in the longest allowed context:

- for a single stream, the context is all earlier tokens, including s_0: the reach of s_t is t + 1,
  and the first tokens have shorter contexts;
- with `sentence_boundaries`, the context begins at the last boundary token. The boundary token is
  the `<s>` of a context and the `</s>` of a prediction: a line is `<s> w_1 … w_m </s>`, a blank
  line `<s> </s>`, and `<s>` itself is never predicted. SRILM and KenLM do the same.

A k-gram is a node of level k. The nodes of a level are numbered in the order of (node of the first
k - 1 tokens, last token): the children of a node are neighbours, sorted by token. The pair is a
single int64, and does not overflow for a vocabulary of a million tokens, at any order. The nodes of
level 1 are all V tokens, including tokens that do not occur.

Letters: N tokens, V tokens of the vocabulary, M nodes of a level, n the order.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_jax.settings import UserError


class Level(NamedTuple):
    """All k-grams of a text, sorted by context, then by token; integers, [M] each."""

    context: np.ndarray
    """The node, at the level below, of all tokens but the last; at level 1 the empty context, 0."""
    token: np.ndarray
    """The last token."""
    occurrences: np.ndarray
    """Number of occurrences."""
    first: np.ndarray
    """Number of occurrences without an allowed context token before the k-gram."""
    shorter: np.ndarray
    """The node, at the level below, of all tokens but the first; empty at level 1."""


class Counts(NamedTuple):
    """The n-grams of a text, of every order up to n."""

    levels: tuple[Level, ...]
    """Level k at index k - 1."""
    vocab_size: int
    boundary: int
    sentence_boundaries: bool

    def contexts(self, order: int) -> int:
        """Number of context nodes for k-grams, k = `order`; 1, the empty context, for k = 1."""
        return len(self.levels[order - 2].token) if order > 1 else 1


class LocatedNGrams(NamedTuple):
    """The k-grams of a text, looked up in the counts of another text."""

    places: np.ndarray
    """[m] positions, from 0, of the tokens that end a k-gram."""
    contexts: np.ndarray
    """[m] nodes of the k-grams' contexts; -1: never seen."""
    nodes: np.ndarray
    """[m] nodes of the k-grams; -1: never seen."""


class OrderStatistics(NamedTuple):
    """Statistics of sparsity and storage for the k-grams of a single order k."""

    order: int
    possible: int
    """V^k."""
    seen: int
    """Distinct k-grams that occur in the training text."""
    once: int
    """Distinct k-grams that occur exactly once in the training text."""
    test: int
    """Tokens of the test text that end a k-gram."""
    unseen: int
    """Number of k-grams of the test text that do not occur in the training text."""
    bytes: int
    """Bytes that this order adds to the parameters."""
    kept: int
    """Number of k-grams in the model, after pruning."""

    @property
    def unseen_share(self) -> float:
        """Share of the test text's k-grams absent from the training text; NaN without k-grams."""
        return self.unseen / self.test if self.test else float("nan")


def count(
    tokens: np.ndarray,
    *,
    order: int,
    vocab_size: int,
    boundary: int,
    sentence_boundaries: bool = False,
) -> Counts:
    """Count the n-grams of a text, of order 1 to n.

    Args:
      tokens: [N] numbers of tokens, of any integer type; may be memory-mapped.
      order: n, at least 1.
      vocab_size: V.
      boundary: the token that ends a line and precedes the text.
      sentence_boundaries: if True, contexts begin at the last boundary token; False: the text is a
        single stream.

    Raises:
      UserError: the text is empty, the order is below 1 or above the longest n-gram, a token is not
        below V, or the n-grams cannot be numbered in 32 bits.
    """
    check_order(tokens, order=order, boundary=boundary, sentence_boundaries=sentence_boundaries)
    text, reach = _text(tokens, vocab_size, boundary, sentence_boundaries)
    node = text.astype(np.int32)  # of the (k - 1)-gram that ends at each token
    levels = [
        Level(
            context=np.zeros(vocab_size, np.int32),
            token=np.arange(vocab_size, dtype=np.int32),
            occurrences=np.bincount(text[1:], minlength=vocab_size),
            first=np.zeros(vocab_size, np.int64),
            shorter=np.zeros(0, np.int32),
        )
    ]
    for k in range(2, order + 1):
        places = np.flatnonzero(reach >= k)
        keys = node[places - 1].astype(np.int64) * vocab_size + text[places]
        kinds, kind, times = np.unique(keys, return_inverse=True, return_counts=True)
        shorter = np.empty(len(kinds), np.int32)
        shorter[kind] = node[places]
        levels.append(
            Level(
                context=(kinds // vocab_size).astype(np.int32),
                token=(kinds % vocab_size).astype(np.int32),
                occurrences=times,
                first=np.bincount(kind[reach[places] == k], minlength=len(kinds)),
                shorter=shorter,
            )
        )
        # The other entries stay stale, but are not read: the next level's places are a subset.
        node[places] = kind
    return Counts(tuple(levels), vocab_size, boundary, sentence_boundaries)


def check_order(
    tokens: np.ndarray, *, order: int, boundary: int, sentence_boundaries: bool
) -> None:
    """Check that a text holds n-grams of the given order; arguments as for `count`.

    Raises:
      UserError: the order is below 1, or above the text's longest n-gram.
    """
    if order < 1:
        raise UserError(f"order={order} must be 1 or more")
    total = len(tokens)
    if not total:
        return
    ends = (
        np.flatnonzero(np.asarray(tokens) == boundary)
        if sentence_boundaries
        else np.zeros(0, np.int64)
    )
    edges = np.concatenate([[-1], ends, [total - 1]])
    # The tokens of a line, and the boundary token before the line.
    longest = int(np.max(np.diff(edges))) + 1
    if order > longest:
        raise UserError(
            f"order={order} is longer than any n-gram of the text: its {total:,} tokens hold none "
            f"of more than {longest}"
        )


def locate(counts: Counts, tokens: np.ndarray) -> Iterator[LocatedNGrams]:
    """Look up the n-grams of another text, order by order from 1 to n.

    Args:
      counts: of the training text.
      tokens: [N] numbers of tokens.

    Raises:
      UserError: the text is empty, or a token is not below V.
    """
    V = counts.vocab_size
    text, reach = _text(tokens, V, counts.boundary, counts.sentence_boundaries)
    places = np.arange(1, len(text))
    node = text.astype(np.int64)
    yield LocatedNGrams(places - 1, np.zeros_like(places), node[1:])
    for k, level in enumerate(counts.levels[1:], 2):
        places = np.flatnonzero(reach >= k)
        contexts = node[places - 1]
        known = level.context.astype(np.int64) * V + level.token
        keys = contexts * V + text[places]  # negative, and never known, for an unseen context
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        nodes = np.where(known[at] == keys, at, -1)
        yield LocatedNGrams(places - 1, contexts, nodes)
        node = node.copy()
        node[places] = nodes


def continuations(counts: Counts, order: int) -> np.ndarray:
    """[M] continuation counts: the number of distinct tokens that occur before each k-gram.

    Each occurrence without an allowed token before the k-gram counts as a distinct context. A
    k-gram that begins with `<s>` therefore has the plain count. N-grams of the highest order n also
    have the plain count, because their preceding tokens are not counted.
    """
    level = counts.levels[order - 1]
    if order == len(counts.levels):
        return level.occurrences
    longer = counts.levels[order].shorter
    return np.bincount(longer, minlength=len(level.token)) + level.first


def discounts(counts: np.ndarray) -> np.ndarray:
    """D_0 … D_3 of modified Kneser-Ney: the discounts on counts of 0, 1, 2, and 3 or more.

    With n_j the number of k-grams of count j (Chen & Goodman, 1998, equation 26),

        Y = n_1 / (n_1 + 2 n_2),   D_j = j - (j + 1) Y n_{j+1} / n_j.

    D_3 also applies to larger counts. A small text may have no k-grams of some count: if n_j or
    n_{j+1} is 0, or D_j is not between 0 and j, D_j falls back to D_{j-1}, and D_1 to 1/2. Every
    seen k-gram thus keeps a part of the count, and every seen context leaves some probability to
    the order below.

    Args:
      counts: [M] of one order.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)
    Y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
    D = [0.0]
    for j in (1, 2, 3):
        exact = j - (j + 1) * Y * n[j + 1] / n[j] if n[j] and n[j + 1] else 0.0
        D.append(exact if 0 < exact < j else D[-1] or 0.5)
    return np.array(D)


def statistics(counts: Counts, test: np.ndarray, params: Any) -> list[OrderStatistics]:
    """Number of k-grams possible, seen, seen once and unseen, and bytes stored, for each order k.

    Args:
      counts: of the training text.
      test: [N] tokens of a test text.
      params: result of `lm_jax.models.smoothing.fit` for the counts.

    Raises:
      UserError: the text is empty, or a token is not below V.
    """
    size = [sum(leaf.nbytes for leaf in jax.tree.leaves(level)) for level in params["levels"]]
    in_model = [counts.vocab_size, *(len(level["token"]) for level in params["levels"])]
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - sum(size)
    return [
        OrderStatistics(
            order=k,
            possible=counts.vocab_size**k,
            seen=int(np.sum(level.occurrences > 0)),
            once=int(np.sum(level.occurrences == 1)),
            test=len(found.nodes),
            unseen=int(np.sum(found.nodes < 0 if k > 1 else level.occurrences[found.nodes] == 0)),
            bytes=stored,
            kept=kept,
        )
        for k, (level, found, stored, kept) in enumerate(
            zip(counts.levels, locate(counts, test), [base, *size], in_model, strict=True), 1
        )
    ]


def _text(
    tokens: np.ndarray, vocab_size: int, boundary: int, sentence_boundaries: bool
) -> tuple[np.ndarray, np.ndarray]:
    """s_0 … s_N, and the reach of each token; the reach of s_0 is 0, because s_0 is no target."""
    total = len(tokens)
    if not total:
        raise UserError("the text holds no tokens: there is nothing to count")
    low, high = min(int(np.min(tokens)), boundary), max(int(np.max(tokens)), boundary)
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise UserError(f"token {wrong} is not in the vocabulary of V={vocab_size}")
    # Searches step past the last node by up to V, and this must not overflow.
    if total + vocab_size >= 2**31:
        raise UserError(
            f"{total:,} tokens of {vocab_size:,} kinds are too many n-grams: up to {2**31 - 1:,} "
            "can be numbered"
        )
    text = np.empty(total + 1, np.int32)
    text[0], text[1:] = boundary, tokens
    reach = np.arange(1, total + 2, dtype=np.int32)
    if sentence_boundaries:
        last = np.maximum.accumulate(np.where(text == boundary, reach, 0))
        reach[1:] -= last[:-1] - 1
    reach[0] = 0
    return text, reach
