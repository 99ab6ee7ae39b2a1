"""Data sets from TFDS: found, divided, joined and named as promised, without network or TensorFlow.

A data set that a test prepares in a temporary folder stands for any prepared one. TFDS writes
documents in an order of its own, so texts are compared with what plain TFDS reads.
"""

import hashlib
import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lm_jax.data import tfds as module
from lm_jax.data.tfds import tfds_splits
from lm_jax.settings import UserError


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    """An empty TFDS folder, and no way out to the network."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(module, "_TINY_URL", "http://127.0.0.1:9/input.txt")  # nobody listens
    return tmp_path / "data"


def documents(count, start=0):
    return [f"document {number} ä\nsecond line" for number in range(start, start + count)]


def prepare(data_dir, splits, name="my_text", config=None, version="1.0.0", keys=("text",)):
    """Write a data set as TFDS does; `splits` maps a split's name to its documents."""

    class MyText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            features = {"number": tfds.features.Scalar(np.int64)}
            features |= {key: tfds.features.Text() for key in keys}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(texts) for split, texts in splits.items()}

        def _generate_examples(self, texts):
            for number, text in enumerate(texts):
                yield number, {"number": number} | {key: f"{text}{key[4:]}" for key in keys}

    MyText.name = name
    tfds.disable_progress_bar()
    builder = MyText(data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")
    return data_dir / name / (config or "") / version


def read(text):
    return b"".join(text.blocks()).decode()


def as_tfds_reads(folder, split, key="text"):
    builder: Any = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split, file_format="array_record")
    return [example[key].decode() for example in source]


def message(name, text_key=None):
    """The error of reading a data set: one line that hides no other error."""
    with pytest.raises(UserError) as caught:
        read(tfds_splits(name, text_key)["train"])
    error = caught.value
    assert "\n" not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return str(error)


# --- texts ---


def test_documents_are_joined_by_single_newlines_and_read_again_from_the_beginning(data_dir):
    folder = prepare(data_dir, {s: [*documents(7), ""] for s in ("train", "validation", "test")})
    for split, text in tfds_splits("my_text").items():
        assert read(text) == "\n".join(as_tfds_reads(folder, split))
        assert read(text) == read(text)
        assert text.name == f"my_text/1.0.0 {split}"


@pytest.mark.parametrize("size", [1, 50, 300])
def test_blocks_end_with_documents_and_their_size_moves_no_byte(data_dir, monkeypatch, size):
    prepare(data_dir, {"train": documents(40)})
    whole = read(tfds_splits("my_text")["train"])
    monkeypatch.setattr(module, "_BLOCK_BYTES", size)
    blocks = [block.decode() for block in tfds_splits("my_text")["train"].blocks()]
    assert "".join(blocks) == whole
    assert all(block.endswith("second line") for block in blocks)
    longest = len(documents(40)[-1].encode())
    assert all(size <= len(block.encode()) for block in blocks[:-1])
    assert all(len(block.encode()) <= size + longest for block in blocks)


def test_documents_may_be_str():
    class Source(list):
        def __getitems__(self, numbers):
            return [self[number] for number in numbers]

    source = Source([{"text": "ä"}, {"text": b"b"}, {"text": "c"}])
    assert b"".join(module._blocks(source, "text", 2, "")) == "ä\nb\nc".encode()


# --- splits ---


@pytest.mark.parametrize(
    ("present", "sizes"),
    [
        ({"train": 40, "validation": 7, "test": 5, "extra": 3}, (40, 7, 5)),
        ({"train": 40, "test": 5}, (38, 2, 5)),
        ({"train": 40, "validation": 8}, (40, 4, 4)),
        ({"train": 40}, (36, 2, 2)),
    ],
)
def test_division_takes_every_document_once_and_in_order(data_dir, present, sizes):
    folder = prepare(data_dir, {s: documents(n, 100 * len(s)) for s, n in present.items()})
    splits = tfds_splits("my_text")
    assert list(splits) == ["train", "validation", "test"]
    texts = [read(text) for text in splits.values()]
    assert tuple(text.count("document") for text in texts) == sizes
    of_the_three = [d for s in present if s != "extra" for d in as_tfds_reads(folder, s)]
    assert "\n".join(texts) == "\n".join(of_the_three)


