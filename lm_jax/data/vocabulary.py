"""Tokens and their numbers: characters, bytes, words, or frequent sequences of bytes.

The rules:

- `char`: every Unicode character is a token.
- `byte`: every byte of UTF-8 is a token, V = 256, and nothing is unknown.
- `word`: the words between white space are tokens. Every line ends in `<eos>`, including blank
  lines and an unfinished last line. The Penn Treebank and WikiText files follow this convention.
- `bpe`: byte-pair encoding (`lm_jax.data.bpe`). Rare strings are split into several tokens, and
  nothing is unknown.

Every vocabulary has a *boundary*, the token that ends a line: the newline, the byte 10, `<eos>`.
The boundary also precedes the first token of a text, and the first token is predicted from it.
Characters and words missing from the training text are `<unk>`. With `word`, the strings `<unk>`
and `<eos>` in a text are the tokens of the same name.
"""

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from lm_jax.data import bpe
from lm_jax.data.text import Text
from lm_jax.settings import VERSION, UserError, parsed

UNKNOWN = "<unk>"
LINE_END = {"char": "\n", "word": "<eos>", "bpe": "\n"}
NO_TEXT = "a model of a task reads no text: it can neither score nor sample"
_SHOWN_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, in the order of their numbers.

    Attributes:
      tokenizer: char, byte, word or bpe; or task: symbols, or names of real inputs, without text.
      tokens: the V tokens; with `byte` and `bpe`, each byte is the character of the same number.
      rules: with `bpe`, the rules that split a text into tokens (`lm_jax.data.bpe`).
    """

    tokenizer: str
    tokens: tuple[str, ...]
    rules: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each token, by token."""
        return {token: number for number, token in enumerate(self.tokens)}

    @property
    def boundary(self) -> int:
        """Number of the boundary token.

        Raises:
          UserError: the vocabulary belongs to a task, which has no boundary.
        """
        if self.tokenizer == "task":
            raise UserError(NO_TEXT)
        return 10 if self.tokenizer == "byte" else self.numbers[LINE_END[self.tokenizer]]

    @property
    def unknown(self) -> int | None:
        """Number of `<unk>`; None if nothing can be unknown."""
        return None if self.tokenizer in ("byte", "bpe", "task") else self.numbers[UNKNOWN]

    @cached_property
    def _encode_bpe(self) -> Callable[[str], np.ndarray]:
        return bpe.encoder(self.rules)

    @cached_property
    def _number_of_codepoint(self) -> np.ndarray:
        table = np.full(0x110000, self.numbers[UNKNOWN], np.int32)
        for token, number in self.numbers.items():
            if len(token) == 1:
                table[ord(token)] = number
        return table

    @cached_property
    def _codepoint_of_number(self) -> np.ndarray:
        shown = (_SHOWN_UNKNOWN if token == UNKNOWN else token for token in self.tokens)
        return np.array([ord(character) for character in shown], "<u4")

    def encode(self, text: str, *, ended: bool = True) -> np.ndarray:
        """Return the token numbers of a text, int32 [N].

        Args:
          text: any text; a token missing from the vocabulary becomes `<unk>`.
          ended: with words, if True, a last line without a newline gets an `<eos>`. Pass False for
            a prompt, because a prompt goes on.
        """
        if self.tokenizer == "task":
            raise UserError(NO_TEXT)
        if self.tokenizer == "byte":
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        if self.tokenizer == "char":
            return self._number_of_codepoint[_codepoints(text)]
        if self.tokenizer == "bpe":
            text.encode()  # refuses a lone surrogate, like the tokeniser `byte`
            return self._encode_bpe(text)
        numbers, unknown = self.numbers, self.numbers[UNKNOWN]
        return np.array([numbers.get(word, unknown) for word in _words(text, ended)], np.int32)

    def decode(
        self, numbers: Sequence[int] | np.ndarray, errors: Literal["replace", "ignore"] = "replace"
    ) -> str:
        """Return the text of some tokens: `decode(encode(text)) == text`.

        With words, the white space may differ. `<unk>` among characters shows as U+FFFD. Bytes that
        are not UTF-8 do as well, or are left out with errors="ignore".
        """
        if self.tokenizer == "byte":
            return bytes(int(number) for number in numbers).decode(errors=errors)
        if self.tokenizer == "char":
            return (
                self._codepoint_of_number[np.asarray(numbers, int)]
                .tobytes()
                .decode("utf-32-le", "surrogatepass")
            )
        tokens = [self.tokens[number] for number in numbers]
        if self.tokenizer == "bpe":
            return "".join(tokens).encode("latin-1").decode(errors=errors)
        lines = " ".join("\n" if token == LINE_END["word"] else token for token in tokens)
        return lines.replace(" \n", "\n").replace("\n ", "\n")

    def show(self, number: int) -> str:
        """Return a token for display in a table: a newline as `\\n`.

        A token that is not UTF-8 by itself shows its bytes as `\\xe9`.
        """
        token = self.tokens[number]
        if self.tokenizer in ("byte", "bpe"):
            content = token.encode("latin-1")
            try:
                return repr(content.decode())[1:-1]
            except UnicodeDecodeError:
                return repr(content)[2:-1]
        return token if token in (UNKNOWN, LINE_END["word"]) else repr(token)[1:-1]

    def to_json(self, **beside: object) -> str:
        """Write the vocabulary as JSON; `beside` adds entries to the same object."""
        content = {"version": VERSION, "tokenizer": self.tokenizer, "tokens": self.tokens}
        rules = {"rules": self.rules} if self.rules else {}
        return json.dumps({**content, **rules, **beside}, ensure_ascii=False, indent=0) + "\n"

    @staticmethod
    def from_json(text: str, name: str = "vocabulary.json") -> "Vocabulary":
        """Read a vocabulary that `to_json` wrote; errors call the text `name`.

        Raises:
          UserError: the text holds no vocabulary of this version.
        """
        try:
            content = parsed(text, "it")
            if content["version"] != VERSION:
                raise KeyError("version")
            tokenizer, tokens = str(content["tokenizer"]), tuple(content["tokens"])
            if not all(isinstance(token, str) for token in tokens):
                raise KeyError("tokens")
            if tokenizer == "bpe":
                found = Vocabulary(tokenizer, tokens, str(content["rules"]))
                if bpe.tokens(found.rules) != tokens:
                    raise KeyError("tokens")
                return found
            found = Vocabulary(tokenizer, tokens)
            bare = found == BYTES or tokenizer == "task"
            needed = set() if bare else {UNKNOWN, LINE_END[tokenizer]}
            if len(found.numbers) < len(found) or not needed <= found.numbers.keys():
                raise KeyError("tokens")
            if tokenizer == "char" and any(len(token) != 1 for token in {*tokens} - {UNKNOWN}):
                raise KeyError("tokens")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{name} holds no vocabulary of version {VERSION}: {error}") from None
        return found


