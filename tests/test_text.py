"""Texts: cut without losing a byte, at whole characters and lines, whatever the size of a block."""

import itertools
import os
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm_jax.config import Data
from lm_jax.data import text as texts
from lm_jax.data.text import file_text, in_memory, splits
from lm_jax.settings import UserError

# Characters of one to four bytes, and line ends of both kinds.
any_text = st.text(st.sampled_from("ab \n\räπ漢😀"), min_size=1, max_size=60)
any_block = st.integers(1, 7)
few = settings(max_examples=60, deadline=None)


def content(text):
    return b"".join(text.blocks())


def refusal(call):
    """The one line with which a call refuses."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def starts_of_characters(text):
    whole = text.encode()
    return [0] + [len(text[:n].encode()) for n in range(1, len(text))] + [len(whole)]


def starts_of_lines(text):
    whole = text.encode()
    return [0] + [n + 1 for n, byte in enumerate(whole) if byte == 10] + [len(whole)]


@pytest.mark.parametrize(
    ("tokenizer", "starts"),
    [("char", starts_of_characters), ("byte", starts_of_characters), ("word", starts_of_lines)],
)
@few
@given(text=any_text, block=any_block)
@example(text="a" * 20, block=1)
@example(text="a\n" * 20, block=3)
@example(text="😀" * 20, block=3)
@example(text="ab\r\n" * 9 + "no final newline", block=5)
def test_a_text_is_cut_at_the_first_whole_character_or_line_past_each_mark(
    tokenizer, starts, text, block
):
    whole, places = text.encode(), starts(text)
    marks = [int(len(whole) * share) for share in (0.9, 0.95)]
    cuts = [0, *(min(place for place in places if place >= mark) for mark in marks), len(whole)]
    expected = [whole[start:stop] for start, stop in itertools.pairwise(cuts)]

    data = Data(source="memory", tokenizer=tokenizer)
    with mock.patch.object(texts, "BLOCK", block):
        if b"" in expected:
            unit = "lines" if tokenizer == "word" else "characters"
            said = refusal(lambda: splits(data, text))
            left = ("train", "validation", "test")[expected.index(b"")]
            assert said == (
                f"text: {len(whole)} bytes hold too few {unit} to cut into train, validation, "
                f"test: nothing is left for {left}"
            )
            return
        parts = splits(data, text)
        assert [content(part) for part in parts.values()] == expected
        assert [part.start for part in parts.values()] == cuts[:-1]
        assert all(0 < len(piece) <= block for part in parts.values() for piece in part.blocks())


@few
@given(text=any_text, block=any_block)
def test_a_text_can_be_read_again_from_the_start(text, block):
    with mock.patch.object(texts, "BLOCK", block):
        read = in_memory("text", text)
        next(read.blocks())
        assert content(read) == content(read) == text.encode()


def test_a_text_that_is_cut_is_read_only_as_far_as_needed():
    read = []

    def blocks():
        for number in range(100):
            read.append(number)
            yield b"line %02d\n" % number

    parts = texts._cut(texts.Text("text", "", blocks), by_line=True)
    read.clear()
    next(parts["train"].blocks())
    assert read == [0]
    read.clear()
    assert len(content(parts["train"])) == 90 * 8
    assert len(read) <= 91


def test_the_built_in_text_is_about_half_a_million_characters_of_english():
    parts = splits(Data())
    whole = b"".join(content(part) for part in parts.values()).decode()
    assert 300_000 < len(whole) < 800_000
    assert whole.lower().count(" the ") > 1_000
    for part, share in zip(parts.values(), (0.9, 0.05, 0.05), strict=True):
        assert len(content(part)) == pytest.approx(share * len(whole.encode()), rel=0.001)
    assert [part.digest for part in parts.values()] == [p.digest for p in splits(Data()).values()]


def test_three_texts_are_the_three_splits(tmp_path):
    three = {"train": "one\n", "validation": "two", "test": "thrée\n"}
    for split, text in three.items():
        (tmp_path / split).write_text(text)
    paths = {split: str(tmp_path / split) for split in three}
    from_files = splits(Data(source="file", **paths))
    from_memory = splits(Data(source="memory"), list(three.values()))
    for parts in (from_files, from_memory):
        assert {split: content(part).decode() for split, part in parts.items()} == three
        assert [part.start for part in parts.values()] == [0, 0, 0]
    assert from_files["test"].name == f"data.test={tmp_path / 'test'}"


def test_a_file_is_its_bytes_and_its_name_is_no_part_of_its_digest(tmp_path):
    whole = bytes(range(256)) * 3
    for name, bytes_ in (("a", whole), ("b", whole), ("c", whole[:-1] + b"x")):
        (tmp_path / name).write_bytes(bytes_)
    with mock.patch.object(texts, "BLOCK", 100):
        a, b, c = (file_text(str(tmp_path / name), name) for name in "abc")
        assert content(a) == whole
    assert a.digest == b.digest != c.digest


def test_the_digest_of_every_part_follows_the_text():
    data = Data(source="memory")
    one, two = ("a" * 100, "a" * 99 + "b")
    before, after = splits(data, one), splits(data, two)
    assert len({part.digest for parts in (before, after) for part in parts.values()}) == 6


def test_what_is_no_text_is_refused_in_one_line_that_says_why(tmp_path):
    (tmp_path / "empty").touch()

    def with_train(path):
        return refusal(lambda: splits(Data(source="file", train=str(path))))

    missing = tmp_path / "missing.txt"
    assert with_train(missing) == f"data.train={missing}: there is no such file"
    empty = tmp_path / "empty"
    assert with_train(empty) == f"data.train={empty}: the file is empty"
    assert with_train(tmp_path).startswith(f"data.train={tmp_path}: the folder has no file named")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)  # or to open it would wait for one
    assert (
        with_train(pipe) == f"data.train={pipe}: is no file that can be read twice, such as a pipe"
    )
    os.close(writer)
    below = empty / "below"
    assert with_train(below) == f"data.train={below}: Not a directory"


def test_text_that_is_handed_over_wrongly_is_refused():
    data = Data(source="memory")
    assert "takes its text from lm_jax.train" in refusal(lambda: splits(data))
    assert "holds 2 texts" in refusal(lambda: splits(data, ["a", "b"]))
    assert refusal(lambda: splits(data, "")) == "text: the text is empty"
    assert refusal(lambda: splits(data, ["a", "", "b"])) == "validation: the text is empty"
    lone = refusal(lambda: splits(data, "abc\ud800"))
    assert lone == "text: a lone surrogate at character 3"


def test_text_is_not_ignored_where_the_config_names_another_source():
    said = refusal(lambda: splits(Data(), "some text of one's own"))
    assert said == "text is read only with data.source=memory, not builtin"


def test_a_folder_names_its_three_files(tmp_path):
    for name in ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens", "README"):
        (tmp_path / name).write_text(f"{name} and more\n")
    parts = splits(Data(train=str(tmp_path)))
    whole = {split: b"".join(part.blocks()).decode() for split, part in parts.items()}
    assert whole["validation"] == "wiki.valid.tokens and more\n"
    assert [name.split()[0] for name in whole.values()] == [
        "wiki.train.tokens",
        "wiki.valid.tokens",
        "wiki.test.tokens",
    ]
    (tmp_path / "a-test.txt").write_text("another\n")
    with pytest.raises(UserError, match=r"2 files, a-test.txt and wiki.test.tokens, named after"):
        splits(Data(train=str(tmp_path)))
