"""One recurrent layer over time: the scan.

    z_x[t] = x_t W_xh + b_h              all t in one product, before the scan
    carry_t = gate(carry_{t-1}, h_{t-1} W_hh, z_x[t])
    h_t = output(carry_t)

with W_xh [inputs, G], W_hh [H, G] and b_h [G], where G is H times the cell's gates.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Between, Carry, Params
from lm_jax.models.cells import Cell


def init_recurrence(
    key: Array, W_xh: Float[Array, "inputs G"], hidden_size: int, gain: float | Array
) -> Params:
    """{"W_xh", "W_hh", "b_h"}: orthogonal blocks of W_hh, one a gate, times the gain; no bias."""
    width = W_xh.shape[1]
    orthogonal = jax.nn.initializers.orthogonal()
    keys = jax.random.split(key, width // hidden_size)
    blocks = [orthogonal(block_key, (hidden_size, hidden_size)) for block_key in keys]
    return {"W_xh": W_xh, "W_hh": gain * jnp.concatenate(blocks, axis=1), "b_h": jnp.zeros(width)}


def unroll(
    cell: Cell,
    W_hh: Float[Array, "H G"],
    carry: Carry,
    z_x: Float[Array, "T B G"],
    between: Between | None = None,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Runs a cell through time.

    Args:
      cell: the gate function and its company.
      W_hh: recurrent weights.
      carry: the cell's carry before the first step.
      z_x: the input's part of the pre-activations, bias included.
      between: applied to the carry after each step (see `LanguageModel.hidden`).

    Returns:
      the carry after the last step, and h_1 … h_T.
    """

    def step(carry: Carry, z_x_t: Array) -> tuple[Carry, Array]:
        carry = cell.gate(carry, cell.output(carry) @ W_hh, z_x_t)
        if between is not None:
            carry = between(carry)
        return carry, cell.output(carry)

    return jax.lax.scan(step, carry, z_x)
