"""The interface of a language model, as a tuple of pure functions, and helpers for all models.

Letters: B sequences of a batch, T time steps, V tokens of the vocabulary, E the length of a token's
vector, H hidden units. Arrays are time-major, [T, B, ...].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lm_jax.models.dropout import SILENT, Noise
from lm_jax.models.product import Precision, product
from lm_jax.settings import UserError

Params = Any
Carry = Any

TOKEN = jax.ShapeDtypeStruct((), jnp.int32)
DRAWN_AT_ONCE = 1 << 22  # numbers, 16 MiB in float32


class Between(NamedTuple):
    """A hook on the gradient at the edge between two time steps."""

    act: Callable[[Carry, Any], Carry]
    """(carry, at_t) -> carry: the identity in the forward pass, with a gradient of its own."""
    at: Any = None
    """Inputs of `act`: leaves [T, ...], a slice for each time step."""
    returning: bool = False
    """If True, act only on the gradient that arrives through the recurrence (from step t + 1), not
    on the gradient that the loss or the layer above sends into h_t."""


PLAIN = Between(lambda carry, _: carry)
"""A hook that changes nothing but selects the plain scan, step by step, which supports every mode
of differentiation."""


class LanguageModel(NamedTuple):
    """P(next token | previous tokens), as pure functions of the parameters.

    Training, scoring and sampling use every model, recurrent or not, through these functions only.
    """

    init: Callable[[Array], Params]
    """key -> params."""
    init_carry: Callable[[int], Carry]
    """batch_size -> carry before the first token; every leaf is [B, ...]."""
    hidden: Callable[..., tuple[Carry, Array]]
    """(params, carry, x[T, B], between=None, tap=None) -> (carry, h[T, B, H]).

    `between` is applied to each recurrent layer's carry after every time step. Nothing reads `tap`,
    the zeros [T, B, layers] of `empty_tap`; the gradient of `tap` is ‖δ_t‖ for each sequence and
    layer. Here δ_t is all of ∂L/∂carry_t that arrives at the layer: from step t + 1, and from the
    layer above or the readout at t.
    """
    logits: Callable[[Params, Array], Array]
    """(params, h[..., H]) -> [..., V]: unnormalised log-probabilities of the next token."""
    nats: Callable[[Params, Array, Array], Array]
    """(params, h[..., H], y[...]) -> [...]: -ln P(y), the cross-entropy of each target."""
    loss: Callable[[Params, Array, Array, Array], Array]
    """(params, h[T, B, H], y[T, B], mask[T, B]) -> []: the training loss, summed over the targets
    under the mask; equal to the sum of the nats, unless the model is `noisy`."""
    noisy: Callable[[Array], "LanguageModel"]
    """key -> the model for a training update: with dropout drawn from the key, and with the
    readout's training loss. With neither dropout nor a special training loss, the same model."""
    output: Callable[[Carry], Array] | None = None
    """carry -> the h[B, H] that `hidden` returned with this carry; None if no state is
    recurrent."""
    ready: Callable[[Params, int], Params] = lambda params, tokens: params
    """(params, tokens) -> params for decoding `tokens` tokens one at a time, with everything that
    does not depend on the token precomputed. Do not train or save these params."""
    placed: Callable[[int | Array], "LanguageModel"] | None = None
    """first -> the model for reading an update's steps in parts, from step `first` on. In a `noisy`
    model, each step's dropout masks then depend on the step's place in the update, not on the cut.
    None if no state is recurrent."""
    stack: Any = None
    """The parts of a recurrent model, a `lm_jax.models.recurrence.Stack`; None for any other."""
    reads: jax.ShapeDtypeStruct = TOKEN
    """Shape and type of a sequence's input at a time step: a token, or V real numbers."""
    noise: Noise = SILENT
    """Dropout in `hidden` and `loss`; only a `noisy` model draws masks."""


def total(nats: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The sum of the nats over the targets under the mask."""
    return jnp.sum(jnp.where(mask, nats, 0))


def noiseless(
    init: Callable[[Array], Params],
    init_carry: Callable[[int], Carry],
    hidden: Callable[..., tuple[Carry, Array]],
    logits: Callable[[Params, Array], Array],
    nats: Callable[[Params, Array, Array], Array],
) -> LanguageModel:
    """A language model without noise: the training loss is the sum of the nats."""
    return LanguageModel(
        init,
        init_carry,
        hidden,
        logits,
        nats,
        loss=lambda params, h, y, mask: total(nats(params, h, y), mask),
        noisy=lambda key: noiseless(init, init_carry, hidden, logits, nats),
    )


def restart(model: LanguageModel, carry: Carry, start: Bool[Array, " B"]) -> Carry:
    """The carry, reset for the sequences whose text starts here."""
    fresh = model.init_carry(start.shape[0])

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(start.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, fresh, carry)


def empty_tap(model: LanguageModel, mask: Bool[Array, "T B"]) -> Float[Array, "T B layers"]:
    """Zeros for the `tap` of `LanguageModel.hidden`; without recurrent layers, layers = 0."""
    layers = 0 if model.stack is None else len(model.stack.layers)
    return jnp.zeros((*mask.shape, layers))


def placed(model: LanguageModel, first: int | Array) -> LanguageModel:
    """The model for reading an update from step `first` on, see `LanguageModel.placed`.

    A model without `placed` is returned unchanged.
    """
    return model if model.placed is None else model.placed(first)


def affine(
    x: Float[Array, "... M"],
    W: Float[Array, "M N"],
    b: Float[Array, " N"],
    precision: Precision = "float32",
) -> Float[Array, "... N"]:
    """The affine map x W + b over the last axis of x."""
    z = product(x, W, precision)
    return z + jnp.broadcast_to(b, z.shape)


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


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
