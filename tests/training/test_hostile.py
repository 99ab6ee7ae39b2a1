"""Whatever bytes a file holds, its reader gives a value or one line, and takes no gigabyte.

LM_JAX_CASES is the number of cases of all readers together; `make torture` tries 10,000.
"""

import contextlib
import gzip
import os
import resource

import pyarrow
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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

CASES = int(os.environ.get("LM_JAX_CASES", "300"))
MEMORY = 2**29  # bytes that all cases of a reader may add to the process
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
# Text that JSON, a number or a table may choke on.
BAD = st.text(max_size=8) | st.sampled_from(
    ["[" * 5000, '{"a":' * 5000, "9" * 5000, "1e999", "-1", "NaN", "null", "2147483648", "0.5"]
)


def zstd(content):
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@st.composite
def spoilt(draw, content):
    """The content with some bytes changed, cut, doubled, or replaced by bad text."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        new = draw(st.binary(max_size=6) | BAD.map(lambda text: text.encode()))
        new = draw(st.sampled_from([new, content[start:end] * 2]))
        content = content[:start] + new + content[end:]
    return content


def resealed(content, by_line):
    """The content with seals that fit it, as an attacker can make them."""
    text = content.decode(errors="replace")
    parts = text.splitlines(keepends=True) if by_line else [text]
    seals = [files._SEAL.search(part) for part in parts]
    return "".join(
        files.sealed(part[: seal.start()] + seal[3]) if seal else part
        for part, seal in zip(parts, seals, strict=True)
    ).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of a run and of a sweep, written without training, and files of a user."""
    place = tmp_path_factory.mktemp("hostile")
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
    return place


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


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_hostile_bytes_gives_a_value_or_one_line(name, folder):
    path, read = folder / name, READERS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    share = 10 if name == "flags" else 1  # each takes half a second

    @settings(
        max_examples=max(1, CASES // len(READERS) // share),
        deadline=None,
        database=None,
        derandomize=CASES < 1000,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoilt(path.read_bytes()))
    def attack(content):
        for attempt in (content, resealed(content, by_line=path.suffix == ".jsonl")):
            path.write_bytes(attempt)
            said = ""
            try:
                read(path)
            except UserError as error:
                said = str(error)
            except OSError:  # told in one line by the command line
                pass
            assert "\n" not in said

    attack()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < MEMORY
