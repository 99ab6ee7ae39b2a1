"""The section of a page on the eigenvalues of W_hh, made from the numbers in probe.json."""

import functools
from typing import Any

import numpy as np

from lm_jax import figures
from lm_jax.files import Row
from lm_jax.report.page import Drawing, Section, Table
from lm_jax.report.study import numbers

GATES = {
    "lstm": ("input gate", "forget gate", "candidate", "output gate"),
    "mogrifier": ("input gate", "forget gate", "candidate", "output gate"),
    "slstm": ("input gate", "forget gate", "candidate", "output gate"),
    "gru": ("reset gate", "update gate", "candidate"),
}
"""The blocks of W_hh of a cell, in their order (`lm_jax.models.cells`)."""


def eigenvalue_section(dynamics: Row, cell: str, name: str) -> Section:
    """The section on the spectra of each block of W_hh, at the end and through training.

    Args:
      dynamics: `reach.dynamics` of probe.json.
      cell: kind of the model's cell, for the names of its gates.
      name: stem of the names of the figures.
    """
    title = "Where are the eigenvalues of W_hh?"
    blocks, rows = {}, []
    for layer, found in dynamics["spectra"].items():
        for place, block in enumerate(found["blocks"]):
            label = block_name(layer, cell, place, len(found["blocks"]))
            blocks[label] = _complex(block["eigenvalues"])
            outside = int(np.sum(np.abs(blocks[label]) > 1))
            rows.append((label, block["radius"], block["norm"], outside, len(blocks[label])))
    if not rows:
        return Section(title, "This cell has no matrix W_hh.", [])
    outside, of = sum(row[3] for row in rows), sum(row[4] for row in rows)
    largest = max(rows, key=lambda row: row[1])
    said = (
        f"{outside:,} of {of:,} eigenvalues lie outside the unit circle; the largest has magnitude "
        f"{largest[1]:.3g}{f' ({largest[0]})' if len(rows) > 1 else ''}."
    )
    through = _through_training(dynamics.get("eigenvalues", {}), cell)
    draw, stem = functools.partial(figures.eigenvalues, blocks), f"{name}-eigenvalues"
    drawings = [Drawing(stem, draw, said)]
    if any(len(found) > 1 for found in through.values()):
        draw = functools.partial(figures.eigenvalues_over_training, through)
        label = "The eigenvalues at some moments of training"
        drawings.append(Drawing(f"{stem}-over-training", draw, label))
    return Section(
        title,
        said,
        [
            *drawings,
            Table(("block", "spectral radius", "largest singular value", "outside", "of"), rows),
        ],
        "A linear network forgets along eigenvectors inside the unit circle and explodes along "
        "those outside. The slopes of tanh and of the gates make the Jacobians of a trained "
        "network smaller than W_hh. A gated cell has a block for each gate. The updates shown are "
        "the start, the checkpoints that the run keeps, and that of this study's parameters.",
    )


def _through_training(found: Row, cell: str) -> dict[str, dict[int, np.ndarray]]:
    """Block -> update -> eigenvalues."""
    blocks: dict[str, dict[int, np.ndarray]] = {}
    for step, layers in found.items():
        for layer, own in layers.items():
            for place, values in enumerate(own):
                label = block_name(layer, cell, place, len(own))
                blocks.setdefault(label, {})[int(step)] = _complex(values)
    return blocks


def _complex(values: Any) -> np.ndarray:
    """Complex numbers from JSON, pairs of real and imaginary parts."""
    return numbers(values) @ np.array([1, 1j])


def block_name(layer: str, cell: str, place: int, count: int) -> str:
    """The name of one of `count` blocks of a layer's W_hh: with its gate, if there are several."""
    if count == 1:
        return layer
    gates = GATES.get(cell, ())
    return f"{layer}, {gates[place] if place < len(gates) else f'block {place + 1}'}"
