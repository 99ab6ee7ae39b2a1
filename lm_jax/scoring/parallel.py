"""Scoring with the unchanged model, in parallel segments of the text if the model forgets.

Token t is scored given all earlier tokens, and a recurrent model must in general read the text step
by step. But a model with fading memory reaches the same state from any initial state. A long
stretch of text is therefore cut into segments, read in parallel. Each segment starts from a fresh
carry, W tokens before its own first token. The state at its first token (begun) is compared with
the state at the end of the preceding segment (end):

    |begun_{i+1} - end_i| ≤ 256 ε max(1, |end_i|)    for each number of the carry,

with ε the distance from 1 to the next floating-point number. If the test holds at every seam, each
segment continues from the end of the preceding segment, up to rounding errors like those of every
step, and the scores are those of a single pass. If the test fails, this stretch and the rest of the
text are read token by token. The method assumes nothing about the model, because the test is made
on the text itself.

The largest Lyapunov exponent λ₁ decides the outcome (`lm_jax.gradients.lyapunov_spectrum`). A
difference of states is multiplied by exp(λ₁ W) over W tokens; in float32 a seam therefore holds if
λ₁ is below about ln(256 ε) / W = -0.08 nats a step.

Letters: T tokens of a stretch, W warm-up tokens of a segment.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm_jax.data.batches import Batch
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import Carry, Params
from lm_jax.models.rnn import RNNModel
from lm_jax.scoring.scorer import Scorer, scoring_length

SEGMENTS = 64  # segments of a stretch
WARM = 128  # W, warm-up tokens of a segment
FEW = 8  # segments to test first
CHUNKS = 32  # chunks of N tokens in a stretch
SEAM = 256  # tolerance at a seam, in ε


class _ParallelState(NamedTuple):
    """State between two stretches of text."""

    carry: Carry
    forgets: Bool[Array, ""]
    """True if every seam has held until now."""


def stretch_length(size: int) -> int:
    """T, the number of tokens to score in a call with the full number of segments.

    Args:
      size: V.
    """
    at_once = scoring_length(size)
    return CHUNKS * (at_once - at_once % SEGMENTS or at_once)


def parallel_scorer(model: LanguageModel, length: int) -> Scorer:
    """The scorer of the unchanged model.

    Args:
      model: the language model.
      length: T, tokens per call, best from `stretch_length`. The tokens are read in equal parts of
        at most `scoring_length` tokens; a call with at least 2 · `WARM` · `SEGMENTS` tokens is read
        in parallel segments.
    """

    def init(params: Params, batch_size: int) -> _ParallelState:
        return _ParallelState(model.init_carry(batch_size), jnp.asarray(True))

    def read(params: Params, state: _ParallelState, batch: Batch) -> tuple[_ParallelState, Array]:
        # A short text takes another program, which compiles in a fraction of the time.
        long = np.sum(batch.mask) >= 2 * WARM * SEGMENTS
        return _reader(model)(params, state, batch, bool(long))

    return Scorer(init, read, length)


@functools.lru_cache(maxsize=16)
def _reader(model: LanguageModel) -> Callable[..., tuple[_ParallelState, Array]]:
    def read(
        params: Params, state: _ParallelState, batch: Batch, long: bool
    ) -> tuple[_ParallelState, Float[Array, "T 1"]]:
        x, y, count = batch.x[:, 0], batch.y[:, 0], jnp.sum(batch.mask)
        at_once = _at_once(model, params, state.carry, len(x))
        recurrent = isinstance(model, RNNModel)
        segments = SEGMENTS if long and recurrent and at_once % SEGMENTS == 0 else 1
        silence = jnp.zeros(len(x))

        def over(
            carry: Carry, begin: Array, steps: Array | int, rows: int, noted: bool
        ) -> tuple[Carry, Array]:
            """Read `steps` tokens from each position in `begin`, `rows` tokens at a time."""

            def piece(number: Array, reached: tuple[Carry, Array]) -> tuple[Carry, Array]:
                carry, nats = reached
                place = begin[None] + (number * rows + jnp.arange(rows))[:, None]
                here = jnp.minimum(place, len(x) - 1)  # positions after the text are not scored
                carry, h = model.hidden(params, carry, x[here])
                if noted:
                    nats = nats.at[place].set(model.nats(params, h, y[here]), mode="drop")
                return carry, nats

            return jax.lax.fori_loop(0, -(-steps // rows), piece, (carry, silence))

        def side_by_side(carry: Carry) -> tuple[Carry, Array, Array]:
            rows = at_once // segments
            stride, warm = -(-count // at_once) * rows, -(-WARM // rows) * rows
            begin = stride * jnp.arange(segments)
            begun, _ = over(model.init_carry(segments - 1), begin[1:] - warm, warm, rows, False)

            def read(carry: Carry) -> tuple[Carry, Array, Array]:
                first = jax.tree.map(lambda own, other: jnp.concatenate([own, other]), carry, begun)
                ends, nats = over(first, begin, stride, rows, True)
                held = _alike(begun, jax.tree.map(lambda leaf: leaf[:-1], ends))
                last = jax.tree.map(lambda leaf: leaf[-1:], ends)
                return last, nats, jnp.all(held | (begin[1:] >= count))

            # Test first if a few segments reach the same states from other initial states; if not,
            # reading all segments would be wasted.
            few = jax.tree.map(lambda leaf: leaf[:FEW], begun)
            other = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), few)
            again, _ = over(other, begin[1 : FEW + 1] - warm, warm, rows, False)
            return jax.lax.cond(jnp.all(_alike(again, few)), read, unread, carry)

        def unread(carry: Carry) -> tuple[Carry, Array, Array]:
            return carry, silence, jnp.asarray(False)

        def one_by_one(carry: Carry) -> tuple[Carry, Array]:
            return over(carry, jnp.zeros(1, int), count, at_once, True)

        carry = restart(model, state.carry, batch.start)
        if segments == 1:
            carry, nats = one_by_one(carry)
            return _ParallelState(carry, state.forgets), nats[:, None]
        end, nats, held = jax.lax.cond(state.forgets, side_by_side, unread, carry)
        carry, nats = jax.lax.cond(held, lambda _: (end, nats), one_by_one, carry)
        return _ParallelState(carry, held), nats[:, None]

    return jax.jit(read, static_argnums=3, donate_argnums=1)


def _at_once(model: LanguageModel, params: Params, carry: Carry, length: int) -> int:
    """N, the largest divisor of T with small logits for N tokens."""

    def logits(params: Params, carry: Carry, x: Int[Array, "1 1"]) -> Array:
        return model.logits(params, model.hidden(params, carry, x)[1])

    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    most = scoring_length(jax.eval_shape(logits, params, carry, one).shape[-1])
    return next(n for n in range(min(most, length), 0, -1) if length % n == 0)


def _alike(found: Carry, expected: Carry) -> Bool[Array, " B"]:
    """True for each segment with equal carries, up to rounding."""

    def close(a: Array, b: Array) -> Array:
        if jnp.issubdtype(a.dtype, jnp.inexact):
            same = jnp.abs(a - b) <= SEAM * jnp.finfo(a.dtype).eps * jnp.maximum(1, jnp.abs(b))
        else:
            same = a == b
        return jnp.all(same, axis=range(1, a.ndim))

    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return jnp.all(jnp.stack([close(a, b) for a, b in leaves]), axis=0)
