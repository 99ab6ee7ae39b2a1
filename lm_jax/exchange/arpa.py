r"""N-gram models as ARPA files, the format of SRILM and KenLM.

An ARPA file holds a back-off model (`lm_jax.models.backoff`) of words:

    \data\
    ngram 1=4
    ngram 2=5

    \1-grams:
    log10 P(w)      w       log10 bow(w)
    …
    \2-grams:
    log10 P(w | v)  v w
    …
    \end\

An interpolated model is such a model, too: P(w | c) = alpha(c w) + gamma(c) p(w | c') for the
n-grams of the model, and bow(c) = gamma(c) for all other words.

The file names the start of a sentence `<s>` and the end `</s>`. In lm_jax both are the boundary
token: as the first token of a context it is `<s>`, as the last token of an n-gram `</s>`. `<s>` is
never predicted; KenLM writes log10 P(<s>) = 0, and so does `write_arpa`. `<unk>` has the same name
in both. A probability of 0 is written as 10^-99. `lm_jax.exchange.arpa_reader` reads the files.

Letters: M k-grams of an order k, V tokens of the vocabulary.
"""

import gzip
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lm_jax import files
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models.backoff import BackoffModel
from lm_jax.models.base import LanguageModel, Params
from lm_jax.models.ngram import NGramModel
from lm_jax.models.nodes import Nodes, unpack
from lm_jax.models.pruning import backed_off
from lm_jax.settings import UserError

START, END = b"<s>", b"</s>"
_LN10 = math.log(10)
_ZERO = -99.0  # log10 of a probability of 0


def write_arpa(path: Path, model: LanguageModel, params: Params, vocabulary: Vocabulary) -> None:
    """Write an n-gram model as an ARPA file, packed by gzip if the name ends in `.gz`.

    Args:
      path: the file; a file of this name is replaced once the new one is whole.
      model: an n-gram model whose contexts begin at the sentence's start.
      params: its parameters.
      vocabulary: of words.

    Raises:
      UserError: the model is no n-gram model, does not back off (add-k), or reads the text as a
        single stream; or the tokens are no words, or a word has the name of a sentence's start or
        end.
    """
    if not isinstance(model, NGramModel):
        raise UserError(f"{path}: an ARPA file holds an n-gram model, model=ngram")
    if model.order > 1 and not model.sentence_boundaries:
        raise UserError(f"{path}: an ARPA file holds sentences: model.sentence_boundaries=False")
    if model.order > 1 and not bool(params["chained"]):
        raise UserError(f"{path}: an ARPA file backs off, and model.smoothing=add-k does not")
    if vocabulary.tokenizer != "word":
        raise UserError(
            f"{path}: an ARPA file holds words: data.tokenizer={vocabulary.tokenizer} has others"
        )
    for name in (START, END):
        if name.decode() in vocabulary.numbers:
            raise UserError(f"{path}: the vocabulary has a word {name.decode()}, which ARPA means")
    unigram, levels = unpack(params)
    if not isinstance(model, BackoffModel):
        levels = backed_off(unigram, levels)
        with np.errstate(divide="ignore"):  # log 0 of maximum likelihood
            unigram = np.log(unigram)
            levels = [
                level._replace(alpha=np.log(level.alpha), gamma=np.log(level.gamma))
                for level in levels
            ]
    partial = path.with_name(f"{path.name}.partial")
    try:
        with files.created(partial, "wb") as file:
            if path.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                    packed.writelines(_lines(unigram, levels, vocabulary))
            else:
                file.writelines(_lines(unigram, levels, vocabulary))
            files.to_disk(file)
        os.replace(partial, path)
    finally:
        files.remove(partial)
    files.names_to_disk(path.parent)


def _lines(unigram: np.ndarray, levels: list[Nodes], vocabulary: Vocabulary) -> Iterator[bytes]:
    """Yield the lines of an ARPA file, from ln P and ln bow."""
    boundary = vocabulary.boundary
    last = [token.encode() for token in vocabulary.tokens]
    contexts = list(last)  # the words of each node, as a context
    last[boundary], contexts[boundary] = END, START
    counts = [len(unigram) + 1, *(len(level.token) for level in levels)]
    yield b"\\data\\\n"
    for order, count in enumerate(counts, 1):
        yield f"ngram {order}={count}\n".encode()
    weights = [_written(level.gamma) for level in levels]
    yield b"\n\\1-grams:\n"
    bows = weights[0] if weights else [b""] * len(last)
    for token, (P, word, bow) in enumerate(zip(_written(unigram), last, bows, strict=True)):
        if token == boundary:
            yield _line(b"0", START, bow)
            bow = b"0" if weights else b""
        yield _line(P, word, bow)
    for order, level in enumerate(levels, 2):
        yield f"\n\\{order}-grams:\n".encode()
        names = (
            contexts[node] + b" " + last[token]
            for node, token in zip(level.context.tolist(), level.token.tolist(), strict=True)
        )
        if order == len(counts):
            for P, name in zip(_written(level.alpha), names, strict=True):
                yield _line(P, name)
        else:
            contexts = list(names)
            for P, name, bow in zip(
                _written(level.alpha), contexts, weights[order - 1], strict=True
            ):
                yield _line(P, name, bow)
    yield b"\n\\end\\\n"


def _line(P: bytes, words: bytes, bow: bytes = b"") -> bytes:
    return b"%s\t%s\t%s\n" % (P, words, bow) if bow else b"%s\t%s\n" % (P, words)


def _written(logs: np.ndarray) -> list[bytes]:
    """log10 as text, from natural logarithms."""
    numbers = np.maximum(logs / _LN10, _ZERO)
    return [b"%.8g" % number for number in (numbers + 0.0).tolist()]
