"""Tokens and their numbers: nothing lost, nothing invented, wherever the blocks of a text end."""

import functools
import json
import re
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm_jax.config import File
from lm_jax.data import sizes, sources
from lm_jax.data import text as texts
from lm_jax.data.encoding import build, decoded, encoded, unknown_pieces, whole_words
from lm_jax.data.sizes import TextSize
from lm_jax.data.text import Text, in_memory
from lm_jax.data.vocabulary import BYTES, Vocabulary
from lm_jax.settings import UserError

any_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
# Words that repeat, white space of several kinds, tokens that are written out, long characters.
some_text = st.lists(
    st.sampled_from(
        ["a", "b", "ab", "é", "漢", "😀", " ", " ", "\n", "\n", "\r\n", "\t", "\xa0"]
        + ["<unk>", "<eos>"]
    ),
    min_size=1,
    max_size=40,
).map("".join)
any_block = st.integers(1, 7)
few = settings(max_examples=60, deadline=None)
both = pytest.mark.parametrize("tokenizer", ["char", "word"])
every_tokenizer = pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])

BASE = "a b\nab é\n"


def vocabulary(tokenizer, text=BASE, **limits):
    return build(in_memory("text", text), tokenizer, **limits)


def lines(text):
    return re.findall(r"[^\n]*\n|[^\n]+\Z", text)


def words(text):
    """By the rule of the Penn Treebank's files: each line's words, then `<eos>`."""
    return [word for line in lines(text) for word in [*re.findall(r"\S+", line), "<eos>"]]


def tokens_of(tokenizer, text):
    return {"char": list(text), "word": words(text), "byte": list(text.encode())}[tokenizer]


def all_encoded(vocabulary, text):
    numbers, sizes = zip(*encoded(vocabulary, text), strict=True)
    return np.concatenate(numbers), functools.reduce(TextSize.plus, sizes)


