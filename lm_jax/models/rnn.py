"""The recurrent language model: an embedding, a stack of recurrent layers, a readout.

    h^1 = layer(x),  h^l = layer(h^{l-1}) (+ h^{l-1}),  p(x_{t+1} | x_1 … x_t) = readout(h^L_t)

Each layer runs over the whole chunk before the next layer starts (Mikolov et al., 2010, for a
single Elman layer).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lm_jax.models.base import Carry, EdgeHook, Params
from lm_jax.models.layers import CellLayer, Layer
from lm_jax.models.neural import NeuralModel

PROJECTED = "projected"  # key in params for C W_xh, a row for each word


@dataclasses.dataclass(frozen=True)
class RNNModel(NeuralModel):
    """A recurrent language model."""

    _: dataclasses.KW_ONLY
    layers: tuple[Layer, ...]
    """From the bottom up; the last one has `hidden_size` outputs."""
    residual: bool = False
    """If True, each layer from the second on adds its input to its output, of the same size."""
    real_inputs: bool = False
    """If True, the input of each step is V real numbers, not a token."""

    holds: bool = False
    """If True, the carries stay as they are at a step without a token, an input below 0."""

    def draw(self, key: Array) -> Params:
        tokens, out, *keys = jax.random.split(key, 2 + len(self.layers))
        return {
            "embedding": self.embedding.init(tokens),
            "layers": [layer.init(k) for layer, k in zip(self.layers, keys, strict=True)],
            **self.init_readout(out, self.hidden_size),
        }

    def init_carry(self, batch_size: int) -> Carry:
        # A separate array for each layer: JAX cannot donate an array that appears twice.
        return tuple(layer.init_carry(batch_size) for layer in self.layers)

    def hidden(
        self,
        params: Params,
        carry: Carry,
        x: Int[Array, "T B"] | Float[Array, "T B V"],
        hook: EdgeHook | None = None,
        tap: Float[Array, "T B layers"] | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        carries = []
        h, first = self._first(params, x)  # h: vectors, or token numbers
        ended = (x < 0)[..., None].astype(float) if self.holds else None
        above = params["layers"][1:]
        for number, (layer, own) in enumerate(zip(self.layers, [first, *above], strict=True)):
            seen = self.dropout.on_layer(h, number - 1) if number else h
            if self.dropout.recurrent is not None:
                own = {**own, "W_hh": self.dropout.on_recurrent(own["W_hh"], number)}
            kept = ended
            if self.dropout.zones_out:
                kept = self.dropout.kept(jax.tree.leaves(carry[number]), x, number)
                kept = kept if ended is None else jnp.maximum(kept, ended)
            tap_here = None if tap is None else tap[..., number]
            layer_carry, new = layer.run(own, carry[number], seen, hook, tap_here, kept)
            h = seen + new if self.residual and number else new
            carries.append(layer_carry)
        return tuple(carries), h

    def output(self, carry: Carry) -> Float[Array, "B H"]:
        """The h that `hidden` returned with this carry."""
        seen = [layer.output(own) for layer, own in zip(self.layers, carry, strict=True)]
        return sum(seen[1:], seen[0]) if self.residual else seen[-1]

    def vectors(self, params: Params, x: Array) -> Array:
        """The inputs of the first layer, for x[T, B] and the params of the whole model."""
        return self.embedding.vectors(params["embedding"], x, self.dropout)

    def precompute(self, params: Params, tokens: int) -> Params:
        if not isinstance(self.layers[0], CellLayer) or tokens < self.embedding.vocab_size:
            return params
        every = jnp.arange(self.embedding.vocab_size)[:, None]
        x, first = self._first(params, every)
        return {**params, PROJECTED: first["W_xh"]} if x is every else params

    def at_step(self, first: int | Array) -> "RNNModel":
        return dataclasses.replace(self, dropout=self.dropout.at_step(first))

    def empty_tap(self, mask: Bool[Array, "T B"]) -> Float[Array, "T B layers"]:
        return jnp.zeros((*mask.shape, len(self.layers)))

    @property
    def reads(self) -> jax.ShapeDtypeStruct:
        if not self.real_inputs:
            return super().reads
        return jax.ShapeDtypeStruct((self.embedding.vocab_size,), jnp.result_type(float))

    def _first(self, params: Params, x: Array) -> tuple[Array, Params]:
        """The first layer's inputs and its parameters for these inputs."""
        first = params["layers"][0]
        if PROJECTED in params:
            return x, {**first, "W_xh": params[PROJECTED]}
        if not isinstance(self.layers[0], CellLayer):
            return self.vectors(params, x), first
        table = params["embedding"]
        vectors, W_xh = self.embedding.projected(table, x, self.dropout, first["W_xh"])
        return vectors, {**first, "W_xh": W_xh}
