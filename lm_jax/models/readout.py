"""Tokens out: from the last layer's output to P(next token).

`logits` and `nats` are exact in every readout. `loss` is the training loss of each target: `nats`,
a cheaper estimate of `nats` (perhaps with random draws from a key), or the loss of a smoothed
target. If `nats` or `loss` is the cross-entropy of a softmax over all V tokens, the sum over many
targets is computed without holding all logits (`lm_jax.models.fused`).

For real-valued targets the readout is a linear regression on the hidden state,

    ŷ_t = h_t W_hy + b_y,   loss_t = (y_t - ŷ_t)²

with the same methods, so that training, validation and gradients use the same code. The "nats" of a
regression are squared errors (up to a factor and a constant the nats of a normal distribution
around ŷ), and the "logits" are the single number ŷ.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from lm_jax.models import fused
from lm_jax.models.base import Params, affine, scaled_normal, total
from lm_jax.models.matmul import Precision, matmul


class Readout(abc.ABC):
    """From h to the next token."""

    tied: bool = False
    """If True, W_hy is the transposed table of input vectors: params hold the table as "C"."""

    @abc.abstractmethod
    def init(self, key: Array, inputs: int) -> Params:
        """Initial parameters for h of `inputs` numbers."""

    @abc.abstractmethod
    def logits(self, params: Params, h: Float[Array, "*shape H"]) -> Float[Array, "*shape V"]:
        """Unnormalised log-probabilities."""

    @abc.abstractmethod
    def nats(
        self, params: Params, h: Float[Array, "*shape H"], y: Shaped[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """-ln P(y), exactly."""

    def loss(
        self,
        params: Params,
        h: Float[Array, "*shape H"],
        y: Shaped[Array, "*shape"],
        key: Array | None,
    ) -> Float[Array, "*shape"]:
        """The training loss of each target; may draw from the key."""
        del key
        return self.nats(params, h, y)

    def total_nats(
        self,
        params: Params,
        h: Float[Array, "*shape H"],
        y: Shaped[Array, "*shape"],
        mask: Bool[Array, "*shape"],
    ) -> Float[Array, ""]:
        """The sum of `nats` under the mask; if possible without all logits at once."""
        return total(self.nats(params, h, y), mask)

    def total_loss(
        self,
        params: Params,
        h: Float[Array, "*shape H"],
        y: Shaped[Array, "*shape"],
        mask: Bool[Array, "*shape"],
        key: Array | None,
    ) -> Float[Array, ""]:
        """The sum of `loss` under the mask; if possible without all logits at once."""
        return total(self.loss(params, h, y, key), mask)


@dataclasses.dataclass(frozen=True)
class LinearReadout(Readout):
    """The logits z = h W_hy + b_y, with W_hy [H, V] and b_y [V], and their softmax."""

    vocab_size: int
    """V."""
    _: dataclasses.KW_ONLY
    tied: bool = False
    """If True, W_hy is not a parameter but the transposed table of input vectors."""
    bias: bool = True
    """If True, add b_y."""
    precision: Precision = "float32"
    """Precision of h W_hy, see `lm_jax.models.matmul`."""

    def init(self, key: Array, inputs: int) -> Params:
        return init_linear(key, inputs, self.vocab_size, tied=self.tied, bias=self.bias)

    def logits(self, params: Params, h: Array) -> Array:
        return linear_logits(params, h, self.precision)

    def nats(self, params: Params, h: Array, y: Array) -> Array:
        return cross_entropy(self.logits(params, h), y)

    def total_nats(self, params: Params, h: Array, y: Array, mask: Array) -> Array:
        return linear_total_nats(params, h, y, mask, precision=self.precision)


@dataclasses.dataclass(frozen=True)
class SoftmaxReadout(LinearReadout):
    """The readout p = softmax(z), trained on the nats or with label smoothing."""

    _: dataclasses.KW_ONLY
    label_smoothing: float | Array | None = None
    """s; the training target is (1 - s) of the next token plus s / V of every token (Szegedy et
    al., 2016, section 7). None: no smoothing."""

    def loss(self, params: Params, h: Array, y: Array, key: Array | None) -> Array:
        del key
        if self.label_smoothing is None:
            return self.nats(params, h, y)
        z = self.logits(params, h)
        exact = cross_entropy(z, y)
        even = jax.nn.logsumexp(z, axis=-1) - jnp.mean(z, axis=-1)
        return (1 - self.label_smoothing) * exact + self.label_smoothing * even

    def total_loss(
        self, params: Params, h: Array, y: Array, mask: Array, key: Array | None
    ) -> Array:
        del key
        return linear_total_nats(params, h, y, mask, self.label_smoothing, self.precision)


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


def init_linear(key: Array, inputs: int, vocab_size: int, *, tied: bool, bias: bool) -> Params:
    """Initial {"W_hy": [H, V], "b_y": [V]}; no W_hy if `tied`, no b_y unless `bias`."""
    params: dict[str, Any] = {} if tied else {"W_hy": scaled_normal(key, inputs, vocab_size)}
    return {**params, "b_y": jnp.zeros(vocab_size)} if bias else params


def linear_logits(
    params: Params, h: Float[Array, "*shape H"], precision: Precision = "float32"
) -> Float[Array, "*shape V"]:
    """The logits h W_hy + b_y; W_hy may be given as the transpose "C"."""
    W = output_weights(params)
    if "b_y" in params:
        return affine(h, W, params["b_y"], precision)
    return matmul(h, W, precision)


def output_weights(params: Params) -> Float[Array, "H V"]:
    """W_hy, or the transpose of the table "C" if the readout is tied."""
    return params["C"].T if "C" in params else params["W_hy"]


def linear_total_nats(
    params: Params,
    h: Float[Array, "*shape H"],
    y: Int[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    smoothing: float | Array | None = None,
    precision: Precision = "float32",
) -> Float[Array, ""]:
    """The summed nats of `linear_logits` under a mask, without holding all logits.

    Args:
      params: {"W_hy": [H, V]} or the transpose {"C": [V, H]}, and perhaps "b_y".
      h: input of the readout.
      y: targets.
      mask: True for each target in the sum.
      smoothing: `label_smoothing` of `SoftmaxReadout`.
      precision: see `SoftmaxReadout`.
    """
    table = "C" in params
    W = params["C" if table else "W_hy"]
    b = params.get("b_y")
    return fused.fused_cross_entropy(W, b, h, y, mask, smoothing, table=table, precision=precision)


def cross_entropy(z: Float[Array, "*shape V"], y: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The nats -ln softmax(z)_y of each target y, from the logits z."""
    return optax.softmax_cross_entropy_with_integer_labels(z, y)
