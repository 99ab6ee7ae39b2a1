"""Ends of a sample: strings that end the text, found while the tokens arrive.

A stop is a token, or a string of the drawn text, which may begin within a token and end within
another. The text ends before the stop that is complete first; of two that are complete at the same
place, the longer one counts. Text that may be the beginning of a stop is held back until more text
has arrived.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lm_jax.data.vocabulary import UNKNOWN, Vocabulary
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest

Errors = Literal["replace", "ignore"]
_ESCAPE = re.compile(r"\\(?:[nrt\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})")


class Stop(NamedTuple):
    """An end of a sample."""

    written: str
    """The stop as the user wrote it."""
    token: int | None
    """Number of the token that ends the sample; None: the string `text` does."""
    text: str


def stops_of(vocabulary: Vocabulary, stop: str | Sequence[str] | None) -> list[Stop]:
    """Parse stops: names of tokens, or strings, literal or with escapes as in `Vocabulary.show`.

    A word of the vocabulary, `<eos>`, `<unk>` and a byte such as `\\xe9` are tokens; anything else
    is a string.

    Raises:
      UserError: a stop is empty, or the tokens of the vocabulary cannot spell the stop.
    """
    written = () if stop is None else (stop,) if isinstance(stop, str) else stop
    return [_stop_of(vocabulary, one) for one in dict.fromkeys(written)]


def _stop_of(vocabulary: Vocabulary, written: str) -> Stop:
    if not written:
        raise UserError("stop='' must hold a character")
    kind, tokens = vocabulary.tokenizer, vocabulary.tokens
    if written == UNKNOWN or kind == "word":
        number = vocabulary.numbers.get(written)
        if number is not None:
            return Stop(written, number, "")
    if kind in ("byte", "bpe") and re.fullmatch(r"\\x[89a-f][0-9a-f]", written):
        # The bytes come first, and the lowest number is the byte itself.
        return Stop(written, vocabulary.numbers[chr(int(written[2:], 16))], "")
    text = _ESCAPE.sub(lambda found: found[0].encode().decode("unicode_escape"), written)
    if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
        raise UserError(f"stop={written!r} is not UTF-8")
    parts = text.split() if kind == "word" else list(text) if kind == "char" else []
    for part in parts:
        if not any(part in token for token in tokens if token != UNKNOWN):
            raise UserError(
                f"stop={written!r} cannot be written with the {len(vocabulary):,} tokens of the "
                f"vocabulary: no token has {part!r}{nearest(written, tokens)}"
            )
    return Stop(written, None, text)


class Speller:
    """Text of tokens that arrive in chunks; the joined pieces equal the text of all tokens.

    A piece ends only when all bytes of its last character have arrived.
    """

    def __init__(self, vocabulary: Vocabulary, errors: Errors):
        self._vocabulary = vocabulary
        self._errors: Errors = errors
        self._shown = self._waiting = np.zeros(0, np.int32)

    def push(self, chunk: np.ndarray) -> str:
        """The text of the next tokens, as far as its characters are complete."""
        self._waiting = np.concatenate([self._waiting, chunk])
        both = np.append(self._shown, self._waiting)
        # A U+FFFD at the end may be an unfinished character. A real U+FFFD is shown later.
        unfinished = self._vocabulary.decode(both).endswith("\N{REPLACEMENT CHARACTER}")
        return "" if unfinished else self.rest()

    def rest(self) -> str:
        """The text of the tokens that wait for more."""
        if not len(self._waiting):
            return ""
        both = np.append(self._shown, self._waiting)
        before = self._vocabulary.decode(self._shown, self._errors)
        # One token of context determines how the next token is joined.
        self._shown, self._waiting = self._waiting[-1:], self._waiting[:0]
        return self._vocabulary.decode(both, self._errors)[len(before) :]


class Ending:
    """The text of a sample while its tokens arrive, up to the first stop.

    Attributes:
      stop: the stop that has ended the text; None before.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt: np.ndarray, stops: Sequence[Stop], errors: Errors
    ):
        """Begin a text.

        Args:
          vocabulary: the vocabulary.
          prompt: [P], token numbers before the drawn tokens; no stop is looked for here.
          stops: the ends to look for.
          errors: as in `Vocabulary.decode`.
        """
        self._speller = Speller(vocabulary, errors)
        self._ends = {stop.token: stop for stop in stops if stop.token is not None}
        self._strings = [stop for stop in stops if stop.token is None]
        self._first = self._speller.push(prompt)
        # Characters of the prompt that are still to come.
        self._prompt = len(vocabulary.decode(prompt, errors)) - len(self._first)
        self._held, self.stop = "", None

    def push(self, tokens: np.ndarray) -> str:
        """The text that may be shown after further drawn tokens; "" once the text has ended."""
        if self.stop is not None:
            return ""
        ended = None
        for place in np.flatnonzero(np.isin(tokens, list(self._ends)))[:1]:
            ended, tokens = self._ends[int(tokens[place])], tokens[:place]
        more = self._speller.push(tokens)
        if ended is not None:
            more += self._speller.rest()
        return self._shown(more, ended)

    def rest(self) -> str:
        """The text still held back, at the end of a sample that no stop has ended."""
        if self.stop is not None:
            return ""
        shown = self._shown(self._speller.rest(), None)
        return shown if self.stop is not None else shown + self._held

    def _shown(self, more: str, ended: Stop | None) -> str:
        """The text to show: no stop, and no end of the text that may begin a stop."""
        shown, self._first = self._first + more[: self._prompt], ""
        more, self._prompt = more[self._prompt :], max(self._prompt - len(more), 0)
        drawn = self._held + more
        found = [(drawn.find(stop.text), stop) for stop in self._strings if stop.text in drawn]
        if found:
            first, self.stop = min(found, key=lambda one: (one[0] + len(one[1].text), one[0]))
            return shown + drawn[:first]
        self.stop = ended
        kept = 0 if ended is not None else _begun(drawn, [stop.text for stop in self._strings])
        self._held = drawn[len(drawn) - kept :]
        return shown + drawn[: len(drawn) - kept]


def _begun(text: str, strings: Iterable[str]) -> int:
    """Length of the longest end of a text that is a beginning of one of some strings."""
    lengths = {n for string in strings for n in range(1, len(string)) if text.endswith(string[:n])}
    return max(lengths, default=0)
