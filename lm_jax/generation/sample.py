"""Samples of text from a model, whole or as a stream (see `lm_jax.generation.drawing`)."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_jax.data.vocabulary import Vocabulary
from lm_jax.generation.drawing import CHUNK, LONG_CHUNK, cuts, draws
from lm_jax.generation.sampling_options import check, prompt_tokens
from lm_jax.generation.stops import Ending, Errors, Stop, stops_of
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params


class Sample(NamedTuple):
    """A sample of text after a prompt."""

    text: str
    """The prompt and the continuation, without the stop."""
    tokens: np.ndarray
    """[n], numbers of the drawn tokens, without the prompt: the fewest that spell the text."""
    nats: np.ndarray
    """[n], -ln P of each of these tokens under the model, before temperature and limits."""
    stop: str | None
    """The stop that ended the sample, as given; None if none did."""

    @property
    def stopped(self) -> bool:
        """True if a stop ended the sample."""
        return self.stop is not None


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
    stop: str | Sequence[str] | None = None,
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
      stop: ends of a sample, not part of the sample: strings of the drawn text, or names of
        tokens such as `<eos>` (`lm_jax.generation.stops`).
      seed: seed of the draws.
      raw: if True, `<unk>` may be drawn, too, and bytes that are not UTF-8 show as U+FFFD in the
        text; else the text leaves them out.

    Raises:
      UserError: a number is out of range, the prompt has characters or words unknown to the model,
        or the vocabulary cannot spell a stop.
    """
    check(
        length=length,
        count=count,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    read, stops = prompt_tokens(vocabulary, prompt), stops_of(vocabulary, stop)
    limits = cuts(len(vocabulary), top_k, top_p, min_p)
    # Long samples take another program, with larger chunks, and save a quarter of the time.
    chunk = CHUNK if len(read) + length <= LONG_CHUNK else LONG_CHUNK
    chosen = (length, count, temperature, limits, seed, chunk)
    size, boundary = len(vocabulary), vocabulary.boundary
    barred = None if raw else vocabulary.unknown
    endings = [Ending(vocabulary, read, stops, _errors(raw)) for _ in range(count)]
    texts, found = [""] * count, []
    for tokens, nats in draws(model, params, size, boundary, read, *chosen, barred):
        found.append((tokens, nats))
        for column, ending in enumerate(endings):
            texts[column] += ending.push(tokens[:, column])
        if all(ending.stop is not None for ending in endings):
            break
    tokens, nats = (np.concatenate(parts) for parts in zip(*found, strict=True))

    found = []
    for text, ending, drawn, own in zip(texts, endings, tokens.T, nats.T, strict=True):
        text += ending.rest()
        span = _span(vocabulary, read, drawn, text, ending.stop, _errors(raw))
        stop = ending.stop and ending.stop.written
        found.append(Sample(text, drawn[:span], own[:span], stop))
    return found


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
    stop: str | Sequence[str] | None = None,
    seed: int = 0,
    raw: bool = False,
) -> Iterator[str]:
    """The text of `sample`, yielded piece by piece during drawing.

    Args and Raises: as `samples`.
    """
    numbers = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    check(length=length, count=1, seed=seed, **numbers)
    read, stops = prompt_tokens(vocabulary, prompt), stops_of(vocabulary, stop)
    limits = cuts(len(vocabulary), top_k, top_p, min_p)
    size, boundary = len(vocabulary), vocabulary.boundary
    chosen = (length, 1, temperature, limits, seed, CHUNK)
    barred = None if raw else vocabulary.unknown
    ending = Ending(vocabulary, read, stops, _errors(raw))
    chunks = draws(model, params, size, boundary, read, *chosen, barred)
    return _pieces(ending, (tokens[:, 0] for tokens, _ in chunks))


def _pieces(ending: Ending, chunks: Iterator[np.ndarray]) -> Iterator[str]:
    """The text to show after each chunk of drawn tokens, the prompt's text first."""
    for tokens in itertools.chain([np.zeros(0, np.int32)], chunks):
        if piece := ending.push(tokens):
            yield piece
        if ending.stop is not None:
            return
    if piece := ending.rest():
        yield piece


def _span(
    vocabulary: Vocabulary,
    read: np.ndarray,
    drawn: np.ndarray,
    text: str,
    stop: Stop | None,
    errors: Errors,
) -> int:
    """The fewest of the drawn tokens that spell the text, which ends before the stop."""
    if stop is None:
        return len(drawn)
    if stop.token is not None:
        return int(np.argmax(drawn == stop.token))
    # Among words, a blank belongs to the next word.
    text = text.rstrip(" ") if vocabulary.tokenizer == "word" else text

    def spelled(count: int) -> int:
        return len(vocabulary.decode(np.append(read, drawn[:count]), errors))

    return bisect.bisect_left(range(len(drawn)), len(text), key=spelled)


def _errors(raw: bool) -> Errors:
    return "replace" if raw else "ignore"
