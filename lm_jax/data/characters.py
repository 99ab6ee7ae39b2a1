"""The characters of the words of a vocabulary, for vectors of words made from characters.

A word is spelt as a symbol for its beginning, its characters, and a symbol for its end. `<unk>` and
`<eos>` are one symbol each in place of characters.

Letters: V words, A symbols, L symbols of the longest word.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from lm_jax.data.vocabulary import LINE_END, UNKNOWN, Vocabulary
from lm_jax.settings import UserError

NO_SYMBOL, BEGIN, END, FIRST = range(4)


@dataclasses.dataclass(frozen=True, eq=False)
class WordCharacters:
    """The symbols of each word; equal if all symbols are equal."""

    numbers: np.ndarray
    """[V, L]: numbers of symbols below A, and `NO_SYMBOL` after the end of a word."""
    symbols: int
    """A, `NO_SYMBOL` included."""

    def __len__(self) -> int:
        return len(self.numbers)

    @functools.cached_property
    def _digest(self) -> tuple[int, tuple[int, ...], str]:
        found = hashlib.sha256(np.ascontiguousarray(self.numbers).tobytes()).hexdigest()
        return self.symbols, self.numbers.shape, found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordCharacters) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


Vocab = int | WordCharacters
"""V, or the characters of the V words if a model reads characters."""


def size_of(vocab: Vocab) -> int:
    """V."""
    return vocab if isinstance(vocab, int) else len(vocab)


@functools.lru_cache(maxsize=8)
def word_characters(vocabulary: Vocabulary, longest: int) -> WordCharacters:
    """The characters of all words of a vocabulary.

    Args:
      vocabulary: words.
      longest: characters of a word that are kept, from its beginning.

    Raises:
      UserError: the tokens are no words.
    """
    if vocabulary.tokenizer != "word":
        raise UserError(
            "model.embedding=characters needs words, whose characters it reads, and "
            f"data.tokenizer={vocabulary.tokenizer} has none: take data.tokenizer=word"
        )
    whole = (UNKNOWN, LINE_END["word"])
    spelt = [[word] if word in whole else list(word[:longest]) for word in vocabulary.tokens]
    symbols = sorted({symbol for word in spelt for symbol in word})
    number = {symbol: FIRST + place for place, symbol in enumerate(symbols)}
    longest_here = max(map(len, spelt))
    numbers = np.full((len(spelt), 2 + longest_here), NO_SYMBOL, np.int32)
    for row, word in zip(numbers, spelt, strict=True):
        row[: 2 + len(word)] = [BEGIN, *(number[symbol] for symbol in word), END]
    return WordCharacters(numbers, FIRST + len(symbols))
