"""Recurrent cells as functions of their pre-activations.

A cell computes the next carry from z_h = h_{t-1} W_hh and z_x = x_t W_xh + b_h. The recurrence
(`lm_jax.models.recurrence`) computes all z_x of a chunk in a single product, and also z_h, if
nothing stands between h and W_hh. The code of a cell is then only the lines that distinguish the
cell: `gate(params, carry, z_h, z_x) -> carry`, elementwise except for layer normalisation.

Letters: H units; G columns of W_hh, H for each gate; B sequences of a batch. Gates of the LSTM
i, f, g, o and of the GRU r, z, n, in this order.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.models.base import Carry, Params, check_matrix, scale
from lm_jax.models.matmul import Precision, matmul

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class RecurrentInit:
    """The initialiser of one gate's block of W_hh."""

    kind: str = "orthogonal"
    """orthogonal (Saxe et al., 2014), every singular value 1; identity (Le et al., 2015); spectral:
    normal entries scaled to a spectral radius of 1 (as in Pascanu et al., 2013); normal: entries
    N(0, 1 / H)."""
    gain: float | Array = 1.0
    """Factor on the block."""

    def __call__(self, key: Array, hidden_size: int) -> Float[Array, "H H"]:
        shape = (hidden_size, hidden_size)
        check_matrix(*shape)
        if self.kind == "orthogonal":
            return self.gain * jax.nn.initializers.orthogonal()(key, shape)
        if self.kind == "identity":
            return self.gain * jnp.eye(hidden_size)
        W = jax.random.normal(key, shape) / jnp.sqrt(hidden_size)
        return self.gain * (W / spectral_radius(W) if self.kind == "spectral" else W)


@dataclasses.dataclass(frozen=True)
class Cell(abc.ABC):
    """A recurrent cell of H units, as functions on a batch."""

    hidden_size: int
    """H."""
    precision: Precision = dataclasses.field(default="float32", kw_only=True)
    """Precision of the products with W_xh and W_hh, see `lm_jax.models.matmul`."""

    gates: ClassVar[int] = 1
    """Columns of W_xh for each unit."""

    @property
    def width(self) -> int:
        """G, columns of W_xh."""
        return self.gates * self.hidden_size

    @property
    def units(self) -> int | None:
        """N, the number of units, if units interact only through z_h = h W_hh, or not at all.

        Unit i of the new carry then depends on unit i of the old carry and on entries g N + i of
        z_h, of x W_xh and of each of the cell's other params. A leaf of the carry has an entry for
        each unit: [B, N], or [B, 2 N] for complex units, all real parts before all imaginary parts.
        None: units interact in other ways.
        """
        return self.hidden_size

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Initial parameters: b_h, and W_hh if the cell has a W_hh."""

    def init_carry(self, batch_size: int) -> Carry:
        """The carry before the first step; leaves [B, ...]."""
        return jnp.zeros((batch_size, self.hidden_size))

    def prepare(self, params: Params, z: Float[Array, "*T B G"]) -> Float[Array, "*T B G"]:
        """From x W_xh to z_x, of a step or of all steps of a chunk at once."""
        return z + jnp.broadcast_to(params["b_h"], z.shape)

    @abc.abstractmethod
    def step(self, params: Params, carry: Carry, z_x: Float[Array, "B G"]) -> Carry:
        """The carry after a time step."""

    def output(self, carry: Carry) -> Float[Array, "*T B H"]:
        """The hidden state for the next step and the next layer, a part of the carry."""
        return carry


@dataclasses.dataclass(frozen=True)
class RecurrentCell(Cell):
    """A cell with recurrent weights W_hh [H, G]."""

    W_hh: RecurrentInit = dataclasses.field(default=RecurrentInit(), kw_only=True)
    """Draws each gate's block of the recurrent weights."""

    def init(self, key: Array) -> Params:
        own, *blocks = jax.random.split(key, 1 + self.gates)
        W_hh = [self.W_hh(k, self.hidden_size) for k in blocks]
        return {**self.init_own(own), "W_hh": jnp.concatenate(W_hh, axis=1)}

    def init_own(self, key: Array) -> Params:
        """Initial parameters other than W_hh."""
        del key
        return {"b_h": jnp.zeros(self.width)}


@dataclasses.dataclass(frozen=True)
class GatedCell(RecurrentCell):
    """A cell that reads h only through the product z_h = h W_hh.

    Such a cell has the hand-written backward pass of `lm_jax.models.recurrence.explicit`.
    """

    @abc.abstractmethod
    def gate(
        self, params: Params, carry: Carry, z_h: Float[Array, "B G"], z_x: Float[Array, "B G"]
    ) -> Carry:
        """The carry after a time step, equal to `step` if z_h = h W_hh."""

    def resized(self, units: int) -> Self:
        """The cell with another number of units."""
        return dataclasses.replace(self, hidden_size=units)

    def step(self, params: Params, carry: Carry, z_x: Array) -> Carry:
        z_h = matmul(self.output(carry), params["W_hh"], self.precision)
        return self.gate(params, carry, z_h, z_x)


@dataclasses.dataclass(frozen=True)
class ElmanCell(GatedCell):
    """The Elman cell, h_t = f(z_x + z_h) (Elman, 1990)."""

    activation: str = "tanh"
    """f, a name in `ACTIVATIONS`."""

    def gate(self, params: Params, carry: Array, z_h: Array, z_x: Array) -> Array:
        return ACTIVATIONS[self.activation](z_x + z_h)


