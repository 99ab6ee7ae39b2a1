"""A recurrence inside a block: normalisation, the recurrence, a nonlinear map, and a skip.

A stack of recurrences that are linear in their inputs, such as the LRU's, is a single linear map
of the inputs, however many layers it has. A block puts a nonlinear map of each step between two
recurrences. x is the input of a block, y its output, u what the recurrence reads, and h what the
recurrence returns; all have H numbers in each step.

    GLU block      u = norm(x),          v = h C + D ∘ u
                   y = x + (g W_a + b_a) ∘ σ(g W_b + b_b),   g = GELU(v)

    MLP block      u_t = Σ_i w_i ∘ norm(x)_{t-i} + b_w,      v = x + h W_o
                   y = v + GELU(norm(v) W_1 + b_1) W_2 + b_2

The first is the block of Orvieto et al. (2023) for the LRU, whose output is h C + D ∘ u, after the
S4's. The second has the parts of the models of Feng et al. (2024): a short convolution, the
recurrence and an MLP; Griffin (De et al., 2024) and the xLSTM (Beck et al., 2024) have further
gates. GELU is the approximation by tanh (Hendrycks & Gimpel, 2016); norm is layer normalisation or
the root mean square (Zhang & Sennrich, 2019). If x has other than H numbers, or is a token, the
block first multiplies x by a matrix W_in.

Hooks and taps act on the carry of the recurrence. The block's carry holds y as well, which no later
step reads: the readout's input is then a function of the carry.

Letters: k steps that the convolution reads.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import Carry, EdgeHook, Params, affine, scale, scaled_normal
from lm_jax.models.cells import normalised
from lm_jax.models.convolution import after
from lm_jax.models.embedding import Embedding, times
from lm_jax.models.layers import Layer
from lm_jax.models.matmul import Precision, matmul


class BlockState(NamedTuple):
    """The carry of a block."""

    y: Float[Array, "B H"]
    """The block's last output."""
    recurrence: Carry
    """The carry of the recurrence."""
    past: Float[Array, "B P H"] | None
    """The last P = k - 1 inputs of the convolution; None without convolution."""


@dataclasses.dataclass(frozen=True)
class BlockLayer(Layer):
    """A block around a recurrent layer (see module head)."""

    recurrence: Layer
    """Reads vectors of H numbers and returns vectors of H numbers."""
    inputs: Embedding | int
    """The embedding below the block, or the number of outputs of the layer below."""
    hidden_size: int
    """H."""
    _: dataclasses.KW_ONLY
    norm: str = "layer"
    """layer: layer normalisation; rms: division by the root mean square."""
    precision: Precision = "float32"
    """Precision of the products, see `lm_jax.models.matmul`."""

    @abc.abstractmethod
    def init_own(self, key: Array) -> Params:
        """Initial parameters, apart from the recurrence, the first norm and W_in."""

    @abc.abstractmethod
    def read(
        self, params: Params, past: Array | None, u: Float[Array, "T B H"]
    ) -> tuple[Array | None, Float[Array, "T B H"]]:
        """From the carried inputs and norm(x): both one after another, and the u of all steps."""

    @abc.abstractmethod
    def combine(
        self,
        params: Params,
        x: Float[Array, "T B H"],
        u: Float[Array, "T B H"],
        h: Float[Array, "T B H"],
    ) -> Float[Array, "T B H"]:
        """y of all steps."""

    def init_past(self, batch_size: int) -> Float[Array, "B P H"] | None:
        """The inputs of the convolution before the first step; None without convolution."""
        del batch_size
        return None

    def init(self, key: Array) -> Params:
        first, inner, own = jax.random.split(key, 3)
        params = {
            "norm": self.init_norm(),
            "recurrence": self.recurrence.init(inner),
            **self.init_own(own),
        }
        size = self.inputs.size if isinstance(self.inputs, Embedding) else self.inputs
        if size == self.hidden_size:
            return params
        if isinstance(self.inputs, Embedding):
            return {"W_in": self.inputs.init_projection(first, self.hidden_size), **params}
        return {"W_in": scaled_normal(first, self.inputs, self.hidden_size), **params}

    def init_carry(self, batch_size: int) -> BlockState:
        y = jnp.zeros((batch_size, self.hidden_size))
        return BlockState(y, self.recurrence.init_carry(batch_size), self.init_past(batch_size))

    def run(
        self,
        params: Params,
        carry: BlockState,
        x: Float[Array, "T B inputs"] | Int[Array, "T B"],
        hook: EdgeHook | None = None,
        tap: Float[Array, "T B"] | None = None,
        kept: Float[Array, "T B 1"] | None = None,
    ) -> tuple[BlockState, Float[Array, "T B H"]]:
        if "W_in" in params:
            x = times(x, params["W_in"], self.precision)
        seen, u = self.read(params, carry.past, self.normalise(params["norm"], x))
        last, h = self.recurrence.run(params["recurrence"], carry.recurrence, u, hook, tap, kept)
        y = self.combine(params, x, u, h)
        outputs = jnp.concatenate([carry.y[None], y])
        past = None if seen is None else _last(seen, seen.shape[0] - y.shape[0], kept)
        return BlockState(_last(outputs, 1, kept)[:, 0], last, past), y

    def output(self, carry: BlockState) -> Float[Array, "*T B H"]:
        return carry.y

    def init_norm(self) -> Params:
        """Initial parameters of a normalisation."""
        gain = {"g": jnp.ones(self.hidden_size)}
        return gain if self.norm == "rms" else {**gain, "b": jnp.zeros(self.hidden_size)}

    def normalise(self, params: Params, x: Float[Array, "T B H"]) -> Float[Array, "T B H"]:
        """norm(x), with parameters from `init_norm`; 1e-5 is added to the mean square."""
        if self.norm == "layer":
            return normalised(x, params["g"], params["b"])
        square = jnp.mean(x**2, axis=-1, keepdims=True)
        return scale(x * jax.lax.rsqrt(square + 1e-5), params["g"])