def test_no_train_split(data_dir):
    prepare(data_dir, {"test": documents(2), "dev": documents(2)})
    assert "data.source.name='my_text': no split is named train, only dev, test" in message(
        "my_text"
    )


def test_too_few_documents_to_divide(data_dir):
    prepare(data_dir, {"train": documents(3)})
    line = message("my_text")
    assert "data.source.name='my_text'" in line
    assert "is empty, of 3 documents" in line


# --- the text feature ---


def test_text_feature_is_the_only_one_or_the_one_called_text_or_the_one_asked_for(data_dir):
    prepare(data_dir, {"train": documents(40)}, name="one", keys=("book_text",))
    folder = prepare(data_dir, {"train": documents(40)}, name="two", keys=("textual", "text"))
    assert "document" in read(tfds_splits("one")["train"])
    assert read(tfds_splits("two")["test"]) == "\n".join(as_tfds_reads(folder, "train[95%:]"))
    named = read(tfds_splits("two", "textual")["test"])
    assert named == "\n".join(as_tfds_reads(folder, "train[95%:]", "textual"))
    assert named != read(tfds_splits("two")["test"])


def test_several_text_features_want_a_choice(data_dir):
    prepare(data_dir, {"train": documents(2)}, keys=("body", "title"))
    assert message("my_text").startswith("data.source.text_key: ")
    assert message("my_text").endswith("are body, title; choose one")


def test_text_key_must_be_a_text_feature(data_dir):
    prepare(data_dir, {"train": documents(2)})
    for wrong in ("txt", "number"):
        line = message("my_text", wrong)
        assert line.startswith("data.source.text_key: ")
        assert line.endswith(f"are text; {wrong!r} is not among them")


def test_no_text_feature(data_dir):
    prepare(data_dir, {"train": documents(2)}, keys=())
    assert message("my_text") == "data.source.name='my_text': no feature is a text, only number"


# --- digests ---


def test_digest_changes_with_whatever_changes_the_text(data_dir):
    prepare(data_dir, {"train": documents(40), "test": documents(40)}, keys=("text", "textual"))
    first = tfds_splits("my_text")
    assert {s: t.digest for s, t in tfds_splits("my_text").items()} == {
        s: t.digest for s, t in first.items()
    }
    digests = [text.digest for text in first.values()]
    digests += [text.digest for text in tfds_splits("my_text", "textual").values()]
    for version, count in (("1.0.1", 40), ("1.1.0", 41)):
        splits = {"train": documents(count), "test": documents(40)}
        prepare(data_dir, splits, version=version, keys=("text", "textual"))
        digests += [text.digest for text in tfds_splits("my_text").values()]
    prepare(data_dir / "other", {"train": documents(40, 100), "test": documents(40)})
    assert len(set(digests)) == len(digests) == 12
    assert all(int(digest, 16) >= 0 for digest in digests)


def test_digest_knows_a_longer_text_of_the_same_name(data_dir, monkeypatch):
    prepare(data_dir, {"train": documents(40)})
    digest = tfds_splits("my_text")["train"].digest
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir / "other"))
    prepare(data_dir / "other", {"train": documents(40, 100)})  # one more digit in each
    assert tfds_splits("my_text")["train"].digest != digest


# --- names, versions and configs ---


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("my_text", "10.0.0"),
        ("my_text:10.0.0", "10.0.0"),
        ("my_text:9.0.0", "9.0.0"),
        ("my_text:9.*.*", "9.1.0"),
    ],
)
def test_version_is_the_newest_that_was_asked_for(data_dir, name, version):
    for each in ("9.0.0", "9.1.0", "10.0.0"):
        folder = prepare(data_dir, {"train": documents(40)}, version=each)
    shutil.copytree(folder, folder.parent / "incomplete.ABCDEF_11.0.0")  # as a killed TFDS leaves
    assert tfds_splits(name)["train"].name.startswith(f"my_text/{version} ")