class LSTMState(NamedTuple):
    """The carry of an LSTM."""

    h: Float[Array, "B H"]
    c: Float[Array, "B H"]


@dataclasses.dataclass(frozen=True)
class LSTMCell(GatedCell):
    """The long short-term memory with a forget gate (Gers et al., 2000).

    i, f, o = σ(z_x + z_h),  g = tanh(z_x + z_h),  c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)
    """

    _: dataclasses.KW_ONLY
    forget_bias: float | Array = 1.0
    """Initial bias of f."""
    peepholes: bool = False
    """If True, i and f see p ∘ c_{t-1}, and o sees p ∘ c_t (Gers & Schmidhuber, 2000; in Graves,
    2013, equations 7 to 11)."""
    layer_norm: bool = False
    """If True, normalise x W_xh and h W_hh, each with its own gain; b_h is the bias of x W_xh. h_t
    reads a normalised c_t (Ba et al., 2016, equations 20 to 22)."""

    gates: ClassVar[int] = 4

    @property
    def units(self) -> int | None:
        return None if self.layer_norm else self.hidden_size

    def init_own(self, key: Array) -> Params:
        H = self.hidden_size
        params = {"b_h": jnp.zeros((4, H)).at[1].set(self.forget_bias).reshape(-1)}
        if self.peepholes:
            params["p"] = jnp.zeros((3, H))
        if self.layer_norm:
            params |= {"g_x": jnp.ones(4 * H), "g_h": jnp.ones(4 * H)}
            params |= {"g_c": jnp.ones(H), "b_c": jnp.zeros(H)}
        return params

    def init_carry(self, batch_size: int) -> LSTMState:
        # Two arrays, because JAX cannot donate an array that appears twice.
        return LSTMState(*(jnp.zeros((batch_size, self.hidden_size)) for _ in range(2)))

    def prepare(self, params: Params, z: Array) -> Array:
        return super().prepare(params, normalised(z, params["g_x"]) if self.layer_norm else z)

    def gate(self, params: Params, carry: LSTMState, z_h: Array, z_x: Array) -> LSTMState:
        if self.layer_norm:
            z_h = normalised(z_h, params["g_h"])
        i, f, g, o = jnp.split(z_x + z_h, 4, axis=-1)
        if self.peepholes:
            i, f = i + scale(carry.c, params["p"][0]), f + scale(carry.c, params["p"][1])
        c = jax.nn.sigmoid(f) * carry.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        if self.peepholes:
            o = o + scale(c, params["p"][2])
        seen = normalised(c, params["g_c"], params["b_c"]) if self.layer_norm else c
        return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(seen), c)

    def output(self, carry: LSTMState) -> Array:
        return carry.h


@dataclasses.dataclass(frozen=True)
class GRUCell(GatedCell):
    """The gated recurrent unit with the reset after the product, as in cuDNN, PyTorch and Flax.

    r, z = σ(z_x + z_h),  n = tanh(z_x + r ∘ (h_{t-1} W_hn + b_hn)),  h_t = (1 - z) n + z h_{t-1}

    Cho et al. (2014, equation 8) apply the reset before the product (`ResetBeforeGRUCell`); later
    work and this module swap z and 1 - z.
    """

    gates: ClassVar[int] = 3

    def init_own(self, key: Array) -> Params:
        return {**super().init_own(key), "b_hn": jnp.zeros(self.hidden_size)}

    def gate(self, params: Params, carry: Array, z_h: Array, z_x: Array) -> Array:
        H = self.hidden_size
        r, z = jnp.split(z_x[:, : 2 * H] + z_h[:, : 2 * H], 2, axis=-1)
        b_hn = jnp.broadcast_to(params["b_hn"], carry.shape)
        n = z_x[:, 2 * H :] + jax.nn.sigmoid(r) * (z_h[:, 2 * H :] + b_hn)
        return _between_old_and_new(carry, z, n)


@dataclasses.dataclass(frozen=True)
class ResetBeforeGRUCell(RecurrentCell):
    """The gated recurrent unit with the reset before the product (Cho et al., 2014, equation 8).

    As `GRUCell`, but n = tanh(z_x + (r ∘ h_{t-1}) W_hn).
    """

    gates: ClassVar[int] = 3

    @property
    def units(self) -> int | None:
        return None

    def step(self, params: Params, carry: Array, z_x: Array) -> Array:
        H, W_hh = self.hidden_size, params["W_hh"]
        z_rz = z_x[:, : 2 * H] + matmul(carry, W_hh[:, : 2 * H], self.precision)
        r, z = jnp.split(z_rz, 2, axis=-1)
        seen = jax.nn.sigmoid(r) * carry
        n = z_x[:, 2 * H :] + matmul(seen, W_hh[:, 2 * H :], self.precision)
        return _between_old_and_new(carry, z, n)


def _between_old_and_new(h: Array, z: Array, n: Array) -> Array:
    z = jax.nn.sigmoid(z)
    return (1 - z) * jnp.tanh(n) + z * h


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


def normalised(
    z: Float[Array, "*shape N"], gain: Float[Array, " N"], bias: Float[Array, " N"] | None = None
) -> Float[Array, "*shape N"]:
    """Layer normalisation over the last axis, times a gain, plus a bias (Ba et al., 2016, eq. 4).

    1e-5 is added to the variance.
    """
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    z = scale(centred * jax.lax.rsqrt(variance + 1e-5), gain)
    return z if bias is None else z + jnp.broadcast_to(bias, z.shape)
