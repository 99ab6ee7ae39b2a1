"""A text in several files: all of them, in order, line by line, and each named if wrong."""

import bz2
import gzip
import itertools
import os
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import changed

from lm_jax.config import Data, File, Memory
from lm_jax.data import encoding
from lm_jax.data import text as texts
from lm_jax.data.corpus import cache_folder, load
from lm_jax.data.shards import joined, natural
from lm_jax.data.sources import splits
from lm_jax.data.text import file_text, in_memory
from lm_jax.settings import UserError

few = settings(max_examples=60, deadline=None)
SPLITS = ("train", "validation", "test")
FLAG = "data.source.train="


def content(text, *where):
    return b"".join(text.blocks(*where))


def written(folder, **files):
    """Write files, with _ for . in their names, and return the folder."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in files.items():
        name = name.replace("_", ".")
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def three(path):
    """The same text for all splits, and therefore not cut."""
    return File(train=path, validation=path, test=path)


def refusal(call):
    """The one line with which a call refuses."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def refused(path, **more):
    """The refusal of a training text."""
    return refusal(lambda: splits(File(train=str(path), **more), "char"))


@few
@given(
    parts=st.lists(st.text("ab\né漢", min_size=1, max_size=9), min_size=1, max_size=5),
    first=st.integers(0, 30),
    block=st.integers(1, 7),
)
def test_joined_texts_are_their_lines_one_after_another(parts, first, block):
    """From any byte on, for blocks of any size; only a missing newline is added."""
    whole = "".join(part if part.endswith("\n") else part + "\n" for part in parts[:-1]) + parts[-1]
    whole = whole.encode()
    with mock.patch.object(texts, "BLOCK", block):
        text = joined("all", [in_memory(f"{n}", part) for n, part in enumerate(parts)])
        assert content(text) == whole
        assert content(text, first) == whole[first:]
        assert text.size == len(whole)
        assert all(map(len, text.blocks()))


def test_numbers_in_names_count_as_numbers():
    names = ["a", "a-2.txt", "a-10.txt", "a-010.txt", "a²", "b1c2", "b1c10", "b-x"]
    assert sorted(reversed(names), key=natural) == [
        *("a", "a-2.txt", "a-010.txt", "a-10.txt", "a²", "b1c2", "b1c10", "b-x"),
    ]


def test_a_pattern_is_its_files_in_natural_order(tmp_path):
    written(tmp_path, t2_txt="two\n", t10_txt="ten\n", t1_txt="one", u_txt="other\n")
    written(tmp_path / "t3.txt", inner_txt="a folder, not a file")
    (tmp_path / ".t4.txt").write_text("hidden\n")
    pattern = str(tmp_path / "t*.txt")
    parts = splits(three(pattern), "char")
    assert {content(part) for part in parts.values()} == {b"one\ntwo\nten\n"}
    assert parts["test"].name == f"data.source.test={pattern}"
    deep = str(tmp_path / "**" / "*.txt")
    parts = splits(File(train=deep, validation=pattern, test=pattern), "char")
    assert content(parts["train"]) == b"one\ntwo\na folder, not a file\nten\nother\n"


def test_a_file_of_the_pattern_s_own_name_is_the_file(tmp_path):
    written(tmp_path, **{"t[1]_txt": "brackets\n", "t1_txt": "no brackets\n"})
    path = str(tmp_path / "t[1].txt")
    parts = splits(three(path), "char")
    assert content(parts["train"]) == b"brackets\n"


def test_a_pattern_of_one_file_is_the_file(tmp_path):
    """Its corpus is not made anew."""
    written(tmp_path, t1_txt="some text\n" * 9)
    one, pattern = (File(train=str(tmp_path / name)) for name in ("t1.txt", "t*.txt"))
    before, after = splits(one, "char"), splits(pattern, "char")
    assert [part.digest for part in before.values()] == [part.digest for part in after.values()]


def test_shards_alone_are_cut_like_one_text(tmp_path):
    for number in range(12):
        written(tmp_path, **{f"t{number}_txt": "\ufeff" + f"line {number:02d}\n" * 5})
    whole = "".join(f"line {number:02d}\n" * 5 for number in range(12))
    for tokenizer in ("char", "word"):
        found = splits(File(train=str(tmp_path / "t*.txt")), tokenizer)
        expected = splits(Memory(), tokenizer, whole)
        assert [*map(content, found.values())] == [*map(content, expected.values())]
        assert len({part.digest for part in found.values()}) == 3


