"""Pretrained vectors: the same from every format, and every damage named in one line."""

import bz2
import gzip
import io
import pickle
import struct
import tarfile
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.data import vectors as module
from lm_jax.data.vectors import read_vectors
from lm_jax.data.vocabulary import BYTES, Vocabulary
from lm_jax.settings import UserError

E = 3
ROWS = {"the": [0.5, -1.0, 2.0], "Cat": [1, 2, 3], "cat": [4, 5, 6], "</s>": [7, 8, 9]}
WORDS = Vocabulary("word", ("<unk>", "<eos>", "the", "Cat", "The", "dog"))


def glove(rows):
    return "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in rows.items()).encode()


def header(rows):
    return f"{len(rows)} {len(next(iter(dict(rows).values())))}\n".encode()


def word2vec(rows):
    return header(rows) + glove(rows).replace(b"\n", b" \n")  # as word2vec.c ends its lines


def binary(rows, end=b"\n"):
    pairs = rows.items() if isinstance(rows, dict) else rows
    records = [w.encode() + b" " + struct.pack(f"<{len(v)}f", *v) + end for w, v in pairs]
    return header(rows) + b"".join(records)


FORMATS = {
    "glove": glove,
    "word2vec": word2vec,
    "binary": binary,
    "binary without newlines": lambda rows: binary(rows, b""),
}
formats = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


def read(folder, content, vocabulary=WORDS, size=E, **more):
    path = folder / "file"
    path.write_bytes(content)
    return read_vectors(str(path), vocabulary, size, name="FILE", **more)


