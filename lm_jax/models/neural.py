"""A neural language model: an embedding, layers of some kind, and a readout.

This module joins a model and its readout, and applies the dropout on the readout's input, the
penalties on activations, and the tied table.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from lm_jax.models.base import LanguageModel, Params, scaled_normal, total
from lm_jax.models.dropout import NO_DROPOUT, DropoutMasks, Place
from lm_jax.models.embedding import Embedding
from lm_jax.models.matmul import matmul
from lm_jax.models.readout import Readout


@dataclasses.dataclass(frozen=True)
class NeuralModel(LanguageModel):
    """The common part of the window, convolutional and recurrent models.

    The parameters are {"embedding": …, "readout": …}, the parameters of the layers, and perhaps a
    "projection" [H, P].
    """

    embedding: Embedding
    readout: Readout
    hidden_size: int = dataclasses.field(kw_only=True)
    """H, outputs of the last hidden layer."""
    projection: int | None = dataclasses.field(default=None, kw_only=True)
    """P; if given, the readout reads h W_hp, with h after dropout, and W_hp [H, P]."""
    dropout: DropoutMasks = dataclasses.field(default=NO_DROPOUT, kw_only=True)
    """Dropout of training; only the model of `for_training` has a key."""
    activation_penalty: float | Array | None = dataclasses.field(default=None, kw_only=True)
    """alpha, on the input of the readout after dropout (Merity et al., 2017, equation 4)."""
    change_penalty: float | Array | None = dataclasses.field(default=None, kw_only=True)
    """beta, on h_t - h_{t-1} (Merity et al., 2017, equation 5)."""
    uniform: float | Array | None = dataclasses.field(default=None, kw_only=True)
    """s; if given, every initial parameter is drawn from U(-s, s)."""

    @abc.abstractmethod
    def draw(self, key: Array) -> Params:
        """Initial parameters, without `uniform`."""

    def init_readout(self, key: Array, inputs: int) -> Params:
        """The readout's initial parameters, and the projection's, for h of `inputs` numbers."""
        if self.projection is None:
            return {"readout": self.readout.init(key, inputs)}
        W_hp = scaled_normal(jax.random.fold_in(key, 0), inputs, self.projection)
        return {"projection": W_hp, "readout": self.readout.init(key, self.projection)}

    def init(self, key: Array) -> Params:
        if self.uniform is None:
            return self.draw(key)
        leaves, structure = jax.tree.flatten(jax.eval_shape(self.draw, key))
        keys, s = jax.random.split(key, len(leaves)), self.uniform
        return structure.unflatten(
            [
                jax.random.uniform(k, leaf.shape, leaf.dtype, -s, s)
                for k, leaf in zip(keys, leaves, strict=True)
            ]
        )

    def logits(self, params: Params, h: Float[Array, "*shape H"]) -> Float[Array, "*shape V"]:
        return self.readout.logits(self._of_readout(params), self._projected(params, h))

    def nats(
        self, params: Params, h: Float[Array, "*shape H"], y: Shaped[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return self.readout.nats(self._of_readout(params), self._projected(params, h), y)

    def loss(
        self,
        params: Params,
        h: Float[Array, "T B H"],
        y: Shaped[Array, "T B"],
        mask: Bool[Array, "T B"],
    ) -> Float[Array, ""]:
        own = self._of_readout(params)
        if self.dropout.key is None:  # not from `for_training`
            return self.readout.total_nats(own, self._projected(params, h), y, mask)
        seen, key = self.dropout.on_outputs(h), self.dropout.key_of(Place.READOUT)
        loss = self.readout.total_loss(own, self._projected(params, seen), y, mask, key)
        if self.activation_penalty is not None:
            loss += total(self.activation_penalty * jnp.mean(seen**2, axis=-1), mask)
        if self.change_penalty is not None:
            # A mean over the pairs of steps, which are fewer than the tokens.
            pairs = mask[1:]
            change = self.change_penalty * jnp.mean((h[1:] - h[:-1]) ** 2, axis=-1)
            loss += total(change, pairs) * (jnp.sum(mask) / jnp.maximum(jnp.sum(pairs), 1))
        return loss

    def for_training(self, key: Array) -> "NeuralModel":
        return dataclasses.replace(self, dropout=self.dropout.with_key(key))

    def _projected(self, params: Params, h: Float[Array, "*shape H"]) -> Float[Array, "*shape P"]:
        if self.projection is None:
            return h
        return matmul(h, params["projection"], self.embedding.precision)  # the model's

    def _of_readout(self, params: Params) -> Params:
        own = params["readout"]
        return {**own, "C": params["embedding"]["C"]} if self.readout.tied else own