def test_the_digest_follows_the_content_and_the_order(tmp_path):
    folders = {
        "a": {"t1": "x\n", "t2": "y\n"},
        "b": {"u8": "x\n", "u9": "y\n"},
        "c": {"t1": "y\n", "t2": "x\n"},
        "d": {"t1": "x\n", "t2": "z\n"},
    }
    digests = {}
    for name, files in folders.items():
        path = str(written(tmp_path / name, **files) / "*")
        digests[name] = splits(three(path), "char")["test"].digest
    assert digests["a"] == digests["b"]
    assert len({*digests.values()}) == 3


def test_a_folder_of_each_split_s_own_is_all_its_files(tmp_path):
    paths = {}
    for split in SPLITS:
        paths[split] = str(written(tmp_path / split, p2_txt=f"{split}\n", p10_txt="ten\n"))
    parts = splits(File(**paths), "char")
    assert {split: content(part).decode() for split, part in parts.items()} == {
        split: f"{split}\nten\n" for split in SPLITS
    }
    # The folder of these folders, too.
    parts = splits(File(train=str(tmp_path)), "char")
    assert content(parts["validation"]) == b"validation\nten\n"
    assert parts["train"].name == f"{FLAG}{tmp_path} [train]"


def test_a_folder_names_the_shards_of_its_splits(tmp_path):
    for split, number in itertools.product(("train", "valid", "test"), range(11)):
        name = f"{split}-{number:05d}-of-00011.txt"
        (tmp_path / name).write_text(f"{split} {number}\n")
    (tmp_path / "README.md").write_text("no text\n")
    parts = splits(File(train=str(tmp_path)), "char")
    expected = "".join(f"train {number}\n" for number in range(11))
    assert content(parts["train"]).decode() == expected
    (tmp_path / "train-00003-of-00011.txt").unlink()
    assert refused(tmp_path) == (
        f"{FLAG}{tmp_path}: train-00003-of-00011.txt is missing, of 11 shards 10 are there"
    )
    (tmp_path / "train-00003-of-00012.txt").write_text("of another set\n")
    assert refused(tmp_path) == (
        f"{FLAG}{tmp_path}: the folder holds shards of several sets, of 00011 and of 00012"
    )


def test_files_that_differ_in_more_than_numbers_are_no_shards(tmp_path):
    written(tmp_path, train1_txt="a\n", train2_txt="a\n", valid_txt="a\n", test_txt="a\n")
    (tmp_path / "train-3.txt.gz").write_bytes(gzip.compress(b"a\n"))
    (tmp_path / "train-4.txt").write_text("b\n")
    assert refused(tmp_path) == (
        f"{FLAG}{tmp_path}: the folder has 2 files, train-3.txt.gz and train-4.txt, named after "
        "train; give data.source.train, data.source.validation and data.source.test instead"
    )
    paths = {split: str(written(tmp_path / split, a_txt="a\n")) for split in SPLITS}
    written(tmp_path / "test", b_md="b\n")
    assert refusal(lambda: splits(File(**paths), "char")) == (
        f"data.source.test={tmp_path / 'test'}: the folder holds files of several kinds, a.txt and "
        f"b.md: choose by a pattern, such as {tmp_path / 'test' / '*.txt'}"
    )


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (bz2.compress(b"a\n"), "is compressed by bzip2: unpack it first; "),
        ("a\n".encode("utf-16"), "is UTF-16, not UTF-8: convert it first, "),
        (b"abc\nd\xffe\n" * 9, "not UTF-8 at byte 5: invalid start byte; "),
        (b"\xef\xbb\xbfabc\nd\0e\n" * 9, "a NUL at byte 8: not text, it seems; "),
        ("漢".encode()[:2], "not UTF-8 at byte 0: invalid continuation byte; "),
    ],
    ids=["empty", "mark alone", "bzip2", "UTF-16", "not UTF-8", "NUL", "half a character"],
)
def test_the_shard_that_is_wrong_is_named(second, said, tmp_path):
    written(tmp_path, t1_txt="first\n", t2_txt=second, t3_txt="third\n")
    pattern = str(tmp_path / "t*.txt")
    name = f"{FLAG}{tmp_path / 't2.txt'}: "
    for source in (three(pattern), File(train=pattern)):
        assert refusal(lambda source=source: load(Data(source=source))).startswith(name + said)
    assert not [*(cache_folder() / "tokens").glob("*[!k]")]  # nothing but a lock


