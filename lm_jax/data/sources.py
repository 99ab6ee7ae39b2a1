"""The three texts of a config: from files, data sets, memory, CPython's documentation, a chain.

A single text, in one file or several, is cut into training, validation and test by
`lm_jax.data.text.cut`.
"""

import os
from collections.abc import Sequence
from typing import Any

from lm_jax.config import TFDS, Datasets, File, Markov, Memory
from lm_jax.config.data import DataSource
from lm_jax.config.layouts import recognised
from lm_jax.data import markov
from lm_jax.data.shards import files_text, folder_texts, read_files
from lm_jax.data.tables import table_splits
from lm_jax.data.text import SPLITS, Text, cut, in_memory
from lm_jax.settings import UserError


def splits(
    source: DataSource, tokenizer: str, memory: str | Sequence[str] | None = None
) -> dict[str, Text]:
    """Return the training, validation and test text of a source.

    Args:
      source: the config; any source but generated tasks.
      tokenizer: char, byte, word or bpe.
      memory: for `data.source="memory"`, one text, or three.

    Raises:
      UserError: a file is missing, empty or unreadable; a data set cannot be read; or `memory` is
        given, but the config has another source.
    """
    if memory is not None and not isinstance(source, Memory):
        raise UserError(f"text is read only with data.source=memory, not {source.kind}")
    if isinstance(source, Memory):
        if memory is None:
            raise UserError("data.source=memory takes its text from lm_jax.train(..., text=...)")
        if isinstance(memory, str):
            return cut(in_memory("text", memory), tokenizer)
        if len(memory) != len(SPLITS):
            raise UserError(f"text holds {len(memory)} texts: give one, or {', '.join(SPLITS)}")
        return {split: in_memory(split, text) for split, text in zip(SPLITS, memory, strict=True)}
    if isinstance(source, TFDS):
        from lm_jax.data.tfds import tfds_splits  # here, because few runs use TFDS

        return tfds_splits(source.name or "", source.text_key)
    if isinstance(source, Datasets):
        return table_splits(source.folder or "", source.text_key)
    if isinstance(source, Markov):
        return cut(in_memory("data.source=markov", markov.text(source)), tokenizer)
    if isinstance(source, File):
        return _from_files(source, tokenizer)
    return cut(in_memory("builtin", documentation()), tokenizer)


def _from_files(source: File, tokenizer: str) -> dict[str, Text]:
    how: dict[str, Any] = {"any_bytes": tokenizer == "byte", "text_key": source.text_key}
    if corpus := recognised(source):
        whole = f"data.source.train={source.train}"
        names = [f"{whole} [{split}]" for split in SPLITS] if len(corpus.files) > 1 else [whole]
        texts = [
            read_files(name, paths, "data.source.train", **how)
            for name, paths in zip(names, corpus.files, strict=True)
        ]
        if len(texts) == 1:
            return cut(texts[0], tokenizer, at_bytes=tokenizer == "byte" and corpus.cut_at_bytes)
        return dict(zip(SPLITS, texts, strict=True))
    if source.train and source.validation is None and os.path.isdir(source.train):
        return folder_texts(source.train, "data.source.train", **how)
    found = {
        split: files_text(path, f"data.source.{split}", **how)
        for split in SPLITS
        if (path := getattr(source, split))
    }
    return found if len(found) > 1 else cut(found["train"], tokenizer)


def documentation() -> str:
    """Return CPython's documentation, the text of `data.source=builtin`."""
    # In every CPython, with small changes from version to version.
    from pydoc_data.topics import topics

    return "".join(topics[topic] for topic in sorted(topics))
