"""Byte-pair encoding: tokens are frequent sequences of bytes, and single bytes for the rest.

Training starts with the 256 bytes as tokens, and repeatedly merges the most frequent pair of
neighbours into one new token (Sennrich et al., 2016, section 3.2, for characters; Radford et al.,
2019, section 2.2, for bytes). No text is unknown, and the bytes of a text's tokens are the bytes of
the text.

No token crosses a newline, and no token crosses a place where a blank follows a character other
than white space. The newline is therefore a token of its own, and a text may be cut at these places
and encoded part by part. Both cuts (`_CUTS`) come before any other cut of the text: GPT-2's regular
expression for words, numbers and signs in a vocabulary trained here; the cuts of the file in a
vocabulary from a file. A piece of text that occurs several times is therefore encoded once
(`encoder`).

The library `tokenizers` does the work. Its JSON, here called the *rules*, is all that encoding
needs. The JSON writes the byte b as one printable character (`_BYTE`). Everywhere else in lm_jax a
token's byte b is written as the character of number b, as in the vocabulary `byte`.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lm_jax.data.formats import HEAD, other_format
from lm_jax.data.text import cut_anew
from lm_jax.files import reading
from lm_jax.settings import UserError, parsed

DEFAULT_SIZE = 4096  # tokens, if data.tokenizer.size is None
_CUTS = [
    {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False},
    {
        "type": "Split",
        "pattern": {"Regex": r"(?<=\S) "},
        "behavior": "MergedWithNext",
        "invert": False,
    },
]
_BYTES_OF_WORDS = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_MOST = 2**24  # tokens; the library takes memory for every number up to the highest
# Texts on which a pattern that backtracks without end is found out.
_LONG = [part * 500 + end for part in ("a", "0", " ", "-", "é", "a, ", "aB0 ") for end in ("", "!")]
# Pieces of a text between which no token reaches, shorter than lines. Each is a newline, blanks, or
# a word with the blanks before it; where white space other than blanks precedes blanks, the piece
# goes on.
_PIECES = re.compile(r"\n| *[^ \n]+(?:(?<=\s) +[^ \n]*)*| +")
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that UTF-8 never holds (RFC 3629)
# Pre-tokenizers that keep every character, unless their behaviour is "Removed".
_HARMLESS = ("Split", "Digits", "Punctuation")
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + nth): byte for nth, byte in enumerate(sorted({*range(256)} - {*_PRINTABLE}))
}


def train(parts: Iterable[str], size: int | None = None) -> str:
    """Train byte-pair encoding on a text and return the rules.

    A pair seen only once is not merged, and a short text may give fewer tokens than `size`. Among
    equally frequent pairs, the pair with the lowest numbers comes first: equal texts give equal
    rules.

    Args:
      parts: the text, cut only at the places of `whole`.
      size: maximum number of tokens, at least 256; None: DEFAULT_SIZE.
    """
    from tokenizers import Tokenizer, trainers  # here, to save other tokenisers 0.2 s

    model = {"type": "BPE", "vocab": {}, "merges": []}
    tokenizer = Tokenizer.from_str(_rules(model, [_BYTES_OF_WORDS], []))
    trainer = trainers.BpeTrainer(
        vocab_size=size or DEFAULT_SIZE,
        min_frequency=2,
        initial_alphabet=list(_BYTE),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for part in parts for line in _lines(part)), trainer)
    return tokenizer.to_str()


def read(path: str, name: str) -> str:
    """Read the rules from a `tokenizer.json` file; errors call the file `name`.

    The rules keep the file's vocabulary, merges, pre-tokenizers and added tokens. An added token,
    for example `<|endoftext|>`, stands for its characters wherever the text has them. The rules
    leave out all steps that insert or remove a token or a blank, and all truncation.

    Raises:
      UserError: the file cannot be read, or is not a lossless byte-level byte-pair encoding with a
        token for the newline alone.
    """
    with reading(path, name) as file:
        written = file.read()
    text: str | bytes = written
    with contextlib.suppress(UnicodeDecodeError):  # `parsed` refuses the bytes below
        # UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.
        text = written.decode(json.detect_encoding(written))
    try:
        found = parsed(text, name, Any)
    except UserError as error:
        said = other_format(written[:HEAD])
        raise UserError(f"{name} {said}" if said else str(error)) from None
    try:
        rules = _rules(*_checked(found))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{name} is no tokenizer.json of byte-pair encoding") from None
    except ValueError as error:
        raise UserError(f"{name} {error}") from None
    from tokenizers import Tokenizer

    try:
        rules = Tokenizer.from_str(rules).to_str()
        tokens(rules)
        for text in _LONG:
            encoder(rules)(text)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except ValueError as error:
        raise UserError(f"{name} {error}") from None
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None
    return rules


def _rules(model: dict, cuts: list[dict], added: list[dict]) -> str:
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _CUTS + cuts},
        "post_processor": None,
        "decoder": _BYTES_OF_WORDS,
        "model": model,
    }
    return json.dumps(content)


def _checked(content: dict[str, Any]) -> tuple[dict, list[dict], list[dict]]:
    model = content["model"]
    kind = model.get("type", "BPE")  # old files do not name the type
    if kind != "BPE":
        raise ValueError(f"holds a {kind} model, not byte-pair encoding")
    vocab, _ = model["vocab"], model["merges"]
    if len({*vocab.values()}) < len(vocab):
        raise ValueError("gives several tokens one number")
    if model.get("dropout"):
        raise ValueError(f"merges at random, with a dropout of {model['dropout']}")
    *cuts, last = [{"type": "none"}, *_leaves(content.get("pre_tokenizer"), "pretokenizers")]
    if last["type"] != "ByteLevel":
        raise ValueError("is not byte-level: its pre_tokenizer does not end in ByteLevel")
    for cut in cuts[1:]:
        if cut["type"] not in _HARMLESS or cut.get("behavior") == "Removed":
            raise ValueError(f"may lose characters by its pre_tokenizer {cut['type']}")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(affix):
            raise ValueError(f"is not byte-level: it marks words by {affix}={model[affix]!r}")
    for normalizer in _leaves(content.get("normalizer"), "normalizers"):
        raise ValueError(
            f"changes the text by its normalizer {normalizer['type']}: with null in its place, it "
            "is read as it stands"
        )
    missing = {byte for character, byte in _BYTE.items() if character not in vocab} - _NEVER
    if 10 in missing:
        raise ValueError("is not byte-level: it has no token for the newline")
    if missing:
        raise ValueError(
            f"is not byte-level: it lacks {len(missing)} of the {256 - len(_NEVER)} bytes of UTF-8"
        )
    added = [
        {**token, "single_word": False, "lstrip": False, "rstrip": False}
        for token in content.get("added_tokens") or []
    ]
    for token in added:
        if re.search(r"\n|\S ", token["content"]):
            raise ValueError(
                f"adds the token {token['content']!r}, which reaches over a newline or from one "
                "word to another"
            )
    total = len({*vocab} | {token["content"] for token in added})
    if (highest := max(vocab.values())) >= _MOST:
        raise ValueError(f"has {total} tokens, and numbers up to {highest}")
    cuts = [cut for cut in cuts[1:] if cut not in _CUTS]
    return model, [*cuts, {**last, "add_prefix_space": False}], added


def _leaves(part: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer or pre-tokenizer, with nested sequences flattened."""
    if part and part["type"] == "Sequence":
        for step in part[parts]:
            yield from _leaves(step, parts)
    elif part:
        yield part


