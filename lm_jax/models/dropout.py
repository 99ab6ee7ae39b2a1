"""Noise on the units while a model is trained (Srivastava et al., 2014).

Each number is set to zero with a chance q, and the others are divided by 1 - q, which keeps the
mean. The places where that is done in a recurrent model are those of Zaremba et al. (2014), all but
the recurrent connections; one mask for all time steps is the "variational" dropout of Gal &
Ghahramani (2016); whole words of the table, and entries of W_hh, are those of Merity et al. (2018,
sections 4.1 and 4.3), one draw for an update.

`Noise` draws all of it from one key. Without a key it does nothing: that is the model in use.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Chance = float | Array | None  # None: off


class Place(enum.IntEnum):
    """Where numbers are dropped; each place draws from a key of its own."""

    INPUTS = 0
    OUTPUTS = 1
    WORDS = 2
    READOUT = 3
    BETWEEN = 1000  # plus the layer
    RECURRENT = 2000  # plus the layer


@dataclasses.dataclass(frozen=True, eq=False)  # its arrays have no hash
class Noise:
    """The noise of one update."""

    key: Array | None = None
    locked: bool = False
    """One mask for all T steps."""
    inputs: Chance = None
    between: Chance = None
    outputs: Chance = None
    words: Chance = None
    recurrent: Chance = None
    first: int | Array | None = None
    """The place in the update of the first step that is read, where not all are read at once."""

    def drawn(self, key: Array) -> "Noise":
        """The same noise, drawn from a key."""
        return dataclasses.replace(self, key=key)

    def placed(self, first: int | Array) -> "Noise":
        """The same noise where reading begins at step `first` of an update: each step's masks are
        drawn for its place, so they are its own, wherever the update's steps are cut."""
        return dataclasses.replace(self, first=first)

    def key_of(self, place: int) -> Array | None:
        """The key of a place."""
        return None if self.key is None else jax.random.fold_in(self.key, place)

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        chances = self.inputs, self.between, self.outputs, self.words, self.recurrent
        return self.key is not None and any(chance is not None for chance in chances)

    @property
    def differs_by_step(self) -> bool:
        """Whether each time step has a mask of its own."""
        at_steps = self.inputs, self.between, self.outputs
        return self.drops and not self.locked and any(chance is not None for chance in at_steps)

    @property
    def on_vectors(self) -> bool:
        """Whether a token's vector is not its row of the table."""
        return self.key is not None and not (self.inputs is None and self.words is None)

    def on_inputs(self, vectors: Float[Array, "T B E"]) -> Float[Array, "T B E"]:
        """The tokens' vectors as the first layer sees them."""
        return self._over_time(vectors, self.inputs, Place.INPUTS)

    def on_layer(self, h: Float[Array, "T B H"], layer: int) -> Float[Array, "T B H"]:
        """What layer `layer`, counted from 0, hands to the next."""
        return self._over_time(h, self.between, Place.BETWEEN + layer)

    def on_outputs(self, h: Float[Array, "T B H"]) -> Float[Array, "T B H"]:
        """What the readout sees."""
        return self._over_time(h, self.outputs, Place.OUTPUTS)

    def on_words(
        self, vectors: Float[Array, "T B E"], x: Int[Array, "T B"], vocab_size: int
    ) -> Float[Array, "T B E"]:
        """The vectors of tokens, those of the dropped words zero."""
        if self.key is None or self.words is None:
            return vectors
        scale = mask(jax.random.fold_in(self.key, Place.WORDS), self.words, (vocab_size, 1))
        return vectors * scale[x]

    def on_recurrent(self, W_hh: Float[Array, "H G"], layer: int) -> Float[Array, "H G"]:
        """A layer's recurrent weights."""
        if self.key is None or self.recurrent is None:
            return W_hh
        key = jax.random.fold_in(self.key, Place.RECURRENT + layer)
        return W_hh * mask(key, self.recurrent, W_hh.shape)

    def _over_time(self, a: Array, chance: Chance, place: int) -> Array:
        if self.key is None or chance is None:
            return a
        key = jax.random.fold_in(self.key, place)
        if self.locked or self.first is None:
            return a * mask(key, chance, (1, *a.shape[1:]) if self.locked else a.shape)

        def at_step(step: Array) -> Array:
            return mask(jax.random.fold_in(key, step), chance, a.shape[1:])

        return a * jax.vmap(at_step)(self.first + jnp.arange(len(a)))


SILENT = Noise()


def mask(key: Array, chance: Chance, shape: tuple[int, ...]) -> Array:
    """Zeros with a chance q, and else 1 / (1 - q)."""
    keep = 1 - jnp.asarray(chance, float)
    return jax.random.bernoulli(key, keep, shape) / keep
