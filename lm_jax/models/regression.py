"""A readout for real-valued targets: linear regression on the hidden state.

    ŷ_t = h_t W_hy + b_y,   loss_t = (y_t - ŷ_t)²

This readout has the interface of a language model's readout; training, validation and gradients use
the same code. The "nats" are squared errors (up to a factor and a constant the nats of a normal
distribution around ŷ), and the "logits" are the single number ŷ.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Params, affine, scaled_normal
from lm_jax.models.matmul import Precision
from lm_jax.models.readout import Readout


@dataclasses.dataclass(frozen=True)
class RegressionReadout(Readout):
    """The readout of a real number, with W_hy [H, 1] and b_y [1]."""

    precision: Precision = "float32"
    """Precision of h W_hy, see `lm_jax.models.matmul`."""

    def init(self, key: Array, inputs: int) -> Params:
        return {"W_hy": scaled_normal(key, inputs, 1), "b_y": jnp.zeros(1)}

    def logits(self, params: Params, h: Float[Array, "*shape H"]) -> Float[Array, "*shape 1"]:
        return affine(h, params["W_hy"], params["b_y"], self.precision)

    def nats(
        self, params: Params, h: Float[Array, "*shape H"], y: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return (self.logits(params, h)[..., 0] - y) ** 2
