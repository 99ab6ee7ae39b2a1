"""SnAp-1: RTRL that keeps the influence only where it arises within one step.

The influence P = ∂s/∂θ is dense after a few steps, since every unit reaches every other. SnAp-1
(Menick et al., 2021) keeps of it the entries that are not zero after one step alone, and drops all
others at each step. Let unit i have the numbers s_i of the carry (h and c of an LSTM, h of the
others) and be fed by θ_i, the columns g N + i of W_xh and W_hh and the numbers g N + i of the
cell's other parameters. In one step θ_i reaches no other unit, so

    P_t[s_i, θ_i] = K ∘ (D_i P_{t-1}[s_i, θ_i] + ∂s_i/∂θ_i),

    D_i = ∂s_i/∂s_{i,t-1} + Σ_g (∂s_i/∂z_h[g N + i]) W_hh[i, g N + i] (∂h_i/∂s_{i,t-1}),

where D is the diagonal of the Jacobian, m × m for each unit, and K is 1 where ∂s_i/∂θ_i is not zero
everywhere. K matters for the LSTM alone: its output gate reaches h within a step, and c only in
the next one, so nothing is kept of what W_xo, W_ho, b_o and p_o do to c. All that a unit reads is
its own, so one jvp with ones for a tangent gives a derivative of all units at once.

A cell that is linear in its state (`lm_jax.models.linear`) has no W_hh: D is all of the Jacobian,
nothing is dropped, and SnAp-1 of one layer is exact RTRL. A complex number counts as one, although
the carry holds its two halves.

In a stack each layer is taken by itself: what a layer's parameters do to the states of the layers
above is not kept. The gradient of the loss at t in a layer's state at t comes down through the
layers above within the time step. What lies below the layers, the embedding, gets the part of its
gradient with k = t alone.

Letters: B lanes; N units; m numbers of a unit; R numbers of a parameter that feed a unit (of a
matrix: in each row).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm_jax.gradients.bptt import Estimator
from lm_jax.gradients.rtrl import Stepped, online
from lm_jax.models import LanguageModel
from lm_jax.models.base import PLAIN, Carry, Params
from lm_jax.models.cells import Cell
from lm_jax.models.embedding import times
from lm_jax.models.product import product
from lm_jax.models.recurrence import Stack
from lm_jax.models.transition import KEY
from lm_jax.settings import UserError


class Diagonal(NamedTuple):
    """What SnAp-1 remembers."""

    carry: Carry
    """The model's own."""
    influence: list[Params]
    """Of each layer: leaves [B, m, *leaf], the influence of a column on its unit."""


