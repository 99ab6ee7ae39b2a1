"""Backpropagation through time, full and truncated.

The objective of a batch is the mean cross-entropy over its real tokens, in nats,

    J = (1/N) Σ_t J_t,   J_t = -ln p(y_t | x_1 … x_t)

or, for a model in training, `LanguageModel.loss` in place of Σ_t J_t. The gradient of J with
respect to the recurrent weights is the lecture's double sum over the time t of the loss and the
time k at which a weight was used,

    ∂J/∂W = (1/N) Σ_t Σ_{k ≤ t} (∂J_t/∂h_t) (∂h_t/∂h_k) (∂h_k/∂W).

*Full* BPTT (Werbos, 1990) takes every k within the chunk; the text before the chunk enters through
the carry, as a constant. *Truncated* BPTT(k1, k2) (Williams & Peng, 1990, there BPTT(h; h')) sums
the losses of k1 steps and, for all k1 losses together, takes the k of the last k2 steps. Each block
of k1 tokens is read together with the earlier tokens within these k2 steps; the state before the k2
steps is a constant. Hence k1 = 1 is the sum above with t - k < k2, and k1 = k2 = T is full BPTT.

Backpropagation stores the residuals of every step: O(T) memory. With `recompute`, backpropagation
stores only the carry before each of √T segments of √T steps, and reads each segment once more on
the way back (Chen et al., 2016): O(√T) memory for one more forward pass, and the same gradient.

A gradient estimator is a function (params, carry, batch) -> (loss, carry, grads, info). The carry
is the model's own carry, with more beside it if the estimator must remember more; `init_carry`
makes the first carry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from lm_jax.data.batches import Batch
from lm_jax.models.base import (
    NO_HOOK,
    Carry,
    EdgeHook,
    LanguageModel,
    Params,
    restart,
)
from lm_jax.settings import UserError
from lm_jax.trees import limit_norm, norm, scaled


class Info(NamedTuple):
    """Further results of an estimator."""

    delta_norms: Float[Array, " T"] | None = None
    """‖δ_t‖ over all sequences and layers together, in nats per unit of the carry. δ_t of a layer
    is all of ∂loss/∂carry_t that arrives there: from step t + 1, and from the layer above at t.
    None if the estimator was made without."""


Estimate = tuple[Float[Array, ""], Carry, Params, Info]


@dataclass(frozen=True, eq=False)  # jax.jit cannot weakly reference a tuple
class Estimator:
    """A gradient estimator: call it with (params, carry, batch) to get (loss, carry, grads, info).

    `loss` is the mean over the batch's real tokens, in nats; `grads` is shaped as `params`.
    """

    init_carry: Callable[[int], Carry]
    """batch_size -> the carry before the first batch."""
    estimate: Callable[[Params, Carry, Batch], Estimate]
    """The function of a call."""
    model_carry: Callable[[Params, Carry], Carry]
    """(params, carry) -> the model's own carry before the batch."""
    redraw: Callable[[Carry, int | Array], Carry] | None = None
    """(carry, number) -> the carry whose next draw has this number; a call makes at most T draws.
    None: nothing is drawn."""

    def __call__(self, params: Params, carry: Carry, batch: Batch) -> Estimate:
        return self.estimate(params, carry, batch)


def full_bptt(
    model: LanguageModel,
    *,
    clip_delta: float | Array | None = None,
    recompute: bool = False,
    delta_norms: bool = False,
) -> Estimator:
    """Backpropagation through all T steps of a chunk, by autodiff of the plain scan.

    Autodiff stores the residuals of every step: O(T) memory, and O(T) time.

    Args:
      model: the language model.
      clip_delta: see `clip_cotangent`; None: no clipping within BPTT.
      recompute: if True, store only the carries between √T segments. The loss must be a sum over
        steps, and the dropout masks the same at every step.
      delta_norms: if True, the info of a call has ‖δ_t‖.

    Raises:
      UserError: recompute is True, and each step has a dropout mask of its own.
    """
    return _whole(model, _clipping(clip_delta) or NO_HOOK, recompute, delta_norms)


