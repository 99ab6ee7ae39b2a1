"""Recurrent cells as functions of their pre-activations.

A cell computes the next carry from z_h = h_{t-1} W_hh and z_x = x_t W_xh + b_h. The recurrence
(`lm_jax.models.recurrence`) computes all z_x of a chunk in a single product, and also z_h, if
nothing stands between h and W_hh. The code of a cell is then only the lines that distinguish the
cell: `gate(params, carry, z_h, z_x) -> carry`, elementwise except for layer normalisation.

Letters: H units; G columns of W_hh, H for each gate; B sequences of a batch. Gates of the LSTM
i, f, g, o and of the GRU r, z, n, in this order.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Carry, Params, check_matrix
from lm_jax.models.product import Precision, product

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
}


class Cell(NamedTuple):
    """A recurrent cell of H units, as functions on a batch."""

    width: int
    """Columns of W_xh, H for each gate."""
    init: Callable[[Array], Params]
    """key -> the cell's own params: b_h, and W_hh if the cell has a W_hh."""
    init_carry: Callable[[int], Carry]
    """batch_size -> carry; leaves [B, ...]."""
    prepare: Callable[[Params, Array], Array]
    """(params, x W_xh [T, B, width]) -> z_x, all steps of a chunk at once."""
    step: Callable[[Params, Carry, Array], Carry]
    """(params, carry, z_x[B, width]) -> carry."""
    output: Callable[[Carry], Array]
    """carry -> h[B, H]: the hidden state for the next step and the next layer, a part of the
    carry."""
    gate: Callable[[Params, Carry, Array, Array], Carry] | None = None
    """(params, carry, z_h, z_x) -> carry, equal to `step` if z_h = h W_hh; None: `step` has another
    form."""
    scan: Callable[[Params, Carry, Array], tuple[Carry, Array]] | None = None
    """(params, carry, z_x[T, B, width]) -> (carry, h[T, B, H]), in parallel over time; None: the
    cell runs step by step."""
    units: int | None = None
    """N, the number of units, if units interact only through z_h = h W_hh, or not at all: unit i of
    the new carry depends on unit i of the old carry and on entries g N + i of z_h, of x W_xh and of
    each of the cell's other params. A leaf of the carry has an entry for each unit: [B, N], or
    [B, 2 N] for complex units, all real parts before all imaginary parts. None: units interact in
    other ways."""
    precision: Precision = "float32"
    """Precision of the products with W_xh and W_hh."""


class LSTMState(NamedTuple):
    """The carry of an LSTM."""

    h: Float[Array, "B H"]
    c: Float[Array, "B H"]


def elman(
    hidden_size: int,
    activation: str = "tanh",
    *,
    W_hh: "InitW | None" = None,
    precision: Precision = "float32",
) -> Cell:
    """The Elman cell, h_t = f(z_x + z_h) (Elman, 1990).

    Args:
      hidden_size: H.
      activation: f, a name in `ACTIVATIONS`.
      W_hh: draws the recurrent weights, see `recurrent_weights`; None: orthogonal.
      precision: see `lm_jax.models.product`.
    """
    f = ACTIVATIONS[activation]
    return _gated(
        hidden_size,
        gates=1,
        init_carry=lambda batch_size: jnp.zeros((batch_size, hidden_size)),
        gate=lambda params, h, z_h, z_x: f(z_x + z_h),
        output=lambda h: h,
        W_hh=W_hh,
        precision=precision,
    )