def snap1(model: LanguageModel) -> Estimator:
    """SnAp-1, the sparse approximation of RTRL (Menick et al., 2021).

    Memory O(B m P), whatever T is, and time O(B m² P) a step, with m of 1 or 2. A carry may also be
    the model's own, which is taken as one that no parameter has influenced.

    Args:
      model: a recurrent language model of cells with separate `units`, without noise.

    Raises:
      UserError: the model is not recurrent, or a cell has no such units.
    """
    stack: Stack | None = model.stack
    if stack is None:
        raise UserError("SnAp-1 needs the layers of a recurrent model: model.kind=rnn")
    cells = [layer.cell for layer in stack.layers if layer.cell and layer.cell.units]
    if len(cells) < len(stack.layers):
        raise UserError(
            "SnAp-1 needs built-in cells: not an LSTM with model.layer_norm, not a GRU with "
            "model.reset=before, and no cell of your own"
        )
    shapes = jax.eval_shape(model.init, KEY)["layers"]
    kept = [_kept(cell, params) for cell, params in zip(cells, shapes, strict=True)]

    def init_carry(batch_size: int) -> Diagonal:
        carry = model.init_carry(batch_size)
        influence = []
        for cell, own, params in zip(cells, carry, shapes, strict=True):
            m = _numbers(cell, own).shape[1]
            influence.append(
                {name: jnp.zeros((batch_size, m, *leaf.shape)) for name, leaf in params.items()}
            )
        return Diagonal(carry, influence)

    def step(params: Params, memory: Diagonal, x: Array, y: Array, mask: Array) -> Stepped:
        outside = {name: part for name, part in params.items() if name != "layers"}

        def nats(outside: Params, moved: list[Carry]) -> tuple[Array, tuple]:
            """Those of the step, where each layer's state is moved after it was made."""
            whole = {**params, **outside}
            h, carries, read = stack.vectors(whole, x[None]), [], []
            for place, layer in enumerate(stack.layers):
                after, _ = layer.run(params["layers"][place], memory.carry[place], h, PLAIN)
                carries.append(jax.tree.map(jnp.add, after, moved[place]))
                read.append(h[0])
                new = layer.output(carries[-1])[None]
                h = h + new if stack.residual and place else new
            return model.loss(whole, h, y[None], mask[None]), (tuple(carries), read)

        still = jax.tree.map(jnp.zeros_like, list(memory.carry))
        slopes = jax.value_and_grad(nats, argnums=(0, 1), has_aux=True)
        (value, (carry, read)), (grads, deltas) = slopes(outside, still)
        influence, layers = [], []
        for place, cell in enumerate(cells):
            own, before = params["layers"][place], memory.carry[place]
            new = _after(cell, kept[place], own, before, read[place], memory.influence[place])
            influence.append(new)
            delta = _numbers(cell, deltas[place])
            layers.append({name: _through(delta, leaf) for name, leaf in new.items()})
        return Diagonal(carry, influence), value, {**grads, "layers": layers}

    return online(model, Diagonal, init_carry, step)


def _numbers(cell: Cell, carry: Carry) -> Float[Array, "B m N"]:
    """The numbers of each unit."""
    leaves = jax.tree.leaves(carry)
    return jnp.concatenate([leaf.reshape(len(leaf), -1, cell.units) for leaf in leaves], axis=1)


def _one_step(cell: Cell) -> Callable[..., Float[Array, "B m N"]]:
    """(own, carry, z_h, x W_xh) -> the numbers of each unit after a step; z_h may be None."""

    def numbers(own: Params, carry: Carry, z_h: Any, z: Array) -> Array:
        z_x = cell.prepare(own, z[None])[0]
        if cell.gate is None:
            return _numbers(cell, cell.step(own, carry, z_x))
        return _numbers(cell, cell.gate(own, carry, z_h, z_x))

    return numbers


def _own(params: Params) -> Params:
    """All but the matrices."""
    return {name: leaf for name, leaf in params.items() if name not in ("W_hh", "W_xh")}


def _slopes(f: Callable[..., Float[Array, "B m N"]], own: Params, *at: Any) -> tuple:
    """The derivatives of the numbers of each unit in all that this unit reads.

    Args:
      f: (own, *at) -> numbers; of each leaf unit i reads number r N + i alone, r from 0 to R - 1.
      own: leaves of R N numbers, for all lanes.
      at: leaves [B, R N].

    Returns:
      the arguments, with leaves [B, m, R, N].
    """
    value, push = jax.linearize(f, own, *at)
    leaves, structure = jax.tree.flatten((own, *at))
    shared = len(jax.tree.leaves(own))
    still = [jnp.zeros_like(leaf) for leaf in leaves]

    def along(place: int) -> Float[Array, "B m R N"]:
        leaf = leaves[place]
        shape = leaf.shape if place < shared else leaf.shape[1:]
        row = np.arange(math.prod(shape)).reshape(shape) // value.shape[-1]
        found = []
        for r in range(row.max() + 1):
            one = jnp.broadcast_to(jnp.asarray(row == r, leaf.dtype), leaf.shape)
            found.append(push(*structure.unflatten([*still[:place], one, *still[place + 1 :]])))
        return jnp.stack(found, axis=2)

    return structure.unflatten([along(place) for place in range(len(leaves))])


