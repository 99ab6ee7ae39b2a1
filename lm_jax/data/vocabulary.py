"""Tokens and their numbers: characters, bytes, words, or frequent sequences of bytes.

The rules:

- `char`: every Unicode character is a token.
- `byte`: every byte of UTF-8 is a token, V = 256, and nothing is unknown.
- `word`: what stands between white space is a token, and every line ends in `<eos>`, a blank line
  and an unfinished last one too. This is the convention of the Penn Treebank and WikiText files.
- `bpe`: byte-pair encoding (`lm_jax.data.bpe`); what is no token of its own is several.

One token of each is the *boundary*, which ends a line: the newline, the byte 10, `<eos>`. It also
stands before the first token of a text, so that every token of a text is predicted from something.
Characters and words that the training text does not hold are `<unk>`. Among words, `<unk>` and
`<eos>` that stand in a text are those tokens.
"""

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

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
      tokenizer: char, byte, word or bpe; or task: symbols, or names of real inputs, and no text.
      tokens: the V tokens; with `byte` and `bpe`, each byte is the character of the same number.
      rules: with `bpe`, what makes tokens of a text (`lm_jax.data.bpe`).
    """

    tokenizer: str
    tokens: tuple[str, ...]
    rules: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each token."""
        return {token: number for number, token in enumerate(self.tokens)}

    @property
    def boundary(self) -> int:
        """The number of the token that ends a line and stands before a text; a task has none."""
        if self.tokenizer == "task":
            raise UserError(NO_TEXT)
        return 10 if self.tokenizer == "byte" else self.numbers[LINE_END[self.tokenizer]]

    @property
    def unknown(self) -> int | None:
        """The number of `<unk>`, or None where nothing can be unknown."""
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
        """The numbers of a text's tokens, int32 [N].

        Args:
          text: any text; what the vocabulary lacks becomes `<unk>`.
          ended: with words, whether a last line without a newline gets its `<eos>` all the same.
            A prompt, which goes on, is not ended.
        """
        if self.tokenizer == "task":
            raise UserError(NO_TEXT)
        if self.tokenizer == "byte":
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        if self.tokenizer == "char":
            return self._number_of_codepoint[_codepoints(text)]
        if self.tokenizer == "bpe":
            text.encode()  # refuses a lone surrogate, as bytes do
            return self._encode_bpe(text)
        numbers, unknown = self.numbers, self.numbers[UNKNOWN]
        return np.array([numbers.get(word, unknown) for word in _words(text, ended)], np.int32)

    def decode(self, numbers: Sequence[int] | np.ndarray) -> str:
        """The text of some tokens: `decode(encode(text)) == text`, white space between words aside.

        `<unk>` among characters shows as U+FFFD, and so do bytes that are not UTF-8.
        """
        if self.tokenizer == "byte":
            return bytes(int(number) for number in numbers).decode(errors="replace")
        if self.tokenizer == "char":
            return (
                self._codepoint_of_number[np.asarray(numbers, int)]
                .tobytes()
                .decode("utf-32-le", "surrogatepass")
            )
        tokens = [self.tokens[number] for number in numbers]
        if self.tokenizer == "bpe":
            return "".join(tokens).encode("latin-1").decode(errors="replace")
        lines = " ".join("\n" if token == LINE_END["word"] else token for token in tokens)
        return lines.replace(" \n", "\n").replace("\n ", "\n")

    def show(self, number: int) -> str:
        """One token, as a table of tokens should show it: a newline as `\\n`.

        Bytes that are not UTF-8 by themselves show as `\\xe9`.
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
        """The vocabulary as JSON, with whatever else is to stand in the same object."""
        content = {"version": VERSION, "tokenizer": self.tokenizer, "tokens": self.tokens}
        rules = {"rules": self.rules} if self.rules else {}
        return json.dumps({**content, **rules, **beside}, ensure_ascii=False, indent=0) + "\n"

    @staticmethod
    def from_json(text: str, name: str = "vocabulary.json") -> "Vocabulary":
        """The vocabulary that `to_json` wrote.

        Raises:
          UserError: the text holds none of this version.
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
    """The vocabulary of a training text.

    Among characters and words, `<unk>` comes first and the line's end second, however often they
    occur; the others follow, the most frequent first and ties in the order of their characters.

    Args:
      text: the training text.
      tokenizer: char, byte, word or bpe.
      size: the most tokens to keep, these two included, None: all; with bpe, the most to make,
        None: `lm_jax.data.bpe.DEFAULT_SIZE`.
      min_count: how often a character or word must occur to be kept.

    Raises:
      UserError: the text is not UTF-8, holds a NUL character, or fewer than two kinds of token.
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
            f"no other token occurs data.min_count={min_count} times"
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
    """A text's tokens, block by block: numbers [n], characters in the block, tokens unheard of.

    Unheard of are those that are `<unk>` without being written so.

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
    """A text's characters, block by block, a character never cut in two.

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
    """The same text, cut anew so that no part ends within a word."""
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
    """Each item with whether it is the last one."""
    waiting = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True
