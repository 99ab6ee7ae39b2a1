"""The models that ours and its peers are timed on: sizes, weights and tokens, in NumPy alone.

Every process draws the same numbers from the same seed, so nothing is sent from one to another.
Weights are laid out as in `lm_jax.models`: matrices [inputs, outputs], gates i, f, g, o and r, z, n
side by side in the columns. The input vectors are as long as the hidden state.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

GATES = {"elman": 1, "gru": 3, "lstm": 4}
CHUNKS = 64
"""In an epoch: each lane holds 64 T tokens, then it starts again."""
CHECKED = 3
"""Steps whose losses both sides must agree on; the third depends on two updates."""
LEARNING_RATE = 1.0
CLIP = 0.25


@dataclass(frozen=True)
class Size:
    """A recurrent language model and its batch."""

    cell: str
    hidden: int
    """H, and the length of the input vectors."""
    batch: int
    """B."""
    length: int
    """T."""
    vocabulary: int = 0
    """V; 0 where there is no readout."""
    layers: int = 1
    precision: str = "float32"
    """float32, or bfloat16 for what is computed from float32 parameters."""

    @property
    def width(self) -> int:
        """Columns of W_hh."""
        return GATES[self.cell] * self.hidden


def weights(size: Size) -> dict[str, Any]:
    """Parameters as `lm_jax.models.rnn` has them; b_hn is zero, for not every GRU has one."""
    random = np.random.default_rng(0)
    H, V = size.hidden, size.vocabulary

    def draw(*shape: int) -> np.ndarray:
        return random.uniform(-(H**-0.5), H**-0.5, shape).astype(np.float32)

    def layer() -> dict[str, np.ndarray]:
        own = {"W_xh": draw(H, size.width), "W_hh": draw(H, size.width), "b_h": draw(size.width)}
        return own | {"b_hn": np.zeros(H, np.float32)} if size.cell == "gru" else own

    return {
        "embedding": {"C": random.standard_normal((V, H)).astype(np.float32)},
        "layers": [layer() for _ in range(size.layers)],
        "readout": {"W_hy": draw(H, V), "b_y": draw(V)},
    }


def tokens(size: Size) -> np.ndarray:
    """[64 T + 1, B]: random tokens, each row the targets of the row before."""
    rows = CHUNKS * size.length + 1
    return np.random.default_rng(1).integers(0, size.vocabulary, (rows, size.batch), np.int32)


def passage(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The first T tokens of each lane, and those that come next: x and y, [T, B]."""
    read = tokens(size)[: size.length + 1]
    return read[:-1], read[1:]


def sequence(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """What a layer reads, x [T, B, H], and the gradient that comes to its outputs, [T, B, H]."""
    random = np.random.default_rng(2)
    shape = (size.length, size.batch, size.hidden)
    x, d_h = random.standard_normal(shape), random.uniform(0, 1, shape)
    return x.astype(np.float32), d_h.astype(np.float32)


def of_a_layer(h: np.ndarray, d_h: np.ndarray, *gradients: np.ndarray) -> list[float]:
    """What all sides must agree on: Σ h d_h and the gradients' norms, summed in float64."""
    value = np.sum(h.astype(np.float64) * d_h)
    return [float(value), *(float(np.linalg.norm(g.astype(np.float64))) for g in gradients)]
