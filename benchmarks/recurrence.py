"""The recurrence alone: a single layer over a chunk, forward and backward.

    python -m benchmarks.recurrence

The input is x [T, B, H]; the pass includes the product with W_xh, and the gradients of the weights
and of x. The layers in JAX are called from Python or run in a compiled loop, whichever is faster.
Peers: `torch.nn.RNN`, `GRU` and `LSTM`, eager or compiled; `nn.RNN` of Flax, linen or nnx; on a GPU
cuDNN's LSTM from JAX. Output and gradients must agree to 1e-5.
"""

from benchmarks import command
from benchmarks.command import beside_peers
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


if __name__ == "__main__":
    command.run(
        __doc__ or "", lambda device: beside_peers(device, "recurrence", "layer", SIZES, 25)
    )
