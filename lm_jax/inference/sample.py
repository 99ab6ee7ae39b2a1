"""Samples of text from a model, whole or as they come (`lm_jax.inference.drawing` draws them)."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lm_jax.data.vocabulary import Vocabulary
from lm_jax.inference.drawing import CHUNK, LONG_CHUNK, cuts, draws
from lm_jax.inference.wishes import check, prompt_tokens, stop_token
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params


class Sample(NamedTuple):
    """What was drawn after a prompt."""

    text: str
    """The prompt and how it goes on, the stop token left out."""
    tokens: np.ndarray
    """[n] numbers of the drawn tokens, prompt and stop token left out."""
    nats: np.ndarray
    """[n] -ln P of each under the model itself, before temperature and cuts."""
    stopped: bool
    """Whether the stop token ended it."""


def samples(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    *,
    length: int,
    count: int = 1,
    prompt: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: str | None = None,
    seed: int = 0,
) -> list[Sample]:
    """Several samples at once; the same seed gives the same, and `count` changes none of them.

    Args:
      model, params: a trained model, `run.model` and `run.params`.
      vocabulary: its vocabulary, `run.vocabulary`.
      length: the most tokens to draw for each sample.
      count: B, how many samples.
      prompt: what the model reads first; without one it starts as a text does.
      temperature: τ; 0 takes the most likely token each time.
      top_k, top_p, min_p: see `lm_jax.inference.drawing`; None: not cut that way.
      stop: a token that ends a sample, and is no part of it, written as it is or as
        `Vocabulary.show` writes it.
      seed: of the draws.

    Raises:
      UserError: a number out of range, a prompt with characters or words that the model has never
        seen, a stop token that is not in the vocabulary.
    """
    check(
        vocabulary,
        length=length,
        count=count,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    read, end = prompt_tokens(vocabulary, prompt), stop_token(vocabulary, stop)
    limits = cuts(len(vocabulary), top_k, top_p, min_p)
    # One program for most samples, and one for long ones, which spares a quarter of their time.
    chunk = CHUNK if len(read) + length <= LONG_CHUNK else LONG_CHUNK
    chosen = (length, count, temperature, limits, seed, chunk)
    size, boundary = len(vocabulary), vocabulary.boundary
    chunks = draws(model, params, size, boundary, read, *chosen)
    found = list(_until_all(chunks, end))
    tokens, nats = (np.concatenate(parts) for parts in zip(*found, strict=True))
    spans = [_span(lane, end) for lane in tokens.T]
    return [
        Sample(
            vocabulary.decode(np.concatenate([read, tokens[:span, lane]])),
            tokens[:span, lane],
            nats[:span, lane],
            span < len(tokens),
        )
        for lane, span in enumerate(spans)
    ]


def sample(model: LanguageModel, params: Params, vocabulary: Vocabulary, **wishes: Any) -> str:
    """The text of one sample: a prompt and how the model goes on from it.

    Args:
      model, params, vocabulary: see `samples`.
      **wishes: length, prompt, temperature, top_k, top_p, min_p, stop, seed, as in `samples`.
    """
    return samples(model, params, vocabulary, **wishes, count=1)[0].text


def stream(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    *,
    length: int,
    prompt: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: str | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """The text that `sample` gives, piece by piece as it is drawn.

    Args and Raises: as `samples`.
    """
    numbers = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    check(vocabulary, length=length, count=1, seed=seed, **numbers)
    read, end = prompt_tokens(vocabulary, prompt), stop_token(vocabulary, stop)
    limits = cuts(len(vocabulary), top_k, top_p, min_p)
    size, boundary = len(vocabulary), vocabulary.boundary
    chosen = (length, 1, temperature, limits, seed, CHUNK)
    chunks = draws(model, params, size, boundary, read, *chosen)
    drawn = (tokens[: _span(tokens[:, 0], end), 0] for tokens, _ in _until_all(chunks, end))
    return spelled(vocabulary, _preceded(read, drawn))


def spelled(vocabulary: Vocabulary, chunks: Iterable[np.ndarray]) -> Iterator[str]:
    """The text of tokens that come in chunks; the pieces together are the text of all at once.

    A character whose bytes have not all come waits for them.
    """
    shown, waiting = np.zeros(0, np.int32), np.zeros(0, np.int32)
    for chunk in chunks:
        waiting = np.concatenate([waiting, chunk])
        before, text = vocabulary.decode(shown), vocabulary.decode(np.append(shown, waiting))
        # What ends in U+FFFD may be an unfinished character, else it stays and is shown later.
        if len(waiting) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(before) :]
            # One token of context tells how the next one joins on.
            shown, waiting = waiting[-1:], waiting[:0]
    if len(waiting):
        yield vocabulary.decode(np.append(shown, waiting))[len(vocabulary.decode(shown)) :]


def _preceded(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _span(tokens: np.ndarray, end: int | None) -> int:
    """How many tokens stand before the stop token."""
    ends = tokens == end if end is not None else np.zeros(len(tokens), bool)
    return int(np.argmax(ends)) if ends.any() else len(tokens)


def _until_all(
    chunks: Iterator[tuple[np.ndarray, np.ndarray]], end: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks up to the one in which the last of the samples has met the stop token."""
    over = False
    for tokens, nats in chunks:
        yield tokens, nats
        if end is not None:
            over = over | np.any(tokens == end, axis=0)
            if np.all(over):
                return
