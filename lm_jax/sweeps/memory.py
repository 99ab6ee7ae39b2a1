"""Memory of a lane, and the number of lanes that fit into the free memory.

A lane needs about twice the train state, because the new state is made while the old state is read,
and the activations of a chunk of B × T tokens. Each matrix W of size m × n produces n numbers for
every token, and backpropagation as many again:

    bytes = 2 · state + 2 · B · T · (Σ_W n_W + V if the readout is tied) · itemsize

This is an estimate: the compiler may keep or recompute any array.
"""

import jax
import jax.numpy as jnp

from lm_jax.config import CharacterInputs, Config, Network, Softmax
from lm_jax.data.characters import Vocab, WordCharacters, size_of
from lm_jax.data.windows import free_memory
from lm_jax.training.step import chunk_length, init

SHARE = 0.5  # share of the free memory that lanes may use


def lane_bytes(config: Config, vocab: Vocab) -> int:
    """Estimate the bytes of a run as a lane, from shapes alone.

    Args:
      config: config of a model trained by gradients.
      vocab: V, or the characters of the words.
    """
    state = init.eval_shape(config, vocab)
    columns = sum(leaf.shape[-1] for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1)
    model = config.model
    if isinstance(model, Network) and isinstance(model.readout, Softmax) and model.readout.tied:
        columns += size_of(vocab)
    if isinstance(vocab, WordCharacters):  # each filter has a value at each place of a word
        assert isinstance(model, Network)
        assert isinstance(model.embedding, CharacterInputs)
        columns += vocab.numbers.shape[1] * sum(model.embedding.filters)
    tokens = config.data.batch_size * chunk_length(config)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return int(2 * held + 2 * tokens * columns * jnp.zeros(()).dtype.itemsize)


def lanes_that_fit(each: int) -> int:
    """Number of lanes of `each` bytes in half of the free memory; at least 1."""
    return max(1, int(free_memory() * SHARE) // each)
