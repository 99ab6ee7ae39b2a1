"""A recurrent layer over time, with the forward and the backward pass.

    z_x[t] = x_t W_xh + b_h              all t in one product, before the scan
    carry_t = gate(carry_{t-1}, h_{t-1} W_hh, z_x[t])
    h_t = output(carry_t)

The backward pass (`explicit`) follows the lecture's derivation of backpropagation through time,
with no extra work. Let J be the loss, and δ_t = ∂J/∂carry_t. δ_t is the sum of the gradient from
the loss at t, through h_t, and the gradient from step t + 1,

    δ_t = (∂h_t/∂carry_t)ᵀ ∂J_t/∂h_t + (∂gate_{t+1}/∂carry_t)ᵀ δ_{t+1}
          + (∂h_t/∂carry_t)ᵀ W_hh ε_{t+1},
    ε_t = (∂gate_t/∂z_h)ᵀ δ_t,

with a single product with W_hh in each step of a scan from T to 1. The gradient of W_hh is a double
sum over the time t of the loss and the time k of the weight's use,

    ∂J/∂W_hh = Σ_t Σ_{k ≤ t} (∂J_t/∂h_t) (∂h_t/∂h_k) (∂h_k/∂W_hh).

After the scan, ε_k holds the sum over t with the products of Jacobians, and the gradient is
Σ_k h_{k-1}ᵀ ε_k: a single product over all steps and sequences. The scan also returns ∂J/∂z_x[t];
the gradients of W_xh and b_h follow from ∂J/∂z_x in a single product, too.

The gradient of the gate needs what the gate has computed. On a CPU the forward pass keeps the parts
that are slow to compute (tanh, σ). On an accelerator, where each array written costs a launch in
each step, the pass is lean: it keeps the carries alone, and the backward pass begins with z_h of
all steps, in a single product. `lm_jax.models.kernels` has the two loops of the lean pass as one
kernel each, for NVIDIA GPUs.

A recurrent model is a stack of `Layer`s. A `CellLayer` runs a cell of `lm_jax.models.cells`, and a
`lm_jax.models.transition.TransitionLayer` any other transition.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from lm_jax.models import kernels
from lm_jax.models.base import Carry, EdgeHook, Params, scaled_normal
from lm_jax.models.cells import Cell, GatedCell
from lm_jax.models.embedding import Embedding, times
from lm_jax.models.held import KeepingGate, keeping
from lm_jax.models.linear_recurrences import LinearCell
from lm_jax.models.matmul import matmul_in, round_weights, xla_precision
from lm_jax.trees import norm

UNROLL = 16
"""Steps of an accelerator's loop that XLA compiles together, to start fewer kernels."""
ALIGNED = 16
"""Multiple of the units to which the matrix units of a GPU need no filling."""


