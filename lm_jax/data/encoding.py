"""A text in parts: counted for a vocabulary, and encoded.

A text is decoded block by block, and cut anew where no token crosses the cut. The parts are counted
and encoded one by one. With words and byte pairs, worker processes count and encode the parts of a
large text (`lm_jax.data.workers`). With characters and bytes this process does, because sending a
part to another process would take as long. The cuts do not depend on the number of workers, and the
results come in the order of the parts: the tokens are the same with any number of workers.
"""

import codecs
import json
import struct
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import Any

import numpy as np

from lm_jax.data import bpe
from lm_jax.data.text import Text, cut_anew
from lm_jax.data.vocabulary import (
    BYTES,
    LINE_END,
    UNKNOWN,
    Vocabulary,
    codes,
    split_words,
)
from lm_jax.data.workers import Function, map_in_order
from lm_jax.settings import UserError

_COUNTS = struct.Struct("<qq")  # characters and unknown tokens of a part


def build(
    text: Text,
    tokenizer: str,
    size: int | None = None,
    min_count: int = 1,
    allowed: Container[str] | None = None,
) -> Vocabulary:
    """Build the vocabulary of a training text.

    With characters and words, `<unk>` comes first and the line's end second, whatever their counts.
    The other tokens follow, the most frequent first, ties in the order of their characters.

    Args:
      text: the training text.
      tokenizer: char, byte, word or bpe.
      size: maximum number of tokens, including `<unk>` and the line's end; None: all; with bpe,
        None: `lm_jax.data.bpe.DEFAULT_SIZE`.
      min_count: minimum count of a character or word in the text.
      allowed: words that may be tokens; None: all.

    Raises:
      UserError: the text is not UTF-8, holds a NUL character, or has fewer than two distinct
        tokens; or no token but `<unk>` and the line's end is allowed and occurs `min_count` times.
    """
    if tokenizer == "byte":
        return BYTES
    if tokenizer == "bpe":
        rules = bpe.train(bpe.whole(decoded(text)), size)
        return Vocabulary("bpe", bpe.tokens(rules), rules)
    first = (UNKNOWN, LINE_END[tokenizer])
    counts = _count(text, tokenizer)
    kept = (
        token
        for token, count in counts.items()
        if count >= min_count and token not in first and (allowed is None or token in allowed)
    )
    frequent = sorted(
        kept,
        key=lambda token: (-counts[token], token),
    )
    if len(counts) < 2:
        raise UserError(f"{text.name}: a vocabulary of {len(counts)}: there is nothing to predict")
    if not frequent:
        raise UserError(
            f"{text.name}: a vocabulary of nothing but {first[0]} and {first[1]!r}: "
            f"no other token {'' if allowed is None else 'of data.tokenizer.word_list '}occurs "
            f"data.tokenizer.min_count={min_count} times"
        )
    return Vocabulary(tokenizer, (first + tuple(frequent))[:size])


def _count(text: Text, tokenizer: str) -> Counter[str]:
    if tokenizer == "word":
        counts: Counter[str] = Counter()
        for more in map_in_order(words_in, "", _items(whole_words(decoded(text)))):
            counts.update(json.loads(more))
        return counts
    occurrences = np.zeros(0x110000, np.int64)
    for part in decoded(text):
        found = _occurrences(codes(part))
        occurrences[: len(found)] += found
    return Counter({chr(point): int(occurrences[point]) for point in np.flatnonzero(occurrences)})


def words_in(setup: str) -> Function:
    """Return the function from a part of a text to the counts of its words, as JSON."""
    del setup  # there is none

    def count(item: bytes) -> bytes:
        return json.dumps(Counter(split_words(*_part(item)))).encode()

    return count