def test_config_is_the_default_or_the_one_asked_for(data_dir):
    prepare(data_dir, {"train": documents(40)}, config="en")
    folder = prepare(data_dir, {"train": documents(40)}, config="zh-cn")  # the default is the last
    assert tfds_splits("my_text")["train"].name.startswith("my_text/zh-cn/1.0.0 ")
    assert tfds_splits("my_text/en:1.0.0")["train"].name.startswith("my_text/en/1.0.0 ")
    line = message("my_text/de")
    assert "only my_text/en:1.0.0, my_text/zh-cn:1.0.0" in line
    (folder.parent.parent / ".config" / "metadata.json").unlink()
    assert "only my_text/en:1.0.0, my_text/zh-cn:1.0.0" in message("my_text")


@pytest.mark.parametrize("name", ["lm1b", "wiki40b/en", "pg19:0.1.1"])
def test_known_but_not_prepared(data_dir, name):
    # wiki40b is the kind that TFDS itself, without TensorFlow, says not to exist.
    line = message(name)
    assert f"data.source.name={name!r} is not prepared in {data_dir}" in line
    assert "needs TensorFlow once" in line
    command = line[line.index("python -c ") :]
    assert f"tfds.builder('{name}', data_dir='{data_dir}')" in command
    assert "file_format='array_record'" in command
    compile(command.split('"')[1], "command", "exec")


def test_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"is not prepared in {tmp_path / 'tensorflow_datasets'};" in message("lm1b")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lm1bb", "lm1b"),
        ("wiki40/en", "wiki40b"),
        ("LM1B", "lm1b"),
        ("TinyShakespeare", "tiny_shakespeare"),
    ],
)
def test_unknown_name_names_the_nearest(data_dir, name, near):
    tfds.builder_cls("tiny_shakespeare")  # once imported, TFDS lists it twice
    line = message(name)
    assert line.startswith(f"data.source.name={name!r}: neither TFDS nor {data_dir} has ")
    assert line.endswith(f"; did you mean {near}?")


@pytest.mark.parametrize("name", ["", "my text", "huggingface:my_text", "../my_text", "my_text:1"])
def test_malformed_name(name):
    assert message(name).startswith(f"data.source.name={name!r} is not of the form NAME")


# --- folders that cannot be read ---


def edit(folder, **changes):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tfrecord_is_refused_until_converted(data_dir):
    folder = prepare(data_dir, {"train": documents(40)})
    text = read(tfds_splits("my_text")["train"])
    edit(folder, fileFormat="tfrecord")
    line = message("my_text")
    assert f"data.source.name='my_text': {folder} is in tfrecord format" in line
    assert f"--dataset_version_dir={folder} --out_file_format=array_record" in line
    edit(folder, alternativeFileFormats=["array_record"])  # as tfds convert_format does
    assert read(tfds_splits("my_text")["train"]) == text
    edit(folder, fileFormat="parquet")
    assert read(tfds_splits("my_text")["train"]) == text


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damaged_file(data_dir, damage):
    folder = prepare(data_dir, {"train": documents(40)})
    (shard,) = folder.glob("*train*")
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1  # among the documents; records begin a little after the file does
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    assert "data.source.name='my_text': copy or prepare it again: " in message("my_text")


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_description(data_dir, file):
    folder = prepare(data_dir, {"train": documents(40)})
    (folder / file).write_text((folder / file).read_text()[:50])
    assert f"data.source.name='my_text': {folder} is damaged: " in message("my_text")


# --- tiny_shakespeare ---

PLAY = "First Citizen:\n" + "Ä speak.\n" * 55 + "..."  # more bytes than characters


@pytest.fixture
def by_hand(data_dir, monkeypatch):
    """A small play in place of the real one, where a file put by hand belongs."""
    monkeypatch.setattr(module, "_TINY_SHA256", hashlib.sha256(PLAY.encode()).hexdigest())
    path = data_dir / "downloads" / "manual" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(PLAY.encode())
    return path


def test_tiny_shakespeare_is_divided_by_characters_and_exact(by_hand, capfd):
    tfds.enable_progress_bar()
    texts = {split: read(text) for split, text in tfds_splits("tiny_shakespeare").items()}
    assert len(PLAY) == 513
    assert [len(text) for text in texts.values()] == [461, 26, 26]  # ⌊0.9 · 513⌋, then halves
    assert "".join(texts.values()) == PLAY
    by_hand.unlink()  # it is prepared now
    assert {s: read(t) for s, t in tfds_splits("tiny_shakespeare:1.0.0").items()} == texts
    assert capfd.readouterr() == ("", "")


