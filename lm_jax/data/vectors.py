"""Pretrained word vectors: the start of an embedding, read from a file.

Three formats, each plain or packed by gzip, xz or zstd, told apart by their content:

- GloVe text: every line is a word and its E numbers (Pennington et al., 2014);
- word2vec text: a first line of two integers, the count of vectors and E, then lines as in GloVe;
- word2vec binary: a first line as in word2vec text, then records of a word, a blank and E
  little-endian float32, with or without a newline after each (Mikolov et al., 2013).

A token takes the vector of the word equal to the token, byte for byte; if the file lacks that word,
the vector of the token in lower case. `<eos>` takes the vector of `<eos>`, else of `</s>`. The
order of the file does not matter. Words are compared as UTF-8; a word in another encoding matches
no token.

A token without a vector draws its vector from a normal distribution of mean 0. The mean square of
that distribution is the mean square of all entries of the vectors taken from the file.

Files may be larger than the memory: only the vectors that a token may take are kept. For the other
vectors only the count of numbers is checked, not the numbers, and not repeated words. In text, a
word may hold blanks, as some words of GloVe do: the last E numbers of a line are the vector.

Published files have oddities, and an unambiguous oddity is read. A byte-order mark at the head is
not part of the first word. All vectors are read, whatever count the header says. Among several
vectors of a word the first is taken. Blank lines are skipped. Tabs or several blanks separate
fields like a single blank. A single warning counts the oddities.
"""

import io
import itertools
import re
import warnings
from typing import Any, NamedTuple, cast

import numpy as np

from lm_jax.data.formats import BOM, HEAD, other_format
from lm_jax.data.packed import unpacked
from lm_jax.data.vocabulary import LINE_END, Vocabulary
from lm_jax.settings import UserError

BLOCK = 1 << 22  # bytes read at once
_LONGEST = 1 << 20  # bytes of a line without its numbers, or of a word, in a file of vectors
_NUMBER = 64  # bytes of a number and the blanks beside it, at most
_ALIASES = {LINE_END["word"]: "</s>"}  # word2vec's name for the end of a line
_HEADER = re.compile(rb"\s*\+?(\d{1,18})\s+\+?(\d{1,9})\s*")
# Bytes that no text holds; a binary file holds some of them.
_CONTROLS = bytes({*range(32)} - {*b"\t\n\r"})


class Vectors(NamedTuple):
    """A first embedding for each token of a vocabulary."""

    table: np.ndarray
    """[V, E] of float32."""
    known: np.ndarray
    """[V] of bool: True if the token's vector is from the file."""
    covered: float | None
    """Share of the text's tokens with a vector from the file; None without counts."""

    @property
    def found(self) -> int:
        """Number of the V tokens with a vector from the file."""
        return int(np.sum(self.known))


def read_vectors(
    path: str,
    vocabulary: Vocabulary,
    size: int,
    *,
    name: str,
    seed: int = 0,
    counts: np.ndarray | None = None,
) -> Vectors:
    """Read the vectors of a vocabulary's tokens.

    Args:
      path: the file.
      vocabulary: of words, or of characters.
      size: E, the config's model.embedding_size.
      name: name of the file in errors.
      seed: seed of the vectors drawn for tokens that the file lacks.
      counts: [V], occurrences of each token in the training text.

    Warns:
      UserWarning: once, with all oddities: a header that does not fit the rest, repeated words,
        blank lines, tabs or several blanks between fields, bytes after the last vector.

    Raises:
      UserError: the file cannot be read; holds no vectors, or vectors of another length; has a line
        with more or fewer numbers, NaN or infinity; is cut short; or has none of the tokens.
    """
    if vocabulary.tokenizer not in ("word", "char"):
        raise UserError(f"{name}: data.tokenizer={vocabulary.tokenizer} has no words to look up")
    choices = [_choices(token) for token in vocabulary.tokens]
    wanted = {word for words in choices for word in words}
    with unpacked(path, name) as (file, _):
        # The type stubs let a BufferedReader read from raw files only.
        buffered: io.BufferedReader = io.BufferedReader(cast(Any, file), BLOCK)
        taken = _taken(buffered, wanted, size, name)
        buffered.detach()  # `unpacked` closes the file
    return _filled(choices, taken, size, name, seed, counts)


