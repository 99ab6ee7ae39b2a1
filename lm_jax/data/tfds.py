"""Text from TensorFlow Datasets, without TensorFlow.

A data set that TFDS has prepared in its array_record format is read from the folder
`<data_dir>/NAME[/CONFIG]/VERSION`; `data_dir` is the environment variable TFDS_DATA_DIR, or
`~/tensorflow_datasets`. The folder is found by its path and not through TFDS's list of builders:
without TensorFlow or some other library TFDS cannot import all builders, and calls the rest
unknown.

`tiny_shakespeare` is also prepared here, by a builder like the packaged builder but without
TensorFlow; plain TFDS reads the result by the official name. TFDS prepares every other data set,
once, on a machine with TensorFlow; the error says how.

No other module imports tensorflow_datasets. The import takes 0.35 s and happens at the first call.
Source: https://www.tensorflow.org/datasets and the code of tensorflow-datasets 4.9.10.
"""

import contextlib
import difflib
import fnmatch
import importlib
import io
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from lm_jax.data.text import DIVISIONS, Text, joined_documents
from lm_jax.files import sha256
from lm_jax.settings import UserError, parsed

_BLOCK_BYTES = 2**21
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(
    r"(?P<dataset>[a-zA-Z]\w*)(/(?P<config>[\w+.-]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?"
)
# The packages of older builders of text. TFDS itself imports a longer list and stops at the first
# package that lacks a library; the names after that package would be missing.
_OLDER_BUILDERS = (
    "question_answering",
    "summarization",
    "text",
    "text_simplification",
    "translate",
)

_TINY = "tiny_shakespeare"
_TINY_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
_TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# Seconds to connect (to each of the host's addresses) and between bytes. TFDS's own downloader has
# no such limit, and offline retries for three minutes.
_TIMEOUT = (5.0, 20.0)


