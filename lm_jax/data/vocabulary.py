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

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from lm_jax.data import bpe
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
    def number_of_codepoint(self) -> np.ndarray:
        """With `char`, the number of the token of each Unicode character, int32 [0x110000]."""
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
            return self.number_of_codepoint[codes(text)]
        if self.tokenizer == "bpe":
            text.encode()  # refuses a lone surrogate, like the tokeniser `byte`
            return self._encode_bpe(text)
        return self.numbers_of(split_words(text, ended))

    def numbers_of(self, words: Sequence[str]) -> np.ndarray:
        """Return the token numbers of some words, int32 [N]; a missing word becomes `<unk>`."""
        found = map(self.numbers.get, words, itertools.repeat(self.numbers[UNKNOWN]))
        return np.fromiter(found, np.int32, len(words))

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


def split_words(text: str, ended: bool) -> list[str]:
    """Return the words of a text, and `<eos>` at each newline.

    Args:
      text: any text.
      ended: if True, a last line without a newline gets an `<eos>`.
    """
    words = text.replace("\n", f" {LINE_END['word']} ").split()
    if ended and text and not text.endswith("\n"):
        words.append(LINE_END["word"])
    return words


def codes(text: str) -> np.ndarray:
    """Return the numbers of a text's characters in Unicode: uint8 if all are ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
