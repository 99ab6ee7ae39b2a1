"""Sizes of a text, the divisors of a text's cross-entropy, counted while the text is encoded.

Words are counted as `data.tokenizer=word` makes tokens, whatever the tokens are: the words between
white space, and the ends of lines, an unfinished last line included. A model of byte pairs and a
model of words thus divide by the same number.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt


class TextSize(NamedTuple):
    """Sizes of a text, or of a part of a text."""

    characters: int = 0
    """Unicode characters; tokens, if each token is a character (`Vocabulary.spaced`)."""
    unknown: int = 0
    """Tokens read as `<unk>` because the vocabulary lacks them."""
    bytes: int = 0
    """Bytes of UTF-8; 0 if each token is a character."""
    words: int = 0
    """Words and ends of lines; 0 if each token is a character."""

    def plus(self, other: "TextSize") -> "TextSize":
        """The sizes of two parts together."""
        return TextSize(*(a + b for a, b in zip(self, other, strict=True)))


@functools.cache
def _white() -> Bool[np.ndarray, "12290"]:
    """True at each white space character; none is above U+3000."""
    return np.array([chr(point).isspace() for point in range(0x3002)])


class WordCounter:
    """A counter of words over the parts of a text; a part may end within a word."""

    def __init__(self) -> None:
        self._within = False

    def count(self, points: UInt[np.ndarray, " n"], is_last: bool) -> int:
        """Words that begin in a part, and ends of lines.

        Args:
          points: numbers of the part's characters in Unicode.
          is_last: True for the last part; an unfinished last line then counts.
        """
        if not len(points):
            return 0
        solid = ~np.take(_white(), points, mode="clip")
        begun = np.count_nonzero(solid[1:] & ~solid[:-1]) + int(solid[0] and not self._within)
        self._within = bool(solid[-1])
        unfinished = is_last and points[-1] != ord("\n")
        return int(begun + np.count_nonzero(points == ord("\n")) + unfinished)