class Layer(abc.ABC):
    """A recurrent layer of a model."""

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Initial parameters."""

    @abc.abstractmethod
    def init_carry(self, batch_size: int) -> Carry:
        """The carry before the first step; leaves [B, ...]."""

    @abc.abstractmethod
    def run(
        self,
        params: Params,
        carry: Carry,
        x: Float[Array, "T B E"] | Int[Array, "T B"],
        hook: EdgeHook | None = None,
        tap: Float[Array, "T B"] | None = None,
        kept: Float[Array, "T B K"] | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        """Run over time; x may be numbers of tokens [T, B], in place of one-hot vectors.

        `hook` as in `LanguageModel.hidden`; `tap` is this layer's slice of the model's tap; `kept`
        is the share of the carry that stays as it is at each step (`lm_jax.models.held`).
        """

    @abc.abstractmethod
    def output(self, carry: Carry) -> Float[Array, "*T B H"]:
        """The hidden state in a carry."""


@dataclasses.dataclass(frozen=True)
class CellLayer(Layer):
    """A recurrent layer made from a cell."""

    cell: Cell
    inputs: Embedding | int
    """The embedding below the layer, or the number of outputs of the layer below."""
    in_kernels: bool = False
    """If True, a program for an NVIDIA GPU runs all time steps in one kernel each way."""

    def init(self, key: Array) -> Params:
        own, first = jax.random.split(key)
        width = self.cell.width
        if isinstance(self.inputs, Embedding):
            W_xh = self.inputs.init_projection(first, width)
        else:
            W_xh = scaled_normal(first, self.inputs, width)
        return {"W_xh": W_xh, **self.cell.init(own)}

    def init_carry(self, batch_size: int) -> Carry:
        return self.cell.init_carry(batch_size)

    def run(
        self,
        params: Params,
        carry: Carry,
        x: Array,
        hook: EdgeHook | None = None,
        tap: Array | None = None,
        kept: Array | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        cell = self.cell
        z_x = cell.prepare(params, times(x, params["W_xh"], cell.precision))
        return unroll(cell, params, carry, z_x, hook, tap, kept, self.in_kernels)

    def output(self, carry: Carry) -> Float[Array, "*T B H"]:
        return self.cell.output(carry)


def unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    z_x: Float[Array, "T B G"],
    hook: EdgeHook | None = None,
    tap: Float[Array, "T B"] | None = None,
    kept: Float[Array, "T B K"] | None = None,
    in_kernels: bool = False,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Run a cell through time.

    Args:
      cell: the cell.
      params: parameters of the cell.
      carry: the cell's carry before the first step.
      z_x: the input's part of the pre-activations, including the bias.
      hook: applied to the carry after each step (see `LanguageModel.hidden`).
      tap: the gradient of `tap` is ‖δ_t‖ of each sequence (see `LanguageModel.hidden`).
      kept: share of the carry that stays as it is at each step (`lm_jax.models.held`); None: 0.
      in_kernels: as for `explicit`; a hook takes the scan.

    Returns:
      the carry after the last step, and h_1 … h_T.
    """
    if kept is not None:
        cell, z_x = keeping(cell, z_x, kept)
    if hook is None and tap is None and isinstance(cell, LinearCell):
        return cell.scan(params, carry, z_x)
    if hook is None and isinstance(cell, GatedCell):
        return explicit(cell, params, carry, z_x, tap, in_kernels)

    def step(carry: Carry, at_t: tuple) -> tuple[Carry, Array]:
        z_x_t, *edge = at_t
        return over_the_edge(cell.step(params, carry, z_x_t), cell.output, hook, *edge)

    return jax.lax.scan(step, carry, (z_x, hook and hook.at, tap))


def over_the_edge(
    carry: Carry,
    output: Callable[[Carry], Array],
    hook: EdgeHook | None,
    at_t: Any,
    tap_t: Float[Array, " B"] | None,
) -> tuple[Carry, Array]:
    """Apply `hook` and the tap to the carry after a step; return the carry and the output h.

    In the backward pass the tap sees δ_t before a `hook` with `recurrent_only` False acts on δ_t.
    """
    if hook is not None and not hook.recurrent_only:
        carry = hook.act(carry, at_t)
    if tap_t is not None:
        carry = _tapped(carry, tap_t)
    h = output(carry)
    if hook is not None and hook.recurrent_only:
        carry = hook.act(carry, at_t)
    return carry, h


@jax.custom_vjp
def _tapped(carry: Carry, tap: Float[Array, " B"]) -> Carry:
    del tap
    return carry


_tapped.defvjp(lambda carry, tap: (carry, None), lambda _, delta: (delta, norm(delta, kept=1)))


