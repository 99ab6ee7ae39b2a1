"""Samples of text from a model, whole or as a stream (see `lm_jax.generation.drawing`)."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from lm_jax.data.vocabulary import Vocabulary
from lm_jax.generation.drawing import CHUNK, LONG_CHUNK, cuts, draws
from lm_jax.generation.sampling_options import check, prompt_tokens, stop_token
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params


class Sample(NamedTuple):
    """A sample of text after a prompt."""

    text: str
    """The prompt and the continuation, without the stop token."""
    tokens: np.ndarray
    """[n], numbers of the drawn tokens, without prompt and stop token."""
    nats: np.ndarray
    """[n], -ln P of each drawn token under the model, before temperature and limits."""
    stopped: bool
    """True if the stop token ended the sample."""


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
    raw: bool = False,
) -> list[Sample]:
    """Draw several samples at once.

    The same seed gives the same samples. A larger `count` adds samples and does not change the
    first ones.

    Args:
      model, params: a trained model, `run.model` and `run.params`.
      vocabulary: the model's vocabulary, `run.vocabulary`.
      length: largest number of tokens to draw for each sample.
      count: B, the number of samples.
      prompt: text for the model to read first; "" to start at the beginning of a text.
      temperature: τ; 0 takes the likeliest token each time.
      top_k, top_p, min_p: see `lm_jax.generation.drawing`; None for no limit.
      stop: a token that ends a sample and is not part of the sample, written literally or in the
        form of `Vocabulary.show`.
      seed: seed of the draws.
      raw: if True, `<unk>` may be drawn, too, and bytes that are not UTF-8 show as U+FFFD in the
        text; else the text leaves them out.

    Raises:
      UserError: a number is out of range, the prompt has characters or words unknown to the model,
        or the stop token is not in the vocabulary.
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
    # Long samples take another program, with larger chunks, and save a quarter of the time.
    chunk = CHUNK if len(read) + length <= LONG_CHUNK else LONG_CHUNK
    chosen = (length, count, temperature, limits, seed, chunk)
    size, boundary = len(vocabulary), vocabulary.boundary
    barred = None if raw else vocabulary.unknown
    chunks = draws(model, params, size, boundary, read, *chosen, barred)
    found = list(_until_all(chunks, end))
    tokens, nats = (np.concatenate(parts) for parts in zip(*found, strict=True))
    spans = [_span(column, end) for column in tokens.T]
    return [
        Sample(
            vocabulary.decode(np.concatenate([read, tokens[:span, column]]), _errors(raw)),
            tokens[:span, column],
            nats[:span, column],
            span < len(tokens),
        )
        for column, span in enumerate(spans)
    ]


def sample(model: LanguageModel, params: Params, vocabulary: Vocabulary, **options: Any) -> str:
    """The text of one sample: the prompt and the model's continuation.

    Args:
      model, params, vocabulary: see `samples`.
      **options: length, prompt, temperature, top_k, top_p, min_p, stop, seed, as in `samples`.
    """
    return samples(model, params, vocabulary, **options, count=1)[0].text


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
    raw: bool = False,
) -> Iterator[str]:
    """The text of `sample`, yielded piece by piece during drawing.

    Args and Raises: as `samples`.
    """
    numbers = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    check(vocabulary, length=length, count=1, seed=seed, **numbers)
    read, end = prompt_tokens(vocabulary, prompt), stop_token(vocabulary, stop)
    limits = cuts(len(vocabulary), top_k, top_p, min_p)
    size, boundary = len(vocabulary), vocabulary.boundary
    chosen = (length, 1, temperature, limits, seed, CHUNK)
    barred = None if raw else vocabulary.unknown
    chunks = draws(model, params, size, boundary, read, *chosen, barred)
    drawn = (tokens[: _span(tokens[:, 0], end), 0] for tokens, _ in _until_all(chunks, end))
    return spelled(vocabulary, _preceded(read, drawn), _errors(raw))


def _errors(raw: bool) -> Literal["replace", "ignore"]:
    return "replace" if raw else "ignore"


def spelled(
    vocabulary: Vocabulary,
    chunks: Iterable[np.ndarray],
    errors: Literal["replace", "ignore"] = "replace",
) -> Iterator[str]:
    """Decode tokens chunk by chunk; the joined pieces equal the text of all tokens together.

    A character is yielded only when all bytes of the character have arrived. `errors` is as in
    `Vocabulary.decode`.
    """
    shown, waiting = np.zeros(0, np.int32), np.zeros(0, np.int32)
    for chunk in chunks:
        waiting = np.concatenate([waiting, chunk])
        both = np.append(shown, waiting)
        # A U+FFFD at the end may be an unfinished character. A real U+FFFD is shown later.
        if len(waiting) and not vocabulary.decode(both).endswith("\N{REPLACEMENT CHARACTER}"):
            yield vocabulary.decode(both, errors)[len(vocabulary.decode(shown, errors)) :]
            # One token of context determines how the next token is joined.
            shown, waiting = waiting[-1:], waiting[:0]
    if len(waiting):
        text = vocabulary.decode(np.append(shown, waiting), errors)
        yield text[len(vocabulary.decode(shown, errors)) :]


def _preceded(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _span(tokens: np.ndarray, end: int | None) -> int:
    """The number of tokens before the stop token."""
    ends = tokens == end if end is not None else np.zeros(len(tokens), bool)
    return int(np.argmax(ends)) if ends.any() else len(tokens)


def _until_all(
    chunks: Iterator[tuple[np.ndarray, np.ndarray]], end: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The chunks until every sample has reached the stop token."""
    over = False
    for tokens, nats in chunks:
        yield tokens, nats
        if end is not None:
            over = over | np.any(tokens == end, axis=0)
            if np.all(over):
                return