def explicit_bptt(
    model: LanguageModel,
    *,
    clip_delta: float | Array | None = None,
    recompute: bool = False,
    delta_norms: bool = False,
) -> Estimator:
    """Backpropagation through all T steps of a chunk, by a backward pass written by hand.

    The gradient equals that of `full_bptt`; see `lm_jax.models.recurrence` for the backward pass.
    Training uses this estimator by default. A cell without a `gate` has no such pass and is left to
    autodiff, as is every cell if δ is clipped.

    Args:
      model: the language model.
      clip_delta: see `clip_cotangent`; None: no clipping within BPTT.
      recompute, delta_norms: see `full_bptt`.

    Raises:
      UserError: as `full_bptt`.
    """
    return _whole(model, _clipping(clip_delta), recompute, delta_norms)


def _whole(
    model: LanguageModel, hook: EdgeHook | None, recompute: bool, delta_norms: bool
) -> Estimator:
    def read(
        params: Params, carry: Carry, x: Array, y: Array, mask: Array, tap: Array | None
    ) -> tuple[Carry, Array]:
        after, h = model.hidden(params, carry, x, hook, tap)
        return after, model.loss(params, h, y, mask)

    if recompute and model.dropout.differs_by_step:
        raise UserError(
            "recompute reads the steps twice, and needs dropout of one mask: locked=True"
        )
    read_all = _in_segments(read) if recompute else read

    def estimate(params: Params, carry: Carry, batch: Batch) -> Estimate:
        def total_nats(params: Params, tap: Array | None) -> tuple[Array, Carry]:
            before = restart(model, carry, batch.start)
            after, nats = read_all(params, before, batch.x, batch.y, batch.mask, tap)
            return nats, after

        tap = model.empty_tap(batch.mask) if delta_norms else None
        both = jax.value_and_grad(total_nats, argnums=(0, 1), has_aux=True)
        (nats, after), (grads, deltas) = both(params, tap)
        loss, grads = per_token(nats, grads, batch.mask)
        norms = norm(deltas, kept=1) / _tokens(batch.mask) if delta_norms else None
        return loss, after, grads, Info(norms)

    return Estimator(model.init_carry, estimate, lambda params, carry: carry)


def _in_segments(read: Callable[..., tuple[Carry, Array]]) -> Callable[..., tuple[Carry, Array]]:
    """Make `read` work in segments of ⌈√T⌉ steps, with only the carries between them stored.

    Args:
      read: (params, carry, *arrays of T steps) -> (carry, nats).
    """
    again = jax.checkpoint(read, prevent_cse=False)  # safe in a scan: XLA merges nothing there

    def in_segments(params: Params, carry: Carry, *whole: Array | None) -> tuple[Carry, Array]:
        steps = jax.tree.leaves(whole)[0].shape[0]
        length = math.isqrt(steps - 1) + 1
        count = steps // length
        cut = lambda a: a[: count * length].reshape(count, length, *a.shape[1:])  # noqa: E731
        scanned, rest = jax.tree.map(cut, whole), jax.tree.map(lambda a: a[count * length :], whole)

        def segment(sums: tuple[Carry, Array], read_now: tuple) -> tuple[tuple, None]:
            carry, nats = sums
            carry, more = again(params, carry, *read_now)
            return (carry, nats + more), None

        (carry, nats), _ = jax.lax.scan(segment, (carry, jnp.zeros(())), scanned)
        if count * length == steps:
            return carry, nats
        carry, more = jax.checkpoint(read)(params, carry, *rest)
        return carry, nats + more

    return in_segments


class History(NamedTuple):
    """Memory of truncated BPTT with k2 > k1: the m blocks of k1 tokens before the present block."""

    carry: Carry
    """The model's carry before the oldest block."""
    x: Int[Array, "m k1 B"] | Float[Array, "m k1 B V"]
    """The model's inputs in the blocks, of the dtype of `LanguageModel.reads`."""
    start: Bool[Array, "m B"]
    """True if a sequence's text starts again at the block."""


