"""Validation of the sampling options; an error message is one line and names the flag."""

import math
from collections.abc import Sequence

import numpy as np

from lm_jax.data.formats import BOM
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest

LONGEST = 10**8  # tokens drawn per call
MOST = 10_000  # samples drawn per call


def check(
    *,
    length: int,
    count: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int,
) -> None:
    """Refuse numbers out of range for `lm_jax.generation.samples`.

    Raises:
      UserError: names the first number out of range, and the range.
    """
    check_length(length)
    check_seed(seed)
    if not 1 <= count <= MOST:
        raise UserError(f"count={count} must be from 1 to {MOST:,}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature} must be 0 or more, and finite")
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k={top_k} must be 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top-p={top_p} must be above 0 and at most 1")
    if min_p is not None and not 0 <= min_p < 1:
        raise UserError(f"min-p={min_p} must be 0 or more and below 1")


def check_length(length: int) -> None:
    """Refuse a number of tokens to draw that is out of range.

    Raises:
      UserError: the number is out of range.
    """
    if not 1 <= length <= LONGEST:
        raise UserError(f"length={length} must be from 1 to {LONGEST:,}")


def check_seed(seed: int) -> None:
    """Refuse a seed that is out of range.

    Raises:
      UserError: the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be from 0 to {2**32 - 1}")


def prompt_tokens(vocabulary: Vocabulary, prompt: str) -> np.ndarray:
    """The token numbers of a prompt, int32 [P]; a byte-order mark at the start is dropped.

    Raises:
      UserError: a token of the prompt is unknown to the model, or the prompt is not Unicode.
    """
    prompt = prompt.removeprefix(BOM)
    try:
        read = vocabulary.encode(prompt, ended=False)
    except UnicodeEncodeError:
        raise UserError(f"the prompt {prompt!r} is not UTF-8") from None
    # A literal `<unk>` in a prompt of words is the token `<unk>`, not an unknown word.
    if vocabulary.unknown in read:
        pieces = prompt.split() if vocabulary.tokenizer == "word" else list(prompt)
        for piece in pieces:
            if piece not in vocabulary.numbers:
                raise UserError(f"the prompt holds {piece!r}: the model has never seen it")
    return read


def stop_tokens(vocabulary: Vocabulary, stop: str | Sequence[str] | None) -> list[int]:
    """The numbers of tokens, each written literally or in the form of `Vocabulary.show`.

    Raises:
      UserError: the vocabulary does not have a token.
    """
    written = () if stop is None else (stop,) if isinstance(stop, str) else stop
    return [_stop_token(vocabulary, one) for one in written]


def _stop_token(vocabulary: Vocabulary, stop: str) -> int:
    written = stop
    if vocabulary.tokenizer in ("byte", "bpe"):
        # These tokens are stored with a character for each byte; no token has a lone surrogate.
        written = stop.encode(errors="surrogatepass").decode("latin-1")
    if written in vocabulary.numbers:
        return vocabulary.numbers[written]
    # `\xa0` means the byte, even if the bytes of the character U+00A0 are a token: the lowest
    # number wins, and the bytes come first.
    shown = {vocabulary.show(number): number for number in reversed(range(len(vocabulary)))}
    if stop not in shown:
        raise UserError(
            f"stop={stop!r} is not one of the {len(vocabulary):,} tokens of the vocabulary; a beam "
            f"ends at tokens only{nearest(stop, shown)}"
        )
    return shown[stop]
