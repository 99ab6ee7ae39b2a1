"""One JAX device for each CPU core, the batch's lanes shared, against threads within each product.

    python -m benchmarks.devices

The training steps of `benchmarks.steps`, both sides ours: «ours» is with a device for each core,
«the peer» with one device. The losses of three steps must agree to 1e-5.
"""

import dataclasses

from benchmarks import command
from benchmarks.command import Device
from benchmarks.side_by_side import Comparison, Maker
from benchmarks.steps import SIZES


def comparisons(device: Device) -> list[Comparison]:
    """Each of the steps on all cores' devices beside the same on one; none where JAX has a GPU."""
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