def _kept(cell: Cell, shapes: Params) -> dict[str, Bool[np.ndarray, "m R"]]:
    """K: whether a number of a parameter reaches a number of its unit within one step.

    A derivative that is not zero everywhere is not zero at a point drawn at random, or, of relu,
    at one of many.

    Args:
      cell: with separate units.
      shapes: of the layer's parameters.
    """
    draw = np.random.default_rng(0)
    carry = jax.eval_shape(lambda: cell.init_carry(64))
    z = jax.eval_shape(lambda: jnp.zeros((64, cell.width)))
    at = _own(shapes), carry, None if cell.gate is None else z, z
    with jax.ensure_compile_time_eval():  # also while a training step is being traced
        point = jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape), a.dtype), at)
        own, _, by_z_h, by_z = jax.jit(functools.partial(_slopes, _one_step(cell)))(*point)
    found = {**own, "W_xh": by_z} | ({} if by_z_h is None else {"W_hh": by_z_h})
    ends = np.cumsum([leaf.shape[1] // by_z.shape[-1] for leaf in jax.tree.leaves(carry)])

    def reached(slopes: Float[Array, "B m R N"]) -> Bool[np.ndarray, "m R"]:
        """What reaches one half of a complex number reaches the number."""
        parts = np.split(np.any(np.asarray(slopes) != 0, axis=(0, 3)), ends[:-1])
        return np.concatenate([np.broadcast_to(part.any(axis=0), part.shape) for part in parts])

    return {name: reached(slopes) for name, slopes in found.items()}


def _after(
    cell: Cell,
    kept: dict[str, Bool[np.ndarray, "m R"]],
    params: Params,
    before: Carry,
    read: Float[Array, "B E"] | Int[Array, " B"],
    influence: Params,
) -> Params:
    """The influence after one step of a layer, given that before it."""
    W_xh, h = params["W_xh"], cell.output(before)
    z_h = None if cell.gate is None else product(h, params["W_hh"], cell.precision)
    z = times(read[None], W_xh, cell.precision)[0]
    own, by_carry, by_z_h, by_z = _slopes(_one_step(cell), _own(params), before, z_h, z)
    D = jnp.concatenate(jax.tree.leaves(by_carry), axis=2)
    if jnp.issubdtype(read.dtype, jnp.integer):
        read = jax.nn.one_hot(read, len(W_xh), dtype=W_xh.dtype)
    now = {**own, "W_xh": jnp.einsum("bk,bori->bokri", read, by_z)}
    if by_z_h is not None:
        # W_hh[i, g N + i], the connection of unit i to itself.
        itself = jnp.diagonal(params["W_hh"].reshape(cell.units, -1, cell.units), axis1=0, axis2=2)
        back = jnp.einsum("bogi,gi->boi", by_z_h, itself)
        _, h_by_carry = _slopes(lambda _, carry: cell.output(carry)[:, None], {}, before)
        seen = jnp.concatenate(jax.tree.leaves(h_by_carry), axis=2)[:, 0]
        D = D + jnp.einsum("boi,bai->boai", back, seen)
        now["W_hh"] = jnp.einsum("bk,bogi->bokgi", h, by_z_h)
    return {
        name: _travelled(D, leaf, kept[name]) + now[name].reshape(leaf.shape)
        for name, leaf in influence.items()
    }


def _travelled(
    D: Float[Array, "B m m N"], influence: Float[Array, "B m *leaf"], kept: Bool[np.ndarray, "m R"]
) -> Array:
    """K ∘ D P of each unit; D[:, o, a] is what its old number a does to its new number o."""
    B, m, _, N = D.shape
    units = jnp.einsum("boai,bari->bori", D, influence.reshape(B, m, -1, N))
    if not kept.all():  # XLA does not drop a mask that keeps all
        rows = units.reshape(B, m, -1, kept.shape[1], N)
        units = jnp.where(kept[None, :, None, :, None], rows, 0)
    return units.reshape(influence.shape)


def _through(delta: Float[Array, "B m N"], influence: Float[Array, "B m *leaf"]) -> Array:
    """The gradient that comes through the units, summed over lanes."""
    units = influence.reshape(*influence.shape[:2], -1, delta.shape[-1])
    return jnp.einsum("boi,bori->ri", delta, units).reshape(influence.shape[2:])
