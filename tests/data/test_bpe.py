"""Byte-pair encoding: the textbook's algorithm, every text given back, cut anywhere or nowhere."""

import functools
import gzip
import json
import re
from collections import Counter
from functools import partial
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from lm_jax.config import BPE, Data, File, Memory
from lm_jax.data import bpe, corpus
from lm_jax.data import text as texts
from lm_jax.data.encoding import build, encoded
from lm_jax.data.sizes import TextSize
from lm_jax.data.text import in_memory
from lm_jax.data.vocabulary import Vocabulary, split_words
from lm_jax.settings import UserError

TEXT = "the cat sat on the mat\n\n\n  the  dog's café, it's 10 or 100!\n\tand the end\n\n\n" * 3
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
# White space of every kind beside words, so that where a text may be cut is put to the test.
some_text = st.lists(
    st.sampled_from(["the", "cat", "é", "漢", "😀", "'s", "10", "!", "<|end|>", "\r\n", "\t"])
    | st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n", "\xa0", "\u2028", "\x1c", "\x85"]),
    max_size=30,
).map("".join)
few = settings(max_examples=30, deadline=None)


def trained(text=TEXT, size=300):
    return build(in_memory("text", text), "bpe", size)


KNOWN = trained()


def foreign(*cuts, text=TEXT, added=(), normalizer=None, **model):
    """The JSON of a tokeniser that another program has made."""
    made = Tokenizer(models.BPE(**model))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, show_progress=False, special_tokens=["<|end|>"]
    )
    made.train_from_iterator([text], trainer)
    made.add_tokens(list(added))
    if normalizer:
        made.normalizer = normalizer
    return json.loads(made.to_str())


IDLE = normalizers.Sequence([])
byte_level = partial(pre_tokenizers.ByteLevel, add_prefix_space=False)
GPT2 = foreign(byte_level())
LLAMA = foreign(
    pre_tokenizers.Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    byte_level(use_regex=False),
    ignore_merges=True,
)
NEOX = foreign(byte_level(), added=["  ", "   ", "    "])
UNCUT = foreign(byte_level(use_regex=False))
FILES = {"gpt2": GPT2, "llama": LLAMA, "neox": NEOX, "uncut": UNCUT}


def read(folder, content):
    path = folder / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    rules = bpe.read(str(path), "FILE")
    return Vocabulary("bpe", bpe.tokens(rules), rules)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return {name: read(tmp_path_factory.mktemp("t"), content) for name, content in FILES.items()}


def refusal(call):
    """The one line with which a call refuses."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def pieces(text):
    """GPT-2's, of ASCII text, each newline by itself."""
    word = r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
    return [
        piece.encode()
        for line in re.findall(r"\n|[^\n]+", text)
        for piece in ([line] if line == "\n" else re.findall(word, line))
    ]


def merged(tokens, pair):
    found = []
    for token in tokens:
        if found and (found[-1], token) == pair:
            found[-1] += token
        else:
            found.append(token)
    return found


def test_training_and_encoding_are_the_algorithm_of_sennrich_et_al():
    """Algorithm 1 by hand: again and again the most frequent pair, never one seen only once."""
    text = TEXT.replace("é", "e") + "aaa aaaa\n"
    words = Counter(pieces(text))
    # The library counts bytes in the order of the characters that it writes for them.
    number = {bytes([byte]): nth for nth, (_, byte) in enumerate(sorted(bpe._BYTE.items()))}
    split = {word: [word[n : n + 1] for n in range(len(word))] for word in words}
    while True:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(split[word]):
                counts[pair] += times
        often = [pair for pair in counts if counts[pair] > 1]
        if not often:
            break
        first = min(often, key=lambda pair: (-counts[pair], number[pair[0]], number[pair[1]]))
        number.setdefault(b"".join(first), len(number))
        split = {word: merged(tokens, first) for word, tokens in split.items()}
    known = trained(text, None)
    assert [token.encode("latin-1") for token in known.tokens] == list(number)
    expected = [number[token] for word in pieces(text) for token in split[word]]
    assert known.encode(text).tolist() == expected
    smaller = trained(text, 280)
    assert len(smaller) == 280
    assert smaller.tokens == known.tokens[:280]


@few
@given(any_text | some_text)
@example("\0\x01\x7f\x80\xad\xff\ufeff\U0010ffff\r\n")
def test_decode_after_encode_is_the_identity(text):
    assert KNOWN.decode(KNOWN.encode(text)) == text


@pytest.mark.parametrize("name", FILES)
@few
@given(text=any_text | some_text)
def test_decode_after_encode_is_the_identity_with_a_tokeniser_of_others(loaded, name, text):
    assert loaded[name].decode(loaded[name].encode(text)) == text


