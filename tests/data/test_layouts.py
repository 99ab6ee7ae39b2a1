"""Known corpora: the field's splits and tokens, by what a folder or a file holds."""

import gzip
from unittest import mock

import pyarrow
import pytest

from lm_jax.config import Auto, Byte, Char, Config, Data, File, Word, layouts, resolve
from lm_jax.config.layouts import told, with_tokens
from lm_jax.data.corpus import load
from lm_jax.data.sources import splits
from lm_jax.settings import UserError

SPLITS = ("train", "valid", "test")


def zstd(text):
    return pyarrow.compress(text.encode(), codec="zstd", asbytes=True)


def row(text):
    return zstd(f'{{"text": "{text}", "meta": {{}}}}\n')


def lm1b(number, of, kind=""):
    return f"news.en{kind}-{number:05}-of-{of:05}"


TRAIN, HELD_OUT = layouts.LM1B
CORPORA = {
    "WikiText": ({f"wiki.{split}.tokens": f" = {split} = \n" for split in SPLITS}, Word()),
    "WikiText, raw": ({f"wiki.{split}.raw": f" = {split} = \n" for split in SPLITS}, Char()),
    "the Penn Treebank": (
        {
            **{f"ptb.{split}.txt": f" {split} words \n" for split in SPLITS},
            **{f"ptb.char.{split}.txt": " c h a r _ s \n" for split in SPLITS},
            "README": "no text",
        },
        Word(),
    ),
    "the Penn Treebank by characters": (
        {f"ptb.char.{split}.txt": f" {' '.join(split)} \n" for split in SPLITS},
        Word(),
    ),
    "lm1b": (
        {
            **{f"{TRAIN}/{lm1b(n, 100)}": f"train {n}\n" for n in range(1, 100)},
            **{f"{HELD_OUT}/{lm1b(n, 50, '.heldout')}": f"part {n}\n" for n in range(3)},
        },
        Word(min_count=3),
    ),
    "the Pile": (
        {
            **{f"train/{n:02}.jsonl.zst": row(f"train {n}") for n in (2, 0, 10)},
            "val.jsonl.zst": row("valid"),
            "test.jsonl.zst": row("test"),
            "SHA256SUMS.txt": "",
        },
        Byte(),
    ),
}
TEXTS = {
    "WikiText": tuple(f" = {split} = \n" for split in SPLITS),
    "WikiText, raw": tuple(f" = {split} = \n" for split in SPLITS),
    "the Penn Treebank": tuple(f" {split} words \n" for split in SPLITS),
    "the Penn Treebank by characters": tuple(f" {' '.join(split)} \n" for split in SPLITS),
    "lm1b": ("".join(f"train {n}\n" for n in range(1, 100)), "part 1\n", "part 0\n"),
    "the Pile": ("train 0\ntrain 2\ntrain 10", "valid", "test"),
}


def written(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


def content(parts):
    return tuple(b"".join(part.blocks()).decode() for part in parts.values())


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_known_by_its_files(name, tmp_path):
    files, tokens = CORPORA[name]
    source = File(train=written(tmp_path, files))
    assert layouts.recognised(source).name == name
    assert content(splits(source, tokens.kind)) == TEXTS[name]
    resolved = resolve(Config(data=Data(source=source))).data
    assert resolved == Data(source=source, tokenizer=tokens)
    assert told(Data(source=source)).startswith(
        f"data.source.train={tmp_path} is {name}: data.tokenizer={tokens.kind}; trained on "
    )


def test_what_is_said_names_the_files(tmp_path):
    source = File(train=written(tmp_path, CORPORA["lm1b"][0]))
    assert told(Data(source=source, tokenizer=Char())) == (
        f"data.source.train={tmp_path} is lm1b: data.tokenizer=char as given, where word is usual; "
        f"trained on {TRAIN}/{lm1b(1, 100)} and 98 more, validated on "
        f"{HELD_OUT}/{lm1b(1, 50, '.heldout')}, tested on {HELD_OUT}/{lm1b(0, 50, '.heldout')}"
    )
    assert "data.tokenizer=word as given; " in told(Data(source=source, tokenizer=Word(size=9)))


@pytest.mark.parametrize("packed", [False, True], ids=["file", "folder"])
def test_text8_and_enwik8_are_known_by_their_content_and_cut_at_their_marks(packed, tmp_path):
    """90, 5 and 5 of 100 bytes; those of enwik8 even within a character."""
    letters = "the quick brown fox " * 5
    wiki = "<mediawiki " + "x" * 78 + "é" * 5 + "y"
    assert (len(letters), len(wiki.encode())) == (100, 100)
    for name, text, tokens in (("text8", letters, Char()), ("enwik8", wiki, Byte())):
        folder = tmp_path / name
        written(folder, {name: text, f"{name}.zip": "PK"})
        path = str(folder) if packed else str(folder / name)
        data = Data(source=File(train=path))
        with mock.patch.object(layouts, "SIZE", 100):
            assert with_tokens(data).tokenizer == tokens
            assert f"is {name}: data.tokenizer={tokens.kind}; cut after 90 and" in told(data)
            parts = load(data)
        assert [len(part.tokens) for part in (parts.train, parts.validation, parts.test)] == [
            90,
            5,
            5,
        ]
        if not packed:  # of another size it is a text like any other
            assert with_tokens(data).tokenizer == Char()
    assert bytes(parts.train.tokens) == wiki.encode()[:90]  # and not 91


def test_settings_that_are_given_win(tmp_path):
    source = File(train=written(tmp_path, CORPORA["lm1b"][0]))
    for given, used in [
        (Char(), Char()),
        (Byte(), Byte()),
        (Auto(size=100), Word(size=100, min_count=3)),
        (Auto(min_count=1), Word(min_count=1)),
    ]:
        assert with_tokens(Data(source=source, tokenizer=given)).tokenizer == used
    three = File(train="a", validation="b", test="c")
    assert with_tokens(Data(source=three, tokenizer=Auto(size=9))).tokenizer == Char(size=9)
    assert told(Data(source=three)) is None
    assert told(Data()) is None


def test_bytes_have_no_size(tmp_path):
    source = File(train=written(tmp_path, CORPORA["the Pile"][0]))
    with pytest.raises(UserError) as refused:
        with_tokens(Data(source=source, tokenizer=Auto(size=100)))
    assert str(refused.value) == (
        "data.tokenizer.size is not read with the bytes of the Pile: choose data.tokenizer, too"
    )


def test_a_missing_part_of_lm1b_is_named(tmp_path):
    files = dict(CORPORA["lm1b"][0])
    del files[f"{TRAIN}/{lm1b(7, 100)}"]
    with pytest.raises(UserError) as refused:
        load(Data(source=File(train=written(tmp_path, files))))
    assert str(refused.value) == (
        f"data.source.train={tmp_path}: {lm1b(7, 100)} is missing, of 99 training files of lm1b 98 "
        "are there"
    )


def test_other_folders_and_files_are_as_ever(tmp_path):
    other = written(tmp_path, {f"{split}.txt": f"{split}\n" for split in SPLITS})
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(b"text"))
    for path in (other, str(packed), str(tmp_path / "missing"), str(tmp_path / "*.txt")):
        assert with_tokens(Data(source=File(train=path))).tokenizer == Char()
        assert told(Data(source=File(train=path))) is None
