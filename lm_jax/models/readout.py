"""Tokens out: from the last layer's output to P(next token).

A readout is four functions: `init`, `logits`, `nats` and `loss`. `logits` and `nats` are exact in
every readout. `loss` is the training loss of each target: `nats`, a cheaper estimate of `nats`
(perhaps with random draws from a key), or the loss of a smoothed target. If `nats` or `loss` is the
cross-entropy of a softmax over all V tokens, the sum over many targets is computed without holding
all logits (`lm_jax.models.fused`). `Output` joins a model and its readout, and applies the dropout
on the readout's input, the penalties on activations, and the tied table.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from lm_jax.models import fused
from lm_jax.models.base import Params, affine, scaled_normal, total
from lm_jax.models.dropout import Noise, Place
from lm_jax.models.product import Precision, product


class Readout(NamedTuple):
    """The functions from h to the next token."""

    init: Callable[[Array, int], Params]
    """(key, inputs) -> params."""
    logits: Callable[[Params, Array], Array]
    """(params, h[..., H]) -> [..., V]: unnormalised log-probabilities."""
    nats: Callable[[Params, Array, Array], Array]
    """(params, h[..., H], y[...]) -> [...]: -ln P(y), exactly."""
    loss: Callable[[Params, Array, Array, Array | None], Array]
    """(params, h[..., H], y[...], key) -> [...]: the training loss of each target."""
    tied: bool = False
    """If True, W_hy is the transposed table of input vectors."""
    total_nats: Callable[[Params, Array, Array, Array], Array] | None = None
    """(params, h[..., H], y[...], mask[...]) -> []: the sum of `nats` under the mask, without all
    logits at once; None: not available. params may hold a tied table untransposed, as "C"."""
    total_loss: Callable[[Params, Array, Array, Array], Array] | None = None
    """(params, h[..., H], y[...], mask[...]) -> []: the sum of `loss` under the mask, without all
    logits at once; None: not available, or `loss` draws from a key."""


def softmax(
    vocab_size: int,
    *,
    tied: bool = False,
    bias: bool = True,
    label_smoothing: float | Array | None = None,
    precision: Precision = "float32",
) -> Readout:
    """The readout p = softmax(h W_hy + b_y), with W_hy [H, V] and b_y [V].

    Args:
      vocab_size: V.
      tied: if True, W_hy is not a parameter but the transposed table of input vectors.
      bias: if True, add b_y.
      label_smoothing: s; the training target is (1 - s) of the next token plus s / V of every token
        (Szegedy et al., 2016, section 7). None: no smoothing.
      precision: of h W_hy, see `lm_jax.models.product`.
    """

    def logits(params: Params, h: Array) -> Array:
        return linear_logits(params, h, precision)

    def nats(params: Params, h: Array, y: Array) -> Array:
        return linear_nats(params, h, y, precision)

    def loss(params: Params, h: Array, y: Array, key: Array | None) -> Array:
        del key
        if label_smoothing is None:
            return nats(params, h, y)
        z = logits(params, h)
        exact = cross_entropy(z, y)
        even = jax.nn.logsumexp(z, axis=-1) - jnp.mean(z, axis=-1)
        return (1 - label_smoothing) * exact + label_smoothing * even

    return Readout(
        init=lambda key, inputs: init_linear(key, inputs, vocab_size, tied=tied, bias=bias),
        logits=logits,
        nats=nats,
        loss=loss,
        tied=tied,
        total_nats=functools.partial(linear_total_nats, precision=precision),
        total_loss=functools.partial(
            linear_total_nats, smoothing=label_smoothing, precision=precision
        ),
    )


def init_linear(key: Array, inputs: int, vocab_size: int, *, tied: bool, bias: bool) -> Params:
    """Initial {"W_hy": [H, V], "b_y": [V]}; no W_hy if `tied`, no b_y unless `bias`."""
    params: dict[str, Any] = {} if tied else {"W_hy": scaled_normal(key, inputs, vocab_size)}
    return {**params, "b_y": jnp.zeros(vocab_size)} if bias else params


def linear_logits(
    params: Params, h: Float[Array, "*shape H"], precision: Precision = "float32"
) -> Float[Array, "*shape V"]:
    """The logits h W_hy + b_y."""
    if "b_y" in params:
        return affine(h, params["W_hy"], params["b_y"], precision)
    return product(h, params["W_hy"], precision)


def linear_nats(
    params: Params,
    h: Float[Array, "*shape H"],
    y: Int[Array, "*shape"],
    precision: Precision = "float32",
) -> Float[Array, "*shape"]:
    """The nats -ln softmax(h W_hy + b_y)_y of each target y."""
    return cross_entropy(linear_logits(params, h, precision), y)


def linear_total_nats(
    params: Params,
    h: Float[Array, "*shape H"],
    y: Int[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    smoothing: float | Array | None = None,
    precision: Precision = "float32",
) -> Float[Array, ""]:
    """The sum of `linear_nats` under a mask, with label smoothing, without holding all logits.

    Args:
      params: {"W_hy": [H, V]} or the transpose {"C": [V, H]}, and perhaps "b_y".
      h: input of the readout.
      y: targets.
      mask: True for each target in the sum.
      smoothing: `label_smoothing` of `softmax`.
      precision: see `softmax`.
    """
    table = "C" in params
    W = params["C" if table else "W_hy"]
    b = params.get("b_y")
    return fused.total_nats(W, b, h, y, mask, smoothing, table=table, precision=precision)


def cross_entropy(z: Float[Array, "*shape V"], y: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The nats -ln softmax(z)_y of each target y, from the logits z."""
    return optax.softmax_cross_entropy_with_integer_labels(z, y)


