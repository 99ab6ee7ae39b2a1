"""SnAp-1: RTRL that keeps only the influence that arises within a single step.

The influence P = ∂s/∂θ is dense after a few steps, since every unit reaches every other unit.
SnAp-1 (Menick et al., 2021) keeps the entries of P that are nonzero after a single step, and drops
all others at each step. Unit i has the numbers s_i of the carry (h and c of an LSTM, h of the other
cells). Its parameters θ_i are the columns g N + i of W_xh and W_hh, and the numbers g N + i of the
cell's other parameters. Within a step θ_i reaches no other unit, so

    P_t[s_i, θ_i] = K ∘ (D_i P_{t-1}[s_i, θ_i] + ∂s_i/∂θ_i),

    D_i = ∂s_i/∂s_{i,t-1} + Σ_g (∂s_i/∂z_h[g N + i]) W_hh[i, g N + i] (∂h_i/∂s_{i,t-1}),

D is the diagonal of the Jacobian, an m × m block for each unit. K is 0 for an entry of ∂s_i/∂θ_i
that is zero everywhere, else 1. K matters for the LSTM alone: the output gate reaches h within a
step, but c only in the next step, so the influence of W_xo, W_ho, b_o and p_o on c is dropped. No
two units read the same number, so a single jvp with a tangent of ones gives a derivative of all
units at once.

A cell that is linear in its state (`lm_jax.models.LinearCell`) has no W_hh. D is then the whole
Jacobian, nothing is dropped, and SnAp-1 of a single layer is exact RTRL. In K, a complex number
counts as a single number, although the carry holds the real and the imaginary part.

In a stack each layer is treated alone: the influence of a layer's parameters on the states of the
layers above is dropped. The gradient of the loss at t with respect to a layer's state at t comes
down through the layers above within the time step. The embedding, below the layers, gets only the
part of the gradient with k = t.

Letters: B sequences; N units; m numbers of a unit; R numbers of a parameter that feed a unit (for a
matrix: in each row).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from lm_jax.gradients.bptt import Estimator
from lm_jax.gradients.rtrl import Stepped, online
from lm_jax.models import LanguageModel
from lm_jax.models.base import NO_HOOK, Carry, Params
from lm_jax.models.cells import Cell, GatedCell
from lm_jax.models.embedding import times
from lm_jax.models.layers import CellLayer
from lm_jax.models.matmul import matmul
from lm_jax.models.rnn import RNNModel
from lm_jax.models.transition import KEY
from lm_jax.settings import UserError

_sum = functools.partial(jnp.einsum, precision="highest")


class Diagonal(NamedTuple):
    """State of SnAp-1 between steps."""

    carry: Carry
    """The model's carry."""
    influence: list[Params]
    """For each layer: leaves [B, m, *leaf], the influence of each column on the column's unit."""