BYTES = Vocabulary("byte", tuple(map(chr, range(256))))


def build(text: Text, tokenizer: str, size: int | None = None, min_count: int = 1) -> Vocabulary:
    """Build the vocabulary of a training text.

    With characters and words, `<unk>` comes first and the line's end second, whatever their counts.
    The other tokens follow, the most frequent first, ties in the order of their characters.

    Args:
      text: the training text.
      tokenizer: char, byte, word or bpe.
      size: maximum number of tokens, including `<unk>` and the line's end; None: all; with bpe,
        None: `lm_jax.data.bpe.DEFAULT_SIZE`.
      min_count: minimum count of a character or word in the text.

    Raises:
      UserError: the text is not UTF-8, holds a NUL character, or has fewer than two distinct
        tokens; or no token but `<unk>` and the line's end occurs `min_count` times.
    """
    if tokenizer == "byte":
        return BYTES
    if tokenizer == "bpe":
        rules = bpe.train(bpe.whole(decoded(text)), size)
        return Vocabulary("bpe", bpe.tokens(rules), rules)
    first = (UNKNOWN, LINE_END[tokenizer])
    counts = _count(text, tokenizer)
    frequent = sorted(
        (token for token, count in counts.items() if count >= min_count and token not in first),
        key=lambda token: (-counts[token], token),
    )
    if len(counts) < 2:
        raise UserError(f"{text.name}: a vocabulary of {len(counts)}: there is nothing to predict")
    if not frequent:
        raise UserError(
            f"{text.name}: a vocabulary of nothing but {first[0]} and {first[1]!r}: "
            f"no other token occurs data.tokenizer.min_count={min_count} times"
        )
    return Vocabulary(tokenizer, (first + tuple(frequent))[:size])


