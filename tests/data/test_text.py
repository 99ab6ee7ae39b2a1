"""Texts: cut without losing a byte, at whole characters, lines or words, in blocks of any size."""

import bz2
import io
import itertools
import os
import tarfile
import zipfile
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm_jax.config import Builtin, File, Memory
from lm_jax.data import text as texts
from lm_jax.data.sources import splits
from lm_jax.data.text import file_text, in_memory
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


def starts_of_words(text):
    whole = text.encode()
    behind = [n for n in range(1, len(whole)) if whole[n - 1] in b" \t\r\n" and whole[n] > 32]
    return [0] + behind + [len(whole)]


CHARACTERS, WORDS = [starts_of_characters], [starts_of_lines, starts_of_words]


@pytest.mark.parametrize(
    ("tokenizer", "ways"), [("char", CHARACTERS), ("byte", CHARACTERS), ("word", WORDS)]
)
@few
@given(text=any_text, block=any_block)
@example(text="a" * 20, block=1)
@example(text="a\n" * 20, block=3)
@example(text="😀" * 20, block=3)
@example(text="ab\r\n" * 9 + "no final newline", block=5)
@example(text="one line of words, and no other line " * 3, block=5)
@example(text="words  parted by\ttwo  blanks  each\r\n" * 2, block=1)
def test_a_text_is_cut_at_the_first_whole_character_or_line_or_word_past_each_mark(
    tokenizer, ways, text, block
):
    """By words where the lines leave nothing for a part."""
    whole = text.encode()
    marks = [int(len(whole) * share) for share in (0.9, 0.95)]
    for starts in ways:
        places = starts(text)
        cuts = [0, *(min(place for place in places if place >= mark) for mark in marks), len(whole)]
        expected = [whole[start:stop] for start, stop in itertools.pairwise(cuts)]
        if b"" not in expected:
            break

    with mock.patch.object(texts, "BLOCK", block):
        if b"" in expected:
            unit = "words" if tokenizer == "word" else "characters"
            said = refusal(lambda: splits(Memory(), tokenizer, text))
            left = ("train", "validation", "test")[expected.index(b"")]
            assert said == (
                f"text: {len(whole)} bytes hold too few {unit} to cut into train, validation, "
                f"test: nothing is left for {left}"
            )
            return
        parts = splits(Memory(), tokenizer, text)
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

    def blocks(first=0):
        for number in range(first // 8, 100):
            read.append(number)
            yield (b"line %02d\n" % number)[first % 8 if number == first // 8 else 0 :]

    parts = texts.cut(texts.Text("text", "", blocks, size=800), "word")
    assert len(read) <= 4
    read.clear()
    next(parts["train"].blocks())
    assert read == [0]
    read.clear()
    assert len(content(parts["train"])) == 90 * 8
    assert len(read) <= 91
    read.clear()
    assert len(content(parts["test"])) == 5 * 8
    assert read == [95, 96, 97, 98, 99]


def test_the_built_in_text_is_about_half_a_million_characters_of_english():
    parts, again = (splits(Builtin(), "char") for _ in range(2))
    whole = b"".join(content(part) for part in parts.values()).decode()
    assert 300_000 < len(whole) < 800_000
    assert whole.lower().count(" the ") > 1_000
    for part, share in zip(parts.values(), (0.9, 0.05, 0.05), strict=True):
        assert len(content(part)) == pytest.approx(share * len(whole.encode()), rel=0.001)
    assert [part.digest for part in parts.values()] == [part.digest for part in again.values()]


def test_three_texts_are_the_three_splits(tmp_path):
    three = {"train": "one\n", "validation": "two", "test": "thrée\n"}
    for split, text in three.items():
        (tmp_path / split).write_text(text)
    paths = {split: str(tmp_path / split) for split in three}
    from_files = splits(File(**paths), "char")
    from_memory = splits(Memory(), "char", list(three.values()))
    for parts in (from_files, from_memory):
        assert {split: content(part).decode() for split, part in parts.items()} == three
        assert [part.start for part in parts.values()] == [0, 0, 0]
    assert from_files["test"].name == f"data.source.test={tmp_path / 'test'}"


def test_a_file_is_its_bytes_and_its_name_is_no_part_of_its_digest(tmp_path):
    whole = bytes(range(256)) * 3
    for name, bytes_ in (("a", whole), ("b", whole), ("c", whole[:-1] + b"x")):
        (tmp_path / name).write_bytes(bytes_)
    with mock.patch.object(texts, "BLOCK", 100):
        a, b, c = (file_text(str(tmp_path / name), name) for name in "abc")
        assert content(a) == whole
    assert a.digest == b.digest != c.digest


def test_the_digest_of_every_part_follows_the_text():
    one, two = ("a" * 100, "a" * 99 + "b")
    before, after = splits(Memory(), "char", one), splits(Memory(), "char", two)
    assert len({part.digest for parts in (before, after) for part in parts.values()}) == 6


def test_what_is_no_text_is_refused_in_one_line_that_says_why(tmp_path):
    (tmp_path / "empty").touch()

    def with_train(path):
        return refusal(lambda: splits(File(train=str(path)), "char"))

    missing = tmp_path / "missing.txt"
    assert with_train(missing) == f"data.source.train={missing}: there is no such file"
    empty = tmp_path / "empty"
    assert with_train(empty) == f"data.source.train={empty}: the file is empty"
    assert with_train(tmp_path).startswith(
        f"data.source.train={tmp_path}: the folder has no file named"
    )
    below = empty / "below"
    assert with_train(below) == f"data.source.train={below}: Not a directory"


def test_text_that_is_handed_over_wrongly_is_refused():
    def refused(text):
        return refusal(lambda: splits(Memory(), "char", text))

    assert "takes its text from lm_jax.train" in refused(None)
    assert "holds 2 texts" in refused(["a", "b"])
    assert refused("") == "text: the text is empty"
    assert refused(["a", "", "b"]) == "validation: the text is empty"
    assert refused("abc\ud800") == "text: a lone surrogate at character 3"


def test_text_is_not_ignored_where_the_config_names_another_source():
    said = refusal(lambda: splits(Builtin(), "char", "some text of one's own"))
    assert said == "text is read only with data.source=memory, not builtin"


def test_a_folder_names_its_three_files(tmp_path):
    for name in ("a.train.tokens", "a.valid.tokens", "a.test.tokens", "README"):
        (tmp_path / name).write_text(f"{name} and more\n")
    parts = splits(File(train=str(tmp_path)), "char")
    whole = {split: b"".join(part.blocks()).decode() for split, part in parts.items()}
    assert whole["validation"] == "a.valid.tokens and more\n"
    assert [name.split()[0] for name in whole.values()] == [
        "a.train.tokens",
        "a.valid.tokens",
        "a.test.tokens",
    ]
    (tmp_path / "a-test.txt").write_text("another\n")
    with pytest.raises(UserError, match=r"2 files, a-test.txt and a.test.tokens, named after"):
        splits(File(train=str(tmp_path)), "char")


def test_hidden_files_of_a_folder_are_no_texts(tmp_path):
    """What macOS puts beside a file, what an editor keeps while a file is open."""
    names = {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens", "test": "test.txt"}
    for name in names.values():
        for path in (name, f"._{name}", f".{name}.swp", f"{name}~", f"#{name}#", f"{name}.bak"):
            (tmp_path / path).write_text(f"{path}\n")
    (tmp_path / "train").mkdir()
    parts = splits(File(train=str(tmp_path)), "char")
    assert {split: content(part).decode().strip() for split, part in parts.items()} == names


@pytest.mark.parametrize("block", [1, 2, 4, 1 << 22])
def test_a_byte_order_mark_is_no_part_of_a_text_and_elsewhere_is_a_character(tmp_path, block):
    text = "aäb\ufeff c\n" * 20
    (tmp_path / "bare").write_text(text, encoding="utf-8")
    (tmp_path / "marked").write_text(text, encoding="utf-8-sig")
    with mock.patch.object(texts, "BLOCK", block):
        bare = file_text(str(tmp_path / "bare"), "bare")
        for any_bytes in (False, True):
            marked = file_text(str(tmp_path / "marked"), "marked", any_bytes=any_bytes)
            assert (content(marked), marked.digest) == (text.encode(), bare.digest)
            assert (bare.start, marked.start) == (0, 3)
        handed = in_memory("text", "\ufeff" + text)
        assert (content(handed), handed.digest) == (text.encode(), in_memory("", text).digest)
        for tokenizer in ("char", "byte", "word", "bpe"):
            one, other = (
                splits(File(train=str(tmp_path / name)), tokenizer) for name in ("bare", "marked")
            )
            for split in one:
                assert content(one[split]) == content(other[split])
                assert one[split].digest == other[split].digest
                assert one[split].start == other[split].start - 3


def test_a_text_of_nothing_but_a_byte_order_mark_is_empty(tmp_path):
    (tmp_path / "a").write_text("\ufeff")
    assert refusal(lambda: file_text(str(tmp_path / "a"), "a")) == "a: the file is empty"
    assert refusal(lambda: in_memory("a", "\ufeff")) == "a: the text is empty"


PROSE = "The quick brown fox.\nDer schnelle braune Fuchs.\n" * 9


def packed_by(module, mode):
    """What an archive with one file in it holds."""
    archive = io.BytesIO()
    if module is zipfile:
        with zipfile.ZipFile(archive, mode) as file:
            file.writestr("a.txt", PROSE)
    else:
        with tarfile.open(fileobj=archive, mode=mode) as file:
            about = tarfile.TarInfo("a.txt")
            about.size = len(PROSE)
            file.addfile(about, io.BytesIO(PROSE.encode()))
    return archive.getvalue()


def converted(name):
    return f"is {name}, not UTF-8: convert it first, iconv -f {name} -t UTF-8"


OTHERS = {
    "bzip2": (bz2.compress(PROSE.encode()), "is compressed by bzip2: unpack it first"),
    "zip": (packed_by(zipfile, "w"), "is a zip archive: unpack it first"),
    "tar": (packed_by(tarfile, "w"), "is a tar archive: unpack it first"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "is a PDF document: write it as text first"),
    "parquet": (
        b"PAR1\x15\x04\x15\x90" + b"\xff" * 99,
        "is a Parquet table: unpacked, and with a name in .parquet, it is read",
    ),
    "utf-16": (PROSE.encode("utf-16"), converted("UTF-16")),
    "utf-16, big": (b"\xfe\xff" + PROSE.encode("utf-16-be"), converted("UTF-16")),
    "utf-32": (PROSE.encode("utf-32"), converted("UTF-32")),
    "utf-32, big": (b"\0\0\xfe\xff" + PROSE.encode("utf-32-be"), converted("UTF-32")),
    "utf-16 of Chinese": ("漢字😀\n".encode("utf-16"), converted("UTF-16")),
    "utf-16-le": (PROSE.encode("utf-16-le"), converted("UTF-16LE")),
    "utf-16-be": (PROSE.encode("utf-16-be"), converted("UTF-16BE")),
    "utf-32-le": (PROSE.encode("utf-32-le"), converted("UTF-32LE")),
    "utf-32-be": (PROSE.encode("utf-32-be"), converted("UTF-32BE")),
    "old macs": (
        PROSE.replace("\n", "\r").encode(),
        "ends its lines in carriage returns alone, which are no newlines: convert it first, "
        r"tr '\r' '\n'",
    ),
}


@pytest.mark.parametrize(("whole", "said"), OTHERS.values(), ids=OTHERS)
def test_a_file_of_another_format_is_called_what_it_is(whole, said, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(whole)
    for tokenizer in ("char", "word", "bpe"):
        refused = refusal(lambda kind=tokenizer: splits(File(train=str(path)), kind))
        assert refused == f"data.source.train={path}: {said}; data.tokenizer=byte reads any bytes"
    parts = splits(File(train=str(path)), "byte")
    assert b"".join(content(part) for part in parts.values()) == whole


@pytest.mark.parametrize(
    "text",
    ["PAR1 is a prefix", "%PDF- begins a PDF", "BZh91AY&SY", "PK\x03\x04", "7z" * 9, "é" * 99_999]
    + ["a\r\nb\r\n", "a\rb\n", "\ufffe", "\x80\x04"],
)
def test_a_text_is_a_text_whatever_it_begins_with(text, tmp_path):
    (tmp_path / "a").write_bytes(text.encode())
    assert content(file_text(str(tmp_path / "a"), "a")) == text.encode()


def test_a_file_s_format_is_told_from_its_head(tmp_path):
    """A file of a hundred gigabytes is not read for it; it is a hole, so the disk has the room."""
    path = tmp_path / "large"
    path.write_bytes(bz2.compress(b"text"))
    os.truncate(path, 10**11)
    assert "is compressed by bzip2" in refusal(lambda: file_text(str(path), "large"))


def test_words_of_one_long_line_are_cut_as_the_line_is_long(tmp_path):
    """As text8: no newline at all; 90, 5 and 5 of 100 of its words, in their order, each whole."""
    words = [f"w{number:02d}" for number in range(100)]
    (tmp_path / "text8").write_text(" " + " ".join(words))
    parts = splits(File(train=str(tmp_path / "text8")), "word")
    found = [content(part).decode().split() for part in parts.values()]
    assert found == [words[:90], words[90:95], words[95:]]
