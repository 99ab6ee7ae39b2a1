"""Read n-gram models from ARPA files, and say in which line a file is wrong.

`lm_jax.exchange.arpa` describes the format. `<UNK>` is read as `<unk>`; as in KenLM, P(<unk>) is
10^-100 if a file holds no such word. Lines before the head may begin with #.

Letters: M k-grams of an order k, V tokens of the vocabulary.
"""

import io
import math
from array import array
from typing import NamedTuple

import numpy as np

from lm_jax.data.packed import unpacked
from lm_jax.data.vocabulary import LINE_END, UNKNOWN, Vocabulary
from lm_jax.exchange.arpa import END, START
from lm_jax.models.backoff import BackoffModel
from lm_jax.models.base import Params
from lm_jax.models.nodes import Nodes, pack
from lm_jax.settings import UserError

_LN10 = math.log(10)
_LONGEST = 1 << 20  # bytes of a line
_UNK = UNKNOWN.encode()
_CUT_SHORT = "the file ends before \\end\\: it is cut short"
_TOO_LONG = f"the line is longer than {_LONGEST >> 20} MiB"
_MISSING = -100.0  # log10 of the probability of <unk> in a file without <unk>


class Arpa(NamedTuple):
    """The model of an ARPA file."""

    model: BackoffModel
    params: Params
    vocabulary: Vocabulary


def read_arpa(path: str, name: str) -> Arpa:
    """Read a back-off model of words from an ARPA file, packed or not.

    Args:
      path: path of the file.
      name: name of the file in errors.

    Raises:
      UserError: the file cannot be read, or is no ARPA file; is cut short, or holds other numbers
        of n-grams than its head says; a line has another number of words, a probability above 1, a
        word that is no 1-gram, `<s>` after or `</s>` before another word; an n-gram stands twice,
        or its context is no n-gram. Names the line.
    """
    with unpacked(path, name) as (file, _):
        return _Reader(file, name).read()


class _Section(NamedTuple):
    """The k-grams of an ARPA file, in its order."""

    first: int
    """Number of the line of the first k-gram."""
    P: np.ndarray
    """[M] ln P."""
    bow: np.ndarray
    """[M] ln bow."""
    words: np.ndarray
    """[M, k] numbers of the words, in the order of the 1-grams."""


