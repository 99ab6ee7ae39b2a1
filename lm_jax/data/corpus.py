"""A corpus: a vocabulary and three splits as arrays of token numbers, or a task instead of splits.

Files and data sets are tokenised once, into a folder of the user's cache. The folder's name is a
digest of the content and the tokeniser. Later runs map the tokens into memory, at 1, 2 or 4 bytes
each. The folder is written under another name and renamed once complete: a folder under the final
name is never partial. If several processes need the same folder, the first builds the folder and
the others wait. Each process checks the SHA-256 of the tokens before the first use; a damaged
folder is built anew. Only the owner may read the cache, because texts may be private.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs

from lm_jax import files
from lm_jax.config import BPE, TFDS, Byte, Data, Datasets, File, Markov
from lm_jax.config.data import CountedTokens, Tokenizer
from lm_jax.config.layouts import with_tokens
from lm_jax.data import bpe, markov, sources, tasks
from lm_jax.data.encoding import build, decoded, encoded
from lm_jax.data.tasks import Task
from lm_jax.data.text import SPLITS, Text, changed, file_text
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.settings import VERSION, UserError, to_json

SIZES = ("tokens", "characters", "unknown")  # counts of each split, in corpus.json


class Split(NamedTuple):
    """The tokens of the training, validation or test text."""

    tokens: np.ndarray
    """[N] of uint8, uint16 or int32: the numbers of the text's tokens."""
    characters: int
    """Length of the text in Unicode characters, the divisor of bits per character."""
    unknown: int
    """Tokens read as `<unk>` because the vocabulary lacks them."""


class Corpus(NamedTuple):
    """A text ready for training."""

    vocabulary: Vocabulary
    train: Split
    validation: Split
    test: Split
    digest: str
    """Digest of the text and its tokens, in hex digits."""
    task: Task | None = None
    """The task to read instead of a text; all splits are then empty."""
    floor: dict[str, float] = {}
    """Entry of result.json, `entropy_rate` in nats a character; empty if the entropy is unknown."""


def cache_folder() -> Path:
    """Folder of tokenised corpora and compiled programs: LM_JAX_CACHE, or the user's cache."""
    return Path(os.environ.get("LM_JAX_CACHE") or platformdirs.user_cache_dir("lm_jax"))


def load(data: Data, memory: str | Sequence[str] | None = None) -> Corpus:
    """Load the corpus that a config names.

    Args:
      data: the config.
      memory: for `data.source="memory"`, one text, or three (training, validation, test).

    Raises:
      UserError: the text cannot be read, is not text, or is too short for the config.
    """
    data = with_tokens(data)
    if (task := tasks.task_of(data)) is not None and memory is None:
        empty = Split(np.zeros(0, np.uint8), 0, 0)
        return Corpus(task.vocabulary, empty, empty, empty, tasks.task_digest(data), task)
    parts = sources.splits(data.source, data.tokenizer.kind, memory)
    words = _word_list(data.tokenizer)
    key = [_said(data.tokenizer, words), VERSION, *(parts[split].digest for split in SPLITS)]
    vocabulary = None
    if isinstance(data.tokenizer, BPE) and data.tokenizer.file is not None:
        rules = bpe.read(data.tokenizer.file, f"data.tokenizer.file={data.tokenizer.file}")
        vocabulary = Vocabulary("bpe", bpe.tokens(rules), rules)
        key = [rules, *key[1:]]  # the file's content, not its path
    digest = files.sha256(json.dumps(key))
    if not isinstance(data.source, File | TFDS | Datasets):
        vocabulary = vocabulary or _vocabulary(data.tokenizer, parts["train"], words)
        train, validation, test = (tokenise(vocabulary, parts[split]) for split in SPLITS)
        floor = {}
        if isinstance(data.source, Markov):
            floor = {"entropy_rate": markov.chain(data.source).entropy_rate}
        digest = _digest(digest, vocabulary)
        return Corpus(vocabulary, train, validation, test, digest, floor=floor)
    folder = cache_folder() / "tokens" / digest[:32]
    try:
        if not _intact(folder):
            _build(folder, data, parts, vocabulary, words)
        return _mapped(folder, digest)
    except OSError as error:
        raise UserError(
            f"cannot keep the tokens in {folder}: {error.strerror}; "
            "the environment variable LM_JAX_CACHE names another folder"
        ) from None


def _said(tokenizer: Tokenizer, words: Mapping[str, None] | None) -> str:
    """The settings of the tokens as JSON, with a list of words in place of its path."""
    values = json.loads(to_json(tokenizer))
    # Without a list the text is the text of versions that knew none.
    if values.pop("word_list", None) is not None:
        values["word_list"] = list(words or ())
    return json.dumps(values, indent=2) + "\n"


