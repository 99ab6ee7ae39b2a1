"""Credit by class of word: the kinds of word remembered, and the kinds of target that remember.

An entry (t, k) of a credit map (`lm_jax.gradients.credit_map`) stands for a target y_t, an input
word x_k, and the lag l = t - k between the two. Over many sentences, the credit is averaged by lag
and class of the word, and by lag and class of the target. A class is a number 0 … C-1 for a word:
the part of speech, the place in a sentence, or the frequency (`frequency_bands`).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm_jax.settings import UserError


class ClassCredit(NamedTuple):
    """Sums over pairs (t, k); add the sums of several maps with `jax.tree.map(jnp.add, a, b)`."""

    by_word: Float[Array, "C T"]
    """Credit by class of the word at k, and by lag."""
    word_pairs: Float[Array, "C T"]
    """Number of pairs in each sum of `by_word`."""
    by_target: Float[Array, "C T"]
    """Credit by class of the target at t, and by lag."""
    target_pairs: Float[Array, "C T"]
    """Number of pairs in each sum of `by_target`."""

    def means(self) -> tuple[Float[Array, "C T"], Float[Array, "C T"]]:
        """The mean credit by class of word and by class of target; NaN if there is no pair."""
        return self.by_word / self.word_pairs, self.by_target / self.target_pairs


def credit_by_class(
    credit: Float[Array, "T T"],
    words: Int[Array, " T"],
    targets: Int[Array, " T"],
    count: int,
    mask: Bool[Array, " T"] | None = None,
) -> ClassCredit:
    """Sum a credit map by lag and class, for the word at k and for the target at t.

    For sentences of different lengths, pass maps of the longest length, with masks. Divide the sums
    once, at the end, with `ClassCredit.means`.

    Args:
      credit: a credit map.
      words, targets: classes of the words read and of the targets; a class outside 0 … C-1 is
        ignored.
      count: C.
      mask: True for real steps; None: all steps. A pair counts if both steps are real.

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

    # Add by index: a product with one-hot classes would carry the NaN of a class to all classes.
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
    """Sort a vocabulary into bands of frequency, each with about an equal share of the text.

    The occurrences of all words are lined up from the most frequent word down, ties in the order of
    the vocabulary, and cut into bands of equal length. A word belongs to the band of the word's
    first occurrence in this line. A word with a share above 1 / bands leaves the next bands empty.
    Words that do not occur are in the last band.

    Args:
      counts: [V], number of occurrences of each word.
      bands: number of bands.

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
    # Not -counts: an unsigned type has no negative numbers.
    order = np.argsort(counts.max() - counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    classes = np.empty(counts.size, np.int32)
    classes[order] = np.minimum(before * bands // total, bands - 1)
    return classes
