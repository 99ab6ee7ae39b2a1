"""The fixed-window model of Bengio et al. (2003, equation 1).

    h = f([C(x_{t-n+2}); …; C(x_t)] W + b),   p(x_{t+1} | x_{t-n+2} … x_t) = softmax(h U + b_y)

Further hidden layers stand on h, each f(h W_l + b_l). With skip connections the readout sees the
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

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Carry, EdgeHook, Params, affine, scaled_normal
from lm_jax.models.cells import ACTIVATIONS
from lm_jax.models.convolution import convolve, read
from lm_jax.models.matmul import Precision
from lm_jax.models.neural import NeuralModel


@dataclasses.dataclass(frozen=True)
class WindowModel(NeuralModel):
    """A fixed-window language model."""

    _: dataclasses.KW_ONLY
    order: int
    """n; the model reads n - 1 tokens."""
    layers: int = 1
    """Number of hidden layers."""
    activation: str = "tanh"
    """f, a name in `lm_jax.models.cells.ACTIVATIONS`."""
    skip_connections: bool = False
    """If True, the readout sees the window's vectors, too; vectors must be learned."""
    gain: float | Array = 1.0
    """Standard deviation of the initial hidden weights times the square root of their fan-in."""
    precision: Precision = "float32"
    """Precision of the products, see `lm_jax.models.matmul`."""

    def draw(self, key: Array) -> Params:
        H, places = self.hidden_size, self.order - 1
        tokens, first, above, out = jax.random.split(key, 4)
        blocks = [self.embedding.init_projection(k, H) for k in jax.random.split(first, places)]
        stacked = [
            {"W": self.gain * scaled_normal(k, H, H), "b": jnp.zeros(H)}
            for k in jax.random.split(above, self.layers - 1)
        ]
        seen_size = H + (places * (self.embedding.size or 0) if self.skip_connections else 0)
        return {
            "embedding": self.embedding.init(tokens),
            # A sum over n - 1 blocks of N(0, 1 / E) has n - 1 times the variance.
            "W": self.gain * jnp.stack(blocks) / jnp.sqrt(places),
            "b": jnp.zeros(H),
            "layers": stacked,
            **self.init_readout(out, seen_size),
        }

    def init_carry(self, batch_size: int) -> Int[Array, "B places"]:
        return jnp.full((batch_size, self.order - 2), -1, jnp.int32)

    def hidden(
        self,
        params: Params,
        carry: Carry,
        x: Int[Array, "T B"],
        hook: EdgeHook | None = None,
        tap: Array | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        del hook, tap  # tokens carry no gradient
        f, steps = ACTIVATIONS[self.activation], x.shape[0]
        tokens = jnp.concatenate([carry.T, x.astype(carry.dtype)])
        seen = read(self.embedding, params["embedding"], tokens, self.dropout)
        h = f(convolve(seen, params["W"], params["b"], precision=self.precision))
        for number, above in enumerate(params["layers"]):
            seen_above = self.dropout.on_layer(h, number)
            h = f(affine(seen_above, above["W"], above["b"], self.precision))
        if self.skip_connections:
            window = [seen[place : place + steps] for place in range(self.order - 1)]
            h = jnp.concatenate([*window, h], axis=-1)
        return tokens[steps:].T, h