def truncated_bptt(
    model: LanguageModel, *, k1: int, k2: int, clip_delta: float | Array | None = None
) -> Estimator:
    """Truncated backpropagation: k1 steps forward, k2 steps back.

    Each block of k1 tokens is run forward together with the ⌈k2 / k1⌉ - 1 blocks before, under the
    present parameters: an update costs about k2 / k1 times the forward work of full BPTT. If
    k2 < k1, the losses of the first k1 - k2 steps of a block still train the readout.

    A batch may hold several blocks, whose gradients are summed; a batch in training holds a single
    block. A model's `change_penalty` compares the steps within a block, not the last step of a
    block with the first step of the next block.

    If the model draws dropout masks for each step, the draw depends on the step's place,
    counted from the oldest block that a call reads: no two blocks share a mask.

    Args:
      model: the language model.
      k1: steps of a block.
      k2: steps that the gradient goes back from the end of a block; may reach before the batch.
      clip_delta: see `clip_cotangent`; None: no clipping within BPTT.

    Raises:
      ValueError: k1 or k2 is not positive, or (when called) k1 does not divide the batch's T, or
        k2 > k1 and the carry has no history or the batch's inputs do not match the history.
    """
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1={k1} and k2={k2} must be 1 or more")
    hook = _clipping(clip_delta)
    remembered = -(-k2 // k1) - 1
    # How many of a window's first steps are out of the gradient's reach.
    constant = (remembered + 1) * k1 - k2

    def hidden(params: Params, carry: Carry, x: Array, first: Array) -> tuple[Carry, Array]:
        return model.at_step(first).hidden(params, carry, x, hook)

    def reached(params: Params, carry: Carry, x: Array, first: Array) -> tuple[Carry, Array]:
        """The hidden states of a window's first block, without gradient in the `constant` steps."""
        if not constant:
            return hidden(params, carry, x, first)
        carry, head = jax.lax.stop_gradient(hidden(params, carry, x[:constant], first))
        carry, tail = hidden(params, carry, x[constant:], first + constant)
        return carry, jnp.concatenate([head, tail])

    def block_nats(
        params: Params,
        history: History,
        x: Array,
        y: Array,
        mask: Array,
        start: Array,
        first: Array,
    ) -> tuple[Array, Carry]:
        """The summed nats of the newest block, and the carry after the oldest.

        Args:
          first: place of the oldest block's first step.
        """
        xs = jnp.concatenate([history.x, x[None]])
        starts = jnp.concatenate([history.start, start[None]])
        oldest, h = reached(params, restart(model, history.carry, starts[0]), xs[0], first)
        carry = oldest
        for block in range(1, remembered + 1):
            first = first + k1
            carry, h = hidden(params, restart(model, carry, starts[block]), xs[block], first)
        return model.at_step(first).loss(params, h, y, mask), oldest

    def estimate(params: Params, carry: Carry, batch: Batch) -> Estimate:
        steps, batch_size = batch.mask.shape
        if steps % k1:
            raise ValueError(f"k1={k1} does not divide the batch's T={steps}")
        blocks = steps // k1
        read = _as_remembered(carry, batch.x) if remembered else batch.x
        cut = (a.reshape(blocks, k1, *a.shape[1:]) for a in (read, batch.y, batch.mask))
        x, y, mask = cut
        starts = jnp.zeros((blocks, batch_size), bool).at[0].set(batch.start)
        none_yet = jnp.zeros((0, *x.shape[1:]), x.dtype), jnp.zeros((0, batch_size), bool)
        history = carry if remembered else History(carry, *none_yet)

        def add_block(sums: tuple, block: tuple) -> tuple[tuple, None]:
            history, nats, grads = sums
            x, _, _, start, _ = block
            value_and_grad = jax.value_and_grad(block_nats, has_aux=True)
            (more, oldest), more_grads = value_and_grad(params, history, *block)
            history = History(
                oldest,
                jnp.concatenate([history.x, x[None]])[1:] if remembered else history.x,
                jnp.concatenate([history.start, start[None]])[1:] if remembered else history.start,
            )
            return (history, nats + more, jax.tree.map(jnp.add, grads, more_grads)), None

        zero = jnp.zeros(()), optax.tree.zeros_like(params)
        each = x, y, mask, starts, k1 * jnp.arange(blocks)
        (history, nats, grads), _ = jax.lax.scan(add_block, (history, *zero), each)
        loss, grads = per_token(nats, grads, batch.mask)
        return loss, history if remembered else history.carry, grads, Info()

    def model_carry(params: Params, carry: Carry) -> Carry:
        if not remembered:
            return carry
        now = carry.carry
        for block, (x, start) in enumerate(zip(carry.x, carry.start, strict=True)):
            now, _ = model.at_step(block * k1).hidden(params, restart(model, now, start), x)
        return now

    def init_carry(batch_size: int) -> Carry:
        carry = model.init_carry(batch_size)
        if not remembered:
            return carry
        # Reading these zeros has no effect: the first block of the text resets the carry.
        one = model.reads
        x = jnp.zeros((remembered, k1, batch_size, *one.shape), one.dtype)
        return History(carry, x, jnp.zeros((remembered, batch_size), bool))

    return Estimator(init_carry, estimate, model_carry)


def _as_remembered(history: Carry, x: Array) -> Array:
    """Cast a batch's inputs [T, B, ...] to the dtype of the history, for a carry keeps its dtypes.

    Raises:
      UserError: there is no history, or the inputs in the history have another shape or kind.
    """
    if not isinstance(history, History):
        raise UserError(
            "k2 > k1 needs a carry with a history: begin with the estimator's init_carry"
        )
    before = history.x
    kinds = [jnp.issubdtype(a.dtype, jnp.integer) for a in (x, before)]
    if x.shape[2:] != before.shape[3:] or kinds[0] != kinds[1]:
        one, other = (f"{a.dtype}{list(a.shape)}" for a in (x, before))
        raise UserError(
            f"the batch's inputs are {one}, and the history of k2 > k1 holds {other}: "
            "a model of real inputs is made with regression=True"
        )
    return x.astype(before.dtype)


def clip_cotangent(carry: Carry, threshold: float | Array, tally: Array | None = None) -> Carry:
    """Identity whose backward pass limits the norm of each sequence's gradient to `threshold`.

    δ ← δ min(1, threshold / ‖δ‖), with δ the gradient with respect to all leaves of the carry of
    one sequence together (Pascanu et al., 2013, algorithm 1, applied at one time step). An
    estimator clips each layer's carry by itself. The estimators differentiate the *sum* of nats:
    the threshold does not depend on B or T.

    Args:
      carry: leaves [B, ...]; integers have no gradient.
      threshold: largest norm, in nats per unit of the carry; infinity changes nothing.
      tally: [B], not used forward; the gradient of `tally` is 1 for each sequence whose δ was
        scaled down, else 0.
    """

    @jax.custom_vjp
    def identity(carry, threshold, tally):
        return carry

    def backward(saved, delta):
        threshold, tally = saved
        clipped, cut = limit_norm(delta, threshold, kept=1)
        told = None if tally is None else cut.astype(tally.dtype)
        return clipped, jnp.zeros_like(threshold), told

    identity.defvjp(lambda carry, threshold, tally: (carry, (threshold, tally)), backward)
    return identity(carry, jnp.asarray(threshold, float), tally)


def _clipping(threshold: float | Array | None) -> EdgeHook | None:
    if threshold is None:
        return None
    return EdgeHook(lambda carry, _: clip_cotangent(carry, threshold))


def per_token(nats: Array, grads: Params, mask: Array) -> tuple[Array, Params]:
    """Divide sums over tokens by the number of tokens under the mask."""
    tokens = _tokens(mask)
    share = 1 / tokens
    return nats / tokens, jax.tree.map(lambda g: scaled(g, share), grads)


def _tokens(mask: Array) -> Array:
    return jnp.maximum(jnp.sum(mask), 1).astype(float)
