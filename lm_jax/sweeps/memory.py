"""How much memory a trial takes beside others, and how many of them fit.

One lane takes about twice its train state, for the new one is made while the old one is read, and
the activations of a chunk of B × T tokens. Each matrix W of m × n gives n numbers for every token
it is applied to, and backpropagation as many again:

    bytes = 2 · state + 2 · B · T · (Σ_W n_W + V if the readout has no matrix of its own) · itemsize

which is an estimate: what the compiler keeps, recomputes or never holds is its business.
"""

import jax
import jax.numpy as jnp

from lm_jax.config import Network, Softmax
from lm_jax.data.windows import free_memory
from lm_jax.sweeps.plan import Group
from lm_jax.training.step import chunk_length, init

SHARE = 0.5  # of the free memory that lanes may take


def lane_bytes(group: Group) -> int:
    """Bytes that one trial of a group takes; nothing is computed.

    Args:
      group: of models that are trained.
    """
    config = group.config
    state = init.eval_shape(config, group.vocab_size)
    columns = sum(leaf.shape[-1] for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1)
    model = config.model
    if isinstance(model, Network) and isinstance(model.readout, Softmax) and model.readout.tied:
        columns += group.vocab_size
    tokens = config.data.batch_size * chunk_length(config)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return int(2 * held + 2 * tokens * columns * jnp.zeros(()).dtype.itemsize)


def lanes_that_fit(each: int) -> int:
    """How many lanes of so many bytes fit into half of the free memory; one at least."""
    return max(1, int(free_memory() * SHARE) // each)