def snap1(model: LanguageModel) -> Estimator:
    """SnAp-1, the sparse approximation of RTRL (Menick et al., 2021).

    Memory O(B m P) for any T, and time O(B m² P) per step, with m of 1 or 2. The carry may also be
    the model's own carry; the influence is then zero at first.

    Args:
      model: a recurrent language model of cells with separate `units`, without dropout.

    Raises:
      UserError: the model is not recurrent, a cell has no separate units, or the model has dropout.
    """
    if not isinstance(model, RNNModel):
        raise UserError("SnAp-1 needs the layers of a recurrent model: model=rnn")
    cells = [layer.cell for layer in model.layers if isinstance(layer, CellLayer)]
    if len(cells) < len(model.layers) or any(cell.units is None for cell in cells):
        raise UserError(
            "SnAp-1 needs built-in cells: not an LSTM with model.cell.layer_norm, not a GRU "
            "with model.cell.reset=before, not an mLSTM or a Mogrifier, no cell of your own, and "
            "no model.block"
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
            """The loss of the step in nats, with `moved` added to each layer's new state."""
            whole = {**params, **outside}
            h, carries, read = model.vectors(whole, x[None]), [], []
            for place, layer in enumerate(model.layers):
                after, _ = layer.run(params["layers"][place], memory.carry[place], h, NO_HOOK)
                carries.append(jax.tree.map(jnp.add, after, moved[place]))
                read.append(h[0])
                new = layer.output(carries[-1])[None]
                h = h + new if model.residual and place else new
            return model.loss(whole, h, y[None], mask[None]), (tuple(carries), read)

        still = optax.tree.zeros_like(list(memory.carry))
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
    """The numbers of each unit, from the carry of a layer."""
    leaves = jax.tree.leaves(carry)
    return jnp.concatenate([leaf.reshape(len(leaf), -1, cell.units) for leaf in leaves], axis=1)


def _one_step(cell: Cell) -> Callable[..., Float[Array, "B m N"]]:
    """Function (own, carry, z_h, x W_xh) -> numbers of each unit after a step; z_h may be None."""

    def numbers(own: Params, carry: Carry, z_h: Any, z: Array) -> Array:
        z_x = cell.prepare(own, z[None])[0]
        if isinstance(cell, GatedCell):
            return _numbers(cell, cell.gate(own, carry, z_h, z_x))
        return _numbers(cell, cell.step(own, carry, z_x))

    return numbers


def _own(params: Params) -> Params:
    """All parameters except W_hh and W_xh."""
    return {name: leaf for name, leaf in params.items() if name not in ("W_hh", "W_xh")}


def _slopes(f: Callable[..., Float[Array, "B m N"]], own: Params, *at: Any) -> tuple:
    """Derivatives of the numbers of each unit with respect to all numbers that the unit reads.

    Args:
      f: (own, *at) -> numbers; from each leaf, unit i reads the numbers r N + i, r = 0 … R - 1, and
        no other.
      own: leaves of R N numbers, shared by all sequences.
      at: leaves [B, R N].

    Returns:
      the tree (own, *at), with leaves [B, m, R, N].
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
    """K: True if a number of a parameter reaches a number of the unit within a step.

    The derivatives are taken at many random points. A derivative that is not zero everywhere is
    nonzero at a random point, or, for relu, at some of the points.

    Args:
      cell: a cell with separate units.
      shapes: shapes of the layer's parameters.
    """
    draw = np.random.default_rng(0)
    carry = jax.eval_shape(lambda: cell.init_carry(64))
    z = jax.eval_shape(lambda: jnp.zeros((64, cell.width)))
    at = _own(shapes), carry, z if isinstance(cell, GatedCell) else None, z
    with jax.ensure_compile_time_eval():  # works while a training step is traced, too
        point = jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape), a.dtype), at)
        own, _, by_z_h, by_z = jax.jit(functools.partial(_slopes, _one_step(cell)))(*point)
    found = {**own, "W_xh": by_z} | ({} if by_z_h is None else {"W_hh": by_z_h})
    ends = np.cumsum([leaf.shape[1] // by_z.shape[-1] for leaf in jax.tree.leaves(carry)])

    def reached(slopes: Float[Array, "B m R N"]) -> Bool[np.ndarray, "m R"]:
        """A parameter that reaches one half of a complex number reaches both halves."""
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
    """The influence after a step of a layer, from the influence before the step."""
    W_xh, h = params["W_xh"], cell.output(before)
    gated = isinstance(cell, GatedCell)
    z_h = matmul(h, params["W_hh"], cell.precision) if gated else None
    z = times(read[None], W_xh, cell.precision)[0]
    own, by_carry, by_z_h, by_z = _slopes(_one_step(cell), _own(params), before, z_h, z)
    D = jnp.concatenate(jax.tree.leaves(by_carry), axis=2)
    if jnp.issubdtype(read.dtype, jnp.integer):
        read = jax.nn.one_hot(read, len(W_xh), dtype=W_xh.dtype)
    now = {**own, "W_xh": _sum("bk,bori->bokri", read, by_z)}
    if by_z_h is not None:
        # W_hh[i, g N + i], the connection of unit i to itself.
        itself = jnp.diagonal(params["W_hh"].reshape(cell.units, -1, cell.units), axis1=0, axis2=2)
        back = _sum("bogi,gi->boi", by_z_h, itself)
        _, h_by_carry = _slopes(lambda _, carry: cell.output(carry)[:, None], {}, before)
        seen = jnp.concatenate(jax.tree.leaves(h_by_carry), axis=2)[:, 0]
        D = D + _sum("boi,bai->boai", back, seen)
        now["W_hh"] = _sum("bk,bogi->bokgi", h, by_z_h)
    return {
        name: _travelled(D, leaf, kept[name]) + now[name].reshape(leaf.shape)
        for name, leaf in influence.items()
    }


def _travelled(
    D: Float[Array, "B m m N"], influence: Float[Array, "B m *leaf"], kept: Bool[np.ndarray, "m R"]
) -> Array:
    """K ∘ D P for each unit; D[:, o, a] is ∂(new number o) / ∂(old number a)."""
    B, m, _, N = D.shape
    units = _sum("boai,bari->bori", D, influence.reshape(B, m, -1, N))
    if not kept.all():  # XLA does not remove a mask that keeps everything
        rows = units.reshape(B, m, -1, kept.shape[1], N)
        units = jnp.where(kept[None, :, None, :, None], rows, 0)
    return units.reshape(influence.shape)


def _through(delta: Float[Array, "B m N"], influence: Float[Array, "B m *leaf"]) -> Array:
    """The gradient through the units, summed over the batch."""
    units = influence.reshape(*influence.shape[:2], -1, delta.shape[-1])
    return _sum("boi,bori->ri", delta, units).reshape(influence.shape[2:])
