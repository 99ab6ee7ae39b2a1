"""The fixed-window model of Bengio et al. (2003, equation 1).

    h = f([C(x_{t-n+2}); …; C(x_t)] W + b),   p(x_{t+1} | x_{t-n+2} … x_t) = softmax(h U + b_y)

Further hidden layers stand on h, each f(h W_l + b_l). With direct connections the readout sees the
window's vectors beside the last hidden layer, and U has a block of rows for these vectors, too. The
paper writes y = b + W x + U tanh(d + H x): the paper's H is W here, d is b, b is b_y, and W and U
are the two parts of U. In the paper the newest token comes first in x.

The carry is the last n - 2 tokens; together with the newest input they make the window. With this
carry, reading a stream in chunks equals reading the stream at once. A place before the text's
beginning holds no token (-1) and adds nothing. W [n - 1, E, H] has a block of rows for each of the
n - 1 places, and the sum over places is a causal convolution over the vectors
(`lm_jax.models.convolution.convolve`). W grows with n: knowledge about a token at a place is not
shared with the other places. U is the readout's W_hy.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Between, Carry, LanguageModel, Params, affine, scaled_normal
from lm_jax.models.cells import ACTIVATIONS
from lm_jax.models.convolution import convolve, read
from lm_jax.models.dropout import SILENT, Noise
from lm_jax.models.embedding import Embedding
from lm_jax.models.product import Precision
from lm_jax.models.readout import Output, Readout


def window(
    embedding: Embedding,
    readout: Readout,
    *,
    order: int,
    hidden_size: int,
    layers: int = 1,
    activation: str = "tanh",
    direct: bool = False,
    gain: float | Array = 1.0,
    noise: Noise = SILENT,
    activation_penalty: float | Array | None = None,
    precision: Precision = "float32",
) -> LanguageModel:
    """A fixed-window language model.

    Args:
      embedding: from tokens to vectors; learned vectors if `direct`.
      readout: from hidden states to tokens.
      order: n; the model reads n - 1 tokens.
      hidden_size: H.
      layers: number of hidden layers.
      activation: f, a name in `lm_jax.models.cells.ACTIVATIONS`.
      direct: if True, the readout sees the window's vectors, too.
      gain: standard deviation of the initial hidden weights times the square root of their fan-in.
      noise: dropout of training; without a key.
      activation_penalty: see `lm_jax.models.readout.Output`.
      precision: of the products, see `lm_jax.models.product`.
    """
    places = order - 1
    f = ACTIVATIONS[activation]
    seen_size = hidden_size + (places * (embedding.size or 0) if direct else 0)

    def init(key: Array) -> Params:
        tokens, first, above, out = jax.random.split(key, 4)
        blocks = [
            embedding.init_projection(k, hidden_size) for k in jax.random.split(first, places)
        ]
        stacked = [
            {"W": gain * scaled_normal(k, hidden_size, hidden_size), "b": jnp.zeros(hidden_size)}
            for k in jax.random.split(above, layers - 1)
        ]
        return {
            "embedding": embedding.init(tokens),
            # A sum over n - 1 blocks of N(0, 1 / E) has n - 1 times the variance.
            "W": gain * jnp.stack(blocks) / jnp.sqrt(places),
            "b": jnp.zeros(hidden_size),
            "layers": stacked,
            "readout": readout.init(out, seen_size),
        }

    def model(noise: Noise) -> LanguageModel:
        def hidden(
            params: Params,
            carry: Carry,
            x: Int[Array, "T B"],
            between: Between | None = None,
            tap: Array | None = None,
        ) -> tuple[Carry, Float[Array, "T B H"]]:
            del between, tap  # tokens carry no gradient
            steps = x.shape[0]
            tokens = jnp.concatenate([carry.T, x.astype(carry.dtype)])
            seen = read(embedding, params["embedding"], tokens, noise)
            h = f(convolve(seen, params["W"], params["b"], precision=precision))
            for number, above in enumerate(params["layers"]):
                seen_above = noise.on_layer(h, number)
                h = f(affine(seen_above, above["W"], above["b"], precision))
            if direct:
                window = [seen[place : place + steps] for place in range(places)]
                h = jnp.concatenate([*window, h], axis=-1)
            return tokens[steps:].T, h

        output = Output(readout, noise, activation_penalty)
        return LanguageModel(
            init=init,
            init_carry=lambda batch_size: jnp.full((batch_size, places - 1), -1, jnp.int32),
            hidden=hidden,
            logits=output.logits,
            nats=output.nats,
            loss=output.loss,
            noisy=lambda key: model(noise.drawn(key)),
            noise=noise,
        )

    return model(noise)
