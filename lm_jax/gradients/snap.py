"""SnAp-1: RTRL that keeps the influence only where it arises within one step.

The influence P = ∂s/∂θ is dense after a few steps, since every unit reaches every other. SnAp-1
(Menick et al., 2021) keeps of it the entries that are not zero after one step alone, and drops all
others at each step. In a gated cell the columns g H + i of W_xh and W_hh, of b_h and of z feed
unit i and no other, so of each parameter the influence on one unit is kept,

    P_t[i, θ_i] = D_i P_{t-1}[i, θ_i] + ∂s_i/∂θ_i,

    D_i = ∂s_i/∂s_{i,t-1} + Σ_g (∂s_i/∂z_h[g H + i]) W_hh[i, g H + i] (∂h_i/∂s_{i,t-1}),

where s_i holds the m numbers of unit i in the carry (h and c of an LSTM, h of the others) and D is
the diagonal of the Jacobian, m × m for each unit. A gate is elementwise, so one jvp with ones for a
tangent gives a derivative of all units at once.

In a stack each layer is taken by itself: what a layer's parameters do to the states of the layers
above is not kept. The gradient of the loss at t in a layer's state at t comes down through the
layers above within the time step. What lies below the layers, the embedding, gets the part of its
gradient with k = t alone.

Letters: B lanes; H units; m numbers of a unit; G columns of W_hh, H for each gate.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
      model: a recurrent language model of elementwise gated cells, without noise.

    Raises:
      UserError: the cells are no such cells.
    """
    stack: Stack | None = model.stack
    if stack is None:
        raise UserError("SnAp-1 needs the layers of a recurrent model: model.kind=rnn")
    cells = [layer.cell for layer in stack.layers]
    if any(cell is None or cell.gate is None or not cell.elementwise for cell in cells):
        raise UserError(
            "SnAp-1 needs cells whose gate is elementwise: elman, lstm without model.layer_norm, "
            "or gru with the reset after the product"
        )

    def init_carry(batch_size: int) -> Diagonal:
        layers = jax.eval_shape(model.init, KEY)["layers"]
        carry = model.init_carry(batch_size)

        def none(own: Carry, leaf: Any) -> Array:
            return jnp.zeros((batch_size, len(jax.tree.leaves(own)), *leaf.shape))

        influence = [
            {name: none(own, leaf) for name, leaf in params.items()}
            for own, params in zip(carry, layers, strict=True)
        ]
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
            assert cell is not None
            own, before = params["layers"][place], memory.carry[place]
            new = _after(cell, own, before, read[place], memory.influence[place])
            influence.append(new)
            delta = jnp.stack(jax.tree.leaves(deltas[place]), axis=1)
            layers.append({name: _through(delta, leaf) for name, leaf in new.items()})
        return Diagonal(carry, influence), value, {**grads, "layers": layers}

    return online(model, Diagonal, init_carry, step)


def _after(
    cell: Cell,
    params: Params,
    before: Carry,
    read: Float[Array, "B E"] | Int[Array, " B"],
    influence: Params,
) -> Params:
    """The influence after one step of a layer, given that before it."""
    gate = cell.gate
    assert gate is not None
    W_hh, W_xh = params["W_hh"], params["W_xh"]
    h = cell.output(before)
    H = h.shape[1]
    own = {name: leaf for name, leaf in params.items() if name not in ("W_hh", "W_xh", "b_h")}
    z_x = cell.prepare(params, times(read[None], W_xh, cell.precision))[0]
    at = own, before, product(h, W_hh, cell.precision), z_x
    _, push = jax.linearize(lambda *at: jnp.stack(jax.tree.leaves(gate(*at)), 1), *at)
    nothing = jax.tree.map(jnp.zeros_like, at)

    def slope(place: int, tangent: Any) -> Float[Array, "B m H"]:
        """The derivative of each unit along its own part of one argument of the gate."""
        return push(*nothing[:place], tangent, *nothing[place + 1 :])

    def by_columns(place: int) -> Float[Array, "B m G"]:
        columns = jnp.eye(W_hh.shape[1] // H)  # a gate's columns, and none of the others'
        ones = [jnp.broadcast_to(jnp.repeat(gate, H)[None], z_x.shape) for gate in columns]
        return jnp.concatenate([slope(place, one) for one in ones], axis=-1)

    def by_own(name: str) -> Array:
        rows = own[name].reshape(-1, H)
        ones = [
            jnp.zeros_like(rows).at[row].set(1).reshape(own[name].shape) for row in range(len(rows))
        ]
        found = [slope(0, {**nothing[0], name: one}) for one in ones]
        return jnp.stack(found, axis=2).reshape(*found[0].shape[:2], *own[name].shape)

    by_z_h, by_z_x = by_columns(2), by_columns(3)
    # W_hh[i, g H + i], what unit i says to itself.
    itself = jnp.diagonal(W_hh.reshape(H, -1, H), axis1=0, axis2=2)
    back = jnp.einsum("bogi,gi->boi", by_z_h.reshape(*by_z_h.shape[:2], -1, H), itself)
    leaves, structure = jax.tree.flatten(before)
    D = []
    for place in range(len(leaves)):
        one = [jnp.ones_like(a) if n == place else jnp.zeros_like(a) for n, a in enumerate(leaves)]
        alone = structure.unflatten(one)
        _, said = jax.jvp(cell.output, (before,), (alone,))
        D.append(slope(1, alone) + back * jnp.broadcast_to(said[:, None], back.shape))
    if jnp.issubdtype(read.dtype, jnp.integer):
        read = jax.nn.one_hot(read, len(W_xh), dtype=W_xh.dtype)
    now = {
        "W_hh": jnp.einsum("bk,boc->bokc", h, by_z_h),
        "W_xh": jnp.einsum("bk,boc->bokc", read, by_z_x),
        "b_h": by_z_x,
        **{name: by_own(name) for name in own},
    }
    return {
        name: _travelled(jnp.stack(D, axis=1), leaf) + now[name] for name, leaf in influence.items()
    }


def _travelled(D: Float[Array, "B m m H"], influence: Float[Array, "B m *leaf"]) -> Array:
    """D P of each unit; D[:, a, o] is what the unit's old number a does to its new number o."""
    units = influence.reshape(*influence.shape[:2], -1, D.shape[-1])
    return jnp.einsum("baoi,bari->bori", D, units).reshape(influence.shape)


def _through(delta: Float[Array, "B m H"], influence: Float[Array, "B m *leaf"]) -> Array:
    """The gradient that comes through the units, summed over lanes."""
    units = influence.reshape(*influence.shape[:2], -1, delta.shape[-1])
    return jnp.einsum("boi,bori->ri", delta, units).reshape(influence.shape[2:])