def explicit(
    cell: GatedCell,
    params: Params,
    carry: Carry,
    z_x: Float[Array, "T B G"],
    tap: Float[Array, "T B"] | None = None,
    in_kernels: bool = False,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Run a cell through time, as `unroll` does, with a hand-written gradient (see module head).

    Supports second derivatives and `jax.vmap`, but not forward mode alone (`jax.jvp`).

    Args:
      cell: the cell.
      params, carry, z_x, tap: as for `unroll`; the backward pass has δ_t, and a tap only costs the
        norm of δ_t.
      in_kernels: if True, a program for NVIDIA GPUs runs all steps in one launch each way
        (`in_one_kernel`), and has no second derivatives. In float64, and with the sequences spread
        over several devices, the steps are a scan all the same.
    """
    params = {name: leaf for name, leaf in params.items() if name not in ("W_xh", "b_h")}
    ways = {"cpu": _pass_of(cell, tapped=tap is not None, recompute=False)}
    if in_kernels and z_x.dtype == jnp.float32 and not _spread():
        ways["cuda"] = functools.partial(in_one_kernel, cell)
    default = functools.partial(lean, cell)
    return jax.lax.platform_dependent(params, carry, z_x, tap, default=default, **ways)


def _spread() -> bool:
    """True if several devices share the sequences.

    False inside `jax.shard_map`, where the code runs on a single device's shard.
    """
    return AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types


def lean(
    cell: GatedCell,
    params: Params,
    carry: Carry,
    z_x: Float[Array, "T B G"],
    tap: Float[Array, "T B"] | None = None,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """The pass of `explicit` on an accelerator (see module head), on any platform.

    Idle units fill up a multiple of `ALIGNED`. XLA would otherwise fill up both factors of the
    product for the matrix units of a GPU, in each step.

    Args:
      cell, carry, z_x, tap: as for `explicit`.
      params: W_hh, and the parameters of the gate.
    """
    idle = 0 if cell.units is None else -cell.units % ALIGNED
    run = functools.partial(_pass_of, tapped=tap is not None, recompute=True)
    return _with_idle_units(run, cell, idle, params, carry, z_x, tap)


def in_one_kernel(
    cell: GatedCell,
    params: Params,
    carry: Carry,
    z_x: Float[Array, "T B G"],
    tap: Float[Array, "T B"] | None = None,
    *,
    interpret: bool = False,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """The pass of `lean`, with all steps in one launch each way (`lm_jax.models.kernels`).

    Idle units fill up whole tiles, and idle sequences whole blocks.

    Args:
      cell, carry, z_x, tap: as for `explicit`; units of the cell interact only through W_hh.
      params: W_hh, and the parameters of the gate.
      interpret: as for `lm_jax.models.kernels.forward`.
    """
    N, B = cell.hidden_size, z_x.shape[1]
    more = -B % kernels.SEQUENCES

    def filled(leaf: Array) -> Array:
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 2) + [(0, more), (0, 0)])

    if isinstance(cell, KeepingGate):
        z_x = cell.by_unit(z_x, carry)
    if tap is not None:
        tap = jnp.pad(tap, ((0, 0), (0, more)))
    carry, z_x = jax.tree.map(filled, (carry, z_x))
    run = functools.partial(
        _pass_of, tapped=tap is not None, recompute=True, kernel=True, interpret=interpret
    )
    found = _with_idle_units(run, cell, -N % kernels.tile(N), params, carry, z_x, tap)
    return jax.tree.map(lambda leaf: leaf[..., :B, :], found)


def _with_idle_units(
    run_of: Callable[[GatedCell], Callable],
    cell: GatedCell,
    idle: int,
    params: Params,
    carry: Carry,
    z_x: Array,
    tap: Array | None,
) -> tuple[Carry, Array]:
    """Run a pass of a cell with some more units, and leave them out of the result."""
    if idle == 0:
        return run_of(cell)(params, carry, z_x, tap)
    N = cell.hidden_size

    def widened(leaf: Array) -> Array:
        by_unit = leaf.reshape(*leaf.shape[:-1], -1, N)
        wide = jnp.pad(by_unit, [(0, 0)] * (by_unit.ndim - 1) + [(0, idle)])
        return wide.reshape(*leaf.shape[:-1], -1)

    def narrowed(leaf: Array) -> Array:
        by_unit = leaf.reshape(*leaf.shape[:-1], -1, N + idle)
        return by_unit[..., :N].reshape(*leaf.shape[:-1], -1)

    params, carry, z_x = jax.tree.map(widened, (params, carry, z_x))
    params["W_hh"] = jnp.pad(params["W_hh"], ((0, idle), (0, 0)))
    last, h = run_of(cell.resized(N + idle))(params, carry, z_x, tap)
    return jax.tree.map(narrowed, last), narrowed(h)


def _pass_of(
    cell: GatedCell, tapped: bool, recompute: bool, kernel: bool = False, interpret: bool = False
) -> Callable:
    """The function (params, carry, z_x, tap) -> (carry, h) of a cell, with its gradient.

    Args:
      cell: the cell.
      tapped: False if the tap is None.
      recompute: keep the carries alone, and compute the gates a second time, with z_h of all steps
        in one product; False: keep what is slow to compute, too (see module head).
      kernel: run the steps in `lm_jax.models.kernels`, with `interpret`; needs `recompute`.
    """
    # A function of its own: JAX hashes it, and a cell in a traced model holds tracers.
    gate = lambda *at: cell.gate(*at)  # noqa: E731
    unroll = UNROLL if recompute else 1

    def product(h: Array, W: Array) -> Array:
        return matmul_in(h, W, cell.precision)

    def forward(
        params: Params, carry: Carry, z_x: Array, tap: Array | None
    ) -> tuple[tuple[Carry, Array], tuple]:
        del tap
        W_hh, own = _split(params)
        W = round_weights(W_hh, cell.precision)

        def step(carry: Carry, z_x_t: Array) -> tuple[Carry, Any]:
            z_h = product(cell.output(carry), W)
            if recompute:
                after = gate(own, carry, z_h, z_x_t)
                return after, after
            after, back = jax.vjp(_frugal(gate), own, carry, z_h, z_x_t)
            h = cell.output(after)
            return after, (h, carry, _without(back, (own, carry, h, z_x_t)))

        if kernel:
            kept = kernels.forward(cell, W, own, carry, z_x, interpret=interpret)
            last = jax.tree.map(lambda leaf: leaf[-1], kept)
        else:
            last, kept = jax.lax.scan(step, carry, z_x, unroll=unroll)
        if recompute:
            before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), carry, kept)
            return (last, cell.output(kept)), (params, before, z_x)
        h, before, kept = kept
        return (last, h), (params, before, z_x, h, kept)

    def backward(saved: tuple, cotangents: tuple[Carry, Array]) -> tuple:
        params, before, z_x, *kept = saved
        W_hh, own = _split(params)
        returned_last, d_h = cotangents
        W = round_weights(W_hh, cell.precision)
        h_before = cell.output(before)
        z_h = jax.eval_shape(product, h_before[0], W)
        alike = _alike(gate, own, returned_last, z_h, z_x[0])
        if recompute:
            kept = [product(h_before, W)]

        def pullback(before_t: Carry, z_x_t: Array, *kept_t: Any) -> Callable:
            if recompute:
                return jax.vjp(gate, own, before_t, *kept_t, z_x_t)[1]
            h_t, slow = kept_t
            return slow((own, before_t, h_t, z_x_t))

        def step(sums: tuple[Carry, Params], at_t: tuple) -> tuple[tuple, tuple]:
            returned, d_own = sums
            *kept_t, d_h_t = at_t
            # The output is a part of the carry, so this pullback is the same at every time.
            _, to_carry = jax.vjp(cell.output, kept_t[0])
            delta = jax.tree.map(jnp.add, returned, *to_carry(d_h_t))
            d_own_t, returned, epsilon, d_z_x = pullback(*kept_t)(delta)
            returned = jax.tree.map(jnp.add, returned, *to_carry(product(epsilon, W.T)))
            if apart:
                d_own_t = zero_own
            twice = None if alike else d_z_x
            length = norm(delta, kept=1) if tapped else None
            d_own = jax.tree.map(jnp.add, d_own, d_own_t)
            return (returned, d_own), (epsilon, twice, length, delta if apart else None)

        # Sequences on several devices: sum over sequences once, after the scan.
        spread = _spread()
        zero_own = optax.tree.zeros_like(own)
        apart = (spread or recompute) and bool(own)
        zero = returned_last, zero_own
        at = before, z_x, *kept
        if kernel:
            returned, epsilon, d_z_x, deltas = kernels.backward(
                cell,
                W,
                own,
                before,
                kept[0],
                z_x,
                returned_last,
                d_h,
                alike=alike,
                keep_delta=apart or tapped,
                interpret=interpret,
            )
            first = jax.tree.map(lambda leaf: leaf[0], before)
            (d_first,) = jax.vjp(cell.output, first)[1](product(epsilon[0], W.T))
            returned = jax.tree.map(jnp.add, returned, d_first)
            lengths = norm(deltas, kept=2) if tapped else None
            d_own = zero_own
        else:
            (returned, d_own), found = jax.lax.scan(
                step, zero, (*at, d_h), reverse=True, unroll=unroll
            )
            epsilon, d_z_x, lengths, deltas = found
        if apart:
            by_step = jax.vmap(lambda *at_t: pullback(*at_t[:-1])(at_t[-1])[0])
            d_own = jax.tree.map(lambda d: jnp.sum(d, axis=0), by_step(*at, deltas))
        d_z_x = epsilon if d_z_x is None else d_z_x
        if spread:
            # Flattening steps and sequences would make each device fetch the other devices' data.
            narrow = round_weights(epsilon, cell.precision)
            d_W_hh = jax.lax.dot_general(
                h_before.astype(narrow.dtype),
                narrow,
                (((0, 1), (0, 1)), ((), ())),
                xla_precision(cell.precision),
                preferred_element_type=jnp.promote_types(narrow.dtype, jnp.float32),
            )
            return {"W_hh": d_W_hh.astype(W_hh.dtype), **d_own}, returned, d_z_x, lengths
        # As matrices: contracting two axes at once is several times slower on a CPU.
        H, G = W_hh.shape
        narrow = round_weights(epsilon.reshape(-1, G), cell.precision)
        d_W_hh = product(h_before.reshape(-1, H).T, narrow)
        return {"W_hh": d_W_hh, **d_own}, returned, d_z_x, lengths

    @jax.custom_vjp
    def run(params: Params, carry: Carry, z_x: Array, tap: Array | None) -> tuple[Carry, Array]:
        return forward(params, carry, z_x, tap)[0]

    run.defvjp(forward, backward)
    return run


def _split(params: Params) -> tuple[Array, Params]:
    """W_hh, and the parameters of the gate."""
    return params["W_hh"], {name: leaf for name, leaf in params.items() if name != "W_hh"}


def _frugal(gate: Callable) -> Callable:
    """The gate with a VJP that keeps only the slow-to-compute residuals and recomputes the rest."""
    slow = "tanh", "logistic", "rsqrt"
    return jax.checkpoint(
        gate, policy=lambda primitive, *_, **__: primitive.name in slow, prevent_cse=False
    )


def _without(back: Callable, at_hand: Any) -> Partial:
    """Strip from a VJP the residuals that the caller already holds.

    The result takes those arrays, in the structure of `at_hand`, and returns the full VJP.
    """
    leaves, tree = jax.tree.flatten(back)
    known = [id(leaf) for leaf in jax.tree.leaves(at_hand)]
    places = [known.index(id(leaf)) if id(leaf) in known else None for leaf in leaves]

    def whole(kept: list[Array], at_hand: Any) -> Callable:
        mine, others = iter(kept), jax.tree.leaves(at_hand)
        found = [next(mine) if place is None else others[place] for place in places]
        return jax.tree.unflatten(tree, found)

    kept = [leaf for leaf, place in zip(leaves, places, strict=True) if place is None]
    return Partial(whole, kept)


def _alike(gate: Callable, own: Params, carry: Carry, z_h: Any, z_x: Array) -> bool:
    """True if a gate reads only the sum z_h + z_x: both then have the same gradient."""
    found = []

    def both(own: Params, carry: Carry, z_h: Array, z_x: Array) -> None:
        after, back = jax.vjp(gate, own, carry, z_h, z_x)
        _, _, d_z_h, d_z_x = back(after)
        found.append(d_z_h is d_z_x)

    jax.eval_shape(both, own, carry, z_h, z_x)
    return found[0]
