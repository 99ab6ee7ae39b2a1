"""The causal convolutional language model: layers of convolutions over time (Waibel et al., 1989).

    h^1_t = f(Σ_i C(x_{t-(k-1-i)}) W^1_i + b^1)
    h^l_t = f(Σ_i h^{l-1}_{t-(k-1-i) d_l} W^l_i + b^l) (+ h^{l-1}_t),     d_l = dilation^(l-1)

with i from 0 to k - 1: no layer sees a token after t. A layer reads k steps, with a matrix W_i for
each, the same at every t. With gated linear units (Dauphin et al., 2017) W_i has 2H columns for a
and b, and f is a ∘ σ(b). With pooling (Collobert & Weston, 2008, over a whole sentence) the readout
sees each channel's maximum of h^L_t over the last few steps. The receptive field of an output is

    1 + (k - 1) Σ_l d_l (+ pooling - 1)

tokens. With a single layer and no pooling the model is `lm_jax.models.window` of order k + 1; both
models share the functions below.

With the carry, reading a stream in chunks equals reading the stream at once. The carry holds

- the last k - 1 tokens; -1 before the text begins, and -1 adds nothing;
- the last (k - 1) d_l inputs of every further layer; 0 before the text;
- with pooling, the last pooling - 1 outputs; -inf before the text.

A chunk's gradient flows through the carried tokens to the tokens' vectors. Carried activations are
constants.

Letters: k steps that a layer reads, I inputs and G outputs of a product, S steps including the
carried steps.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Carry, EdgeHook, Params, scaled_normal
from lm_jax.models.cells import ACTIVATIONS
from lm_jax.models.dropout import DropoutMasks
from lm_jax.models.embedding import Embedding, times
from lm_jax.models.matmul import Precision
from lm_jax.models.neural import NeuralModel


class Past(NamedTuple):
    """The carry from chunk to chunk."""

    tokens: Int[Array, "B places"]
    """The last k - 1 tokens."""
    inputs: tuple[Float[Array, "B steps H"], ...]
    """The last (k - 1) d_l inputs of each layer from the second on."""
    outputs: Float[Array, "B steps H"] | None
    """The last pooling - 1 outputs; None without pooling."""


@dataclasses.dataclass(frozen=True)
class ConvolutionModel(NeuralModel):
    """A causal convolutional language model."""

    _: dataclasses.KW_ONLY
    width: int
    """k, steps that each layer reads."""
    layers: int = 1
    """L."""
    dilation: int = 1
    """Layer l reads every dilation^(l-1)-th step."""
    activation: str = "tanh"
    """f, a name in `lm_jax.models.cells.ACTIVATIONS`, or glu."""
    pooling: int | None = None
    """Number of last steps over which to take each channel's maximum; None: no pooling."""
    residual: bool = False
    """If True, each layer from the second on adds its input to its output."""
    gain: float | Array = 1.0
    """Standard deviation of the initial W times the square root of the fan-in k I."""
    precision: Precision = "float32"
    """Precision of the products, see `lm_jax.models.matmul`."""

    def draw(self, key: Array) -> Params:
        H, k = self.hidden_size, self.width
        channels = 2 * H if self.activation == "glu" else H
        tokens, out, *keys = jax.random.split(key, 2 + self.layers)

        def layer(number: int) -> Params:
            blocks = [
                scaled_normal(block, H, channels)
                if number
                else self.embedding.init_projection(block, channels)
                for block in jax.random.split(keys[number], k)
            ]
            # A sum over k blocks of N(0, 1 / I) has k times the variance.
            return {"W": self.gain * jnp.stack(blocks) / jnp.sqrt(k), "b": jnp.zeros(channels)}

        return {
            "embedding": self.embedding.init(tokens),
            "layers": [layer(number) for number in range(self.layers)],
            **self.init_readout(out, H),
        }

    def init_carry(self, batch_size: int) -> Past:
        def past(steps: int, value: float) -> Array:
            return jnp.full((batch_size, steps, self.hidden_size), value, float)

        steps = self.width - 1
        return Past(
            tokens=jnp.full((batch_size, steps), -1, jnp.int32),
            inputs=tuple(past(steps * self.dilation**n, 0.0) for n in range(1, self.layers)),
            outputs=None if self.pooling is None else past(self.pooling - 1, -jnp.inf),
        )

    def hidden(
        self,
        params: Params,
        carry: Carry,
        x: Int[Array, "T B"],
        hook: EdgeHook | None = None,
        tap: Array | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        del hook, tap  # no carry is recurrent
        f = jax.nn.glu if self.activation == "glu" else ACTIVATIONS[self.activation]
        steps = x.shape[0]
        tokens = jnp.concatenate([carry.tokens.T, x.astype(carry.tokens.dtype)])
        first, *further = params["layers"]
        seen = read(self.embedding, params["embedding"], tokens, self.dropout)
        h = f(convolve(seen, first["W"], first["b"], precision=self.precision))
        inputs = []
        for number, own in enumerate(further, start=1):
            seen = after(carry.inputs[number - 1], h)
            inputs.append(seen[steps:].swapaxes(0, 1))
            seen = self.dropout.on_layer(seen, number - 1)
            new = f(convolve(seen, own["W"], own["b"], self.dilation**number, self.precision))
            h = seen[-steps:] + new if self.residual else new
        outputs = None
        if self.pooling is not None:
            seen = after(carry.outputs, h)
            outputs = seen[steps:].swapaxes(0, 1)
            h = running_maximum(seen, self.pooling)
        return Past(tokens[steps:].T, tuple(inputs), outputs), h


def read(
    embedding: Embedding, params: Params, tokens: Int[Array, "S B"], dropout: DropoutMasks
) -> Float[Array, "S B E"] | Int[Array, "S B"]:
    """The input of `convolve`: the tokens' vectors, zero for no token, or the tokens' numbers."""
    vectors = embedding.vectors(params, tokens, dropout)
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
    """The convolution Σ_i x[t + i d] W_i + b for every t with all k steps in x, T = S - (k - 1) d.

    The sum of k shifted products copies no window. `jax.lax.conv_general_dilated` is as fast when
    called alone, but took 40 to 60 times as long on a CPU within a compiled loop, as in training.

    Args:
      x: vectors; or numbers of tokens, for one-hot vectors, and below 0 for a zero vector.
      W: blocks W_i, the oldest step first.
      b: bias, added at every t.
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
    """The maximum over each run of `steps` steps, T = S - steps + 1, in ⌈log2 steps⌉ passes."""
    reach = 1
    while reach < steps:
        more = min(reach, steps - reach)
        h = jnp.maximum(h[more:], h[:-more])
        reach += more
    return h


def after(past: Float[Array, "B P H"], h: Float[Array, "T B H"]) -> Float[Array, "S B H"]:
    """The carried steps followed by this chunk, S = P + T."""
    return jnp.concatenate([past.swapaxes(0, 1), h])
