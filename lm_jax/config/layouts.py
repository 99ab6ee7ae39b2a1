"""Corpora of the field, recognised by what their folder or file holds.

    WikiText             wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens     word
    WikiText, raw        wiki.train.raw, …                                          char
    the Penn Treebank    ptb.train.txt, ptb.valid.txt, ptb.test.txt                 word
    the same by characters (Mikolov)    ptb.char.train.txt, …                       word
    lm1b                 training-monolingual.tokenized.shuffled/news.en-00001-of-00100 …,
                         heldout-monolingual.tokenized.shuffled/…                   word
    the Pile             train/00.jsonl.zst …, val.jsonl.zst, test.jsonl.zst        byte
    text8                a file of 10^8 bytes, a to z and blanks                    char
    enwik8               a file of 10^8 bytes that begins with <mediawiki           byte

Mikolov's character files have a blank between any two characters, and _ for a blank: their symbols
are words. Validation and test of lm1b are the held-out parts 1 and 0 of 50 (Chelba et al., 2013,
give results for part 0), and words seen less than three times are unknown. text8 and enwik8 are cut
after 90 and 95 million bytes.
"""

import dataclasses
import os
import re

from lm_jax.config.data import Auto, Byte, Char, CountedTokens, Data, File, Tokenizer, Word
from lm_jax.files import reading
from lm_jax.settings import UserError

SIZE = 10**8  # bytes of text8 and of enwik8
HEAD = 1 << 16  # bytes to look at
LM1B = ("training-monolingual.tokenized.shuffled", "heldout-monolingual.tokenized.shuffled")


@dataclasses.dataclass(frozen=True)
class KnownCorpus:
    """A corpus, its files, and the tokens that the field counts in it."""

    name: str
    tokens: Tokenizer
    files: tuple[tuple[str, ...], ...]
    """Paths of the training, validation and test files; or of the training files alone, which are
    cut into the three."""

    @property
    def cut_at_bytes(self) -> bool:
        """True if a single text is cut at bytes, even within a character."""
        return isinstance(self.tokens, Byte)


_NAMED = (
    ("WikiText", "wiki.{}.tokens", Word()),
    ("WikiText, raw", "wiki.{}.raw", Char()),
    ("the Penn Treebank", "ptb.{}.txt", Word()),
    ("the Penn Treebank by characters", "ptb.char.{}.txt", Word()),
)


def recognised(source: object) -> KnownCorpus | None:
    """The known corpus of a source; None if the source is no folder or file of a known corpus.

    Raises:
      UserError: a training file of lm1b is missing; or a file cannot be read.
    """
    if not isinstance(source, File) or source.train is None or source.validation is not None:
        return None
    path = source.train
    if not os.path.isdir(path):
        return _by_content(path)
    try:
        names = set(os.listdir(path))
    except OSError:  # reading the folder says why
        return None
    for name, pattern, tokens in _NAMED:
        files = [pattern.format(split) for split in ("train", "valid", "test")]
        if names.issuperset(files):
            return KnownCorpus(name, tokens, tuple((os.path.join(path, file),) for file in files))
    if names.issuperset(LM1B):
        return KnownCorpus("lm1b", Word(min_count=3), _lm1b(path))
    for ending in (".jsonl.zst", ".jsonl"):
        held_out = [split + ending for split in ("val", "test")]
        folder = os.path.join(path, "train")
        if names.issuperset(held_out) and os.path.isdir(folder):
            if train := sorted(n for n in os.listdir(folder) if re.fullmatch(rf"\d+{ending}", n)):
                files = [[os.path.join("train", name) for name in train], *([n] for n in held_out)]
                whole = tuple(tuple(os.path.join(path, name) for name in part) for part in files)
                return KnownCorpus("the Pile", Byte(), whole)
    found = [_by_content(os.path.join(path, name)) for name in sorted(names)]
    known = [corpus for corpus in found if corpus is not None]
    return known[0] if len(known) == 1 else None


def _by_content(path: str) -> KnownCorpus | None:
    if not os.path.isfile(path) or os.path.getsize(path) != SIZE:
        return None
    with reading(path, f"data.source.train={path}") as file:
        head = file.read(HEAD)
    if re.fullmatch(rb"[a-z ]+", head):
        return KnownCorpus("text8", Char(), ((path,),))
    if head.startswith(b"<mediawiki "):
        return KnownCorpus("enwik8", Byte(), ((path,),))
    return None


def _lm1b(folder: str) -> tuple[tuple[str, ...], ...]:
    train, held_out = (os.path.join(folder, name) for name in LM1B)
    parts = [os.path.join(train, f"news.en-{number:05}-of-00100") for number in range(1, 100)]
    missing = [part for part in parts if not os.path.isfile(part)]
    if missing:
        raise UserError(
            f"data.source.train={folder}: {os.path.basename(missing[0])} is missing, of 99 "
            f"training files of lm1b {99 - len(missing)} are there"
        )
    others = (os.path.join(held_out, f"news.en.heldout-0000{part}-of-00050") for part in (1, 0))
    return tuple(parts), *((path,) for path in others)


def with_tokens(data: Data) -> Data:
    """The settings of a text with its tokens: the usual ones for `data.tokenizer=auto`.

    Raises:
      UserError: as `recognised`; or a size or count is given, and the usual tokens are bytes.
    """
    given = data.tokenizer
    if not isinstance(given, Auto):
        return data
    corpus = recognised(data.source)
    tokens = corpus.tokens if corpus else Char()
    asked = {
        name: value for name in ("size", "min_count") if (value := getattr(given, name)) is not None
    }
    if asked and not isinstance(tokens, CountedTokens):
        name = corpus.name if corpus else ""
        raise UserError(
            f"data.tokenizer.{next(iter(asked))} is not read with the bytes of {name}: choose "
            "data.tokenizer, too"
        )
    return dataclasses.replace(data, tokenizer=dataclasses.replace(tokens, **asked))


def told(data: Data) -> str | None:
    """A line on the corpus that the source shows, and what follows; None if it shows none.

    Args:
      data: the settings as they were given.

    Raises:
      UserError: as `with_tokens`.
    """
    corpus = recognised(data.source)
    if corpus is None or not isinstance(data.source, File):
        return None
    used, usual = with_tokens(data).tokenizer.kind, corpus.tokens.kind
    tokens = f"data.tokenizer={used}"
    if not isinstance(data.tokenizer, Auto):
        tokens += " as given" if used == usual else f" as given, where {usual} is usual"
    if len(corpus.files) == 1:
        parts = "cut after 90 and 95 million bytes"
    else:
        train, *others = (os.path.relpath(files[0], data.source.train) for files in corpus.files)
        train += f" and {len(corpus.files[0]) - 1} more" if len(corpus.files[0]) > 1 else ""
        parts = f"trained on {train}, validated on {others[0]}, tested on {others[1]}"
    return f"data.source.train={data.source.train} is {corpus.name}: {tokens}; {parts}"