def _word_list(tokenizer: Tokenizer) -> dict[str, None] | None:
    """The words of `data.tokenizer.word_list`, in their order; None without a list."""
    path = getattr(tokenizer, "word_list", None)
    if path is None:
        return None
    text = file_text(path, f"data.tokenizer.word_list={path}")
    words = "".join(decoded(text)).split()
    if not words:
        raise UserError(f"data.tokenizer.word_list={path}: the list holds no word")
    return dict.fromkeys(words)


def _vocabulary(tokenizer: Tokenizer, text: Text, words: Mapping[str, None] | None) -> Vocabulary:
    size = None if isinstance(tokenizer, Byte) else tokenizer.size
    min_count = tokenizer.min_count if isinstance(tokenizer, CountedTokens) else 1
    return build(text, tokenizer.kind, size, min_count, words)


def _digest(digest: str, vocabulary: Vocabulary) -> str:
    # Another version of the library `tokenizers` may train other rules from the same text.
    if not vocabulary.rules:
        return digest
    return files.sha256(digest + vocabulary.rules)


def _dtype(vocabulary: Vocabulary) -> np.dtype:
    for kind in (np.uint8, np.uint16):
        if len(vocabulary) <= np.iinfo(kind).max + 1:
            return np.dtype(kind)
    return np.dtype(np.int32)


def tokenise(vocabulary: Vocabulary, text: Text) -> Split:
    """Encode a text as token numbers, in memory.

    Raises:
      UserError: the text is empty, or not UTF-8, or holds a NUL.
    """
    blocks, characters, unknown = [], 0, 0
    for numbers, more_characters, more_unknown in encoded(vocabulary, text, _dtype(vocabulary)):
        blocks.append(numbers)
        characters += more_characters
        unknown += more_unknown
    if not blocks:
        raise UserError(f"{text.name}: the text is empty")
    return Split(np.concatenate(blocks), characters, unknown)


def _build(
    folder: Path,
    data: Data,
    parts: dict[str, Text],
    vocabulary: Vocabulary | None,
    words: Mapping[str, None] | None,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = folder.with_suffix(".partial")
    with files.locked(folder.with_suffix(".lock")):
        if _intact(folder):  # another process has built it
            return
        if folder.exists():
            warnings.warn(f"the tokens in {folder} are damaged, and are made anew", stacklevel=3)
        files.remove(partial)  # left by a killed process
        try:
            partial.mkdir(mode=0o700)
            vocabulary = vocabulary or _vocabulary(data.tokenizer, parts["train"], words)
            sizes = {split: _write(partial / split, vocabulary, parts[split]) for split in SPLITS}
            content = files.sealed(vocabulary.to_json(splits=sizes))
            files.write_whole(partial / "corpus.json", content)
            # The folder is named after the content, so the files must not have changed meanwhile.
            for split, again in sources.splits(data.source, data.tokenizer.kind).items():
                if name := changed(parts[split], again):
                    raise UserError(f"{name}: has changed while it was read; begin again")
            files.discard(folder, partial)
        finally:
            files.remove(partial)


def _write(path: Path, vocabulary: Vocabulary, text: Text) -> dict[str, int | str]:
    """Write the tokens of a text; return their counts and their SHA-256."""
    totals, whole = dict.fromkeys(SIZES, 0), hashlib.sha256()
    with files.created(path, "wb") as file:
        for numbers, characters, unknown in encoded(vocabulary, text, _dtype(vocabulary)):
            file.write(numbers.data)
            whole.update(numbers.data)
            totals["tokens"] += len(numbers)
            totals["characters"] += characters
            totals["unknown"] += unknown
        files.to_disk(file)
    if not totals["tokens"]:
        raise UserError(f"{text.name}: the text is empty")
    return {**totals, "sha256": whole.hexdigest()}


def _intact(folder: Path) -> bool:
    """True if a folder holds the tokens that were written there."""
    try:
        sizes = files.read_sealed(folder / "corpus.json")["splits"]
        digests = {split: files.sha256_once(folder / split) for split in SPLITS}
        return all(digests[split] == sizes[split]["sha256"] for split in SPLITS)
    except (UserError, KeyError, TypeError, FileNotFoundError, NotADirectoryError):
        return False


def _mapped(folder: Path, digest: str) -> Corpus:
    """The corpus in an intact folder, with its tokens mapped into memory."""
    content = files.read_sealed(folder / "corpus.json")
    vocabulary = Vocabulary.from_json(json.dumps(content))
    splits = {}
    for split in SPLITS:
        count, *rest = (content["splits"][split][name] for name in SIZES)
        tokens = np.memmap(folder / split, _dtype(vocabulary), "r", shape=(count,))
        splits[split] = Split(tokens, *rest)
    return Corpus(vocabulary, **splits, digest=_digest(digest, vocabulary))
