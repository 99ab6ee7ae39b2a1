"""Whole training steps: forward, backward, clip by global norm, gradient descent, state kept.

    python -m benchmarks.steps

The lm_jax side is the compiled loop of `lm_jax.train`; PyTorch (eager or compiled) and Flax (linen
or nnx) make equal steps from equal weights on equal tokens. Before the timing, the losses of three
steps must agree to 1e-5; clipping is active in these steps.

Word models: V = 10,000, B = 20, T = 35. Character models: V = 65, B = 32, T = 128.
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