class Output(NamedTuple):
    """A readout applied to a whole model's parameters, {"embedding", "readout", …}."""

    readout: Readout
    noise: Noise
    activation_penalty: float | Array | None = None
    """alpha, on the input of the readout after dropout (Merity et al., 2017, equation 4)."""
    change_penalty: float | Array | None = None
    """beta, on h_t - h_{t-1} (Merity et al., 2017, equation 5)."""

    def logits(self, params: Params, h: Float[Array, "*shape H"]) -> Float[Array, "*shape V"]:
        """The function `LanguageModel.logits`."""
        return self.readout.logits(self._params(params), h)

    def nats(
        self, params: Params, h: Float[Array, "*shape H"], y: Shaped[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """The function `LanguageModel.nats`."""
        return self.readout.nats(self._params(params), h, y)

    def loss(
        self,
        params: Params,
        h: Float[Array, "T B H"],
        y: Shaped[Array, "T B"],
        mask: Bool[Array, "T B"],
    ) -> Float[Array, ""]:
        """The function `LanguageModel.loss`."""
        if self.noise.key is None:
            if self.readout.total_nats is None:
                return total(self.nats(params, h, y), mask)
            return self.readout.total_nats(self._untransposed(params), h, y, mask)
        seen = self.noise.on_outputs(h)
        if self.readout.total_loss is None:
            key = self.noise.key_of(Place.READOUT)
            loss = total(self.readout.loss(self._params(params), seen, y, key), mask)
        else:
            loss = self.readout.total_loss(self._untransposed(params), seen, y, mask)
        if self.activation_penalty is not None:
            loss += total(self.activation_penalty * jnp.mean(seen**2, axis=-1), mask)
        if self.change_penalty is not None:
            change = jnp.mean((h[1:] - h[:-1]) ** 2, axis=-1)
            loss += total(self.change_penalty * jnp.pad(change, ((1, 0), (0, 0))), mask)
        return loss

    def _params(self, params: Params) -> Params:
        own = self._untransposed(params)
        return {**own, "W_hy": own["C"].T} if self.readout.tied else own

    def _untransposed(self, params: Params) -> Params:
        """The readout's parameters, with a tied table untransposed."""
        own = params["readout"]
        return {**own, "C": params["embedding"]["C"]} if self.readout.tied else own
