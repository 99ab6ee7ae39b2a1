"""The recurrent language model: tokens in, cells stacked on one another, softmax out.

    h^1 = cell(x),  h^l = cell(h^{l-1}),  p(x_{t+1} | x_1 … x_t) = softmax(h^L_t W_hy + b_y)

Layer by layer, each one scan over the chunk (Mikolov et al., 2010, for one Elman layer).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models import readout
from lm_jax.models.base import Between, Carry, LanguageModel, Params, scaled_normal
from lm_jax.models.cells import Cell
from lm_jax.models.embedding import init_embedding, init_projection, times, vectors
from lm_jax.models.recurrence import init_recurrence, unroll


def rnn(
    cell: Cell,
    *,
    vocab_size: int,
    embedding_size: int | None,
    hidden_size: int,
    layers: int,
    gain: float | Array,
) -> LanguageModel:
    """A recurrent language model.

    Args:
      cell: the recurrent cell, of `hidden_size` units.
      vocab_size: V.
      embedding_size: E, or None for one-hot vectors.
      hidden_size: H.
      layers: how many cells stand on one another.
      gain: every singular value of the initial recurrent weights.
    """

    def init(key: Array) -> Params:
        tokens, first, out, *keys = jax.random.split(key, 3 + 2 * layers)
        inputs = [init_projection(first, vocab_size, embedding_size, cell.width)]
        inputs += [scaled_normal(k, hidden_size, cell.width) for k in keys[layers + 1 :]]
        return {
            "embedding": init_embedding(tokens, vocab_size, embedding_size),
            "layers": [
                init_recurrence(k, W_xh, hidden_size, gain)
                for k, W_xh in zip(keys[:layers], inputs, strict=True)
            ],
            "readout": readout.init_readout(out, hidden_size, vocab_size),
        }

    def hidden(
        params: Params, carry: Carry, x: Int[Array, "T B"], between: Between | None = None
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        carries = []
        h = vectors(params["embedding"], x)
        for layer, layer_carry in zip(params["layers"], carry, strict=True):
            z_x = times(h, layer["W_xh"])
            z_x += jnp.broadcast_to(layer["b_h"], z_x.shape)
            layer_carry, h = unroll(cell, layer["W_hh"], layer_carry, z_x, between)
            carries.append(layer_carry)
        return tuple(carries), h

    return LanguageModel(
        init=init,
        # An array of its own for each layer: one that stands twice cannot be donated.
        init_carry=lambda batch_size: tuple(cell.init_carry(batch_size) for _ in range(layers)),
        hidden=hidden,
        logits=lambda params, h: readout.logits(params["readout"], h),
        nats=lambda params, h, y: readout.nats(params["readout"], h, y),
    )