def refusal(call):
    """The one line with which a call refuses."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@formats
@pytest.mark.parametrize("packed", [False, True])
def test_a_token_takes_its_own_vector_else_that_of_its_lower_case(form, packed, tmp_path):
    content = form(ROWS)
    found = read(tmp_path, gzip.compress(content) if packed else content)
    assert found.table.dtype == np.float32
    assert found.table.shape == (6, E)
    assert found.known.tolist() == [False, True, True, True, True, False]
    assert found.found == 4
    np.testing.assert_array_equal(
        found.table[1:5], [ROWS["</s>"], ROWS["the"], ROWS["Cat"], ROWS["the"]]
    )


@formats
def test_the_order_of_a_file_does_not_matter(form, tmp_path):
    one = read(tmp_path, form(ROWS), seed=3)
    other = read(tmp_path, form(dict(reversed(ROWS.items()))), seed=3)
    np.testing.assert_array_equal(one.table, other.table)


def test_the_line_s_end_is_eos_before_it_is_s(tmp_path):
    assert read(tmp_path, glove(ROWS | {"<eos>": [1, 1, 1]})).table[1].tolist() == [1, 1, 1]
    # The other way round there is no alias.
    known = Vocabulary("word", ("<unk>", "<eos>", "</s>"))
    assert read(tmp_path, glove({"<eos>": [1, 1, 1]}), known).known.tolist() == [False, True, False]


def test_what_is_not_found_is_drawn_on_the_scale_of_what_is(tmp_path):
    """By the seed alone; of a thousand numbers the mean square is known to a few per cent."""
    known = Vocabulary("word", ("<unk>", "<eos>", "a", "b", *(f"w{n}" for n in range(400))))
    content = glove({"a": [3, 4, 0], "b": [0, 0, 5], "c": [900, 900, 900]})
    one, again = (read(tmp_path, content, known, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.table, again.table)
    assert (one.table[0] != read(tmp_path, content, known, seed=2).table[0]).all()
    drawn = one.table[~one.known]
    assert len(np.unique(drawn)) == drawn.size == 402 * E
    np.testing.assert_allclose(np.mean(drawn**2), 50 / 6, rtol=0.15)
    np.testing.assert_allclose(np.mean(drawn), 0, atol=0.3)


def test_the_share_of_the_text_that_is_covered(tmp_path):
    counts = np.array([10, 5, 3, 1, 1, 80])
    assert read(tmp_path, glove(ROWS), counts=counts).covered == 0.1
    assert read(tmp_path, glove(ROWS)).covered is None


@formats
@settings(max_examples=25, deadline=None)
@given(
    rows=st.dictionaries(
        st.sampled_from(["a", "b", "é", "漢字", "12", "-1", "x_y", "a\x85b", "\ufffd", "nan"]),
        st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2),
        min_size=1,
    ),
    block=st.integers(1, 40),
)
def test_every_number_is_as_it_was_written_wherever_blocks_end(form, rows, block, tmp_path_factory):
    known = Vocabulary("word", ("<unk>", "<eos>", *rows))
    # What is recognised by a byte that no text holds needs one.
    rows = {"zero": [0.0, 0.0], **rows}
    with mock.patch.object(module, "BLOCK", block):
        found = read(tmp_path_factory.mktemp("v"), form(rows), known, 2)
    np.testing.assert_array_equal(
        found.table[2:], np.array([rows[word] for word in known.tokens[2:]], np.float32)
    )


def test_a_word_of_glove_may_hold_blanks_and_bytes_that_are_not_utf8_match_nothing(tmp_path):
    """On the first line, too."""
    lines = [b". . . 1 2 3", b"at a@b.c 4 5 6", b"\xff\xfe 4 5 6", b"\xc2\x85 4 5 6", b"the 7 8 9"]
    known = Vocabulary("word", (*WORDS.tokens, ". . .", "at a@b.c"))
    for first in range(len(lines)):
        content = b"\n".join([*lines[first:], *lines[:first], b""])
        found = read(tmp_path, content, known)
        assert found.known.tolist() == [False, False, True, False, True, False, True, True]
        assert found.table[[2, 6, 7]].tolist() == [[7, 8, 9], [1, 2, 3], [4, 5, 6]]
    replaced = Vocabulary("word", ("<unk>", "<eos>", "the", "\ufffd\ufffd"))
    assert read(tmp_path, b"the 7 8 9\n\xff\xfe 4 5 6\n", replaced).found == 1
    assert read(tmp_path, binary(ROWS).replace(b"cat ", b"c\xfft "), WORDS).found == 4


def test_windows_line_ends_and_a_last_line_without_one(tmp_path):
    content = glove(ROWS).replace(b"\n", b"\r\n")
    np.testing.assert_array_equal(
        read(tmp_path, content).table, read(tmp_path, glove(ROWS)[:-1]).table
    )


def test_characters_have_vectors_too(tmp_path):
    known = Vocabulary("char", ("<unk>", "\n", "a", "B"))
    found = read(tmp_path, glove({"a": [1, 2, 3], "b": [4, 5, 6]}), known)
    assert found.known.tolist() == [False, False, True, True]
    said = refusal(lambda: read(tmp_path, b"", BYTES))
    assert said == "FILE: data.tokenizer=byte has no words to look up"


def tar(files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return archive.getvalue()


TEXT, HEADED, BINARY = glove(ROWS), word2vec(ROWS), binary(ROWS)
WRONG = {
    "empty": (b"", "FILE: the file is empty"),
    "empty gzip": (gzip.compress(b""), "FILE: the file is empty"),
    "prose": (b"Call me Ishmael.\n", "FILE: no file of word vectors: its first line is neither"),
    "bytes": (bytes(range(255, -1, -1)) * 9, "FILE: no file of word vectors"),
    "one word": (b"word\n", "FILE: no file of word vectors"),
    "size": (
        glove({"a": [1.0] * 100}),
        "model.embedding_size=3, but FILE holds vectors of 100",
    ),
    "size of a header": (
        HEADED.replace(b"4 3", b"4 30"),
        "model.embedding_size=3, but FILE holds vectors of 30",
    ),
    "size of binary": (
        binary({"a": [1.0, 0.0]}),
        "model.embedding_size=3, but FILE holds vectors of 2",
    ),
    "too few with tabs": (TEXT + b"rare\t1\t2\n", "FILE: line 5: 2 numbers after a word, not 3"),
    "too few after a blank": (TEXT + b" rare 1 2\n", "FILE: line 5: 2 numbers after a word, not 3"),
    "too many on the first line": (
        b"the first 1 2 3 4\n" + TEXT,
        "model.embedding_size=3, but FILE holds vectors of 4",
    ),
    "zip": (b"PK\x03\x04\x14\0", "FILE: is a zip archive: unpack it first"),
    "bzip2": (bz2.compress(TEXT), "FILE: is compressed by bzip2: unpack it first"),
    "a model": (
        struct.pack("<ii", 793712314, 12) + bytes(99),
        "FILE: is a model of fastText: write it as text first",
    ),
    "npy": (b"\x93NUMPY\x01\0", "FILE: is a NumPy array: write it as text first"),
    "pickle": (pickle.dumps(ROWS), "FILE: is a pickle of Python: write it as text first"),
    "utf-16": (TEXT.decode().encode("utf-16"), "FILE: is UTF-16, not UTF-8: convert it first"),
    "old macs": (TEXT.replace(b"\n", b"\r"), "FILE: ends its lines in carriage returns alone"),
    "old macs with a header": (HEADED.replace(b"\n", b"\r"), "FILE: ends its lines in carriage"),
    "gzip of tar": (
        gzip.compress(tar({"glove.txt": TEXT})),
        "FILE: is a tar archive: unpack it first",
    ),
    "too few": (TEXT + b"rare 1 2\n", "FILE: line 5: 2 numbers after a word, not 3"),
    "too many": (TEXT + b"rare 1 2 3 4\n", "FILE: line 5: 4 numbers after a word, not 3"),
    "first ragged": (b"4 3\nthe 1 2\n", "FILE: line 2: 2 numbers after a word, not 3"),
    "nan": (TEXT + b"dog 1 nan 3\n", "FILE: line 5: the vector of 'dog' holds NaN or infinity"),
    "inf": (HEADED[:-2] + b"\ndog 1 -inf 3\n", "FILE: line 6: the vector of 'dog' holds NaN"),
    "too large": (TEXT + b"dog 1 1e39 3\n", "FILE: line 5: the vector of 'dog' holds NaN or inf"),
    "no number": (
        TEXT + b"dog 1 two 3\n",
        "FILE: line 5: the vector of 'dog' holds what is no number",
    ),
    "nan, binary": (
        binary({"a": [0.0] * 3, "dog": [0.0, np.nan, 0.0]}),
        "FILE: record 2: the vector of 'dog' holds NaN or infinity",
    ),
    "a number of 5,000 digits": (b"9" * 5000 + b" 3\n", "model.embedding_size=3, but FILE"),
    "a line without end": (HEADED + b"dog " + b"1 " * 2**20, "FILE: line 6: longer than 1,048,768"),
    "only a header": (b"9 3\n", "FILE: its first line says 9 vectors, and it holds 0"),
    "cut short": (BINARY[:-3], "FILE: record 4: cut short, of 4 records"),
    "cut short, fewer said": (
        BINARY.replace(b"4 3", b"9 3")[:-3],
        "FILE: record 4: cut short, of 9 records",
    ),
    "cut in a word": (BINARY[: BINARY.index(b"</s>") + 2], "FILE: record 4: cut short, of 4"),
    "gzip cut short": (gzip.compress(TEXT)[:-9], "FILE: a damaged gzip file: Compressed file"),
    "gzip in name": (b"\x1f\x8b no", "FILE: a damaged gzip file"),
    "none": (glove({"x": [1, 2, 3]}), "FILE: holds none of the vocabulary's 6 tokens"),
    "no word's end": (b"3 3\n\0" + b"x" * 3_000_000, "FILE: record 1: a word without an end"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_its_place(content, said, tmp_path):
    assert refusal(lambda: read(tmp_path, content)).startswith(said)


def odd(folder, content, vocabulary=WORDS):
    """The vectors of a file that is read all the same, and what the one warning tells of it."""
    start = "FILE is read all the same: "
    with pytest.warns(UserWarning, match=start) as warned:
        found = read(folder, content, vocabulary)
    assert len(warned) == 1
    said = str(warned[0].message)
    assert "\n" not in said
    return found, said.removeprefix(start)


def says(count, holds):
    return f"its first line says {count} vectors, and it holds {holds}"


TABS = "lines with tabs or several blanks between fields"
AGAIN = "vectors of words that have one already"
ODD = {
    "more": (HEADED.replace(b"4 3", b"3 3"), says(3, 4)),
    "fewer": (HEADED.replace(b"4 3", b"1000 3"), says("1,000", 4)),
    "more, binary": (BINARY.replace(b"4 3", b"3 3"), says(3, 4)),
    "fewer, binary": (BINARY.replace(b"4 3", b"5 3"), says(5, 4)),
    "fewer, binary without newlines": (binary(ROWS, b"").replace(b"4 3", b"5 3"), says(5, 4)),
    "junk, binary": (BINARY + b"\n\njunk", "bytes after the last vector: 4"),
    "blank last lines": (TEXT + b"\n\r\n", "blank lines: 2"),
    "blank line": (HEADED.replace(b"Cat", b" \t\nCat"), "blank lines: 1"),
    "blank line behind the header": (HEADED.replace(b"the", b"\nthe"), "blank lines: 1"),
    "tabs": (TEXT.replace(b" ", b"\t"), f"{TABS}: 4"),
    "tab behind the word": (TEXT.replace(b"t ", b"t\t"), f"{TABS}: 2"),
    "tab and blanks of their number": (
        TEXT.replace(b"the 0.5 -1.0 2.0", b"the\t0.5  -1.0 2.0"),
        f"{TABS}: 1",
    ),
    "double blanks": (HEADED.replace(b" ", b"  "), f"{TABS}: 4"),
    "twice": (
        TEXT + b"Cat 1 1 1\nCat 1 1 1\nrare 1 1 1\nrare 1 1 1\n",
        f"{AGAIN}: 2, the first 'Cat' in line 5 after line 2",
    ),
    "blank first lines": (b"\n \n" + HEADED, "blank lines: 2"),
    "a blank first line, no header": (b"\n" + TEXT, "blank lines: 1"),
    "twice, binary": (
        binary([*ROWS.items(), ("Cat", [1, 1, 1])]),
        f"{AGAIN}: 1, the first 'Cat' in record 5 after record 2",
    ),
    "all": (
        HEADED.replace(b"Cat ", b"Cat\t") + b"the 1 1 1\n\n",
        f"{says(4, 5)}; {AGAIN}: 1, the first 'the' in line 6 after line 2; blank lines: 1; "
        f"{TABS}: 1",
    ),
}


def test_a_header_may_have_a_sign(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, b"+" + HEADED).table, read(tmp_path, TEXT).table)


@pytest.mark.parametrize(("content", "said"), ODD.values(), ids=ODD)
def test_what_is_odd_and_certain_is_read_with_one_warning(content, said, tmp_path):
    """All as if it were not odd, the first vector of two."""
    found, warned = odd(tmp_path, content)
    assert warned == said
    np.testing.assert_array_equal(found.table, read(tmp_path, TEXT).table)


@formats
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_first_word(form, packed, tmp_path):
    content = b"\xef\xbb\xbf" + form(ROWS)
    found = read(tmp_path, gzip.compress(content) if packed else content)
    np.testing.assert_array_equal(found.table, read(tmp_path, form(ROWS)).table)


def test_published_files_are_read_as_gensim_4_reads_them(tmp_path):
    """The forms of fastText's .vec and of GloVe 840B, whose words with blanks gensim 4.4.0 refuses;
    of the other words, the vectors are those that it gives."""
    known = Vocabulary("word", ("<unk>", "<eos>", ",", "the", "a\xa0b", "name@domain.com", "1990"))
    expected = [[0.1073, 0.0089, 0.0006], [0.0897, 0.016, -0.0571], [1e-3, -2, 0.5]]
    fast_text = (
        "4 3\n, 0.1073 0.0089 0.0006 \nthe 0.0897 0.0160 -0.0571 \na\xa0b 1e-3 -2 .5 \n"
        "</s> 0.0004 0.0032 -0.0204 \n"
    )
    glove_840b = (
        ", 0.1073 0.0089 0.0006\nthe 0.0897 0.0160 -0.0571\n. . . 1 2 3\n"
        "at name@domain.com 4 5 6\n1990 7 8 9\na\xa0b 0.001 -2.0 0.5\n"
    )
    found = read(tmp_path, fast_text.encode(), known)
    np.testing.assert_array_equal(found.table[2:5], np.array(expected, np.float32))
    assert found.table[1].tolist() == np.float32([0.0004, 0.0032, -0.0204]).tolist()
    found = read(tmp_path, glove_840b.encode(), known)
    np.testing.assert_array_equal(found.table[2:5], np.array(expected, np.float32))
    assert found.known.tolist() == [False, False, True, True, True, False, True]


def test_a_blank_is_a_character_with_a_vector(tmp_path):
    """On the first line, which it often is, as on others; an empty word is nobody's."""
    known = Vocabulary("char", ("<unk>", "\n", " ", "a", "\t"))
    rows = [b"  1 2 3\n", b"a 4 5 6\n", b"\t 7 8 9\n", b" 0 0 0\n"]
    for first in range(4):
        found = read(tmp_path, b"".join(rows[first:] + rows[:first]), known)
        assert found.table[2:].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    for path, said in ((tmp_path / "no", "there is no such file"), (tmp_path, "is a directory")):
        call = lambda path=path: read_vectors(str(path), WORDS, E, name="FILE")  # noqa: E731
        assert refusal(call).startswith(f"FILE: {said}")
