"""The pretrained word vectors for the initial embedding of a run."""

import numpy as np

from lm_jax.config import Config, Network
from lm_jax.data.corpus import Corpus
from lm_jax.data.vectors import Vectors, read_vectors


def pretrained(config: Config, corpus: Corpus) -> Vectors | None:
    """The pretrained vectors named by the config, for a new run; None if there are none."""
    model = config.model
    if not isinstance(model, Network) or model.vectors is None or model.embedding_size is None:
        return None
    return read_vectors(
        model.vectors,
        corpus.vocabulary,
        model.embedding_size,
        name=f"model.vectors={model.vectors}",
        seed=config.seed,
        counts=np.bincount(corpus.train.tokens, minlength=len(corpus.vocabulary)),
    )
