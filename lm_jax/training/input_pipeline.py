"""The training input of a config: a task, or the training text, whole or in windows."""

from functools import partial

from lm_jax.config import Config
from lm_jax.data.batches import Source, sentences, streams
from lm_jax.data.corpus import Corpus
from lm_jax.data.windows import InMemory, InputPipeline, Prefetched, window_updates


def source_of(config: Config, corpus: Corpus, length: int) -> Source:
    """The task, or the training text on the device, batched as streams or as sentences."""
    if corpus.task is not None:
        return corpus.task
    read = streams if config.data.batching == "streams" else partial(sentences, length=length)
    return read(corpus.train.tokens, corpus.vocabulary.boundary, config.data.batch_size)


def input_pipeline(config: Config, corpus: Corpus, length: int) -> InputPipeline:
    """The input pipeline: the whole training data on the device, or windows of a large text.

    A text is read in windows if the device cannot hold the whole text, or if the config asks for
    windows.
    """
    tokens = corpus.train.tokens
    if corpus.task is None and config.data.batching == "streams":
        updates = window_updates(tokens, config.data, length)
        if updates is not None:
            boundary, batch_size = corpus.vocabulary.boundary, config.data.batch_size
            return Prefetched(tokens, boundary, batch_size, length, updates)
    return InMemory(source_of(config, corpus, length), length)
