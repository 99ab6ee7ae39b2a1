"""The recurrence alone: one layer over a chunk, forwards and backwards.

    python -m benchmarks.recurrence

The input is x [T, B, H] and its product with W_xh is part of it; what comes back is the gradient of
the weights and of x. Peers: `torch.nn.RNN`, `GRU` and `LSTM`, eager or compiled; `nn.RNN` of Flax,
linen or nnx; on a GPU cuDNN's LSTM from JAX. Output and gradients must agree to 1e-5.
"""

import dataclasses

from benchmarks import command
from benchmarks.command import TOLERANCES, Device
from benchmarks.side_by_side import Comparison, Maker
from benchmarks.sizes import GATES, Size

SIZES = {
    f"{cell} {units}, B {batch}, T {length}": Size(cell, units, batch, length)
    for units, batch, length, which in (
        (200, 20, 35, GATES),
        (650, 20, 35, ("lstm",)),
        (128, 32, 128, GATES),
        (512, 32, 128, GATES),
    )
    for cell in which
}


def comparisons(device: Device) -> list[Comparison]:
    """A comparison for each size and precision."""
    found = []
    for precision in device.precisions:
        for name, size in SIZES.items():
            settings = dataclasses.asdict(size) | {"precision": precision}
            theirs = settings | {"backend": device.backend}
            found.append(
                Comparison(
                    f"recurrence, {name}" + (f", {precision}" if precision != "float32" else ""),
                    Maker("benchmarks.ours", "layer", settings),
                    (
                        Maker("benchmarks.torch_peer", "layer", theirs),
                        Maker("benchmarks.flax_peer", "layer", theirs),
                    ),
                    seconds=25,
                    tolerance=TOLERANCES[device.backend, precision],
                )
            )
    return found


if __name__ == "__main__":
    command.run(__doc__ or "", comparisons)
