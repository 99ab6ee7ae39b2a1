"""Text, tokens and batches."""

from lm_jax.data.batches import Batch, batch_at, sentences, steps_per_epoch, streams
from lm_jax.data.corpus import Corpus, Split, load, tokenise
from lm_jax.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "Corpus",
    "Split",
    "Vocabulary",
    "batch_at",
    "load",
    "sentences",
    "steps_per_epoch",
    "streams",
    "tokenise",
]