@dataclasses.dataclass(frozen=True)
class GLUBlockLayer(BlockLayer):
    """A block with a gated linear unit behind the recurrence (Orvieto et al., 2023)."""

    def init_own(self, key: Array) -> Params:
        H = self.hidden_size
        out, skip, glu = jax.random.split(key, 3)
        return {
            "C": scaled_normal(out, H, H),
            "D": jax.random.normal(skip, (H,)),
            "W": scaled_normal(glu, H, 2 * H),
            "b": jnp.zeros(2 * H),
        }

    def read(self, params: Params, past: Any, u: Array) -> tuple[None, Array]:
        return None, u

    def combine(self, params: Params, x: Array, u: Array, h: Array) -> Array:
        v = matmul(h, params["C"], self.precision) + scale(u, params["D"])
        return x + jax.nn.glu(affine(jax.nn.gelu(v), params["W"], params["b"], self.precision))


@dataclasses.dataclass(frozen=True)
class MLPBlockLayer(BlockLayer):
    """A block with a convolution before the recurrence and an MLP behind it."""

    _: dataclasses.KW_ONLY
    expansion: int = 4
    """Hidden units of the MLP, as a multiple of H."""
    convolution: int | None = 4
    """k; None: u = norm(x)."""

    def init_own(self, key: Array) -> Params:
        H, hidden = self.hidden_size, self.expansion * self.hidden_size
        short, out, up, down = jax.random.split(key, 4)
        params = {
            "W_o": scaled_normal(out, H, H),
            "norm_2": self.init_norm(),
            "W_1": scaled_normal(up, H, hidden),
            "b_1": jnp.zeros(hidden),
            "W_2": scaled_normal(down, hidden, H),
            "b_2": jnp.zeros(H),
        }
        if (k := self.convolution) is None:
            return params
        return {"w": scaled_normal(short, k, H), "b_w": jnp.zeros(H), **params}

    def init_past(self, batch_size: int) -> Float[Array, "B P H"] | None:
        k = self.convolution
        return None if k is None else jnp.zeros((batch_size, k - 1, self.hidden_size))

    def read(self, params: Params, past: Any, u: Array) -> tuple[Any, Array]:
        if self.convolution is None:
            return None, u
        seen, steps = after(past, u), u.shape[0]
        total = jnp.broadcast_to(params["b_w"], u.shape)
        for place, w in enumerate(params["w"]):  # w_0 last: `place` counts from the oldest step
            total += scale(seen[place : place + steps], w)
        return seen, total

    def combine(self, params: Params, x: Array, u: Array, h: Array) -> Array:
        v = x + matmul(h, params["W_o"], self.precision)
        z = affine(
            self.normalise(params["norm_2"], v), params["W_1"], params["b_1"], self.precision
        )
        return v + affine(jax.nn.gelu(z), params["W_2"], params["b_2"], self.precision)


def _last(
    seen: Float[Array, "S B H"], length: int, kept: Float[Array, "T B 1"] | None
) -> Float[Array, "B length H"]:
    """The last `length` rows of each sequence, without those of the steps at the end with kept 1.

    Sums over all rows, because the derivative of a choice of rows would add in any order on a GPU.
    """
    if kept is None:
        return seen[seen.shape[0] - length :].swapaxes(0, 1)  # `len` takes no symbolic size
    end = len(seen) - jnp.sum(kept[..., 0] == 1, axis=0)
    place = jnp.arange(len(seen))[:, None]
    rows = (place == (end - back)[None] for back in range(length, 0, -1))
    chosen = [jnp.sum(jnp.where(row[..., None], seen, 0), axis=0) for row in rows]
    return jnp.stack(chosen, axis=1) if chosen else seen[:0].swapaxes(0, 1)