def test_tiny_shakespeare_is_then_read_by_plain_tfds(by_hand, data_dir):
    texts = {split: read(text) for split, text in tfds_splits("tiny_shakespeare").items()}
    sources: Any = tfds.data_source(
        "tiny_shakespeare", data_dir=data_dir, builder_kwargs={"file_format": "array_record"}
    )
    assert {s: source[0]["text"].decode() for s, source in sources.items()} == texts


def test_altered_tiny_shakespeare_is_refused_and_leaves_nothing(by_hand, data_dir):
    by_hand.write_text(PLAY[:-1])
    line = message("tiny_shakespeare")
    assert f"data.source.name='tiny_shakespeare': the SHA-256 of {by_hand} is " in line
    assert line.endswith(f", not {module._TINY_SHA256}")
    assert [path for path in data_dir.rglob("*") if path.is_file()] == [by_hand]
    by_hand.write_bytes(PLAY.encode())
    assert read(tfds_splits("tiny_shakespeare")["train"]) == PLAY[:461]


def test_failed_preparation_leaves_nothing(by_hand, data_dir, monkeypatch):
    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tfds.core.DatasetInfo, "write_to_directory", full_disk)
        line = message("tiny_shakespeare")
    assert f"data.source.name='tiny_shakespeare': cannot write to {data_dir}: " in line
    assert "No space left" in line
    assert [path for path in data_dir.rglob("*") if path.is_file()] == [by_hand]
    assert read(tfds_splits("tiny_shakespeare")["train"]) == PLAY[:461]


def test_two_processes_may_prepare_at_once(by_hand, monkeypatch):
    prepare_alone: Any = tfds.core.GeneratorBasedBuilder.download_and_prepare

    def prepare_second(builder, **options):
        prepare_alone(builder, **options)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", prepare_second)
    assert read(tfds_splits("tiny_shakespeare")["train"]) == PLAY[:461]


def test_tiny_shakespeare_offline(data_dir):
    line = message("tiny_shakespeare")
    assert (
        "data.source.name='tiny_shakespeare': could not fetch http://127.0.0.1:9/input.txt" in line
    )
    assert line.endswith(f"put the file by hand at {data_dir}/downloads/manual/input.txt")
    assert not data_dir.exists()


def test_tiny_shakespeare_is_downloaded(by_hand, monkeypatch):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/input.txt" else 404)
            self.end_headers()
            self.wfile.write(PLAY.encode())

        def log_message(self, format, *args):
            pass

    by_hand.unlink()
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            monkeypatch.setattr(module, "_TINY_URL", url + "moved.txt")
            assert f"could not fetch {url}moved.txt (HTTPError)" in message("tiny_shakespeare")
            monkeypatch.setattr(module, "_TINY_URL", url + "input.txt")
            assert read(tfds_splits("tiny_shakespeare")["train"]) == PLAY[:461]
        finally:
            server.shutdown()


def test_a_mute_host_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        rescue = threading.Timer(5.0, mute.close)  # else a missing limit would hang the test
        rescue.start()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/input.txt"
        monkeypatch.setattr(module, "_TINY_URL", url)
        monkeypatch.setattr(module, "_TIMEOUT", (0.1, 0.1))
        assert f"could not fetch {url} (ReadTimeout)" in message("tiny_shakespeare")
        rescue.cancel()


def test_tiny_shakespeare_in_tfrecord_format_is_to_be_removed(by_hand, data_dir):
    tfds_splits("tiny_shakespeare")
    edit(data_dir / "tiny_shakespeare" / "1.0.0", fileFormat="tfrecord")
    assert message("tiny_shakespeare").endswith("; remove it, and it is prepared anew")


@pytest.mark.parametrize("name", ["tiny_shakespeare:2.0.0", "tiny_shakespeare/en"])
def test_tiny_shakespeare_has_one_version(by_hand, name):
    assert message(name).startswith(f"data.source.name={name!r}: tiny_shakespeare has no configs")


# --- the import ---


def test_importing_the_module_does_not_import_tfds():
    code = "import sys, lm_jax.data.tfds; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
