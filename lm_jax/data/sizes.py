"""Sizes of a text, the divisors of a text's cross-entropy, counted while the text is encoded.

Words are counted as `data.tokenizer=word` makes tokens, whatever the tokens are: the words between
white space, and the ends of lines, an unfinished last line included. A model of byte pairs and a
model of words thus divide by the same number.

A text is *spaced* if each of its words is a single character, as in the character files of the Penn
Treebank, `c o n s u m e r s _` (Mikolov et al., 2012). The characters of such a text are its words
and the ends of lines, and not the white space between them.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt

AT_ONCE = 1 << 18  # characters counted together, few enough for a core's cache
FEW = 8  # words and ends of lines of a text that is too short to be called spaced


class TextSize(NamedTuple):
    """Sizes of a text as written, or of a part of a text."""

    characters: int = 0
    """Unicode characters."""
    unknown: int = 0
    """Tokens read as `<unk>` because the vocabulary lacks them."""
    bytes: int = 0
    """Bytes of UTF-8."""
    words: int = 0
    """Words and ends of lines."""
    longer: int = 0
    """Words of two characters or more."""

    def plus(self, other: "TextSize") -> "TextSize":
        """The sizes of two parts together."""
        return TextSize(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def spaced(self) -> bool:
        """True if each word of the text is a single character."""
        return self.words > FEW and not self.longer


@functools.cache
def _white_space() -> Bool[np.ndarray, "12290"]:
    """True at each white space character; none is above U+3000."""
    return np.array([chr(point).isspace() for point in range(0x3002)])


def _white(points: UInt[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """True at the white space among some characters."""
    if points.dtype == np.uint8:  # a table of bytes takes a tenth of the time
        return np.frombuffer(points.tobytes().translate(_white_space()[:256].tobytes()), bool)
    return np.take(_white_space(), points, mode="clip")


class WordCounter:
    """A counter of words over the parts of a text; a part may end within a word."""

    def __init__(self) -> None:
        # White space at the last two characters; there is some before the text.
        self._before = np.ones(1, bool)

    def count(self, points: UInt[np.ndarray, " n"], is_last: bool) -> tuple[int, int]:
        """Words and ends of lines, and words of two characters or more, in a part.

        A word at the seam of two parts counts in the second.

        Args:
          points: numbers of the part's characters in Unicode.
          is_last: True for the last part; an unfinished last line then counts.
        """
        words = longer = 0
        for first in range(0, len(points), AT_ONCE):
            piece = points[first : first + AT_ONCE]
            ended = is_last and first + AT_ONCE >= len(points)
            white = np.concatenate([self._before, _white(piece), np.ones(int(ended), bool)])
            begun = ~white[1:-1] & white[:-2]
            newlines = np.count_nonzero(piece == ord("\n"))
            words += int(np.count_nonzero(begun) + newlines + (ended and piece[-1] != ord("\n")))
            longer += int(np.count_nonzero(begun & ~white[2:]))
            self._before = white[-2:]
        return words, longer
