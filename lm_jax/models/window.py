"""The fixed-window model of Bengio et al. (2003, equation 1, without direct connections).

    h = f([C(x_{t-n+2}); …; C(x_t)] W + b),   p(x_{t+1} | x_{t-n+2} … x_t) = softmax(h U + b_y)

The carry is the last n - 2 tokens, so that a stream read in chunks is a stream read at once; with
the newest input they make the window. A place before the text's beginning holds no token (-1) and
adds nothing. W is a block of rows for each of the n - 1 places, so the sum over places is a causal
convolution over the embeddings, and no window is ever copied. U is the readout's W_hy.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models import readout
from lm_jax.models.base import Between, Carry, LanguageModel, Params
from lm_jax.models.cells import ACTIVATIONS
from lm_jax.models.embedding import init_embedding, init_projection, times, vectors


def window(
    *,
    vocab_size: int,
    order: int,
    embedding_size: int | None,
    hidden_size: int,
    activation: str,
    gain: float | Array,
) -> LanguageModel:
    """A fixed-window language model.

    Args:
      vocab_size: V.
      order: n; the model reads n - 1 tokens.
      embedding_size: E, or None for one-hot vectors.
      hidden_size: H.
      activation: f, a name in `lm_jax.models.cells.ACTIVATIONS`.
      gain: standard deviation of the initial W times the square root of its inputs.
    """
    places = order - 1
    f = ACTIVATIONS[activation]

    def init(key: Array) -> Params:
        tokens, first, out = jax.random.split(key, 3)
        blocks = [
            init_projection(k, vocab_size, embedding_size, hidden_size)
            for k in jax.random.split(first, places)
        ]
        return {
            "embedding": init_embedding(tokens, vocab_size, embedding_size),
            # n - 1 blocks of N(0, 1 / E) make a sum of n - 1 times the variance.
            "W": gain * jnp.stack(blocks) / jnp.sqrt(places),
            "b": jnp.zeros(hidden_size),
            "readout": readout.init_readout(out, hidden_size, vocab_size),
        }

    def hidden(
        params: Params, carry: Carry, x: Int[Array, "T B"], between: Between | None = None
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        del between  # tokens carry no gradient
        tokens = jnp.concatenate([carry.T, x])
        seen = vectors(params["embedding"], tokens)
        z = jnp.broadcast_to(params["b"], (*x.shape, params["b"].shape[0]))
        for place, W in enumerate(params["W"]):
            here = slice(place, place + x.shape[0])
            z += jnp.where(tokens[here, :, None] >= 0, times(seen[here], W), 0)
        return tokens[x.shape[0] :].T, f(z)

    return LanguageModel(
        init=init,
        init_carry=lambda batch_size: jnp.full((batch_size, places - 1), -1, jnp.int32),
        hidden=hidden,
        logits=lambda params, h: readout.logits(params["readout"], h),
        nats=lambda params, h, y: readout.nats(params["readout"], h, y),
    )
