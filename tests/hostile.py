"""Readers of files, each with a file that it accepts, for test_hostile.py and fuzz.py."""

import contextlib
import gzip

import pyarrow
import tiny

import lm_jax
from lm_jax import files
from lm_jax.commands.parser import parse
from lm_jax.config import Config, resolve
from lm_jax.data import bpe
from lm_jax.data.corpus import load
from lm_jax.data.encoding import build
from lm_jax.data.sources import splits
from lm_jax.data.vectors import read_vectors
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.exchange.arpa_reader import read_arpa
from lm_jax.settings import UserError
from lm_jax.training import directory, journal, manifest

WORDS = Vocabulary("word", ("<unk>", "<eos>", "the", "cat"))
RESULT = {
    "version": 4,
    "status": "finished",
    "step": 2,
    "stopped_early": False,
    "parameters_step": 2,
    "splits": {},
    "parameters": 3,
    "seconds": 1.0,
    "tokens_per_second": 1.0,
}
ARPA = b"""\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-0.5\t<unk>
0\t<s>\t-0.3
-0.7\t</s>
-0.4\tthe\t-0.25

\\2-grams:
-0.2\t<s> the
-0.6\tthe </s>

\\end\\
"""
TRIAL = {"number": 1, "trial": "trials/001-a", "status": "failed", "error": "none"}


def zstd(content):
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def resealed(content, by_line):
    """The content with seals that fit it, as an attacker can make them."""
    text = content.decode(errors="replace")
    parts = text.splitlines(keepends=True) if by_line else [text]
    seals = [files._SEAL.search(part) for part in parts]
    return "".join(
        files.sealed(part[: seal.start()] + seal[3]) if seal else part
        for part, seal in zip(parts, seals, strict=True)
    ).encode()


def write_files(place):
    """The files of a run and of a sweep, written without training, and files of a user."""
    config = resolve(tiny.config())
    directory.write_files(place, config, load(config.data, tiny.TEXT))
    rows = [{**tiny.RECORD, "step": step} for step in (1, 2)]
    text = "".join(journal.line_of(number, row) for number, row in enumerate(rows))
    files.write_whole(place / "metrics.jsonl", text)
    journal.write_result(place, RESULT)
    files.write_rows(place / "results.jsonl", [TRIAL])
    for name, content in {
        "glove": b"the 1 2 3\ncat 4 5 6\n",
        "word2vec": b"2 3\nthe " + bytes(12) + b"\ncat " + bytes(12) + b"\n",
        "gzip": gzip.compress(b"the 1 2 3\ncat 4 5 6\n"),
        "text": tiny.TEXT.encode(),
        "tokenizer": bpe.train([tiny.TEXT], 280).encode(),
        "a.jsonl.zst": zstd(b'{"text": "the cat"}\n{"text": null}\n' * 20),
        "a.arpa": ARPA,
        "flags": b"train quickstart --model.cell lstm --train.learning-rate 0.1 --seed 3",
    }.items():
        (place / name).write_bytes(content)


def vectors(path):
    read_vectors(str(path), WORDS, 3, name="the vectors")


def text_and_vocabulary(path):
    data = tiny.changed(Config().data, source="file", source__train=str(path))
    for text in splits(data.source, "char").values():
        build(text, "char", None)


def command(path):
    words = path.read_bytes().decode(errors="replace").split()
    with contextlib.suppress(SystemExit):  # help
        parse(words, "run.py")


READERS = {
    "config.json": lambda path: directory.read_config(path.parent),
    "vocabulary.json": lambda path: directory.read_vocabulary(path.parent),
    "manifest.json": lambda path: manifest.read(path.parent),
    "result.json": lambda path: journal.read_result(path.parent),
    "metrics.jsonl": journal.read_rows,
    "results.jsonl": lambda path: lm_jax.sweeps.read_results(path.parent),
    "glove": vectors,
    "word2vec": vectors,
    "gzip": vectors,
    "text": text_and_vocabulary,
    "a.jsonl.zst": text_and_vocabulary,
    "a.arpa": lambda path: read_arpa(str(path), "the model"),
    "tokenizer": lambda path: bpe.read(str(path), "the rules"),
    "flags": command,
}


def attempt(path, content):
    """Have a file read with a content, and with seals that fit it.

    Raises:
      AssertionError: the reader says more than a line.
    """
    for given in (content, resealed(content, by_line=path.suffix == ".jsonl")):
        path.write_bytes(given)
        said = ""
        try:
            READERS[path.name](path)
        except UserError as error:
            said = str(error)
        except OSError:  # told in one line by the command line
            pass
        assert "\n" not in said
