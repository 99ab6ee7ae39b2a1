"""Credit by class of word: what kind of word is remembered, and what kind of target remembers.

An entry (t, k) of a credit map (`lm_jax.gradients.credit_map`) stands for a target y_t, a word x_k
that was read, and the lag l = t - k between them. Over many sentences, its mean is taken by lag and
class of the word, and by lag and class of the target. A class is any number of 0 … C-1 for a word:
its part of speech, its place in a sentence, or its frequency (`frequency_bands`).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm_jax.settings import UserError


class ClassCredit(NamedTuple):
    """Sums over pairs (t, k); those of several maps add up: `jax.tree.map(jnp.add, a, b)`."""

    by_word: Float[Array, "C T"]
    """Credit by class of the word at k, and by lag."""
    word_pairs: Float[Array, "C T"]
    """How many pairs that is the sum of."""
    by_target: Float[Array, "C T"]
    """Credit by class of the target at t, and by lag."""
    target_pairs: Float[Array, "C T"]
    """How many pairs that is the sum of."""

    def means(self) -> tuple[Float[Array, "C T"], Float[Array, "C T"]]:
        """The mean credit by class of word and by class of target; NaN where there is no pair."""
        return self.by_word / self.word_pairs, self.by_target / self.target_pairs


def credit_by_class(
    credit: Float[Array, "T T"],
    words: Int[Array, " T"],
    targets: Int[Array, " T"],
    count: int,
    mask: Bool[Array, " T"] | None = None,
) -> ClassCredit:
    """Sums a credit map by lag and class, of the word at k and of the target at t.

    Sentences of different lengths are given as maps of the longest, under their masks. The sums are
    divided once, at the end: `ClassCredit.means`.

    Args:
      credit: a credit map.
      words, targets: classes of the words read and of the targets; a class outside 0 … C-1 is no
        class, and is counted nowhere.
      count: C.
      mask: the real steps; None: all. A pair counts where both its steps do.

    Returns:
      arrays [C, T], lags along the second axis.
    """
    steps = credit.shape[0]
    real = jnp.ones(steps, bool) if mask is None else mask
    k, lag = jnp.arange(steps)[:, None], jnp.arange(steps)[None, :]
    t = jnp.minimum(k + lag, steps - 1)
    k = jnp.broadcast_to(k, t.shape)
    pairs = (k + lag < steps) & real[t] & real[k]
    of_pair = jnp.where(pairs, credit[t, k], 0)  # [k, lag]
    counted = pairs.astype(credit.dtype)

    # Sums by index, not products with one-hot classes, which would carry one class's NaN to all.
    def by_class(classes: Array, values: Array) -> Array:
        known = jnp.where((classes >= 0) & (classes < count), classes, count)
        columns = jnp.broadcast_to(lag, t.shape)
        return jnp.zeros((count + 1, steps), values.dtype).at[known, columns].add(values)[:count]

    return ClassCredit(
        by_class(words[k], of_pair),
        by_class(words[k], counted),
        by_class(targets[t], of_pair),
        by_class(targets[t], counted),
    )


def frequency_bands(counts: np.ndarray, bands: int) -> np.ndarray:
    """Sorts a vocabulary into bands of frequency, each with about an equal share of the text.

    Words are taken from the most frequent down, ties in the vocabulary's order; a word is in the
    band in which its first occurrence falls. A word of a larger share than 1 / bands leaves bands
    after its own empty; words that do not occur are in the last.

    Args:
      counts: [V], how often each word occurs.
      bands: how many.

    Returns:
      int32 [V], 0 for the most frequent to bands - 1.

    Raises:
      UserError: bands is not 1 or more, a count is negative, or all are 0.
    """
    if bands < 1:
        raise UserError(f"bands={bands} must be 1 or more")
    counts = np.asarray(counts)
    if counts.min(initial=0) < 0:
        raise UserError(f"counts holds {counts.min()}, and no word occurs less often than never")
    total = int(counts.sum())
    if not total:
        raise UserError(f"none of the {counts.size} words occurs")
    # Not by -counts, which of an unsigned type is no negative number.
    order = np.argsort(counts.max() - counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    classes = np.empty(counts.size, np.int32)
    classes[order] = np.minimum(before * bands // total, bands - 1)
    return classes