def tfds_splits(name: str, text_key: str | None = None) -> dict[str, Text]:
    """Return the training, validation and test text of a TFDS data set.

    Splits named train, validation and test are taken unchanged. If validation is missing, it is the
    last 5 % of train. If test is missing, it is the second half of validation. Train alone is
    divided 90/5/5. Every part holds whole documents, in TFDS's fixed order. The documents of a
    split are joined by a newline, with none after the last. Each block ends with a document and has
    2 MiB or more, except the last.

    Args:
        name: `NAME`, `NAME/CONFIG`, `NAME:VERSION` or `NAME/CONFIG:VERSION`, in TFDS's spelling;
            default version: the newest prepared; default config: TFDS's.
        text_key: the feature that holds the text; None for the only text feature, or for `text`.

    Returns:
        `train`, `validation` and `test`. A digest covers the full name, the feature, the division
        and the numbers of documents and bytes; computing a digest reads no documents.

    Raises:
        UserError: the name is malformed or unknown; the data set is not prepared, or in another
            format, or incomplete; the data set has no train split, too few documents, or no text
            feature named `text_key`, or several text features; `tiny_shakespeare` cannot be
            downloaded or written, or is altered.
    """
    import tensorflow_datasets as tfds

    flag = f"data.source.name={name!r}"
    folder = _prepared_folder(tfds, name, flag)
    try:
        info = (builder := tfds.builder_from_directory(folder)).info
    except Exception as error:  # of any class: JSON, protobuf and TFDS each raise their own
        reason = str(error).partition("\n")[0]
        raise UserError(f"{flag}: {folder} is damaged: {reason}") from None
    formats = sorted(file_format.value for file_format in info.available_file_formats())
    if "array_record" not in formats:
        remedy = (
            "remove it, and it is prepared anew"
            if info.name == _TINY
            else "convert it once, on any machine (pip install tensorflow apache-beam): tfds"
            f" convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        )
        raise UserError(
            f"{flag}: {folder} is in {'/'.join(formats)} format, and without TensorFlow only"
            f" array_record is read; {remedy}"
        )
    if "train" not in info.splits:
        raise UserError(f"{flag}: no split is named train, only {', '.join(sorted(info.splits))}")
    key = _text_feature(tfds, info, flag, text_key)
    division = DIVISIONS["validation" in info.splits, "test" in info.splits]
    parts = zip(("train", "validation", "test"), division, strict=True)
    return {split: _text(builder, part, key, flag) for split, part in parts}


def _text(builder: Any, part: str, key: str, flag: str) -> Text:
    info = builder.info
    whole = info.splits[part.partition("[")[0]]  # TFDS gives no number of bytes for a part
    if not info.splits[part].num_examples:
        raise UserError(f"{flag}: {part} is empty, of {whole.num_examples} documents in all")
    source = builder.as_data_source(part, file_format="array_record")
    content = [info.full_name, key, part, whole.shard_lengths, whole.num_bytes]
    digest = sha256(json.dumps(content))
    # Batches are three times faster than single documents; long documents come in small batches.
    batch = min(1024, _BLOCK_BYTES * whole.num_examples // max(1, whole.num_bytes)) or 1
    return Text(f"{info.full_name} {part}", digest, partial(_blocks, source, key, batch, flag))


def _blocks(source: Any, key: str, batch: int, flag: str) -> Iterator[bytes]:
    return joined_documents(_documents(source, key, batch, flag), _BLOCK_BYTES)


def _documents(source: Any, key: str, batch: int, flag: str) -> Iterator[bytes]:
    for start in range(0, len(source), batch):
        numbers = range(start, min(start + batch, len(source)))
        try:
            documents = [example[key] for example in source.__getitems__(numbers)]
        except RuntimeError as error:  # a file is missing, cut short or altered
            reason = str(error).partition("\n")[0]
            raise UserError(f"{flag}: copy or prepare it again: {reason}") from None
        if None in documents:  # array_record's answer for some files that were cut short
            raise UserError(f"{flag}: copy or prepare it again: a file ends too early")
        for document in documents:
            yield document.encode() if isinstance(document, str) else document


def _text_feature(tfds: Any, info: Any, flag: str, text_key: str | None) -> str:
    features = dict(sorted(info.features.items()))  # TFDS's own order changes from run to run
    keys = [key for key in features if isinstance(features[key], tfds.features.Text)]
    if not keys:
        raise UserError(f"{flag}: no feature is a text, only {', '.join(features)}")
    key = text_key or (keys[0] if len(keys) == 1 else "text")
    if key not in keys:
        given = f"{text_key!r} is not among them" if text_key else "choose one"
        raise UserError(
            f"data.source.text_key: the text features of {info.full_name} are {', '.join(keys)}; "
            f"{given}"
        )
    return key


def _prepared_folder(tfds: Any, name: str, flag: str) -> Any:
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"{flag} is not of the form NAME, NAME/CONFIG or NAME/CONFIG:VERSION")
    dataset, config, version = match["dataset"], match["config"], match["version"] or "*"
    # Not TFDS's own default: TFDS reads the environment only once, when imported.
    data_dir = tfds.core.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = (data_dir := data_dir.expanduser()) / dataset
    if folder := _newest(root, config, version):
        return folder
    if dataset == _TINY:
        if config or not fnmatch.fnmatch("1.0.0", version):
            raise UserError(f"{flag}: {_TINY} has no configs, and no version but 1.0.0")
        _prepare_tiny_shakespeare(data_dir, flag)
        return root / "1.0.0"
    there = ", ".join(f"{f.parent.relative_to(data_dir)}:{f.name}" for f in _prepared(root))
    if not there and dataset not in (known := _known_names(tfds)):
        near = " or ".join(difflib.get_close_matches(dataset.lower(), known, cutoff=0.7))
        raise UserError(
            f"{flag}: neither TFDS nor {data_dir} has {dataset}"
            + (f"; did you mean {near}?" if near else "")
        )
    raise UserError(
        f"{flag} is not prepared in {data_dir}{there and ', only ' + there}; preparing it needs"
        ' TensorFlow once, on any machine (pip install tensorflow): python -c "import'
        f" tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{data_dir}')"
        ".download_and_prepare(file_format='array_record')\""
    )


def _prepared(root: Any) -> list[Any]:
    infos = [*root.glob("*/dataset_info.json"), *root.glob("*/*/dataset_info.json")]
    return sorted(info.parent for info in infos if _VERSION.fullmatch(info.parent.name))


def _newest(root: Any, config: str | None, version: str) -> Any | None:
    default = root / ".config" / "metadata.json"
    if config is None and default.exists():
        config = parsed(default.read_bytes(), str(default)).get("default_config_name")
    within = root / config if config else root
    folders = [
        f for f in _prepared(root) if f.parent == within and fnmatch.fnmatch(f.name, version)
    ]
    return max(folders, key=lambda f: [int(n) for n in f.name.split(".")], default=None)


def _known_names(tfds: Any) -> list[str]:
    for group in _OLDER_BUILDERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{group}")
    return sorted(set(tfds.list_builders(with_community_datasets=False)))


def _prepare_tiny_shakespeare(data_dir: Any, flag: str) -> None:
    import tensorflow_datasets as tfds

    text = _tiny_shakespeare(data_dir / "downloads" / "manual" / "input.txt", flag).decode()
    end = int(len(text) * 0.9)
    half = end + int((len(text) - end) * 0.5)
    parts = {"train": text[:end], "validation": text[end:half], "test": text[half:]}

    # Not registered, because the name belongs to the packaged builder.
    class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in parts}

        def _generate_examples(self, split):
            yield split, {"text": parts[split]}

    # TFDS prints, logs and draws progress bars, for a second's work.
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            TinyShakespeare(data_dir=data_dir).download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except OSError as error:
        # No error if the cause is the folder of another process that has prepared it meanwhile.
        if not _newest(data_dir / _TINY, None, "1.0.0"):
            raise UserError(f"{flag}: cannot write to {data_dir}: {error}") from None


def _tiny_shakespeare(by_hand: Any, flag: str) -> bytes:
    import requests  # TFDS depends on it

    origin = by_hand if by_hand.exists() else _TINY_URL
    try:
        if origin == by_hand:
            content = by_hand.read_bytes()
        else:
            response = requests.get(_TINY_URL, timeout=_TIMEOUT)
            response.raise_for_status()
            content = response.content
    except OSError as error:  # the base class of requests' errors, too
        raise UserError(
            f"{flag}: could not fetch {origin} ({type(error).__name__}); put the file by hand at"
            f" {by_hand}"
        ) from None
    if (digest := sha256(content)) != _TINY_SHA256:
        raise UserError(f"{flag}: the SHA-256 of {origin} is {digest}, not {_TINY_SHA256}")
    return content