def lstm(
    hidden_size: int,
    *,
    forget_bias: float | Array = 1.0,
    peepholes: bool = False,
    layer_norm: bool = False,
    W_hh: "InitW | None" = None,
    precision: Precision = "float32",
) -> Cell:
    """The long short-term memory with a forget gate (Gers et al., 2000).

        i, f, o = σ(z_x + z_h),  g = tanh(z_x + z_h),  c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)

    Args:
      hidden_size: H.
      forget_bias: initial bias of f.
      peepholes: if True, i and f see p ∘ c_{t-1}, and o sees p ∘ c_t (Gers & Schmidhuber, 2000; in
        Graves, 2013, equations 7 to 11).
      layer_norm: if True, normalise x W_xh and h W_hh, each with its own gain; b_h is the bias of
        x W_xh. h_t reads a normalised c_t (Ba et al., 2016, equations 20 to 22).
      W_hh: draws the recurrent weights; None: orthogonal.
      precision: see `lm_jax.models.product`.
    """

    def init(key: Array) -> Params:
        bias = jnp.zeros((4, hidden_size)).at[1].set(forget_bias).reshape(-1)
        params = {"b_h": bias}
        if peepholes:
            params["p"] = jnp.zeros((3, hidden_size))
        if layer_norm:
            params |= {"g_x": jnp.ones(4 * hidden_size), "g_h": jnp.ones(4 * hidden_size)}
            params |= {"g_c": jnp.ones(hidden_size), "b_c": jnp.zeros(hidden_size)}
        return params

    def prepare(params: Params, z: Array) -> Array:
        return add_bias(params, normalised(z, params["g_x"]) if layer_norm else z)

    def gate(params: Params, state: LSTMState, z_h: Array, z_x: Array) -> LSTMState:
        if layer_norm:
            z_h = normalised(z_h, params["g_h"])
        i, f, g, o = jnp.split(z_x + z_h, 4, axis=-1)
        if peepholes:
            i, f = i + _times(state.c, params["p"][0]), f + _times(state.c, params["p"][1])
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        if peepholes:
            o = o + _times(c, params["p"][2])
        seen = normalised(c, params["g_c"], params["b_c"]) if layer_norm else c
        return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(seen), c)

    def init_carry(batch_size: int) -> LSTMState:
        # Two arrays, because JAX cannot donate an array that appears twice.
        return LSTMState(*(jnp.zeros((batch_size, hidden_size)) for _ in range(2)))

    cell = _gated(
        hidden_size,
        gates=4,
        init_carry=init_carry,
        gate=gate,
        output=lambda state: state.h,
        W_hh=W_hh,
        precision=precision,
        init=init,
        prepare=prepare,
    )
    return cell._replace(units=None) if layer_norm else cell


def gru(
    hidden_size: int,
    *,
    reset_after: bool = True,
    W_hh: "InitW | None" = None,
    precision: Precision = "float32",
) -> Cell:
    """The gated recurrent unit.

        r, z = σ(z_x + z_h),  n = tanh(z_x + …),  h_t = (1 - z) n + z h_{t-1}

    The reset before the product is … = (r ∘ h_{t-1}) W_hn (Cho et al., 2014, equation 8; later work
    and this module swap z and 1 - z). The reset after the product is
    … = r ∘ (h_{t-1} W_hn + b_hn): all of W_hh is then a single product, as in cuDNN, PyTorch and
    Flax.

    Args:
      hidden_size: H.
      reset_after: if True, r scales the product; if False, r scales the state before the product.
      W_hh: draws the recurrent weights; None: orthogonal.
      precision: see `lm_jax.models.product`.
    """
    H = hidden_size

    def mixed(h: Array, z: Array, n: Array) -> Array:
        z = jax.nn.sigmoid(z)
        return (1 - z) * jnp.tanh(n) + z * h

    def gate(params: Params, h: Array, z_h: Array, z_x: Array) -> Array:
        r, z = jnp.split(z_x[:, : 2 * H] + z_h[:, : 2 * H], 2, axis=-1)
        b_hn = jnp.broadcast_to(params["b_hn"], h.shape)
        return mixed(h, z, z_x[:, 2 * H :] + jax.nn.sigmoid(r) * (z_h[:, 2 * H :] + b_hn))

    def step(params: Params, h: Array, z_x: Array) -> Array:
        W_hh = params["W_hh"]
        z_rz = z_x[:, : 2 * H] + product(h, W_hh[:, : 2 * H], precision)
        r, z = jnp.split(z_rz, 2, axis=-1)
        seen = jax.nn.sigmoid(r) * h
        return mixed(h, z, z_x[:, 2 * H :] + product(seen, W_hh[:, 2 * H :], precision))

    def init(key: Array) -> Params:
        bias = {"b_h": jnp.zeros(3 * H)}
        return {**bias, "b_hn": jnp.zeros(H)} if reset_after else bias

    cell = _gated(
        H,
        gates=3,
        init_carry=lambda batch_size: jnp.zeros((batch_size, H)),
        gate=gate,
        output=lambda h: h,
        W_hh=W_hh,
        precision=precision,
        init=init,
    )
    return cell if reset_after else cell._replace(step=step, gate=None, units=None)