def tokens(rules: str) -> tuple[str, ...]:
    """Return all tokens in the order of their numbers, each byte b as the character of number b.

    Raises:
      ValueError: the text holds no rules, or a number has no token.
    """
    try:
        content = parsed(rules, "the rules")
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        found = {
            number: "".join(chr(_BYTE[character]) for character in token)
            for token, number in content["model"]["vocab"].items()
            if token not in added
        }
        total = len(found.keys() | added.values())
        found |= {number: text.encode().decode("latin-1") for text, number in added.items()}
        if total <= max(found):
            raise ValueError(f"has {total} tokens, and numbers up to {max(found)}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is not byte-level: {error} is no byte") from None
    return tuple(found[number] for number in range(total))


def encoder(rules: str) -> Callable[[str], np.ndarray]:
    """Return the function from a text to its token numbers, int32 [N].

    Raises:
      UserError: the library cannot read the rules.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(rules)
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"the rules of the vocabulary: {' '.join(str(error).split())}") from None

    def encode(text: str) -> np.ndarray:
        pieces = _PIECES.findall(text)
        place = {piece: nth for nth, piece in enumerate(dict.fromkeys(pieces))}
        try:
            found = tokenizer.encode_batch_fast(list(place), add_special_tokens=False)
        except BaseException as error:  # the library's panics are no exceptions
            if type(error).__name__ != "PanicException":
                raise
            raise UserError(f"a pattern of the pre_tokenizer fails on the text: {error}") from None
        # The tokens of the different pieces one after another; then, for each piece of the text,
        # the range of its tokens there.
        ids = [piece.ids for piece in found]
        flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        nth = np.fromiter(map(place.__getitem__, pieces), np.int64, len(pieces))
        spans = lengths[nth]
        first = (np.cumsum(lengths) - lengths)[nth] - (np.cumsum(spans) - spans)
        return flat[np.repeat(first, spans) + np.arange(np.sum(spans))]

    return encode


def whole(parts: Iterable[str]) -> Iterator[str]:
    """Cut a text anew, at places that no token crosses.

    The places are after a newline, and before a blank that follows a character other than white
    space.
    """

    def last_place(part: str) -> int:
        blank = part.rfind(" ")
        while blank > 0 and part[blank - 1].isspace():
            blank = part.rfind(" ", 0, blank)
        return max(part.rfind("\n") + 1, blank)

    return cut_anew(parts, last_place)


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)
