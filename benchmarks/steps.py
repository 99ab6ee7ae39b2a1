"""Whole training steps: forward, backward, clip by global norm, gradient descent, state carried on.

    python -m benchmarks.steps

Ours is the compiled loop that `lm_jax.train` runs; PyTorch (eager or compiled) and Flax (linen or
nnx) do the same from the same weights on the same tokens. Before they are timed, the losses of
three steps must agree to 1e-5; clipping is at work in them.

Word models read V = 10,000 words, B = 20 lanes of T = 35; character models V = 65, B = 32, T = 128.
"""

from benchmarks import command
from benchmarks.command import beside_peers
from benchmarks.sizes import GATES, Size

SIZES = {
    **{
        f"word {cell} {units}, {layers} layer{'s' * (layers > 1)}": Size(
            cell, units, 20, 35, 10_000, layers
        )
        for units, layers, which in ((200, 1, GATES), (200, 2, GATES), (650, 2, ("lstm",)))
        for cell in which
    },
    **{
        f"char {cell} {units}": Size(cell, units, 32, 128, 65)
        for units in (128, 512)
        for cell in GATES
    },
}


if __name__ == "__main__":
    command.run(__doc__ or "", lambda device: beside_peers(device, "step", "step", SIZES, 30))