InitW = Callable[[Array, int], Array]
"""(key, H) -> [H, H], one gate's block of W_hh."""


def recurrent_weights(kind: str, gain: float | Array) -> InitW:
    """The initialiser of one gate's block of W_hh.

    Args:
      kind: orthogonal (Saxe et al., 2014), every singular value 1; identity (Le et al., 2015);
        spectral: normal entries scaled to a spectral radius of 1 (as in Pascanu et al., 2013);
        normal: entries N(0, 1 / H).
      gain: factor on the block.
    """

    def draw(key: Array, hidden_size: int) -> Float[Array, "H H"]:
        shape = (hidden_size, hidden_size)
        check_matrix(*shape)
        if kind == "orthogonal":
            return gain * jax.nn.initializers.orthogonal()(key, shape)
        if kind == "identity":
            return gain * jnp.eye(hidden_size)
        W = jax.random.normal(key, shape) / jnp.sqrt(hidden_size)
        return gain * (W / spectral_radius(W) if kind == "spectral" else W)

    return draw


def spectral_radius(W: Float[Array, "H H"], squarings: int = 30) -> Float[Array, ""]:
    """The spectral radius ρ(W) = lim ‖W^m‖^(1/m) (Gelfand, 1941), with m = 2^squarings.

    Runs on any device. Because ‖W^m‖ ≤ κ ρ^m, with the condition number κ of the eigenvectors, the
    relative error is at most ln κ / m.
    """

    def square(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        P, log_scale = carry
        P = jnp.matmul(P, P, precision="highest")  # the default on a GPU has about three digits
        norm = jnp.linalg.norm(P)
        # A nilpotent W becomes zero, and the radius is then zero, too.
        return (P / jnp.where(norm > 0, norm, 1), 2 * log_scale + jnp.log(norm)), None

    norm = jnp.linalg.norm(W)
    start = W / jnp.where(norm > 0, norm, 1), jnp.log(norm)
    (_, log_norm), _ = jax.lax.scan(square, start, length=squarings)
    return jnp.exp(log_norm / 2.0**squarings)


def add_bias(params: Params, z: Float[Array, "T B G"]) -> Float[Array, "T B G"]:
    """z + b_h."""
    return z + jnp.broadcast_to(params["b_h"], z.shape)


def normalised(
    z: Float[Array, "*shape N"], gain: Float[Array, " N"], bias: Float[Array, " N"] | None = None
) -> Float[Array, "*shape N"]:
    """Layer normalisation over the last axis, times a gain, plus a bias (Ba et al., 2016, eq. 4).

    1e-5 is added to the variance.
    """
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    z = _times(centred * jax.lax.rsqrt(variance + 1e-5), gain)
    return z if bias is None else z + jnp.broadcast_to(bias, z.shape)


def _times(a: Array, vector: Array) -> Array:
    return a * jnp.broadcast_to(vector, a.shape)


def _gated(
    hidden_size: int,
    *,
    gates: int,
    init_carry: Callable[[int], Carry],
    gate: Callable[[Params, Carry, Array, Array], Carry],
    output: Callable[[Carry], Array],
    W_hh: InitW | None,
    precision: Precision,
    init: Callable[[Array], Params] | None = None,
    prepare: Callable[[Params, Array], Array] = add_bias,
) -> Cell:
    """A cell with step(params, carry, z_x) = gate(params, carry, h W_hh, z_x)."""
    draw = W_hh or recurrent_weights("orthogonal", 1.0)
    width = gates * hidden_size

    def init_params(key: Array) -> Params:
        own, *blocks = jax.random.split(key, 1 + gates)
        rest = {"b_h": jnp.zeros(width)} if init is None else init(own)
        return {**rest, "W_hh": jnp.concatenate([draw(k, hidden_size) for k in blocks], axis=1)}

    return Cell(
        width=width,
        init=init_params,
        init_carry=init_carry,
        prepare=prepare,
        step=lambda params, carry, z_x: gate(
            params, carry, product(output(carry), params["W_hh"], precision), z_x
        ),
        output=output,
        gate=gate,
        units=hidden_size,
        precision=precision,
    )