def _occurrences(points: np.ndarray) -> np.ndarray:
    """Count each number below the highest of an array of uint8 or uint32."""
    if points.dtype != np.uint8:
        return np.bincount(points)
    # Two at a time, in half the time.
    pairs = np.bincount(points[: len(points) // 2 * 2].view(np.uint16), minlength=1 << 16)
    single = np.bincount(points[len(points) // 2 * 2 :], minlength=256)
    return pairs.reshape(256, 256).sum(0) + pairs.reshape(256, 256).sum(1) + single


def encoded(
    vocabulary: Vocabulary, text: Text, dtype: Any = np.int32
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Encode a text block by block.

    Args:
      vocabulary: the vocabulary.
      text: the text.
      dtype: type of the token numbers.

    Yields:
      the block's token numbers [n], its characters, and its unknown tokens. A token is unknown if
      it becomes `<unk>`, unless the text itself says `<unk>`.

    Raises:
      UserError: the text is not UTF-8, or holds a NUL character.
    """
    if vocabulary.tokenizer == "byte":
        for block in text.blocks():
            numbers = np.frombuffer(block, np.uint8)
            # Every character of UTF-8 has one byte that is not 10xxxxxx: -128 to -65.
            characters = int(np.count_nonzero(numbers.view(np.int8) >= -64))
            yield numbers.astype(dtype, copy=False), characters, 0
        return
    if vocabulary.tokenizer == "char":
        table = vocabulary.number_of_codepoint.astype(dtype)
        for part in decoded(text):
            numbers = np.take(table, codes(part), mode="clip")  # faster than a check; all are there
            yield numbers, len(part), int(np.count_nonzero(numbers == vocabulary.unknown))
        return
    whole = whole_words if vocabulary.tokenizer == "word" else bpe.whole
    setup = f"{np.dtype(dtype).name}\n{vocabulary.to_json()}"
    for found in map_in_order(tokens_in, setup, _items(whole(decoded(text)))):
        characters, unknown = _COUNTS.unpack_from(found)
        yield np.frombuffer(found, dtype, offset=_COUNTS.size), characters, unknown


def tokens_in(setup: str) -> Function:
    """Return the function from a part of a text to its characters, unknown tokens and tokens.

    Args:
      setup: name of the tokens' type in NumPy, and the vocabulary as JSON on the lines after.
    """
    dtype, _, content = setup.partition("\n")
    vocabulary = Vocabulary.from_json(content)

    def encode(item: bytes) -> bytes:
        text, is_last = _part(item)
        if vocabulary.tokenizer == "bpe":
            numbers, unknown = vocabulary.encode(text), 0
        else:
            words = split_words(text, is_last)
            numbers = vocabulary.numbers_of(words)
            # A `<unk>` that the text itself says is not unknown.
            unknown = np.count_nonzero(numbers == vocabulary.unknown) - words.count(UNKNOWN)
        return _COUNTS.pack(len(text), unknown) + numbers.astype(dtype).tobytes()

    return encode


def _items(parts: Iterable[str]) -> Iterator[bytes]:
    """Encode parts of a text as UTF-8, after a byte: 1 for the last part, 0 for the others."""
    for part, is_last in _with_last(parts):
        yield bytes([is_last]) + part.encode()


def _part(item: bytes) -> tuple[str, bool]:
    """The text of an item, and True for the last part."""
    return item[1:].decode(), bool(item[0])


def decoded(text: Text) -> Iterator[str]:
    """Decode a text block by block, never inside a character.

    Raises:
      UserError: names the offset of the first byte that is not UTF-8, or is a NUL.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0  # of the block
    for block, is_last in _with_last(text.blocks()):
        held = len(decoder.getstate()[0])
        sound, nul, _ = block.partition(b"\0")
        try:
            part = decoder.decode(sound, final=is_last or bool(nul))
        except UnicodeDecodeError as error:
            name, offset = text.place(position - held + error.start)
            raise UserError(
                f"{name}: not UTF-8 at byte {offset}: {error.reason}; "
                "data.tokenizer=byte reads any bytes"
            ) from None
        if nul:
            name, offset = text.place(position + len(sound))
            raise UserError(
                f"{name}: a NUL at byte {offset}: not text, it seems; "
                "data.tokenizer=byte reads any bytes"
            )
        position += len(block)
        if part:
            yield part


def whole_words(parts: Iterable[str]) -> Iterator[str]:
    """Cut a text anew; no part ends within a word."""
    return cut_anew(parts, lambda part: max(part.rfind("\n"), part.rfind(" ")) + 1)


def _with_last(items: Iterable) -> Iterator[tuple]:
    """Yield each item, with True for the last item and False for the others."""
    waiting = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True