def _choices(token: str) -> list[bytes]:
    words = [token, token.lower(), _ALIASES.get(token, token)]
    return [word.encode(errors="surrogatepass") for word in dict.fromkeys(words)]


def _filled(
    choices: list[list[bytes]],
    taken: dict[bytes, np.ndarray],
    size: int,
    name: str,
    seed: int,
    counts: np.ndarray | None,
) -> Vectors:
    found = [next((word for word in words if word in taken), None) for words in choices]
    known = np.array([word is not None for word in found])
    if not known.any():
        raise UserError(f"{name}: holds none of the vocabulary's {len(choices):,} tokens")
    vectors = np.stack([taken[word] for word in found if word is not None])
    scale = np.sqrt(np.mean(np.square(vectors, dtype=np.float64)))
    # A row for every token: with another file, the drawn rows differ only in scale.
    table = np.random.default_rng(seed).standard_normal((len(choices), size), np.float32)
    table *= np.float32(scale)
    table[known] = vectors
    covered = None if counts is None else float(np.sum(counts[known]) / np.sum(counts))
    return Vectors(table, known, covered)


def _taken(
    file: io.BufferedReader, wanted: set[bytes], size: int, name: str
) -> dict[bytes, np.ndarray]:
    """Return the vectors of the wanted words that a file holds."""
    head = file.peek(HEAD)[:HEAD]
    number, first = 1, file.readline(_LONGEST).removeprefix(BOM.encode())
    while first and not first.strip():
        number, first = number + 1, file.readline(_LONGEST)
    if not first:
        raise UserError(f"{name}: the file is empty")
    header = _HEADER.fullmatch(first)
    length = int(header[2]) if header else _numbers_at_end(first)
    said = other_format(head) if not length or re.search(rb"[\0\r]", first.rstrip()) else None
    if said or not length:
        said = said or (
            "no file of word vectors: its first line is neither a count and a length nor a word "
            "and its numbers"
        )
        raise UserError(f"{name}: {said}")
    if length != size:
        raise UserError(f"model.embedding_size={size}, but {name} holds vectors of {length}")
    kept = _Kept(wanted, name)
    kept.blank = number - 1
    if header is None:
        _read_lines(file, number, size, kept, first)
        kept.warn()
        return kept.vectors
    count = int(header[1])
    binary = _is_binary(file, size)
    if binary:
        found = _read_records(file, count, size, kept)
    else:
        found = _read_lines(file, number + 1, size, kept)
    said = f"its first line says {count:,} vectors, and it holds {found:,}"
    if not found:
        raise UserError(f"{name}: {said}")
    kept.warn(None if found == count else said)
    return kept.vectors


class _Kept:
    """Vectors taken from a file so far, with counts of the oddities."""

    def __init__(self, wanted: set[bytes], name: str) -> None:
        self.wanted, self.name = wanted, name
        self.vectors: dict[bytes, np.ndarray] = {}
        self.places: dict[bytes, str] = {}
        self.again: list[str] = []
        self.blank = self.apart = self.rest = 0

    def refusal(self, place: str, mistake: str) -> UserError:
        return UserError(f"{self.name}: {place}: {mistake}")

    def add(self, word: bytes, vector: np.ndarray, place: str) -> None:
        if word in self.vectors:
            self.again.append(f"{word.decode()!r} in {place} after {self.places[word]}")
            return
        if not np.isfinite(vector).all():
            raise self.refusal(place, f"the vector of {word.decode()!r} holds NaN or infinity")
        self.vectors[word], self.places[word] = vector, place

    def warn(self, said: str | None = None) -> None:
        odd = {
            "vectors of words that have one already": len(self.again),
            "blank lines": self.blank,
            "lines with tabs or several blanks between fields": self.apart,
            "bytes after the last vector": self.rest,
        }
        listed = [f"{what}: {count:,}" for what, count in odd.items() if count]
        if self.again:
            listed[0] += f", the first {self.again[0]}"
        if said or listed:
            listed = [said, *listed] if said else listed
            warnings.warn(f"{self.name} is read all the same: {'; '.join(listed)}", stacklevel=4)