@pytest.mark.parametrize("name", [None, *FILES])
@few
@given(text=some_text, block=st.integers(1, 9))
@example(text="the \t cat", block=4)
@example(text="the   cat", block=6)
@example(text="the\x1c cat \x1c cat", block=5)
@example(text="the\xa0 cat  \n\n  the", block=5)
def test_encoding_in_blocks_is_encoding_at_once(loaded, name, text, block):
    """At once by the library itself, of the whole text."""
    text += "."
    known = loaded[name] if name else KNOWN
    with mock.patch.object(texts, "BLOCK", block):
        numbers, sizes = zip(*encoded(known, in_memory("text", text)), strict=True)
    whole = Tokenizer.from_str(known.rules).encode(text)
    assert np.concatenate(numbers).tolist() == whole.ids == known.encode(text).tolist()
    words, longer = split_words(text, ended=True), sum(len(word) > 1 for word in text.split())
    size = functools.reduce(TextSize.plus, sizes)
    assert size == TextSize(len(text), 0, len(text.encode()), len(words), longer)


@pytest.mark.parametrize("name", [None, *FILES])
@few
@given(text=any_text | some_text)
def test_the_newline_is_always_a_token_of_its_own(loaded, name, text):
    known = loaded[name] if name else KNOWN
    numbers = known.encode(text)
    assert np.sum(numbers == known.boundary) == text.count("\n")
    assert known.tokens[known.boundary] == "\n"


def test_a_token_of_others_that_holds_a_newline_is_never_made(loaded):
    """Without the cut there are some: the test above would be empty."""
    for name, content in FILES.items():
        theirs = Tokenizer.from_str(json.dumps(content)).encode("the end\n\n\nthe").ids
        held = [loaded[name].tokens[number] for number in theirs]
        assert any("\n" in token and token != "\n" for token in held), name


def test_a_file_s_own_tokens_are_kept_where_no_newline_stands(loaded):
    text = "the cat's café, 1000 or 100! <|end|>"
    for name, content in FILES.items():
        theirs = Tokenizer.from_str(json.dumps(content)).encode(text).ids
        if name != "uncut":  # which merges across blanks
            assert loaded[name].encode(text).tolist() == theirs
    assert loaded["gpt2"].encode("a<|end|>b").tolist()[1] == 0
    assert loaded["gpt2"].show(0) == "<|end|>"
    assert "  " in loaded["neox"].tokens


def test_the_same_text_gives_the_same_tokeniser_wherever_blocks_end():
    with mock.patch.object(texts, "BLOCK", 7):
        assert trained() == KNOWN
    assert trained().rules == KNOWN.rules


def test_json_is_all_that_encoding_and_decoding_need(loaded):
    for known in (KNOWN, *loaded.values()):
        again = Vocabulary.from_json(known.to_json(corpus="abc"))
        assert again == known
        np.testing.assert_array_equal(again.encode(TEXT), known.encode(TEXT))
        assert again.decode(again.encode(TEXT)) == TEXT
    for field, wrong in (("tokens", ["a"]), ("rules", "{}"), ("rules", "{"), ("rules", None)):
        content = json.loads(KNOWN.to_json()) | {field: wrong}
        said = refusal(partial(Vocabulary.from_json, json.dumps(content), "there"))
        assert said.startswith("there holds no vocabulary of version 4")


def test_rules_are_read_back_from_a_file_as_they_are(tmp_path, loaded):
    for known in (KNOWN, *loaded.values()):
        assert read(tmp_path, known.rules) == known


def test_a_token_is_shown_in_one_line():
    assert KNOWN.unknown is None
    assert KNOWN.show(KNOWN.boundary) == r"\n"
    shown = [KNOWN.show(int(number)) for number in KNOWN.encode("the 漢")]
    assert "".join(shown) == r"the \xe6\xbc\xa2"
    assert KNOWN.decode(KNOWN.encode("漢")[:-1]) == "\ufffd"
    known = trained("é" * 99 + "\n")
    assert known.show(len(known) - 1).strip("é") == ""


def test_a_lone_surrogate_is_refused_as_among_bytes():
    with pytest.raises(UnicodeEncodeError):
        KNOWN.encode("a\ud800")


def without(content, *characters):
    return content | {
        "model": content["model"]
        | {
            "vocab": {
                token: number
                for token, number in content["model"]["vocab"].items()
                if not set(token) & set(characters)
            }
        }
    }


