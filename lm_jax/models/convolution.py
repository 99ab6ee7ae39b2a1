"""The causal convolutional language model: layers of convolutions over time (Waibel et al., 1989).

    h^1_t = f(Σ_i C(x_{t-(k-1-i)}) W^1_i + b^1)
    h^l_t = f(Σ_i h^{l-1}_{t-(k-1-i) d_l} W^l_i + b^l) (+ h^{l-1}_t),     d_l = dilation^(l-1)

with i from 0 to k - 1, so no layer sees what comes after t. A layer has one W_i for each of the k
steps that it reads, the same at every t. With gated linear units (Dauphin et al., 2017)
W_i has 2H columns, which give a and b, and f is a ∘ σ(b). With pooling (Collobert & Weston, 2008,
there over a whole sentence) the readout sees the largest h^L_t of each channel over the last few
steps. One output depends on

    1 + (k - 1) Σ_l d_l (+ pooling - 1)

tokens, its receptive field. With one layer and no pooling it is `lm_jax.models.window` of order
k + 1, and the two share the lines below.

The carry makes a stream read in chunks a stream read at once. It is the last k - 1 tokens, -1 where
the text has not begun, which add nothing; the last (k - 1) d_l inputs of every further layer, 0
before the text; and with pooling the last pooling - 1 outputs, -inf before the text. A chunk's
gradient goes through the carried tokens to their vectors; carried activations are its constants.

Letters: k steps that a layer reads, I inputs and G outputs of a product, S steps with those
carried.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Between, Carry, LanguageModel, Params, scaled_normal
from lm_jax.models.cells import ACTIVATIONS
from lm_jax.models.dropout import SILENT, Noise
from lm_jax.models.embedding import Embedding, times
from lm_jax.models.product import Precision
from lm_jax.models.readout import Output, Readout


class Past(NamedTuple):
    """What the model carries from chunk to chunk."""

    tokens: Int[Array, "B places"]
    """The last k - 1 tokens."""
    inputs: tuple[Float[Array, "B steps H"], ...]
    """The last (k - 1) d_l inputs of each layer from the second on."""
    outputs: Float[Array, "B steps H"] | None
    """The last pooling - 1 outputs; None without pooling."""


def convolution(
    embedding: Embedding,
    readout: Readout,
    *,
    width: int,
    hidden_size: int,
    layers: int = 1,
    dilation: int = 1,
    activation: str = "tanh",
    pooling: int | None = None,
    residual: bool = False,
    gain: float | Array = 1.0,
    noise: Noise = SILENT,
    activation_penalty: float | Array | None = None,
    precision: Precision = "float32",
) -> LanguageModel:
    """A causal convolutional language model.

    Args:
      embedding: tokens in.
      readout: tokens out.
      width: k, steps that each layer reads.
      hidden_size: H, channels of each layer.
      layers: L.
      dilation: layer l reads every dilation^(l-1)-th step.
      activation: f, a name in `lm_jax.models.cells.ACTIVATIONS`, or glu.
      pooling: last steps over which each channel's maximum is taken; None: the last one only.
      residual: whether each layer from the second on adds its input to its output.
      gain: standard deviation of the initial W times the square root of its inputs, k I.
      noise: of training; without a key.
      activation_penalty: see `lm_jax.models.readout.Output`.
      precision: of the products, see `lm_jax.models.product`.
    """
    f = jax.nn.glu if activation == "glu" else ACTIVATIONS[activation]
    channels = 2 * hidden_size if activation == "glu" else hidden_size

    def init(key: Array) -> Params:
        tokens, out, *keys = jax.random.split(key, 2 + layers)

        def layer(number: int) -> Params:
            blocks = [
                scaled_normal(k, hidden_size, channels)
                if number
                else embedding.init_projection(k, channels)
                for k in jax.random.split(keys[number], width)
            ]
            # k blocks of N(0, 1 / I) make a sum of k times the variance.
            W = gain * jnp.stack(blocks) / jnp.sqrt(width)
            return {"W": W, "b": jnp.zeros(channels)}

        return {
            "embedding": embedding.init(tokens),
            "layers": [layer(number) for number in range(layers)],
            "readout": readout.init(out, hidden_size),
        }

    def init_carry(batch_size: int) -> Past:
        def past(steps: int, value: float) -> Array:
            return jnp.full((batch_size, steps, hidden_size), value, float)

        return Past(
            tokens=jnp.full((batch_size, width - 1), -1, jnp.int32),
            inputs=tuple(past((width - 1) * dilation**above, 0.0) for above in range(1, layers)),
            outputs=None if pooling is None else past(pooling - 1, -jnp.inf),
        )

    def model(noise: Noise) -> LanguageModel:
        def hidden(
            params: Params,
            carry: Carry,
            x: Int[Array, "T B"],
            between: Between | None = None,
            tap: Array | None = None,
        ) -> tuple[Carry, Float[Array, "T B H"]]:
            del between, tap  # no carry is recurrent
            steps = x.shape[0]
            tokens = jnp.concatenate([carry.tokens.T, x.astype(carry.tokens.dtype)])
            first, *further = params["layers"]
            seen = read(embedding, params["embedding"], tokens, noise)
            h = f(convolve(seen, first["W"], first["b"], precision=precision))
            inputs = []
            for number, own in enumerate(further, start=1):
                seen = after(carry.inputs[number - 1], h)
                inputs.append(seen[steps:].swapaxes(0, 1))
                seen = noise.on_layer(seen, number - 1)
                new = f(convolve(seen, own["W"], own["b"], dilation**number, precision))
                h = seen[-steps:] + new if residual else new
            outputs = None
            if pooling is not None:
                seen = after(carry.outputs, h)
                outputs = seen[steps:].swapaxes(0, 1)
                h = running_maximum(seen, pooling)
            return Past(tokens[steps:].T, tuple(inputs), outputs), h

        output = Output(readout, noise, activation_penalty)
        return LanguageModel(
            init=init,
            init_carry=init_carry,
            hidden=hidden,
            logits=output.logits,
            nats=output.nats,
            loss=output.loss,
            noisy=lambda key: model(noise.drawn(key)),
            noise=noise,
        )

    return model(noise)


def read(
    embedding: Embedding, params: Params, tokens: Int[Array, "S B"], noise: Noise
) -> Float[Array, "S B E"] | Int[Array, "S B"]:
    """What `convolve` reads: the tokens' vectors, zero for no token, or the numbers themselves."""
    vectors = embedding.vectors(params, tokens, noise)
    if embedding.size is None:
        return vectors
    return jnp.where(tokens[..., None] >= 0, vectors, 0)


