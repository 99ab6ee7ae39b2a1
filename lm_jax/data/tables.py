"""Text from a folder of Hugging Face `datasets`, or of Parquet or Arrow files, by PyArrow.

The folder has one of three layouts:

- as `DatasetDict.save_to_disk` writes it: `dataset_dict.json`, and a folder for each split;
- as `Dataset.save_to_disk` writes it: `state.json` and Arrow files, which are the split `train`;
- Parquet or Arrow files in the folder, or in its folder `data`, named after their splits, such as
  `train-00000-of-00002.parquet`. If none is named after a split, all are `train`.

Rows are documents. The documents of a split are joined by a newline, as in `lm_jax.data.tfds`, and
missing splits are cut from the others by the same rule (`lm_jax.data.text.DIVISIONS`).
"""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from lm_jax.data import table_files
from lm_jax.data.shards import NAMES, names_in, says, whole_set
from lm_jax.data.text import DIVISIONS, SPLITS, Shard, Text, joined_documents
from lm_jax.files import reading, sha256, sha256_once
from lm_jax.settings import UserError, parsed


def table_splits(folder: str, text_key: str | None = None) -> dict[str, Text]:
    """Return the training, validation and test text of a folder of tables.

    Args:
      folder: path of the folder.
      text_key: the column with the text; None for the only column of text, or for `text`.

    Returns:
      `train`, `validation` and `test`. A digest covers the content of the files, the column and the
      division.

    Raises:
      UserError: the folder has none of the layouts, or lacks a file; a
        file is damaged; no column of text is named `text_key`, or several could be meant; a split
        has too few rows.
    """
    flag = f"data.source.folder={folder}"
    files = _files(folder, flag)
    if "train" not in files:
        raise UserError(f"{flag}: no split is named train, only {', '.join(sorted(files))}")
    division = DIVISIONS["validation" in files, "test" in files]
    key = table_files.text_column(files["train"][0], files["train"][0], text_key)
    return {
        split: _text(part, files, key, flag) for split, part in zip(SPLITS, division, strict=True)
    }


def _files(folder: str, flag: str) -> dict[str, list[str]]:
    """Return the paths of each split's files, by the name of the split."""
    names = names_in(folder, flag)
    if "dataset_dict.json" in names:
        path = os.path.join(folder, "dataset_dict.json")
        return {
            next((split for split in SPLITS if name in NAMES[split]), name): _saved(
                os.path.join(folder, name)
            )
            for name in _json(path, "splits", list[str])
        }
    if "state.json" in names:
        return {"train": _saved(folder)}
    if "data" in names_in(folder, flag, folders=True) and not _tables(names):
        folder = os.path.join(folder, "data")
        names = names_in(folder, flag)
    tables = _tables(names)
    if not tables:
        raise UserError(
            f"{flag}: the folder holds neither Parquet or Arrow files nor what save_to_disk writes"
        )
    if len({os.path.splitext(name)[1] for name in tables}) > 1:
        one, other = (
            next(name for name in tables if name.endswith(kind)) for kind in table_files.ENDINGS
        )
        raise UserError(f"{flag}: the folder holds files of several kinds, {one} and {other}")
    found = {split: [name for name in tables if says(split, name)] for split in SPLITS}
    found = {split: names for split, names in found.items() if names} or {"train": tables}
    return {split: whole_set(folder, names, flag) for split, names in found.items()}


def _tables(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(table_files.ENDINGS)]


def _saved(folder: str) -> list[str]:
    """Return the paths of the files of a split that `save_to_disk` has written."""
    path = os.path.join(folder, "state.json")
    if _json(path, "_indices_data_files", list[Any] | None):
        raise UserError(f"{path}: rows are chosen by another file: flatten_indices() them first")
    files = _json(path, "_data_files", list[dict[str, Any]])
    names = [file["filename"] for file in files if isinstance(file.get("filename"), str)]
    if not names:
        raise UserError(f"{path}: names no files")
    return [os.path.join(folder, name) for name in names]


def _json(path: str, key: str, kind: Any) -> Any:
    with reading(path, path) as file:
        content = parsed(file.read(), path)
    try:
        return parsed(json.dumps(content.get(key)), path, kind)
    except UserError:
        raise UserError(f"{path}: {key} is not what save_to_disk writes") from None


def _text(part: str, files: dict[str, list[str]], key: str, flag: str) -> Text:
    found = re.fullmatch(r"(\w+)(?:\[(\d*)%?:(\d*)%?\])?", part)
    assert found is not None
    split, low, high = found.groups()
    paths = files[split]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads, because hashing takes the time
        digests = list(pool.map(_digest, paths))
    first, last = 0, None
    if low is not None:
        rows = sum(table_files.row_count(path, path) for path in paths)
        first, last = rows * int(low or 0) // 100, rows * int(high or 100) // 100
        if first == last:
            raise UserError(f"{flag}: {part} is empty, of {rows} rows in all")
    # Where a file begins in the text is known only once the text is read.
    shards = tuple(
        Shard(path, digest, None, 0) for path, digest in zip(paths, digests, strict=True)
    )
    digest = sha256(json.dumps([digests, key, part]))
    return Text(
        f"{flag} [{part}]", digest, partial(_blocks, paths, key, first, last), shards=shards
    )


def _digest(path: str) -> str:
    with reading(path, path):
        return sha256_once(path)


def _blocks(paths: list[str], key: str, first: int, last: int | None) -> Iterator[bytes]:
    return joined_documents(_documents(paths, key, first, last))


def _documents(paths: list[str], key: str, first: int, last: int | None) -> Iterator[bytes]:
    """Yield the rows from `first` up to `last`, except rows without a value."""
    position = 0
    for path in paths:
        if last is not None and position >= last:
            return
        for column in table_files.columns_of(path, path, key):
            stop = len(column) if last is None else max(0, last - position)
            rows = column[max(0, first - position) : stop]
            position += len(column)
            yield from table_files.values(rows)
