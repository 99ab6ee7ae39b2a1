"""Corpora: the same from files as from memory, tokenised once, and never half there."""

import errno
import functools
import itertools
import json
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import changed

from lm_jax.config import TFDS, Data, File, Memory, Word
from lm_jax.data import corpus as corpora
from lm_jax.data import sources
from lm_jax.data import text as texts
from lm_jax.data.corpus import cache_folder, load
from lm_jax.data.text import Text
from lm_jax.settings import UserError

SPLITS = ("train", "validation", "test")
THREE = ("the cat sat\n\non the mät\n", "a cat <unk> sat\n", "the dog sat on the dog\n")
every_tokenizer = pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])


def files(folder, three=THREE, **fields):
    """The config of three files with these texts."""
    folder.mkdir(exist_ok=True)
    paths = {}
    for split, text in zip(SPLITS, three, strict=True):
        paths[split] = str(folder / split)
        Path(paths[split]).write_bytes(text if isinstance(text, bytes) else text.encode())
    return changed(Data(source=File(**paths)), **fields)


def cached():
    """What lies in the cache of tokens, but for the locks."""
    return [path for path in (cache_folder() / "tokens").glob("*") if path.suffix != ".lock"]


def refusal(call):
    """The one line with which a call refuses."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def assert_equal(one, other):
    assert one.vocabulary == other.vocabulary
    for split in SPLITS:
        a, b = getattr(one, split), getattr(other, split)
        assert a[1:] == b[1:]
        assert a.tokens.dtype == b.tokens.dtype
        np.testing.assert_array_equal(a.tokens, b.tokens)


@pytest.fixture
def counted(monkeypatch):
    """A list that grows by a name whenever a text is counted or tokenised."""
    names = []

    def noting(original):
        def noted(*args):
            names.append(next(arg for arg in args if isinstance(arg, Text)).name)
            return original(*args)

        return noted

    for function in (corpora.build, corpora.encoded):
        monkeypatch.setattr(corpora, function.__name__, noting(function))
    return names


@every_tokenizer
@pytest.mark.parametrize("block", [1, 5, 1 << 22])
def test_a_corpus_is_the_same_from_files_and_from_memory(tokenizer, block, tmp_path, monkeypatch):
    in_memory = load(changed(Data(source=Memory()), tokenizer=tokenizer), THREE)
    monkeypatch.setattr(texts, "BLOCK", block)
    assert_equal(load(files(tmp_path, tokenizer=tokenizer)), in_memory)


@every_tokenizer
@pytest.mark.parametrize("block", [1, 2, 1 << 22])
def test_a_corpus_is_the_same_with_byte_order_marks(tokenizer, block, tmp_path, monkeypatch):
    """At the head of each file or text; a mark elsewhere is U+FEFF, a character."""
    three = [text + "a\ufeffb\n" for text in THREE]
    data = changed(Data(source=Memory()), tokenizer=tokenizer)
    plain = load(data, three)
    monkeypatch.setattr(texts, "BLOCK", block)
    marked = [text.encode("utf-8-sig") for text in three]
    assert_equal(load(files(tmp_path, marked, tokenizer=tokenizer)), plain)
    assert_equal(
        load(changed(Data(source=Memory()), tokenizer=tokenizer), ["\ufeff" + t for t in three]),
        plain,
    )
    if tokenizer == "char":
        assert "\ufeff" in plain.vocabulary.tokens


def test_words_of_one_long_line_are_read_as_words(tmp_path):
    """Each part ends in an end of line; counted by hand: of 100 words 90, 5 and 5."""
    words = [f"w{number:02d}" for number in range(100)]
    (tmp_path / "text8").write_text(" " + " ".join(words))
    corpus = load(Data(source=File(train=str(tmp_path / "text8")), tokenizer=Word()))
    assert [len(getattr(corpus, split).tokens) for split in SPLITS] == [91, 6, 6]
    assert corpus.vocabulary.decode(corpus.train.tokens) == " ".join(words[:90]) + "\n"
    assert (corpus.validation.unknown, corpus.test.unknown) == (5, 5)


def test_a_corpus_of_words_by_hand():
    corpus = load(Data(source=Memory(), tokenizer=Word(size=5)), THREE)
    # "the" occurs twice; of the others, once each, two more fit, the first in their order.
    assert corpus.vocabulary.tokens == ("<unk>", "<eos>", "the", "cat", "mät")
    assert corpus.train.tokens.tolist() == [2, 3, 0, 1, 1, 0, 2, 4, 1]
    assert corpus.validation.tokens.tolist() == [0, 3, 0, 0, 1]
    assert corpus.test.tokens.tolist() == [2, 0, 0, 0, 2, 0, 1]
    assert [getattr(corpus, split).characters for split in SPLITS] == [24, 16, 23]
    # The `<unk>` that stands in the validation text is none that the vocabulary lacks.
    assert [getattr(corpus, split).unknown for split in SPLITS] == [2, 2, 4]


@every_tokenizer
def test_characters_are_those_of_the_text_whatever_the_tokens(tokenizer):
    corpus = load(
        changed(Data(source=Memory()), tokenizer=tokenizer), ["é 漢\n", "😀 é", "e\r\n\n"]
    )
    assert [getattr(corpus, split).characters for split in SPLITS] == [4, 3, 4]


def test_words_that_training_never_saw_are_counted():
    corpus = load(Data(source=Memory(), tokenizer=Word()), ["a b\n", "a b\n", "a c <unk> d d\n"])
    assert (corpus.train.unknown, corpus.validation.unknown, corpus.test.unknown) == (0, 0, 3)
    assert corpus.test.tokens.tolist() == [2, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("source", ["memory", "file"])
@pytest.mark.parametrize(
    ("tokenizer", "kinds", "dtype"),
    [
        ("char", 256, np.uint8),
        ("char", 257, np.uint16),
        ("word", 65_536, np.uint16),
        ("word", 65_537, np.int32),
        ("byte", 256, np.uint8),
    ],
)
def test_tokens_are_as_small_as_the_vocabulary_lets_them_be(
    source, tokenizer, kinds, dtype, tmp_path
):
    between = " " if tokenizer == "word" else ""
    token = str if tokenizer == "word" else lambda n: chr(0x100 + n)
    train = between.join(token(n) for n in range(kinds - 2)) + "\n"
    three = (train, train[-9:], "x\n")
    fields = {"tokenizer": tokenizer}
    if source == "file":
        corpus = load(files(tmp_path, three, **fields))
        assert isinstance(corpus.train.tokens, np.memmap)
        assert not corpus.train.tokens.flags.writeable
    else:
        corpus = load(changed(Data(source=Memory()), **fields), three)
    assert len(corpus.vocabulary) == kinds
    for split in SPLITS:
        assert getattr(corpus, split).tokens.dtype == dtype
    # None has wrapped round.
    if tokenizer != "byte":
        assert sorted(corpus.train.tokens.tolist()) == list(range(1, kinds))


def test_an_unchanged_corpus_is_tokenised_once(tmp_path, counted):
    data = files(tmp_path, tokenizer="word")
    first = load(data)
    assert len(counted) == 4  # the training text is read twice: counted, then tokenised
    counted.clear()
    assert_equal(load(data), first)
    # Neither the names of files nor what is done with the tokens is part of the key.
    elsewhere = files(tmp_path / "b", tokenizer="word", batching="sentences", batch_size=3)
    assert_equal(load(elsewhere), first)
    assert load(elsewhere).digest == first.digest
    assert counted == []
    assert len(cached()) == 1


def test_another_content_or_tokeniser_is_another_corpus(tmp_path):
    changed = [
        tuple(text + "!" * (split == place) for split, text in enumerate(THREE))
        for place in range(3)
    ]
    configs = [
        files(tmp_path / "a"),
        files(tmp_path / "a", tokenizer="word"),
        files(tmp_path / "a", tokenizer="byte"),
        files(tmp_path / "a", tokenizer="bpe"),
        files(tmp_path / "a", tokenizer__size=5),
        files(tmp_path / "a", tokenizer__min_count=2),
        *(files(tmp_path / f"{n}", three) for n, three in enumerate(changed)),
        files(tmp_path / "swapped", (THREE[0], THREE[2], THREE[1])),
    ]
    found = [load(data) for data in configs]
    assert len({corpus.digest for corpus in found}) == len(cached()) == len(configs)
    for data, corpus in zip(configs, found, strict=True):
        three = [Path(getattr(data.source, split)).read_text() for split in SPLITS]
        assert_equal(corpus, load(replace(data, source=Memory()), three))


def test_a_file_that_changes_under_its_name_is_tokenised_again(tmp_path):
    data = files(tmp_path)
    before = load(data)
    files(tmp_path, ("the hat sat\n\non the mät\n", *THREE[1:]))
    after = load(data)
    assert after.digest != before.digest
    assert after.vocabulary.decode(after.train.tokens).startswith("the hat")


def test_text_in_memory_has_a_digest_and_leaves_no_files():
    data = Data(source=Memory())
    digests = {load(data, THREE).digest, load(data, THREE[::-1]).digest, load(Data()).digest}
    assert len(digests) == 3
    assert load(data, THREE).digest in digests
    assert cached() == []


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("written", range(4))
@pytest.mark.parametrize(
    ("accident", "raised"), [(full_disk, UserError), (interrupted, KeyboardInterrupt)]
)
def test_a_build_that_dies_in_the_middle_leaves_nothing(
    accident, raised, written, tmp_path, monkeypatch
):
    """After 0 to 3 of its files, the vocabulary last, have been written."""
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: next(calls) < written or accident())
        with pytest.raises(raised) as refused:
            load(files(tmp_path))
    assert next(calls) == written + 1
    assert cached() == []
    if raised is UserError:
        assert "No space left on device; the environment variable LM_JAX_CACHE" in str(
            refused.value
        )
    assert_equal(load(files(tmp_path)), load(Data(source=Memory()), THREE))


@pytest.mark.parametrize(
    ("wrong", "byte"), [(b"ab\xff\n", 2), (b"ab\0\n", 2), (b"\xef\xbb\xbfab\0\n", 5)]
)
@pytest.mark.parametrize("place", range(3))
def test_a_text_that_is_refused_leaves_nothing(place, wrong, byte, tmp_path):
    three = list(THREE)
    three[place] = wrong
    data = files(tmp_path, three)
    said = refusal(lambda: load(data))
    path = getattr(data.source, SPLITS[place])
    assert said.startswith(f"data.source.{SPLITS[place]}={path}: ")
    assert f"at byte {byte}" in said
    assert cached() == []


def test_what_a_killed_build_has_left_is_in_nobody_s_way(tmp_path):
    data = files(tmp_path)
    first = load(data)
    (folder,) = cached()
    partial = folder.with_suffix(".partial")
    shutil.copytree(folder, partial)
    (partial / "train").write_bytes(b"half")
    load(data)  # the whole one is there
    shutil.rmtree(folder)
    assert_equal(load(data), first)
    assert cached() == [folder]


def test_a_corpus_that_many_want_at_once_is_built_once(tmp_path, counted):
    """Each thread locks a file of its own opening, as processes do."""
    data = files(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load(data), range(8)))
    for corpus in found:
        assert_equal(corpus, found[0])
    assert len(counted) == 4
    assert len(cached()) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LM_JAX_CACHE", str(tmp_path / "file"))
    said = refusal(lambda: load(files(tmp_path / "a")))
    assert said.startswith(f"cannot keep the tokens in {tmp_path / 'file'}")
    assert "Not a directory; the environment variable LM_JAX_CACHE names another folder" in said


def _without_splits(path):
    content = json.loads(path.read_text())
    del content["splits"]
    path.write_text(json.dumps(content))


def _flip(seed, folder):
    """A bit of a file, the files one after another."""
    draw, names = random.Random(seed), ("train", "validation", "test", "corpus.json")
    path = folder / names[seed % len(names)]
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def test_a_file_that_changes_while_it_is_read_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    data, built = files(tmp_path), corpora.build
    path = Path(data.source.train)

    def changed(text, *arguments):
        path.write_text(path.read_text()[::-1])
        return built(text, *arguments)

    monkeypatch.setattr(corpora, "build", changed)
    said = refusal(lambda: load(data))
    assert said == f"data.source.train={path}: has changed while it was read; begin again"
    assert cached() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "train", 3),
        *(functools.partial(_flip, seed) for seed in range(8)),
        lambda folder: (folder / "test").unlink(),
        lambda folder: (folder / "corpus.json").unlink(),
        lambda folder: (folder / "corpus.json").write_text("{"),
        lambda folder: _without_splits(folder / "corpus.json"),
        lambda folder: (folder / "corpus.json").write_bytes(b"\xff"),
    ],
)
def test_a_damaged_cache_is_named_and_built_anew(damage, tmp_path):
    data = files(tmp_path)
    whole = load(data)
    tokens = {split: np.array(getattr(whole, split).tokens) for split in SPLITS}
    (folder,) = cached()
    damage(folder)
    with pytest.warns(UserWarning, match=f"the tokens in {folder} are damaged, and are made anew"):
        again = load(data)
    assert again.vocabulary == whole.vocabulary
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(again, split).tokens, tokens[split])
    assert load(data).digest == whole.digest
    assert cached() == [folder]


def test_only_the_owner_may_read_the_cache(tmp_path):
    load(files(tmp_path))
    for folder in (*cached(), cache_folder() / "tokens"):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_data_set_with_an_empty_split_is_refused(monkeypatch):
    """Of a file that is seen before; what is in a data set is seen only when it is read."""
    parts = sources.splits(Memory(), "char", THREE)
    parts["test"] = Text("set test", "0", lambda: iter(()))
    monkeypatch.setattr("lm_jax.data.tfds.tfds_splits", lambda name, key: parts)
    for tokenizer in ("char", "byte", "word", "bpe"):
        data = changed(Data(source=TFDS(name="set")), tokenizer=tokenizer)
        assert refusal(lambda data=data: load(data)) == "set test: the text is empty"
    parts["train"] = parts["test"]
    said = refusal(lambda: load(Data(source=TFDS(name="set"))))
    assert said == "set test: a vocabulary of 0: there is nothing to predict"
    said = refusal(lambda: load(Data(source=TFDS(name="set")), "text"))
    assert said == "text is read only with data.source=memory, not tfds"
    assert cached() == []


def test_the_built_in_corpus_holds_every_character_once():
    corpus = load(Data())
    whole = "".join(corpus.vocabulary.decode(getattr(corpus, split).tokens) for split in SPLITS)
    assert whole == sources.documentation()
    assert sum(getattr(corpus, split).characters for split in SPLITS) == len(whole)
    assert corpus.train.unknown == 0


def test_a_list_of_words_limits_the_vocabulary_by_its_content(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat\nthe dog sat\n" * 20)
    listed = tmp_path / "words"
    listed.write_text("cat\nthe zebra <unk>\n")
    data = Data(source=File(train=str(text)), tokenizer=Word(word_list=str(listed)))
    corpus = load(data)
    assert corpus.vocabulary.tokens == ("<unk>", "<eos>", "the", "cat")
    assert corpus.train.unknown > 0
    moved = tmp_path / "moved"
    listed.rename(moved)
    again = load(replace(data, tokenizer=Word(word_list=str(moved))))
    assert again.digest == corpus.digest
    listed.write_text("cat\n")
    assert load(data).digest != corpus.digest
    assert load(data).vocabulary.tokens == ("<unk>", "<eos>", "cat")
    for content, said in (("", "the file is empty"), (" \n", "the list holds no word")):
        listed.write_text(content)
        with pytest.raises(UserError, match=rf"^data\.tokenizer\.word_list={listed}: {said}"):
            load(data)
    listed.write_text("zebra\n")
    with pytest.raises(UserError, match=r"no other token of data\.tokenizer\.word_list occurs"):
        load(data)
