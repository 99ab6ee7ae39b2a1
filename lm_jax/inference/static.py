"""The model as it is, on one text from first token to last: in lanes, where the model forgets.

Token t is scored given all before it, so a recurrent model must come to it through every step of
the text. But a model that forgets comes to the same state from anywhere. So a long stretch of text
is cut into lanes that are read side by side. Each begins, from a fresh carry, some tokens before
its own first one, and there its state is held against the one in which the lane before it ends,

    |begun_{i+1} - end_i| ≤ 256 ε max(1, |end_i|)    for each number of the carry,

ε being the distance from 1 to the next number. Where that holds at every seam, each lane has gone
on from where the one before it ended, up to what rounding does to a state at every step anyhow, and
the figures are those of one pass. Where it does not, the stretch is read again, token after token,
and so is the rest of the text. Nothing is assumed of the model: the test is made on this very text.

It is the largest Lyapunov exponent that decides (`lm_jax.gradients.lyapunov_spectrum`): a
difference of states is exp(λ₁ W) times as large W tokens later, so in float32 a seam holds where
λ₁ is below about ln(256 ε) / W = -0.08 nats a step.

Letters: T tokens of a stretch, W that a lane reads before its own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm_jax.data.batches import Batch
from lm_jax.inference.scorer import Scorer, chunk_length
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import Carry, Params
from lm_jax.models.rnn import RNNModel

LANES = 64
WARM = 128  # tokens that a lane reads before its own
FEW = 8  # lanes that are tried first
CHUNKS = 32  # N tokens each, of a stretch
SEAM = 256  # ε


class _State(NamedTuple):
    """Between two stretches of text."""

    carry: Carry
    forgets: Bool[Array, ""]
    """Whether every seam so far has held."""


def stretch_length(size: int) -> int:
    """T: tokens that are scored in one call, in as many lanes as there may be.

    Args:
      size: V.
    """
    at_once = chunk_length(size)
    return CHUNKS * (at_once - at_once % LANES or at_once)


def static(model: LanguageModel, length: int) -> Scorer:
    """The model as it is.

    Args:
      model: the language model.
      length: T, tokens of a call, best as `stretch_length` gives it: they are read in equal parts
        of at most `chunk_length` tokens, side by side from `LANES` times twice `WARM` on.
    """

    def init(params: Params, batch_size: int) -> _State:
        return _State(model.init_carry(batch_size), jnp.asarray(True))

    def read(params: Params, state: _State, batch: Batch) -> tuple[_State, Array]:
        # A program of its own for what is short, which compiles in a fraction of the time.
        long = np.sum(batch.mask) >= 2 * WARM * LANES
        return _reader(model)(params, state, batch, bool(long))

    return Scorer(init, read, length)


@functools.lru_cache(maxsize=16)
def _reader(model: LanguageModel) -> Callable[..., tuple[_State, Array]]:
    def read(
        params: Params, state: _State, batch: Batch, long: bool
    ) -> tuple[_State, Float[Array, "T 1"]]:
        x, y, count = batch.x[:, 0], batch.y[:, 0], jnp.sum(batch.mask)
        at_once = _at_once(model, params, state.carry, len(x))
        recurrent = isinstance(model, RNNModel)
        lanes = LANES if long and recurrent and at_once % LANES == 0 else 1
        silence = jnp.zeros(len(x))

        def over(
            carry: Carry, begin: Array, steps: Array | int, rows: int, noted: bool
        ) -> tuple[Carry, Array]:
            """Reads `steps` tokens from each place of `begin` on, a few rows of them at once."""

            def piece(number: Array, reached: tuple[Carry, Array]) -> tuple[Carry, Array]:
                carry, nats = reached
                place = begin[None] + (number * rows + jnp.arange(rows))[:, None]
                here = jnp.minimum(place, len(x) - 1)  # behind the text, where nothing is noted
                carry, h = model.hidden(params, carry, x[here])
                if noted:
                    nats = nats.at[place].set(model.nats(params, h, y[here]), mode="drop")
                return carry, nats

            return jax.lax.fori_loop(0, -(-steps // rows), piece, (carry, silence))

        def side_by_side(carry: Carry) -> tuple[Carry, Array, Array]:
            rows = at_once // lanes
            stride, warm = -(-count // at_once) * rows, -(-WARM // rows) * rows
            begin = stride * jnp.arange(lanes)
            begun, _ = over(model.init_carry(lanes - 1), begin[1:] - warm, warm, rows, False)

            def read(carry: Carry) -> tuple[Carry, Array, Array]:
                first = jax.tree.map(lambda own, other: jnp.concatenate([own, other]), carry, begun)
                ends, nats = over(first, begin, stride, rows, True)
                held = _alike(begun, jax.tree.map(lambda leaf: leaf[:-1], ends))
                last = jax.tree.map(lambda leaf: leaf[-1:], ends)
                return last, nats, jnp.all(held | (begin[1:] >= count))

            # A few lanes come to the same places from other states, before all are read in vain.
            few = jax.tree.map(lambda leaf: leaf[:FEW], begun)
            other = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), few)
            again, _ = over(other, begin[1 : FEW + 1] - warm, warm, rows, False)
            return jax.lax.cond(jnp.all(_alike(again, few)), read, unread, carry)

        def unread(carry: Carry) -> tuple[Carry, Array, Array]:
            return carry, silence, jnp.asarray(False)

        def one_by_one(carry: Carry) -> tuple[Carry, Array]:
            return over(carry, jnp.zeros(1, int), count, at_once, True)

        carry = restart(model, state.carry, batch.start)
        if lanes == 1:
            carry, nats = one_by_one(carry)
            return _State(carry, state.forgets), nats[:, None]
        end, nats, held = jax.lax.cond(state.forgets, side_by_side, unread, carry)
        carry, nats = jax.lax.cond(held, lambda _: (end, nats), one_by_one, carry)
        return _State(carry, held), nats[:, None]

    return jax.jit(read, static_argnums=3, donate_argnums=1)


def _at_once(model: LanguageModel, params: Params, carry: Carry, length: int) -> int:
    """N: the most tokens whose logits are small, of which T is a multiple."""

    def logits(params: Params, carry: Carry, x: Int[Array, "1 1"]) -> Array:
        return model.logits(params, model.hidden(params, carry, x)[1])

    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    most = chunk_length(jax.eval_shape(logits, params, carry, one).shape[-1])
    return next(n for n in range(min(most, length), 0, -1) if length % n == 0)


def _alike(found: Carry, expected: Carry) -> Bool[Array, " B"]:
    """Whether two carries are the same in each lane, but for rounding."""

    def close(a: Array, b: Array) -> Array:
        if jnp.issubdtype(a.dtype, jnp.inexact):
            same = jnp.abs(a - b) <= SEAM * jnp.finfo(a.dtype).eps * jnp.maximum(1, jnp.abs(b))
        else:
            same = a == b
        return jnp.all(same, axis=range(1, a.ndim))

    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return jnp.all(jnp.stack([close(a, b) for a, b in leaves]), axis=0)