def _count(text: Text, tokenizer: str) -> Counter[str]:
    if tokenizer == "word":
        counts: Counter[str] = Counter()
        for part, is_last in _with_last(whole_words(decoded(text))):
            counts.update(_words(part, ended=is_last))
        return counts
    occurrences = np.zeros(0x110000, np.int64)
    for part in decoded(text):
        found, times = np.unique(_codepoints(part), return_counts=True)
        occurrences[found] += times
    return Counter({chr(point): int(occurrences[point]) for point in np.flatnonzero(occurrences)})


def encoded(vocabulary: Vocabulary, text: Text) -> Iterator[tuple[np.ndarray, int, int]]:
    """Encode a text block by block.

    Yields:
      the block's token numbers [n], its characters, and its unknown tokens. A token is unknown if
      it becomes `<unk>`, unless the text itself says `<unk>`.

    Raises:
      UserError: the text is not UTF-8, or holds a NUL character.
    """
    if vocabulary.tokenizer == "byte":
        for block in text.blocks():
            numbers = np.frombuffer(block, np.uint8)
            # Every character of UTF-8 has one byte that is not 10xxxxxx.
            yield numbers.astype(np.int32), int(np.sum(numbers & 0xC0 != 0x80)), 0
        return
    parts = decoded(text)
    if vocabulary.tokenizer == "bpe":
        for part in bpe.whole(parts):
            yield vocabulary.encode(part), len(part), 0
        return
    for part, is_last in _with_last(
        whole_words(parts) if vocabulary.tokenizer == "word" else parts
    ):
        numbers = vocabulary.encode(part, ended=is_last)
        written = part.split().count(UNKNOWN) if vocabulary.tokenizer == "word" else 0
        yield numbers, len(part), int(np.sum(numbers == vocabulary.unknown)) - written


def decoded(text: Text) -> Iterator[str]:
    """Decode a text block by block, never inside a character.

    Raises:
      UserError: names the offset of the first byte that is not UTF-8, or is a NUL.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = text.start  # of the block
    for block, is_last in _with_last(text.blocks()):
        held = len(decoder.getstate()[0])
        sound, nul, _ = block.partition(b"\0")
        try:
            part = decoder.decode(sound, final=is_last or bool(nul))
        except UnicodeDecodeError as error:
            offset = position - held + error.start
            raise UserError(
                f"{text.name}: not UTF-8 at byte {offset}: {error.reason}; "
                "data.tokenizer=byte reads any bytes"
            ) from None
        if nul:
            raise UserError(
                f"{text.name}: a NUL at byte {position + len(sound)}: not text, it seems; "
                "data.tokenizer=byte reads any bytes"
            )
        position += len(block)
        if part:
            yield part


def whole_words(parts: Iterable[str]) -> Iterator[str]:
    """Cut a text anew; no part ends within a word."""
    held: list[str] = []
    for part in parts:
        cut = max(part.rfind("\n"), part.rfind(" ")) + 1
        if cut:
            yield "".join([*held, part[:cut]])
            held = []
        held.append(part[cut:])
    if rest := "".join(held):
        yield rest


def _words(text: str, ended: bool) -> list[str]:
    lines = text.split("\n")
    words = []
    for line in lines[:-1]:
        words += line.split()
        words.append(LINE_END["word"])
    words += lines[-1].split()
    if ended and lines[-1]:
        words.append(LINE_END["word"])
    return words


def _codepoints(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


def _with_last(items: Iterable) -> Iterator[tuple]:
    """Yield each item, with True for the last item and False for the others."""
    waiting = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True
