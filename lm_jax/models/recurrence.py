"""A gated cell over time, with the forward and the backward pass.

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
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType
from jax.tree_util import Partial
from jaxtyping import Array, Float

from lm_jax.models import kernels
from lm_jax.models.base import Carry, Params
from lm_jax.models.cells import GatedCell
from lm_jax.models.held import KeepingGate
from lm_jax.models.matmul import matmul_in, round_weights, xla_precision
from lm_jax.trees import norm

UNROLL = 16
"""Steps of an accelerator's loop that XLA compiles together, to start fewer kernels."""
ALIGNED = 16
"""Multiple of the units to which the matrix units of a GPU need no filling."""


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
    ways: dict[str, Callable] = {"cpu": Pass(cell, tapped=tap is not None, recompute=False)}
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
    run = functools.partial(Pass, tapped=tap is not None, recompute=True)
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
        Pass, tapped=tap is not None, recompute=True, kernel=True, interpret=interpret
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


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: a cell may hold tracers
class Pass:
    """Pass of a cell over time, (params, carry, z_x, tap) -> (carry, h), with its own gradient.

    Attributes:
      cell: the cell.
      tapped: False if the tap is None.
      recompute: keep the carries alone, and compute the gates a second time, with z_h of all steps
        in one product; False: keep what is slow to compute, too (see module head).
      kernel: run all steps in one kernel each way (`lm_jax.models.kernels`); needs `recompute`.
      interpret: as for `lm_jax.models.kernels.forward`.
    """

    cell: GatedCell
    tapped: bool
    recompute: bool
    kernel: bool = False
    interpret: bool = False

    def __call__(
        self, params: Params, carry: Carry, z_x: Array, tap: Array | None
    ) -> tuple[Carry, Array]:
        run = jax.custom_vjp(lambda *given: self.forward(*given)[0])
        run.defvjp(self.forward, self.backward)
        return run(params, carry, z_x, tap)

    def forward(
        self, params: Params, carry: Carry, z_x: Array, tap: Array | None
    ) -> tuple[tuple[Carry, Array], tuple]:
        """The last carry and h_1 … h_T, and what the backward pass needs."""
        del tap
        cell = self.cell
        W_hh, own = _split(params)
        W = round_weights(W_hh, cell.precision)

        def step(carry: Carry, z_x_t: Array) -> tuple[Carry, Any]:
            z_h = self._product(cell.output(carry), W)
            if self.recompute:
                after = self._gate(own, carry, z_h, z_x_t)
                return after, after
            after, back = jax.vjp(_frugal(self._gate), own, carry, z_h, z_x_t)
            h = cell.output(after)
            return after, (h, carry, _without(back, (own, carry, h, z_x_t)))

        if self.kernel:
            kept = kernels.forward(cell, W, own, carry, z_x, interpret=self.interpret)
            last = jax.tree.map(lambda leaf: leaf[-1], kept)
        else:
            last, kept = jax.lax.scan(step, carry, z_x, unroll=self._unroll)
        if self.recompute:
            before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), carry, kept)
            return (last, cell.output(kept)), (params, before, z_x)
        h, before, residuals = kept
        return (last, h), (params, before, z_x, h, residuals)

    def backward(self, saved: tuple, cotangents: tuple[Carry, Array]) -> tuple:
        """The gradients of params, carry, z_x and tap."""
        params, before, z_x, *kept = saved
        W_hh, own = _split(params)
        W = round_weights(W_hh, self.cell.precision)
        h_before = self.cell.output(before)
        z_h = jax.eval_shape(self._product, h_before[0], W)
        alike = _alike(self._gate, own, cotangents[0], z_h, z_x[0])
        if self.recompute:
            kept = [self._product(h_before, W)]
        at = before, z_x, *kept
        # On several devices, sum over the sequences once, after the scan.
        apart = (_spread() or self.recompute) and bool(own)
        back = self._back_in_a_kernel if self.kernel else self._back_in_a_scan
        (returned, d_own), found = back(W, own, at, cotangents, alike=alike, apart=apart)
        epsilon, d_z_x, lengths, deltas = found
        if apart:
            by_step = jax.vmap(lambda *at_t: self._pullback(own, *at_t[:-1])(at_t[-1])[0])
            d_own = jax.tree.map(lambda d: jnp.sum(d, axis=0), by_step(*at, deltas))
        d_z_x = epsilon if d_z_x is None else d_z_x
        d_W_hh = self._weight_gradient(h_before, epsilon, W_hh)
        return {"W_hh": d_W_hh, **d_own}, returned, d_z_x, lengths

    def _back_in_a_scan(
        self,
        W: Array,
        own: Params,
        at: tuple,
        cotangents: tuple[Carry, Array],
        *,
        alike: bool,
        apart: bool,
    ) -> tuple[tuple[Carry, Params], tuple]:
        """Run δ backwards from T to 1, in a scan.

        Args:
          W: W_hh, rounded.
          own: the parameters of the gate.
          at: what the steps have read and kept, leaves [T, ...].
          cotangents: of the last carry and of h.
          alike: the gradients of z_h and z_x are the same.
          apart: the gradient of `own` is summed after the scan.

        Returns:
          the gradients of the first carry and of `own`; and for all steps ε, the gradient of z_x
          (None if it equals ε), ‖δ‖ if there is a tap, and δ if `apart`.
        """
        returned_last, d_h = cotangents
        zero_own = optax.tree.zeros_like(own)

        def step(sums: tuple[Carry, Params], at_t: tuple) -> tuple[tuple, tuple]:
            returned, d_own = sums
            *kept_t, d_h_t = at_t
            # The output is a part of the carry, so this pullback is the same at every time.
            _, to_carry = jax.vjp(self.cell.output, kept_t[0])
            delta = jax.tree.map(jnp.add, returned, *to_carry(d_h_t))
            d_own_t, returned, epsilon, d_z_x = self._pullback(own, *kept_t)(delta)
            returned = jax.tree.map(jnp.add, returned, *to_carry(self._product(epsilon, W.T)))
            if apart:
                d_own_t = zero_own
            twice = None if alike else d_z_x
            length = norm(delta, kept=1) if self.tapped else None
            d_own = jax.tree.map(jnp.add, d_own, d_own_t)
            return (returned, d_own), (epsilon, twice, length, delta if apart else None)

        zero = returned_last, zero_own
        return jax.lax.scan(step, zero, (*at, d_h), reverse=True, unroll=self._unroll)

    def _back_in_a_kernel(
        self,
        W: Array,
        own: Params,
        at: tuple,
        cotangents: tuple[Carry, Array],
        *,
        alike: bool,
        apart: bool,
    ) -> tuple[tuple[Carry, Params], tuple]:
        """Run δ backwards from T to 1 in one kernel; else as `_back_in_a_scan`."""
        before, z_x, z_h = at
        returned_last, d_h = cotangents
        returned, epsilon, d_z_x, deltas = kernels.backward(
            self.cell,
            W,
            own,
            before,
            z_h,
            z_x,
            returned_last,
            d_h,
            alike=alike,
            keep_delta=apart or self.tapped,
            interpret=self.interpret,
        )
        first = jax.tree.map(lambda leaf: leaf[0], before)
        (d_first,) = jax.vjp(self.cell.output, first)[1](self._product(epsilon[0], W.T))
        returned = jax.tree.map(jnp.add, returned, d_first)
        lengths = norm(deltas, kept=2) if self.tapped else None
        return (returned, optax.tree.zeros_like(own)), (epsilon, d_z_x, lengths, deltas)

    def _pullback(self, own: Params, before_t: Carry, z_x_t: Array, *kept_t: Any) -> Callable:
        """The VJP of the gate at a step."""
        if self.recompute:
            return jax.vjp(self._gate, own, before_t, *kept_t, z_x_t)[1]
        h_t, slow = kept_t
        return slow((own, before_t, h_t, z_x_t))

    def _weight_gradient(self, h_before: Array, epsilon: Array, W_hh: Array) -> Array:
        """Σ_k h_{k-1}ᵀ ε_k."""
        precision = self.cell.precision
        if _spread():
            # Flattening steps and sequences would make each device fetch the other devices' data.
            narrow = round_weights(epsilon, precision)
            found = jax.lax.dot_general(
                h_before.astype(narrow.dtype),
                narrow,
                (((0, 1), (0, 1)), ((), ())),
                xla_precision(precision),
                preferred_element_type=jnp.promote_types(narrow.dtype, jnp.float32),
            )
            return found.astype(W_hh.dtype)
        # As matrices: contracting two axes at once is several times slower on a CPU.
        H, G = W_hh.shape
        narrow = round_weights(epsilon.reshape(-1, G), precision)
        return self._product(h_before.reshape(-1, H).T, narrow)

    @property
    def _unroll(self) -> int:
        return UNROLL if self.recompute else 1

    def _gate(self, *at: Any) -> Carry:
        return self.cell.gate(*at)

    def _product(self, h: Array, W: Array) -> Array:
        return matmul_in(h, W, self.cell.precision)


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
