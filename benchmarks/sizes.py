"""Models of the benchmarks: sizes, weights and tokens, in NumPy only.

Every process draws equal numbers from an equal seed; the processes exchange no arrays. The layout
of weights is as in `lm_jax.models`: matrices [inputs, outputs], gates i, f, g, o and r, z, n side
by side in the columns. The input vectors have the length of the hidden state.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

GATES = {"elman": 1, "gru": 3, "lstm": 4}
CHUNKS = 64
"""Chunks in an epoch: each sequence has 64 T tokens, then starts again."""
CHECKED = 3
"""Number of first steps with losses to compare; the third loss depends on two updates."""
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
    """V; 0 for a model without readout."""
    layers: int = 1
    precision: str = "float32"
    """float32, or bfloat16 for computations with float32 parameters."""

    @property
    def width(self) -> int:
        """Number of columns of W_hh."""
        return GATES[self.cell] * self.hidden


def weights(size: Size) -> dict[str, Any]:
    """Draw parameters in the layout of `lm_jax.models.rnn`; b_hn is 0 (some GRUs have no b_hn)."""
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
    """Draw random tokens [64 T + 1, B]; each row is the targets of the row before."""
    rows = CHUNKS * size.length + 1
    return np.random.default_rng(1).integers(0, size.vocabulary, (rows, size.batch), np.int32)


def passage(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y, [T, B]: the first T tokens of each sequence, and their next tokens."""
    read = tokens(size)[: size.length + 1]
    return read[:-1], read[1:]


def sequence(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Draw a layer's input x, [T, B, H], and the gradient of its outputs, [T, B, H]."""
    random = np.random.default_rng(2)
    shape = (size.length, size.batch, size.hidden)
    x, d_h = random.standard_normal(shape), random.uniform(0, 1, shape)
    return x.astype(np.float32), d_h.astype(np.float32)


def of_a_layer(h: np.ndarray, d_h: np.ndarray, *gradients: np.ndarray) -> list[float]:
    """Numbers for comparison of all sides: Σ h d_h and the gradients' norms, in float64."""
    value = np.sum(h.astype(np.float64) * d_h)
    return [float(value), *(float(np.linalg.norm(g.astype(np.float64))) for g in gradients)]
