"""What a language model is: a tuple of pure functions, and what they share.

Letters: B lanes, T time steps, V tokens, E the length of a token's vector, H hidden units. Arrays
are time-major, [T, B, ...].
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
    """What happens to the gradient where it comes back over the edge of a time step."""

    act: Callable[[Carry, Any], Carry]
    """(carry, at_t) -> carry: the identity going forward; its own gradient is what it is for."""
    at: Any = None
    """What `act` reads at each step: leaves [T, ...], one slice a step."""
    returning: bool = False
    """Whether it acts only on what comes back from the step after, and not on what the loss and the
    layers above say of the step's own output."""


PLAIN = Between(lambda carry, _: carry)
"""Changes nothing, and takes the plain scan, step by step, that every mode of differentiation can
go through."""


class LanguageModel(NamedTuple):
    """P(next token | tokens so far), as pure functions of the parameters.

    Every model of the project, recurrent or not, is trained, scored and sampled through these.
    """

    init: Callable[[Array], Params]
    """key -> params."""
    init_carry: Callable[[int], Carry]
    """batch_size -> carry: what the model knows before it has read; every leaf is [B, ...]."""
    hidden: Callable[..., tuple[Carry, Array]]
    """(params, carry, x[T, B], between=None, tap=None) -> (carry, h[T, B, H]).

    `between` is applied to each recurrent layer's carry after every time step. `tap`, [T, B,
    layers] as `empty_tap` makes it, is read by nothing; its gradient is ‖δ_t‖ of each lane and
    layer, δ_t being all of ∂L/∂carry_t that arrives at the layer: from step t + 1, and from the
    layer above or the readout at t.
    """
    logits: Callable[[Params, Array], Array]
    """(params, h[..., H]) -> [..., V]: unnormalised log-probabilities of the next token."""
    nats: Callable[[Params, Array, Array], Array]
    """(params, h[..., H], y[...]) -> [...]: -ln P(y), the cross-entropy of each target."""
    loss: Callable[[Params, Array, Array, Array], Array]
    """(params, h[T, B, H], y[T, B], mask[T, B]) -> []: what training minimises, summed over the
    targets under the mask; the nats, unless the model is `noisy`."""
    noisy: Callable[[Array], "LanguageModel"]
    """key -> the model as it is trained in one update: with dropout, drawn from the key, and with
    the readout's way of learning. Where nothing of that is asked for, it is the same model."""
    output: Callable[[Carry], Array] | None = None
    """carry -> the h[B, H] that `hidden` gave with it; None where no state is recurrent."""
    ready: Callable[[Params, int], Params] = lambda params, tokens: params
    """(params, tokens) -> params with which `hidden` and `logits` read so many tokens one after
    another: what is the same for all of them is made once. They are good for nothing else."""
    placed: Callable[[int | Array], "LanguageModel"] | None = None
    """first -> the model where reading begins at step `first` of an update, for who reads the
    update's steps in parts: if it is `noisy`, each step's masks are drawn for its place. None where
    no state is recurrent."""
    stack: Any = None
    """The parts of a recurrent model, a `lm_jax.models.recurrence.Stack`; None for any other."""
    reads: jax.ShapeDtypeStruct = TOKEN
    """Shape and type of what one lane reads at one step: a token, or V real numbers."""
    noise: Noise = SILENT
    """The dropout in `hidden` and `loss`; drawn in a `noisy` model alone."""


def total(nats: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The sum over the real targets."""
    return jnp.sum(jnp.where(mask, nats, 0))


def noiseless(
    init: Callable[[Array], Params],
    init_carry: Callable[[int], Carry],
    hidden: Callable[..., tuple[Carry, Array]],
    logits: Callable[[Params, Array], Array],
    nats: Callable[[Params, Array, Array], Array],
) -> LanguageModel:
    """A model that is trained as it is used: its loss is its nats."""
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
    """The carry, made fresh in the lanes whose text starts here."""
    fresh = model.init_carry(start.shape[0])

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(start.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, fresh, carry)


def empty_tap(model: LanguageModel, mask: Bool[Array, "T B"]) -> Float[Array, "T B layers"]:
    """Zeros for the `tap` of `LanguageModel.hidden`; without recurrent layers, layers = 0."""
    layers = 0 if model.stack is None else len(model.stack.layers)
    return jnp.zeros((*mask.shape, layers))


def placed(model: LanguageModel, first: int | Array) -> LanguageModel:
    """`LanguageModel.placed`; the model as it is where it has none."""
    return model if model.placed is None else model.placed(first)


def affine(
    x: Float[Array, "... M"],
    W: Float[Array, "M N"],
    b: Float[Array, " N"],
    precision: Precision = "float32",
) -> Float[Array, "... N"]:
    """x W + b over the last axis."""
    z = product(x, W, precision)
    return z + jnp.broadcast_to(b, z.shape)


def scaled_normal(
    key: Array, inputs: int, outputs: int, rows: int | None = None
) -> Float[Array, "rows outputs"]:
    """A matrix of independent N(0, 1 / inputs), which keeps the variance of what it multiplies.

    Args:
      key: of the draw.
      inputs: how many numbers of variance 1 it multiplies.
      outputs: columns.
      rows: None: as many as inputs.
    """
    return normal(key, (rows or inputs, outputs)) / jnp.sqrt(inputs)


def normal(key: Array, shape: tuple[int, int]) -> Float[Array, "rows outputs"]:
    """Independent N(0, 1); a large matrix is drawn piece by piece, for a draw takes the room of
    several arrays of its size.

    Raises:
      UserError: see `check_matrix`.
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
    """Refuses a matrix whose numbers 32 bits cannot count, as most of JAX does.

    Raises:
      UserError: it has 2^31 numbers or more.
    """
    if rows * columns >= 2**31:
        raise UserError(f"a matrix of {rows:,} x {columns:,} has 2^31 numbers or more")


def count(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