class _Reader:
    """Reads the lines of an ARPA file, and knows where it is."""

    def __init__(self, file: io.BufferedReader, name: str):
        self.file, self.name = file, name
        self.number = 0  # of the current line
        self.line = b""
        self.words: dict[bytes, int] = {}  # in the order of the 1-grams

    def read(self) -> Arpa:
        first, *counts = self._counts()
        highest = 1 + len(counts)
        section = self._section(1, first, highest == 1)
        vocabulary, token_of = self._vocabulary(section)
        unigram, gamma = self._unigrams(section, token_of, len(vocabulary))
        levels: list[Nodes] = []
        keys: list[np.ndarray] = []  # context * V + token of the k-grams of each order, rising
        for order, count in enumerate(counts, 2):
            section = self._section(order, count, order == highest)
            tokens = token_of[section.words]
            context = self._contexts(section, tokens, keys, len(vocabulary))
            here = context * len(vocabulary) + tokens[:, -1]
            rising = np.argsort(here, kind="stable")
            self._refuse_twice(section, here, rising)
            if count:
                missing = np.full(count, -1)  # no other code asks for the shorter n-grams
                token = tokens[rising, -1]
                levels.append(Nodes(context[rising], token, missing, section.P[rising], gamma))
            keys.append(here[rising])
            gamma = section.bow[rising]
        self._next()
        if self.line != b"\\end\\":
            raise self._wrong("\\end\\ is expected here")
        model = BackoffModel(order=len(levels) + 1, sentence_boundaries=True)
        params = pack(unigram, levels, vocabulary.boundary, absent=(-np.inf, 0.0))
        return Arpa(model, params, vocabulary)

    def _counts(self) -> list[int]:
        """The number of n-grams of each order by the head."""
        self._next(skip=b"#")
        if self.line != b"\\data\\":
            raise self._wrong("\\data\\ is expected here: no ARPA file, it seems")
        counts: list[int] = []
        while self._following():
            kind, _, count = self.line.partition(b"=")
            if kind.split() != [b"ngram", b"%d" % (len(counts) + 1)] or not count.strip().isdigit():
                raise self._wrong(f"ngram {len(counts) + 1}=… is expected here")
            counts.append(int(count.strip()[:18]))
            if counts[-1] and not all(counts):
                raise self._wrong("there are n-grams without their contexts")
        if not counts:
            raise self._wrong("ngram 1=… is expected here")
        return counts

    def _vocabulary(self, section: _Section) -> tuple[Vocabulary, np.ndarray]:
        """The vocabulary, and the number of each word's token."""
        end = self.words.get(END)
        if end is None:
            raise self._wrong(f"the 1-grams have no {END.decode()}", section.first)
        tokens: dict[str, int] = {}
        token_of = np.zeros(len(self.words), np.int64)
        for word, place in self.words.items():
            try:
                token = LINE_END["word"] if word in (START, END) else word.decode()
            except UnicodeDecodeError:
                raise self._wrong("a word is not UTF-8", section.first + place) from None
            if token == LINE_END["word"] and word not in (START, END):
                said = f"the word {token} has the name of a line's end in lm_jax"
                raise self._wrong(said, section.first + place)
            token_of[place] = tokens.setdefault(token, len(tokens))
        tokens.setdefault(UNKNOWN, len(tokens))
        return Vocabulary("word", tuple(tokens)), token_of

    def _unigrams(
        self, section: _Section, token_of: np.ndarray, V: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """[V] ln P and ln bow of each token; the boundary has P of </s> and bow of <s>."""
        P, gamma = np.full(V, _MISSING * _LN10), np.zeros(V)
        predicted = np.ones(len(token_of), bool)
        if START in self.words:
            predicted[self.words[START]] = False
        P[token_of[predicted]] = section.P[predicted]
        context = np.ones(len(token_of), bool)
        context[self.words[END]] = False
        gamma[token_of[context]] = section.bow[context]
        return P, gamma

    def _refuse_twice(self, section: _Section, keys: np.ndarray, rising: np.ndarray) -> None:
        twice = np.flatnonzero(np.diff(keys[rising]) == 0)
        if len(twice):
            at = twice[np.argmin(rising[twice + 1])]
            one, other = int(rising[at]), int(rising[at + 1])
            words = self._spelt(section.words[one])
            said = f"{words} stands twice, first in line {section.first + one}"
            raise self._wrong(said, section.first + other)

    def _section(self, order: int, count: int, highest: bool) -> _Section:
        """Read the k-grams of an order; at order 1, number the words."""
        head = b"\\%d-grams:" % order
        self._next()
        if self.line != head:
            raise self._wrong(f"{head.decode()} is expected here")
        first = self.number + 1
        P, bow, words = array("d"), array("d"), array("i")
        number_of = self._added if order == 1 else self.words.__getitem__
        for done in range(count):
            line = self.file.readline(_LONGEST)
            fields = line.split()
            try:
                bow.append(float(fields[order + 1]) if len(fields) > order + 1 else 0.0)
                P.append(float(fields[0]))
                words.extend(map(number_of, fields[1 : order + 1]))
                if not order < len(fields) < order + 3 or len(line) == _LONGEST:
                    raise ValueError
            except (ValueError, IndexError, KeyError):
                reason = self._reason(line, order, done, count, first)
                raise self._wrong(reason, first + done) from None
        self.number += count
        numbers = np.array(words, np.int64).reshape(-1, order)
        section = _Section(first, np.array(P) * _LN10, np.array(bow) * _LN10, numbers)
        self._check(section, highest)
        if self._following():
            raise self._wrong(f"more {order}-grams than the {count:,} that the head says")
        return section

    def _added(self, word: bytes) -> int:
        """Number a word; KeyError if the word has a number."""
        word = _UNK if word == b"<UNK>" else word
        if word in self.words:
            raise KeyError(word)
        self.words[word] = len(self.words)
        return len(self.words) - 1

    def _reason(self, line: bytes, order: int, done: int, count: int, first: int) -> str:
        """What is wrong with the line of a k-gram."""
        fields = line.split()
        if not line:
            return _CUT_SHORT
        if len(line) == _LONGEST:
            return _TOO_LONG
        if not fields or line.startswith(b"\\"):
            return f"the {order}-grams end after {done:,} of {count:,}"
        if not order < len(fields) < order + 3:
            said = "word" if order == 1 else f"{order} words"
            return f"a number, {said} and at most another number are expected here"
        for field in (fields[0], *fields[order + 1 :]):
            try:
                float(field)
            except ValueError:
                return f"{_quoted(field)} is no number"
        if order == 1:
            line_before = first + self.words[_UNK if fields[1] == b"<UNK>" else fields[1]]
            return f"{_quoted(fields[1])} stands twice, first in line {line_before}"
        unknown = next(word for word in fields[1 : order + 1] if word not in self.words)
        return f"{_quoted(unknown)} is no 1-gram"

    def _check(self, section: _Section, highest: bool) -> None:
        """Check the numbers of a section, and the places of <s> and </s>."""
        start, end = self.words.get(START, -1), self.words.get(END, -1)
        wrong = {
            "log10 P is above 0: a probability above 1": section.P > 0,
            "log10 P is no number": np.isnan(section.P),
            "the back-off weight is no finite number": ~(section.bow < np.inf),
            "an n-gram of the highest order has no back-off weight": highest & (section.bow != 0),
            "<s> stands after another word": np.any(section.words[:, 1:] == start, axis=1),
            "</s> stands before another word": np.any(section.words[:, :-1] == end, axis=1),
        }
        for said, here in wrong.items():
            if np.any(here):
                raise self._wrong(said, section.first + int(np.argmax(here)))

    def _contexts(
        self, section: _Section, tokens: np.ndarray, keys: list[np.ndarray], V: int
    ) -> np.ndarray:
        """[M] the node of each k-gram's first k - 1 words."""
        node = tokens[:, 0]
        for place, known in enumerate(keys, 1):
            wanted = node * V + tokens[:, place]
            node = np.searchsorted(known, wanted)
            missing = np.append(known, -1)[node] != wanted
            if np.any(missing):
                row = int(np.argmax(missing))
                context = self._spelt(section.words[row, :-1])
                said = f"the context {context} is no {len(keys) + 1}-gram"
                raise self._wrong(said, section.first + row)
        return node

    def _spelt(self, numbers: np.ndarray) -> str:
        names = list(self.words)
        return repr(b" ".join(names[one] for one in numbers).decode(errors="replace"))

    def _following(self) -> bool:
        """Read the next line; False if it is blank."""
        line = self.file.readline(_LONGEST)
        self.number += 1
        if not line:
            raise self._wrong(_CUT_SHORT)
        if len(line) == _LONGEST:
            raise self._wrong(_TOO_LONG)
        self.line = line.strip()
        return bool(self.line)

    def _next(self, skip: bytes = b"") -> None:
        """Read the next line that is not blank; `skip`: nor begins with this sign."""
        while not self._following() or (skip and self.line.startswith(skip)):
            pass

    def _wrong(self, said: str, number: int | None = None) -> UserError:
        return UserError(f"{self.name}: line {number or self.number}: {said}")


def _quoted(word: bytes) -> str:
    return repr(word[:80].decode(errors="replace"))