def test_what_is_not_there_is_named(tmp_path):
    assert refused(tmp_path / "t*") == f"{FLAG}{tmp_path / 't*'}: no file matches the pattern"
    empty = written(tmp_path / "empty")
    said = refused(empty, validation=str(empty), test=str(empty))
    assert said == f"{FLAG}{empty}: the folder holds no files"


def test_a_shard_that_vanishes_or_changes_while_it_is_read_is_named(tmp_path, monkeypatch):
    """Deleted before the first reading; changed, or deleted, or joined by another, after it."""
    pattern = str(tmp_path / "t*.txt")
    data = Data(source=three(pattern))
    second, fourth = tmp_path / "t2.txt", tmp_path / "t4.txt"

    def fresh():
        fourth.unlink(missing_ok=True)
        return written(tmp_path, t1_txt="first\n", t2_txt="second\n", t3_txt="third\n")

    fresh()
    parts = splits(data.source, "char")
    second.unlink()
    missing = f"{FLAG}{second}: there is no such file"
    assert refusal(lambda: content(parts["train"])) == missing

    encoded = encoding.encoded
    for accident, named in (
        (lambda: second.write_text("another\n"), second),
        (second.unlink, second),
        (lambda: fourth.write_text("new\n"), fourth),
    ):
        fresh()

        def then(vocabulary, text, dtype, accident=accident):
            yield from encoded(vocabulary, text, dtype)
            if text.name.startswith("data.source.test"):
                accident()

        with monkeypatch.context() as patch:
            patch.setattr("lm_jax.data.corpus.encoded", then)
            said = refusal(lambda: load(data))
        assert said == f"{FLAG}{named}: has changed while it was read; begin again"
    fresh()
    assert bytes(load(changed(data, tokenizer="byte")).test.tokens) == b"first\nsecond\nthird\n"


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])
def test_a_corpus_of_shards_is_the_corpus_of_their_text(tokenizer, tmp_path):
    lines = ["the cat sät\n", "on  the mat\n", "\n", "<unk> 漢字\n"]
    for number, line in enumerate(lines):
        written(tmp_path, **{f"t{number}_txt": line})
    whole = "".join(lines)
    pattern = str(tmp_path / "t*.txt")
    shards = load(changed(Data(source=three(pattern)), tokenizer=tokenizer))
    text = load(changed(Data(source=Memory()), tokenizer=tokenizer), [whole] * 3)
    assert shards.vocabulary == text.vocabulary
    assert shards.train.tokens.tolist() == text.train.tokens.tolist()
    assert shards.train[1:] == text.train[1:]


def test_a_text_from_the_middle_of_a_large_file_is_not_read_from_its_beginning(tmp_path):
    """A file of a hundred gigabytes; it is a hole, so the disk has the room."""
    path = tmp_path / "large"
    path.write_bytes(b"begins\n")
    os.truncate(path, 10**11)
    with mock.patch.object(texts, "sha256_once", return_value=""):
        text = file_text(str(path), "large", any_bytes=True)
    assert text.size == 10**11
    assert content(text, 10**11 - 3) == b"\0\0\0"
    parts = texts.cut(text, "byte")
    assert len(next(parts["test"].blocks())) == texts.BLOCK


def test_many_shards_are_hashed_once(tmp_path):
    for number in range(70):
        written(tmp_path, **{f"t{number}_txt": f"{number}\n"})
    hashed = mock.Mock(hexdigest=lambda: "0")
    with mock.patch("lm_jax.files.hashlib.file_digest", return_value=hashed) as hashing:
        for _ in range(2):
            splits(File(train=str(tmp_path / "t*.txt")), "char")
    assert hashing.call_count == 70
