"""The interface of a language model, and helpers for all models.

Letters: B sequences of a batch, T time steps, V tokens of the vocabulary, E the length of a token's
vector, H hidden units. Arrays are time-major, [T, B, ...].
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from lm_jax.models.dropout import NO_DROPOUT, DropoutMasks
from lm_jax.models.matmul import Precision, matmul
from lm_jax.settings import UserError

Params = Any
Carry = Any

DRAWN_AT_ONCE = 1 << 22  # numbers, 16 MiB in float32


class EdgeHook(NamedTuple):
    """A hook on the gradient at the edge between two time steps."""

    act: Callable[[Carry, Any], Carry]
    """(carry, at_t) -> carry: the identity in the forward pass, with a gradient of its own."""
    at: Any = None
    """Inputs of `act`: leaves [T, ...], a slice for each time step."""
    recurrent_only: bool = False
    """If True, act only on the gradient that arrives through the recurrence (from step t + 1), not
    on the gradient that the loss or the layer above sends into h_t."""


NO_HOOK = EdgeHook(lambda carry, _: carry)
"""A hook that changes nothing but selects the plain scan, step by step, which supports every mode
of differentiation."""


class LanguageModel(abc.ABC):
    """P(next token | previous tokens), as pure functions of the parameters.

    Training, scoring and sampling use every model, recurrent or not, through these methods only. A
    model is a frozen dataclass: models of equal settings are equal, and share compiled functions.
    """

    dropout: DropoutMasks = NO_DROPOUT
    """Dropout in `hidden` and `loss`; a model from `for_training` draws masks."""

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Initial parameters."""

    @abc.abstractmethod
    def init_carry(self, batch_size: int) -> Carry:
        """The carry before the first token; every leaf is [B, ...]."""

    @abc.abstractmethod
    def hidden(
        self,
        params: Params,
        carry: Carry,
        x: Array,
        hook: EdgeHook | None = None,
        tap: Array | None = None,
    ) -> tuple[Carry, Any]:
        """Read x[T, B] from a carry: (carry, h[T, B, H]).

        `hook` is applied to each recurrent layer's carry after every time step. Nothing reads
        `tap`, the zeros [T, B, layers] of `empty_tap`; the gradient of `tap` is ‖δ_t‖ for each
        sequence and layer. Here δ_t is all of ∂L/∂carry_t that arrives at the layer: from step
        t + 1, and from the layer above or the readout at t.
        """

    @abc.abstractmethod
    def logits(self, params: Params, h: Any) -> Float[Array, "*shape V"]:
        """Unnormalised log-probabilities of the next token, for h[..., H]."""

    @abc.abstractmethod
    def nats(self, params: Params, h: Any, y: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The cross-entropy -ln P(y) of each target y[...], for h[..., H]."""

    def loss(
        self, params: Params, h: Any, y: Shaped[Array, "T B"], mask: Bool[Array, "T B"]
    ) -> Float[Array, ""]:
        """The training loss, summed over the targets under the mask.

        Equal to the sum of the nats, unless the model comes from `for_training`.
        """
        return total(self.nats(params, h, y), mask)

    def for_training(self, key: Array) -> "LanguageModel":
        """The model for a training update.

        With dropout drawn from the key, and with the readout's training loss and the penalties. If
        the model has none of these, a model with the same loss.
        """
        del key
        return self

    def precompute(self, params: Params, tokens: int) -> Params:
        """Params for decoding `tokens` tokens one at a time.

        Everything that does not depend on the token is precomputed. Do not train or save these
        params.
        """
        del tokens
        return params

    def at_step(self, first: int | Array) -> "LanguageModel":
        """The model for reading an update's steps in parts, from step `first` on.

        The dropout masks of a step then depend on the step's place in the update, not on the
        cut. A model without recurrent layers is returned unchanged.
        """
        del first
        return self

    def empty_tap(self, mask: Bool[Array, "T B"]) -> Float[Array, "T B layers"]:
        """Zeros for the `tap` of `hidden`; without recurrent layers, layers = 0."""
        return jnp.zeros((*mask.shape, 0))

    @property
    def reads(self) -> jax.ShapeDtypeStruct:
        """Shape and type of a sequence's input at a time step: a token, or V real numbers."""
        return jax.ShapeDtypeStruct((), jnp.int32)


def total(nats: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The sum of the nats over the targets under the mask."""
    return jnp.sum(jnp.where(mask, nats, 0))


def restart(model: LanguageModel, carry: Carry, start: Bool[Array, " B"]) -> Carry:
    """The carry, reset for the sequences whose text starts here."""
    fresh = model.init_carry(start.shape[0])

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(start.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, fresh, carry)


def affine(
    x: Float[Array, "... M"],
    W: Float[Array, "M N"],
    b: Float[Array, " N"],
    precision: Precision = "float32",
) -> Float[Array, "... N"]:
    """The affine map x W + b over the last axis of x."""
    z = matmul(x, W, precision)
    return z + jnp.broadcast_to(b, z.shape)


def scale(a: Float[Array, "*shape N"], vector: Float[Array, " N"]) -> Float[Array, "*shape N"]:
    """The product of each number of a last axis with its own factor."""
    return a * jnp.broadcast_to(vector, a.shape)


def scaled_normal(
    key: Array, inputs: int, outputs: int, rows: int | None = None
) -> Float[Array, "rows outputs"]:
    """A matrix of independent N(0, 1 / inputs), which preserves the variance of its input.

    Args:
      key: random key.
      inputs: fan-in: entries of variance 1 in an input vector.
      outputs: columns.
      rows: rows of the matrix; None: `inputs`.
    """
    return normal(key, (rows or inputs, outputs)) / jnp.sqrt(inputs)


def normal(key: Array, shape: tuple[int, int]) -> Float[Array, "rows outputs"]:
    """A matrix of independent N(0, 1).

    A large matrix is drawn piece by piece, because a draw needs memory for several arrays of the
    same size.

    Raises:
      UserError: the matrix has 2^31 entries or more.
    """
    check_matrix(*shape)
    size = shape[0] * shape[1]
    if size <= DRAWN_AT_ONCE:
        return jax.random.normal(key, shape)

    def draw(drawn: Array, number: Array) -> tuple[Array, None]:
        piece = jax.random.normal(jax.random.fold_in(key, number), (DRAWN_AT_ONCE,))
        start = jnp.minimum(number * DRAWN_AT_ONCE, size - DRAWN_AT_ONCE)
        return jax.lax.dynamic_update_slice(drawn, piece, (start,)), None

    pieces = -(-size // DRAWN_AT_ONCE)
    drawn, _ = jax.lax.scan(draw, jnp.zeros(size), jnp.arange(pieces))
    return drawn.reshape(shape)


def check_matrix(rows: int, columns: int) -> None:
    """Refuse a matrix of 2^31 entries or more, because most of JAX counts entries in 32 bits.

    Raises:
      UserError: the matrix has 2^31 entries or more.
    """
    if rows * columns >= 2**31:
        raise UserError(f"a matrix of {rows:,} x {columns:,} has 2^31 numbers or more")
