"""A JAX device per CPU core, sharing the batch, against threads within each matrix product.

    python -m benchmarks.devices

The training steps of `benchmarks.steps`, both sides by lm_jax: «ours» with a device per core, «the
peer» with a single device. The losses of three steps must agree to 1e-5.
"""

import dataclasses

from benchmarks import command
from benchmarks.command import Device
from benchmarks.side_by_side import Comparison, Maker
from benchmarks.steps import SIZES


def comparisons(device: Device) -> list[Comparison]:
    """Compare each step on a device per core and on a single device; empty if JAX has a GPU."""
    if device.backend != "cpu":
        return []
    return [
        Comparison(
            f"a device a core, {name}",
            Maker("benchmarks.ours", "step_on_each", dataclasses.asdict(size)),
            (Maker("benchmarks.ours", "step_on_one", dataclasses.asdict(size)),),
        )
        for name, size in SIZES.items()
    ]


if __name__ == "__main__":
    command.run(__doc__ or "", comparisons)