def refusal(call):
    """The one line with which a call refuses."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@few
@given(any_text)
@example("\r\n\x85\u2028\ufeff\n")
def test_decode_after_encode_is_the_identity_for_characters(text):
    known = vocabulary("char", text + "ab")
    assert known.decode(known.encode(text)) == text


@few
@given(any_text)
def test_decode_after_encode_is_the_identity_for_bytes(text):
    np.testing.assert_array_equal(BYTES.encode(text), list(text.encode()))
    assert BYTES.decode(BYTES.encode(text)) == text


@few
@given(some_text.map(lambda text: text.replace("<eos>", "<unk>")))
def test_decode_after_encode_leaves_one_blank_between_words_and_a_newline_after_each_line(text):
    known = vocabulary("word", text + " x")
    tidy = [" ".join(line.split()) + "\n" for line in lines(text)]
    assert known.decode(known.encode(text)) == "".join(tidy)


@both
def test_the_most_frequent_come_first_and_ties_in_the_order_of_their_characters(tokenizer):
    text = "b b b\nc a c a\nd\n" if tokenizer == "word" else "bbb\ncaca\nd\n"
    end = "<eos>" if tokenizer == "word" else "\n"
    assert vocabulary(tokenizer, text).tokens == ("<unk>", end, "b", "a", "c", "d")


@both
@few
@given(text=some_text, size=st.none() | st.integers(3, 8), min_count=st.integers(1, 3))
def test_the_vocabulary_is_the_count_of_tokens_cut_where_the_limits_say(
    tokenizer, text, size, min_count
):
    text = "zz zz zz " + text
    first = ["<unk>", "<eos>" if tokenizer == "word" else "\n"]
    counts = Counter(tokens_of(tokenizer, text))
    rest = [t for t, count in counts.items() if count >= min_count and t not in first]
    expected = (first + sorted(rest, key=lambda token: (-counts[token], token)))[:size]
    known = vocabulary(tokenizer, text, size=size, min_count=min_count)
    assert list(known.tokens) == expected
    assert len(known) == len(expected)
    assert [known.numbers[token] for token in expected] == list(range(len(expected)))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
@few
@given(text=some_text, block=any_block)
@example(text="a" * 30 + "é" * 30, block=7)
@example(text="ab\r\nab\r\n\r\nab", block=1)
@example(text=" \n \n ", block=1)
@example(text="a <unk>\t<unk> zz", block=4)
def test_tokens_characters_and_unknowns_do_not_depend_on_where_blocks_end(tokenizer, text, block):
    """Against tokens found by regular expression in the whole text."""
    with mock.patch.object(texts, "BLOCK", block), mock.patch.object(sizes, "AT_ONCE", 3):
        known = vocabulary(tokenizer)
        numbers, size = all_encoded(known, in_memory("text", text))
        written = list(unknown_pieces(known, in_memory("text", text)))
        from_blocks = vocabulary(tokenizer, text + " ab") if tokenizer != "byte" else BYTES
    tokens = tokens_of(tokenizer, text)
    assert from_blocks == (vocabulary(tokenizer, text + " ab") if tokenizer != "byte" else BYTES)
    assert size.characters == len(text)
    assert size.bytes == len(text.encode())
    assert size.words == len(words(text))
    assert size.longer == sum(len(word) > 1 for word in text.split())
    if tokenizer == "byte":
        np.testing.assert_array_equal(numbers, tokens)
        assert size.unknown == 0
        assert written == []
        return
    np.testing.assert_array_equal(numbers, [known.numbers.get(token, 0) for token in tokens])
    assert size.unknown == sum(token not in known.numbers for token in tokens)
    assert written == [token for token, number in zip(tokens, numbers, strict=True) if number == 0]
    np.testing.assert_array_equal(numbers, known.encode(text))


def test_what_training_never_saw_is_unknown_and_what_is_written_so_is_not_counted():
    known = vocabulary("word", "a <unk> a b\n")
    assert known.tokens == ("<unk>", "<eos>", "a", "b")
    numbers, size = all_encoded(known, in_memory("text", "a c <unk> b\nd <eos>\n"))
    assert list(numbers) == [2, 0, 0, 3, 1, 0, 1, 1]
    assert size.unknown == 2
    # Among characters "<unk>" is five characters.
    numbers, size = all_encoded(vocabulary("char", "<unk>!"), in_memory("text", "<unk>?"))
    assert numbers.min() == 0
    assert size.unknown == 1


def test_limits_make_training_tokens_unknown():
    text = in_memory("text", "a a a b b c\n")
    limits = ({"size": 3}, {"size": 4}, {"min_count": 2}, {})
    sizes = [all_encoded(build(text, "word", **limit), text)[1] for limit in limits]
    assert [size.unknown for size in sizes] == [3, 1, 1, 0]


def test_lines_end_in_eos_blank_ones_and_an_unfinished_last_one_too():
    """The shape of a WikiText file, counted by hand: 3 blank lines, 4 + 4 words, 5 line ends."""
    known = vocabulary("word")
    text = " \n = A Title = \n \n \n the <unk> sat . \n"
    assert len(known.encode(text)) == 13
    assert list(known.encode("a\n\nb")) == list(known.encode("a\n\nb\n"))
    assert known.tokens[known.encode("a")[-1]] == "<eos>"
    assert list(known.encode("")) == []


def test_a_prompt_goes_on():
    known = vocabulary("word")
    assert list(known.encode("a b", ended=False)) == list(known.encode("a b"))[:-1]
    assert list(known.encode("a b\n", ended=False)) == list(known.encode("a b\n"))


@every_tokenizer
def test_the_boundary_is_what_ends_a_line(tokenizer):
    known = vocabulary(tokenizer)
    assert known.encode("a\n")[-1] == known.boundary
    assert known.decode([known.boundary]) == "\n"


def test_what_cannot_be_shown_is_shown_as_the_replacement_character():
    known = vocabulary("char", "a b ?\n")
    assert known.decode(known.encode("a!b?\ud800")) == "a\ufffdb?\ufffd"
    assert BYTES.decode([0x61, 0xC3]) == "a\ufffd"
    words = vocabulary("word")
    assert words.decode(words.encode("a never b\n")) == "a <unk> b\n"


def test_a_token_is_shown_in_one_line():
    assert [vocabulary("char").show(n) for n in range(4)] == ["<unk>", r"\n", " ", "a"]
    assert [vocabulary("word").show(n) for n in range(3)] == ["<unk>", "<eos>", "a"]
    assert [BYTES.show(n) for n in (10, 0x61, *"é".encode())] == [r"\n", "a", r"\xc3", r"\xa9"]


@every_tokenizer
def test_json_gives_the_equal_vocabulary_back(tokenizer):
    known = vocabulary(tokenizer, "a\r\u2028\x85\"\\ 'é' 😀 \x1f\n")
    again = Vocabulary.from_json(known.to_json(corpus="abc"))
    assert again == known
    assert json.loads(known.to_json(corpus="abc"))["corpus"] == "abc"


@pytest.mark.parametrize("wrong", ["", "[]", "{}", '{"version": 1}', '{"version": 4}', "7"])
def test_json_without_a_vocabulary_is_refused(wrong):
    said = refusal(lambda: Vocabulary.from_json(wrong, "there.json"))
    assert said.startswith("there.json holds no vocabulary of version 4")


@both
@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 22])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"abc\xffdef", "not UTF-8 at byte 3"),
        (b"\xff", "not UTF-8 at byte 0"),
        ("aéé".encode() + b"\xe6\xbc", "not UTF-8 at byte 5"),  # 漢 cut short by the end
        (b"abcd\xf0\x9f\x98 z", "not UTF-8 at byte 4"),  # 😀 cut short by another character
        (b"ab\xed\xa0\x80", "not UTF-8 at byte 2"),  # a surrogate
        (b"abcdef\0g", "a NUL at byte 6"),
        (b"\0", "a NUL at byte 0"),
        (b"ab\0cd\xff", "a NUL at byte 2"),  # whichever comes first
        (b"ab\xffcd\0", "not UTF-8 at byte 2"),
        (b"ab\xe6\xbc\0cd", "not UTF-8 at byte 2"),
        ("é".encode() * 9 + b"\0", "a NUL at byte 18"),
    ],
)
def test_bytes_that_are_no_text_are_named_by_their_offset(tokenizer, block, content, said):
    def blocks():
        for start in range(0, len(content), block):
            yield content[start : start + block]

    text = Text("some.txt", "", blocks)
    for read in (lambda: build(text, tokenizer), lambda: list(encoded(vocabulary("char"), text))):
        refused = refusal(read)
        assert refused.startswith(f"some.txt: {said}: ")
        assert refused.endswith("data.tokenizer=byte reads any bytes")
    numbers, size = all_encoded(build(text, "byte"), text)
    assert bytes(numbers.tolist()) == content
    assert size.unknown == 0


@pytest.mark.parametrize("block", [3, 1 << 22])
def test_an_offset_counts_from_the_start_of_the_file_where_a_part_of_it_is_wrong(tmp_path, block):
    content = bytearray(b"0123456789" * 300)
    content[2_875] = 0xFF
    (tmp_path / "a.txt").write_bytes(content)
    with mock.patch.object(texts, "BLOCK", block):
        parts = sources.splits(File(train=str(tmp_path / "a.txt")), "char")
        assert len(list(encoded(vocabulary("char"), parts["train"]))) == -(-2_700 // block)
        said = refusal(lambda: list(encoded(vocabulary("char"), parts["test"])))
    assert f"a.txt [test]: not UTF-8 at byte {2_875}: invalid start byte" in said


@pytest.mark.parametrize(
    ("tokenizer", "text", "limits", "said"),
    [
        ("char", "aaaa", {}, "a vocabulary of 1"),
        ("char", "\n\n\n", {}, "a vocabulary of 1"),
        ("word", "\n \n\n", {}, "a vocabulary of 1"),
        ("word", "<unk> <unk>\n", {}, "nothing but <unk> and '<eos>'"),
        (
            "word",
            "a b a b\n",
            {"min_count": 3},
            "no other token occurs data.tokenizer.min_count=3 times",
        ),
        ("char", "abc\n", {"min_count": 2}, "nothing but <unk> and '\\n'"),
    ],
)
def test_a_vocabulary_of_one_is_refused(tokenizer, text, limits, said):
    refused = refusal(lambda: vocabulary(tokenizer, text, **limits))
    assert refused.startswith("text: ")
    assert said in refused


@pytest.mark.parametrize(
    ("tokenizer", "text"), [("char", "aaa\n"), ("char", "ab"), ("word", "a a"), ("word", "a\na\n")]
)
def test_two_kinds_of_token_are_enough(tokenizer, text):
    assert len(np.unique(vocabulary(tokenizer, text).encode(text))) == 2


def test_one_giant_word_is_one_word():
    with mock.patch.object(texts, "BLOCK", 7):
        text = in_memory("text", "é" * 1_000)
        assert list(whole_words(decoded(text))) == ["é" * 1_000]
        assert build(text, "word").tokens[2] == "é" * 1_000


@every_tokenizer
@pytest.mark.parametrize("block", [b"some words\nand a half li", b"a line without an end "])
def test_a_text_passes_through_a_few_blocks_at_a_time(tokenizer, block):
    """What is larger than memory can be read: what has been passed on is not held."""
    read = 0

    def blocks():
        nonlocal read
        for _ in range(50):
            read += 1
            yield block

    passing = encoded(vocabulary(tokenizer), Text("text", "", blocks))
    for taken in range(1, 40):
        next(passing)
        assert read <= taken + 3
