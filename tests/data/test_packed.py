"""Packed files and JSON lines: the text of the plain file, or one line that says what is wrong."""

import gzip
import json
import lzma
import resource
from unittest import mock

import pyarrow
import pytest

from lm_jax.data import json_lines, packed
from lm_jax.data import text as texts
from lm_jax.data.shards import files_text
from lm_jax.data.text import cut, file_text, measured
from lm_jax.settings import UserError

PROSE = "".join(f"line {number} with é and 漢\n" for number in range(300)).encode()
PACKERS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
every_packing = pytest.mark.parametrize("kind", PACKERS)


def content(text, *where):
    return b"".join(text.blocks(*where))


def refusal(call):
    """The one line with which a call refuses."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def written(path, whole):
    path.write_bytes(whole)
    return str(path)


@every_packing
def test_a_packed_file_is_its_text_from_any_byte_on_and_in_any_number_of_members(kind, tmp_path):
    pack = PACKERS[kind]
    mark = b"\xef\xbb\xbf"
    path = written(tmp_path / "a", pack(mark + PROSE[:99]) + pack(PROSE[99:]))
    with mock.patch.object(texts, "BLOCK", 1000):
        text = file_text(path, "a")
        for first in (0, 1, 98, 99, 1000, 2001, len(PROSE)):
            assert content(text, first) == PROSE[first:]
        assert measured(text).size == len(PROSE)
        plain = file_text(written(tmp_path / "b", mark + PROSE), "b")
        for one, other in zip(cut(text, "word").values(), cut(plain, "word").values(), strict=True):
            assert content(one) == content(other)


def test_packed_and_plain_shards_are_joined_as_plain_ones(tmp_path):
    parts = [PROSE[:100], PROSE[100:1000], PROSE[1000:]]
    for number, (part, pack) in enumerate(zip(parts, PACKERS.values(), strict=True)):
        written(tmp_path / f"p{number}", pack(part))
        written(tmp_path / f"q{number}", part)
    written(tmp_path / "p3", b"plain")
    written(tmp_path / "q3", b"plain")
    one, other = (files_text(str(tmp_path / f"{letter}*"), "f") for letter in "pq")
    assert content(one) == content(other)
    assert content(one, 1234) == content(other, 1234)


def test_zeros_may_pad_xz_streams(tmp_path):
    one, other = lzma.compress(b"first\n"), lzma.compress(b"second\n")
    path = written(tmp_path / "a", one + bytes(8) + other + bytes(packed._BUFFER))
    assert content(file_text(path, "a")) == b"first\nsecond\n"


@every_packing
def test_a_damaged_stream_is_told_in_one_line(kind, tmp_path):
    whole = PACKERS[kind](PROSE)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0xFF
    spoilt_ones = [whole[: len(whole) // 2], whole[:-1]]
    if kind != "zstd":  # which Arrow writes without a checksum
        spoilt_ones.append(bytes(changed))
    for spoilt in spoilt_ones:
        path = written(tmp_path / "a", spoilt)
        assert refusal(lambda path=path: content(file_text(path, "a"))).startswith(
            f"a: a damaged {kind} file: "
        )


@pytest.mark.quick("gzip")
@every_packing
def test_a_stream_that_says_it_is_endless_takes_no_memory(kind, tmp_path):
    """A gigabyte of zeros is refused by its head; a line of 40 MB is longer than 1 MiB."""
    if kind == "gzip":  # members of zeros, one after another
        zeros = gzip.compress(bytes(1 << 24)) * 64
    elif kind == "xz":
        zeros = lzma.compress(bytes(1 << 24)) * 64
    else:
        zeros = PACKERS[kind](bytes(1 << 24)) * 64
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = written(tmp_path / "zeros", zeros)
    text = file_text(path, "zeros", any_bytes=True)
    assert measured(text).size == 1 << 30
    line = written(tmp_path / "a.jsonl", PACKERS[kind](b'{"text": "' + b"a" * 40_000_000))
    with mock.patch.object(json_lines, "_LONGEST", 1 << 20):
        said = refusal(lambda: content(file_text(line, "a.jsonl")))
    assert said == "a.jsonl: line 1 is longer than 1 MiB"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_xz_asks_for_no_more_memory_than_is_allowed(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    path = written(tmp_path / "a", lzma.compress(PROSE, filters=filters))
    assert refusal(lambda: file_text(path, "a")) == (
        "a: a damaged xz file: Memory usage limit exceeded"
    )


# JSON lines.

ROWS = [{"text": "one\ntwo"}, {"text": None}, {"other": 1, "text": "漢 \0"}, {"text": ""}]


@pytest.mark.parametrize("ending", ["jsonl", "JSONL.gz", "ndjson.xz", "jsonl.zst"])
def test_json_lines_are_their_documents_joined_by_newlines(ending, tmp_path):
    lines = "\n\n".join(map(json.dumps, ROWS)).encode()
    pack = {"gz": "gzip", "xz": "xz", "st": "zstd"}.get(ending[-2:].lower())
    path = written(tmp_path / f"a.{ending}", PACKERS[pack](lines) if pack else lines)
    text = file_text(path, "a")
    assert content(text) == "one\ntwo\n漢 \0\n".encode()
    assert content(text, 4) == content(text)[4:]
    assert measured(text).size == len(content(text))


def test_the_key_is_chosen_and_is_part_of_the_digest(tmp_path):
    path = written(tmp_path / "a.jsonl", b'{"text": "a", "code": "b"}\n')
    one, other = file_text(path, "a"), file_text(path, "a", text_key="code")
    assert (content(one), content(other)) == (b"a", b"b")
    assert one.digest != other.digest
    plain = written(tmp_path / "a.txt", b'{"text": "a", "code": "b"}\n')
    assert "a: data.source.text_key is read of files named as JSON lines or a table: " in refusal(
        lambda: file_text(plain, "a", text_key="code")
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"plain text", "line 2 is no JSON object"),
        (b'["text"]', "line 2 is no JSON object"),
        (b'{"text": "cut sho', "line 2 is no JSON object"),
        (b"[" * 100_000, "line 2 is no JSON object"),
        (b'{"text": "\xff"}', "line 2 is not UTF-8"),
        (b'{"text": 3}', "line 2: 'text' is no string"),
        (b'{"text": "\\ud800"}', "line 2: 'text' holds a lone surrogate"),
        (b'{"content": "a"}', "line 2 has no 'text', but 'content': data.source.text_key names"),
    ],
)
def test_a_line_that_is_wrong_is_named(line, said, tmp_path):
    path = written(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line + b"\n")
    with mock.patch("lm_jax.data.text.other_format", return_value=None):  # its head is not UTF-8
        assert refusal(lambda: content(file_text(path, "a"))).startswith(f"a: {said}")