WRONG = {
    "text": ("no json", "is not JSON"),
    "list": ("[]", "is no tokenizer.json of byte-pair encoding"),
    "object": ("{}", "is no tokenizer.json of byte-pair encoding"),
    "a config": ('{"version": 1, "model": {"kind": "rnn"}}', "is no tokenizer.json of byte-pair"),
    "unigram": (
        GPT2 | {"model": {"type": "Unigram"}},
        "holds a Unigram model, not byte-pair encoding",
    ),
    "no cut": (GPT2 | {"pre_tokenizer": None}, "is not byte-level: its pre_tokenizer does not end"),
    "white space": (
        foreign(pre_tokenizers.Whitespace()),
        "is not byte-level: its pre_tokenizer does not end in ByteLevel",
    ),
    "removed": (
        foreign(pre_tokenizers.Split(" ", "removed"), byte_level()),
        "may lose characters by its pre_tokenizer Split",
    ),
    "lower case": (
        foreign(byte_level(), normalizer=normalizers.NFC()),
        "changes the text by its normalizer NFC: with null in its place, it is read as it stands",
    ),
    "ends": (
        GPT2 | {"model": GPT2["model"] | {"end_of_word_suffix": "</w>"}},
        "is not byte-level: it marks words by end_of_word_suffix='</w>'",
    ),
    "dropout": (foreign(byte_level(), dropout=0.5), "merges at random, with a dropout of 0.5"),
    "no newline": (without(GPT2, "Ċ"), "is not byte-level: it has no token for the newline"),
    "no bytes": (
        without(GPT2, "!", "ª"),
        "is not byte-level: it lacks 2 of the 243 bytes of UTF-8",
    ),
    "lower case in a sequence": (
        foreign(byte_level(), normalizer=normalizers.Sequence([IDLE, normalizers.Lowercase()])),
        "changes the text by its normalizer Lowercase: with null in its place, it is read as it",
    ),
    "added": (
        foreign(byte_level(), added=["\n\n"]),
        r"adds the token '\n\n', which reaches over a newline or from one word to another",
    ),
    "added words": (foreign(byte_level(), added=["of the"]), "adds the token 'of the', which"),
    "merges": (
        GPT2 | {"model": GPT2["model"] | {"merges": [["Q", "Q"]]}},
        ": Token `QQ` out of vocabulary",
    ),
    "no byte": (
        GPT2 | {"model": GPT2["model"] | {"vocab": {**GPT2["model"]["vocab"], "漢": 320}}},
        "is not byte-level: '漢' is no byte",
    ),
    "numbers": (
        GPT2 | {"model": GPT2["model"] | {"vocab": {**GPT2["model"]["vocab"], "QQ": 400}}},
        "has 291 tokens, and numbers up to 400",
    ),
    "a number of gigabytes": (
        GPT2 | {"model": GPT2["model"] | {"vocab": {**GPT2["model"]["vocab"], "QQ": 2**31}}},
        "has 291 tokens, and numbers up to 2147483648",
    ),
    "backtracking": (
        GPT2
        | {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": r"(?:\w|\w\w|\w+)+[^\w\s]\z"},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    GPT2["pre_tokenizer"]["pretokenizers"][0],
                ],
            }
        },
        ": a pattern of the pre_tokenizer fails on the text",
    ),
    "one number": (
        GPT2 | {"model": GPT2["model"] | {"vocab": {**GPT2["model"]["vocab"], "QQ": 5}}},
        "gives several tokens one number",
    ),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_a_tokeniser_for_something_else_is_refused_in_one_line(content, said, tmp_path):
    refused = refusal(lambda: read(tmp_path, content))
    assert refused.removeprefix("FILE").strip().startswith(said)
    assert refused.startswith("FILE")


def never_in_utf_8():
    """As bytes written by `tokenizers`: those with which no character of UTF-8 can be made."""
    possible = {
        byte
        for point in range(0x110000)
        if not 0xD800 <= point < 0xE000
        for byte in chr(point).encode()
    }
    return {character for character, byte in bpe._BYTE.items() if byte not in possible}


def test_what_changes_nothing_in_a_file_is_no_reason_to_refuse_it(tmp_path):
    """As both published files of DeepSeek have an empty sequence of normalizers."""
    known = read(tmp_path, GPT2)
    empty = {"type": "Sequence", "normalizers": []}
    idle = {"type": "Sequence", "pretokenizers": []}
    byte = {"type": "Sequence", "pretokenizers": [idle, GPT2["pre_tokenizer"], idle]}
    for changed in (
        {"normalizer": empty},
        {"normalizer": empty | {"normalizers": [empty, empty]}},
        {"normalizer": {}},
        {"pre_tokenizer": byte},
        {
            "added_tokens": [
                *GPT2["added_tokens"],
                GPT2["added_tokens"][0] | {"content": "", "id": 9},
            ]
        },
    ):
        assert read(tmp_path, GPT2 | changed) == known, changed


