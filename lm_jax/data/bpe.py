"""Byte-pair encoding: tokens that are frequent sequences of bytes, and single bytes for the rest.

Training starts with the 256 bytes as tokens, and again and again makes the most frequent pair of
neighbours one new token (Sennrich et al., 2016, section 3.2, there for characters; for bytes,
Radford et al., 2019, section 2.2). Nothing is unknown then, and the bytes of a text's tokens are
the bytes of the text.

What a token never holds: a newline beside anything else, and a place where a blank follows
something that is not white space. So the newline is a token of its own, and a text may be cut at
such places and its parts encoded one by one. Both cuts (`_CUTS`) come before whatever else cuts the
text: here, GPT-2's regular expression for words, numbers and signs; in a file, what the file says.

The work is done by the library `tokenizers`. Its JSON, here the *rules*, is all that encoding
needs. It writes the byte b as one printable character (`_BYTE`); everywhere else in lm_jax a
token's bytes are the characters of the same numbers, as in the vocabulary `byte`.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lm_jax.data.formats import HEAD, other_format
from lm_jax.files import reading
from lm_jax.settings import UserError, parsed

DEFAULT_SIZE = 4096  # tokens, where data.vocabulary_size says none
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
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that UTF-8 never holds (RFC 3629)
# What cuts a text and takes nothing away from it, unless its behaviour is to remove.
_HARMLESS = ("Split", "Digits", "Punctuation")
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + nth): byte for nth, byte in enumerate(sorted({*range(256)} - {*_PRINTABLE}))
}


def train(parts: Iterable[str], size: int | None = None) -> str:
    """The rules that a text teaches.

    Pairs seen only once are not merged, so a short text may give fewer tokens than `size`. Of pairs
    seen equally often, that of the lowest numbers is first, so the same text gives the same rules.

    Args:
      parts: the text, cut nowhere but where `whole` cuts.
      size: the most tokens to make, from 256; None: DEFAULT_SIZE.
    """
    from tokenizers import Tokenizer, trainers  # 0.2 s that other tokenisers need not pay

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
    """The rules in a file of the library, `tokenizer.json`; `name` is what an error calls it.

    Taken are its vocabulary, its merges, what cuts a text into pieces, and the tokens added by
    hand, such as `<|endoftext|>`, which stand for their characters wherever these occur. What would
    put in a token or a blank, take one away, or shorten the text is left out.

    Raises:
      UserError: it cannot be read, or is no byte-level byte-pair encoding that gives back every
        text, the newline a token of its own.
    """
    with reading(path, name) as file:
        written = file.read()
    text: str | bytes = written
    with contextlib.suppress(UnicodeDecodeError):  # as bytes it is refused below
        # UTF-8, UTF-16 or UTF-32, with a byte-order mark or none.
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
    kind = model.get("type", "BPE")  # old files do not say it
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
    cuts = [cut for cut in cuts[1:] if cut not in _CUTS]
    return model, [*cuts, {**last, "add_prefix_space": False}], added


def _leaves(part: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, out of the sequences that hold none or some."""
    if part and part["type"] == "Sequence":
        for step in part[parts]:
            yield from _leaves(step, parts)
    elif part:
        yield part


def tokens(rules: str) -> tuple[str, ...]:
    """The bytes of each token, in the order of their numbers, as characters of the same numbers.

    Raises:
      ValueError: these are no rules, or a number has no token.
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
    """The function from a text to the numbers of its tokens, int32 [N].

    Raises:
      UserError: the library cannot read the rules.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(rules)
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"the rules of the vocabulary: {' '.join(str(error).split())}") from None

    def encode(text: str) -> np.ndarray:
        found = tokenizer.encode_batch_fast(_lines(text), add_special_tokens=False)
        return np.fromiter(itertools.chain.from_iterable(line.ids for line in found), np.int32)

    return encode


def whole(parts: Iterable[str]) -> Iterator[str]:
    """The same text, cut anew, at no place where it matters to the tokens.

    That is after a newline, or before a blank that follows something else than white space.
    """
    held: list[str] = []
    for part in parts:
        blank = part.rfind(" ")
        while blank > 0 and part[blank - 1].isspace():
            blank = part.rfind(" ", 0, blank)
        cut = max(part.rfind("\n") + 1, blank)
        if cut:
            yield "".join([*held, part[:cut]])
            held = []
        held.append(part[cut:])
    if rest := "".join(held):
        yield rest


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)
