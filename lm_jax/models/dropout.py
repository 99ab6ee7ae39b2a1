"""Dropout on the units during training (Srivastava et al., 2014).

Each number becomes zero with probability q; the others are divided by 1 - q to preserve the mean.
The variants:

- `inputs`, `between`, `outputs`: dropout between layers, on all but the recurrent connections
  (Zaremba et al., 2014);
- `locked`: "variational" dropout, a single mask for all time steps (Gal & Ghahramani, 2016);
- `zoneout`, `zoneout_cell`: a unit of h, or of an LSTM's c, keeps its old value (Krueger et al.,
  2017);
- `embedding`, `recurrent`: dropout of whole words of the table and of entries of W_hh, drawn once
  for an update (Merity et al., 2018, sections 4.3 and 2).

`DropoutMasks` draws all masks from a single key. Without a key, as in evaluation, nothing is
dropped, and zoneout keeps the share of the old value that it keeps in the mean.
"""

import dataclasses
import enum
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rate = float | Array | None  # None: off


class Place(enum.IntEnum):
    """Places of dropout; each place draws from a separate key."""

    INPUTS = 0
    OUTPUTS = 1
    WORDS = 2
    READOUT = 3
    BETWEEN = 1000  # plus the layer
    RECURRENT = 2000  # plus the layer
    ZONEOUT = 3000  # plus the layer


@dataclasses.dataclass(frozen=True)
class DropoutMasks:
    """The dropout of an update: probabilities, and the key for drawing the masks."""

    key: Array | None = None
    locked: bool = False
    """If True, draw a single mask for all T steps."""
    inputs: Rate = None
    between: Rate = None
    outputs: Rate = None
    embedding: Rate = None
    recurrent: Rate = None
    zoneout: Rate = None
    zoneout_cell: Rate = None
    first: int | Array | None = None
    """Place in the update of the first step to be read, if the update is read in parts."""

    def with_key(self, key: Array) -> "DropoutMasks":
        """This dropout with a key to draw masks from."""
        return dataclasses.replace(self, key=key)

    def at_step(self, first: int | Array) -> "DropoutMasks":
        """This dropout for reading an update from step `first` on.

        Each step's masks depend on the step's place in the update, not on the cut into parts.
        """
        return dataclasses.replace(self, first=first)

    def key_of(self, place: int) -> Array | None:
        """The key of a place; None without dropout."""
        return None if self.key is None else jax.random.fold_in(self.key, place)

    @property
    def drops(self) -> bool:
        """True if anything is dropped."""
        chances = self.inputs, self.between, self.outputs, self.embedding, self.recurrent
        zoned = self.zones_out
        return self.key is not None and (zoned or any(chance is not None for chance in chances))

    @property
    def differs_by_step(self) -> bool:
        """True if each time step has a different mask."""
        at_steps = self.inputs, self.between, self.outputs
        differs = not self.locked and any(chance is not None for chance in at_steps)
        return self.drops and (self.zones_out or differs)

    @property
    def zones_out(self) -> bool:
        """True if units keep their old values, at random in training and by their share in use."""
        return self.zoneout is not None or self.zoneout_cell is not None

    @property
    def on_vectors(self) -> bool:
        """True if a token's vector may differ from its row of the table C."""
        return self.key is not None and not (self.inputs is None and self.embedding is None)

    def on_inputs(self, vectors: Float[Array, "T B E"]) -> Float[Array, "T B E"]:
        """Apply input dropout to the tokens' vectors, for the first layer."""
        return self._over_time(vectors, self.inputs, Place.INPUTS)

    def on_layer(self, h: Float[Array, "T B H"], layer: int) -> Float[Array, "T B H"]:
        """Apply dropout between layers to the output of layer `layer`, counted from 0."""
        return self._over_time(h, self.between, Place.BETWEEN + layer)

    def on_outputs(self, h: Float[Array, "T B H"]) -> Float[Array, "T B H"]:
        """Apply output dropout to the last layer's output, for the readout."""
        return self._over_time(h, self.outputs, Place.OUTPUTS)

    def on_words(
        self, vectors: Float[Array, "T B E"], x: Int[Array, "T B"], vocab_size: int
    ) -> Float[Array, "T B E"]:
        """Apply word dropout: the vector of each dropped word becomes zero."""
        if self.key is None or self.embedding is None:
            return vectors
        scale = mask(jax.random.fold_in(self.key, Place.WORDS), self.embedding, (vocab_size, 1))
        return vectors * scale[x]

    def on_recurrent(self, W_hh: Float[Array, "H G"], layer: int) -> Float[Array, "H G"]:
        """Apply recurrent dropout to the recurrent weights of layer `layer`."""
        if self.key is None or self.recurrent is None:
            return W_hh
        key = jax.random.fold_in(self.key, Place.RECURRENT + layer)
        return W_hh * mask(key, self.recurrent, W_hh.shape)

    def kept(
        self, carry: Sequence[Float[Array, "B units"]], steps: int, layer: int
    ) -> Float[Array, "T B K"]:
        """Share of each number of a layer's carry that zoneout keeps at each step.

        Drawn, 0 or 1, in training; the rate itself in use (Krueger et al., 2017, section 3.1).

        Args:
          carry: leaves of the layer's carry, h before c.
          steps: T.
          layer: number of the layer, from 0.
        """
        batch_size = carry[0].shape[0]
        rates = [
            jnp.full(leaf.shape[1], 0.0 if rate is None else rate)
            for leaf, rate in zip(carry, (self.zoneout, self.zoneout_cell), strict=False)
        ]
        shape = (batch_size, sum(map(len, rates)))
        rate = jnp.broadcast_to(jnp.concatenate(rates), shape)
        key = self.key_of(Place.ZONEOUT + layer)
        if key is None:
            return jnp.broadcast_to(rate, (steps, *shape))
        first = 0 if self.first is None else self.first

        def at_step(step: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, step), rate).astype(float)

        return jax.vmap(at_step)(first + jnp.arange(steps))

    def _over_time(self, a: Array, chance: Rate, place: int) -> Array:
        if self.key is None or chance is None:
            return a
        key = jax.random.fold_in(self.key, place)
        if self.locked or self.first is None:
            return a * mask(key, chance, (1, *a.shape[1:]) if self.locked else a.shape)

        def at_step(step: Array) -> Array:
            return mask(jax.random.fold_in(key, step), chance, a.shape[1:])

        return a * jax.vmap(at_step)(self.first + jnp.arange(len(a)))


NO_DROPOUT = DropoutMasks()


def mask(key: Array, chance: Rate, shape: tuple[int, ...]) -> Array:
    """A dropout mask: 0 with probability q = `chance`, else 1 / (1 - q)."""
    keep = 1 - jnp.asarray(chance, float)
    return jax.random.bernoulli(key, keep, shape) / keep