def test_bytes_that_utf_8_never_holds_need_no_token(tmp_path):
    """A file may leave them out, and add tokens of the characters by which they are written."""
    never = sorted(never_in_utf_8())
    assert len(never) == 13
    content = without(GPT2, *never)
    numbers = {token: n for n, token in enumerate(content["model"]["vocab"])}
    content["model"]["vocab"] = numbers
    added = [
        content["added_tokens"][0] | {"content": character, "id": len(numbers) + nth}
        for nth, character in enumerate(never)
    ]
    content["added_tokens"] = [content["added_tokens"][0] | {"id": numbers["<|end|>"]}, *added]
    known = read(tmp_path, content)
    text = "the cat's café, õ and ÿ 漢 😀 <|end|>"
    assert known.decode(known.encode(text)) == text
    assert len(numbers) + never.index("õ") in known.encode(text)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_file_s_json(encoding, tmp_path):
    (tmp_path / "marked.json").write_bytes(json.dumps(GPT2, ensure_ascii=False).encode(encoding))
    rules = bpe.read(str(tmp_path / "marked.json"), "FILE")
    assert rules == read(tmp_path, GPT2).rules


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert refusal(partial(bpe.read, str(tmp_path / "no"), "FILE")) == (
        "FILE: there is no such file"
    )
    assert refusal(partial(bpe.read, str(tmp_path), "FILE")) == "FILE: is a directory, not a file"
    (tmp_path / "latin").write_bytes(b'{"a": "\xff"}')
    assert refusal(partial(bpe.read, str(tmp_path / "latin"), "FILE")).startswith(
        "FILE is not JSON: invalid unicode code point at line 1 column 8"
    )
    (tmp_path / "packed").write_bytes(gzip.compress(json.dumps(GPT2).encode()))
    assert refusal(partial(bpe.read, str(tmp_path / "packed"), "FILE")) == (
        "FILE is compressed by gzip: unpack it first"
    )


def test_blanks_and_prefixes_that_a_file_asks_for_are_left_out(tmp_path):
    content = foreign(pre_tokenizers.ByteLevel(add_prefix_space=True))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}},
    }
    content["added_tokens"][0] |= {"lstrip": True, "rstrip": True, "single_word": True}
    known = read(tmp_path, content)
    for text in ("the cat", "a  <|end|>  b\n", "x<|end|>x"):
        assert known.decode(known.encode(text)) == text
        assert np.sum(known.encode(text) == 0) == text.count("<|end|>")


def test_a_corpus_is_known_by_its_tokeniser(tmp_path):
    """A file under the same name that gives other tokens makes another corpus."""
    (tmp_path / "a.txt").write_text(TEXT)
    path = tmp_path / "tokenizer.json"
    file = partial(Data, source=File(train=str(tmp_path / "a.txt")))
    path.write_text(json.dumps(GPT2))
    theirs = BPE(file=str(path))
    configs = [file(tokenizer=tokenizer) for tokenizer in (BPE(), BPE(size=280), theirs)]
    found = [corpus.load(config) for config in configs]
    path.write_text(json.dumps(LLAMA))
    found.append(corpus.load(configs[-1]))
    assert len({each.digest for each in found}) == 4
    assert len({each.vocabulary for each in found}) == 4
    again = corpus.load(configs[-1])
    assert again.digest == found[-1].digest
    assert again.vocabulary == found[-1].vocabulary
    memory = corpus.load(Data(source=Memory(), tokenizer=theirs), TEXT)
    assert memory.vocabulary == again.vocabulary
    np.testing.assert_array_equal(memory.train.tokens, again.train.tokens)
    whole = "".join(again.vocabulary.decode(split.tokens) for split in again[1:4])
    assert whole == TEXT
    assert sum(split.size.characters for split in again[1:4]) == len(TEXT)


def test_a_corpus_is_another_one_where_training_gives_other_tokens(tmp_path):
    """As another version of the library may, from the same text."""
    (tmp_path / "a.txt").write_text(TEXT)
    file = Data(source=File(train=str(tmp_path / "a.txt")), tokenizer=BPE())
    memory = Data(source=Memory(), tokenizer=BPE())
    other = bpe.train([TEXT], 257)
    before = corpus.load(file).digest, corpus.load(memory, TEXT).digest
    with mock.patch.object(bpe, "train", return_value=other):
        assert corpus.load(memory, TEXT).digest != before[1]
        # What is cached is cached with its tokeniser.
        assert corpus.load(file).digest == before[0]