def convolve(
    x: Float[Array, "S B I"] | Int[Array, "S B"],
    W: Float[Array, "k I G"],
    b: Float[Array, " G"],
    dilation: int = 1,
    precision: Precision = "float32",
) -> Float[Array, "T B G"]:
    """Σ_i x[t + i d] W_i + b for every t that has them all, T = S - (k - 1) d.

    The sum of k shifted products copies no window. `jax.lax.conv_general_dilated`, which is as fast
    when called alone, took 40 to 60 times as long on a CPU within a compiled loop, as training is.

    Args:
      x: vectors; or numbers of tokens, which stand for one-hot vectors, and below 0 for zero.
      W: the blocks, the oldest step's first.
      b: added everywhere.
      dilation: d.
      precision: of the products.
    """
    steps = x.shape[0] - (W.shape[0] - 1) * dilation
    z = jnp.broadcast_to(b, (steps, x.shape[1], b.shape[0]))
    for place, block in enumerate(W):
        here = x[place * dilation : place * dilation + steps]
        z_i = times(here, block, precision)
        z += jnp.where(here[..., None] >= 0, z_i, 0) if here.ndim == 2 else z_i
    return z


def running_maximum(h: Float[Array, "S B H"], steps: int) -> Float[Array, "T B H"]:
    """The maximum of each run of `steps` steps, T = S - steps + 1, in ⌈log2 steps⌉ passes."""
    reach = 1
    while reach < steps:
        more = min(reach, steps - reach)
        h = jnp.maximum(h[more:], h[:-more])
        reach += more
    return h


def after(past: Float[Array, "B P H"], h: Float[Array, "T B H"]) -> Float[Array, "S B H"]:
    """What was carried, and then this chunk, S = P + T."""
    return jnp.concatenate([past.swapaxes(0, 1), h])