def _is_binary(file: io.BufferedReader, size: int) -> bool:
    start = file.tell()
    sample = file.read(_LONGEST)
    file.seek(start)
    line = _stripped(sample.lstrip(b"\r\n").partition(b"\n")[0])
    if _word(line, size) is not None and _vector(line, size) is not None:
        return False
    return len(sample.translate(None, _CONTROLS)) < len(sample)


def _stripped(line: bytes) -> bytes:
    return line.rstrip(b" \t\r\n")  # word2vec writes a blank after the last number, too


def _floats(fields: list[bytes]) -> np.ndarray | None:
    try:
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and is refused
            return np.array(fields, np.float32)
    except ValueError:
        return None


def _vector(line: bytes, size: int) -> np.ndarray | None:
    """Return the last `size` fields of a line as numbers; None if a field is no number."""
    return _floats(line.rsplit(None, size)[-size:])


def _word(line: bytes, size: int) -> bytes | None:
    """Return the word before the last `size` fields; None: too few or too many numbers."""
    fields = line.rsplit(None, size)
    if len(fields) > size:
        # The word may hold blanks, but its last part must not be a number.
        *more, last = fields[0].split()
        return None if more and _is_number(last) else fields[0].strip()
    # The word may be empty; in a file of characters, it may be a blank.
    before = line[: len(line) - len(line.lstrip())]
    all_numbers = len(fields) == size and _vector(line, size) is not None
    return before[:-1] if before and all_numbers else None


def _numbers_at_end(line: bytes) -> int:
    """Count the numbers after the word of a line; the word may be a number, or empty."""
    fields = line.split()
    numbers = sum(1 for _ in itertools.takewhile(_is_number, reversed(fields)))
    return numbers - (numbers == len(fields) and not line[:1].isspace())


def _is_number(field: bytes) -> bool:
    return _floats([field]) is not None


def _read_lines(
    file: io.BufferedReader, start: int, size: int, kept: _Kept, first: bytes = b""
) -> int:
    """Take the wanted vectors from lines of text, numbered from `start`; count all vectors.

    The line `first` has been read already.
    """
    wanted, found, longest = kept.wanted, 0, _LONGEST + _NUMBER * size
    lines = iter(lambda: file.readline(longest), b"")
    for number, line in enumerate(itertools.chain([first] if first else [], lines), start):
        if len(line) == longest:
            raise kept.refusal(f"line {number:,}", f"longer than {longest:,} bytes")
        line = _stripped(line)
        if not line:
            kept.blank += 1
            continue
        found += 1
        word = line[: line.find(b" ")]
        if line.count(b" ") != size or b"\t" in line or not word:
            word = _word(line, size)
            if word is None:
                mistake = f"{len(line.split()[1:])} numbers after a word, not {size}"
                raise kept.refusal(f"line {number:,}", mistake)
            rest = line[line.find(word) + len(word) :]
            kept.apart += b"\t" in rest or b"  " in rest
        if word in wanted:
            vector = _vector(line, size)
            if vector is None:
                mistake = f"the vector of {word.decode()!r} holds what is no number"
                raise kept.refusal(f"line {number:,}", mistake)
            kept.add(word, vector, f"line {number:,}")
    return found


def _read_records(file: io.BufferedReader, count: int, size: int, kept: _Kept) -> int:
    """Take the wanted vectors from all records of a binary file; count all records."""
    block, start, number = b"", 0, 0
    while True:
        blank = block.find(b" ", start)
        if blank < 0 or len(block) < blank + 1 + 4 * size:
            if blank < 0 and len(block) - start > _LONGEST:
                raise kept.refusal(f"record {number + 1:,}", "a word without an end")
            more = file.read(BLOCK)
            if not more:
                break
            block, start = block[start:] + more, 0
            continue
        number += 1
        word = block[start:blank].lstrip(b"\n")
        if word in kept.wanted:
            vector = np.frombuffer(block, "<f4", size, blank + 1).astype(np.float32)
            kept.add(word, vector, f"record {number:,}")
        start = blank + 1 + 4 * size
    kept.rest = len(block[start:].strip(b"\n"))
    if kept.rest and number < count:
        raise kept.refusal(f"record {number + 1:,}", f"cut short, of {count:,} records")
    return number
