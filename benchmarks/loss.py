"""Cross-entropy of a large softmax with gradient: time and peak memory.

    python -m benchmarks.loss [--rounds N] [--rows PATTERN]

`fused_cross_entropy`, against Optax's cross-entropy on all logits, and against PyTorch's
cross-entropy on a linear layer, if PyTorch is installed. 700 targets, W [H, V], the gradient with
respect to W, b and h. Each side runs in a separate process; the processes make a call in turn,
A B A B. The table has the median time over the rounds, and the peak memory of the process minus the
memory before the inputs were made. All sides must give the same loss to 1e-5. If a side fails, for
example for lack of memory, the table omits the side.
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import command
from benchmarks.rows import Row, row, show

ROOT = Path(__file__).parent.parent
TARGETS = 700
SIZES = ((10_000, 200), (100_000, 64), (1_000_000, 64))


def inputs(V: int, H: int) -> tuple[np.ndarray, ...]:
    """Draw W [H, V], b [V], h [N, H] and y [N], equal for all sides."""
    draws = np.random.default_rng(0)
    W = draws.standard_normal((H, V), np.float32) / np.float32(H**0.5)
    b, h = np.zeros(V, np.float32), draws.standard_normal((TARGETS, H), np.float32)
    return W, b, h, draws.integers(0, V, TARGETS).astype(np.int32)


def make_ours(V: int, H: int) -> Callable[[], float]:
    """Make a call of the fused loss with gradient; the call returns the loss, in nats."""
    import jax
    import jax.numpy as jnp

    from lm_jax.models import fused

    W, b, h, y = (jnp.asarray(a) for a in inputs(V, H))
    mask = jnp.ones(TARGETS, bool)
    both = jax.jit(jax.value_and_grad(fused.fused_cross_entropy, (0, 1, 2)))
    return lambda: float(jax.block_until_ready(both(W, b, h, y, mask))[0])


def make_optax(V: int, H: int) -> Callable[[], float]:
    """Make a call of `optax.softmax_cross_entropy_with_integer_labels` on all logits."""
    import jax
    import jax.numpy as jnp
    import optax

    def total(W, b, h, y):
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(h @ W + b[None], y))

    both = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
    given = [jnp.asarray(a) for a in inputs(V, H)]
    return lambda: float(jax.block_until_ready(both(*given))[0])


def make_torch(V: int, H: int) -> Callable[[], float]:
    """Make a call of PyTorch's cross-entropy on a linear layer with weight [V, H]."""
    import torch  # pyright: ignore[reportMissingImports]

    W, b, h, y = inputs(V, H)
    weight = torch.tensor(np.ascontiguousarray(W.T), requires_grad=True)
    leaves = weight, torch.tensor(b, requires_grad=True), torch.tensor(h, requires_grad=True)
    targets = torch.tensor(y.astype(np.int64))

    def call() -> float:
        for leaf in leaves:
            leaf.grad = None
        z = torch.nn.functional.linear(leaves[2], leaves[0], leaves[1])
        loss = torch.nn.functional.cross_entropy(z, targets, reduction="sum")
        loss.backward()
        return float(loss.detach())

    return call


SIDES = {"ours": make_ours, "optax": make_optax, "torch": make_torch}


def memory(what: str) -> float:
    """Memory of this process in MB, from /proc: VmRSS, the present; VmHWM, the peak."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1000


def side(name: str, V: int, H: int) -> None:
    """Main loop of a side's process: for each line on stdin, make a call and print a line."""
    try:
        __import__("jax" if name != "torch" else "torch")
    except ModuleNotFoundError:
        return
    if name != "torch":
        import jax

        jax.numpy.zeros(1).block_until_ready()
    before = memory("VmRSS")
    call = SIDES[name](V, H)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = call()
        print(loss, time.perf_counter() - began, memory("VmHWM") - before, flush=True)


def compared(V: int, H: int, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Measure each working side: loss in nats, median seconds, peak memory in MB."""
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.loss", "--side", name, str(V), str(H)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in SIDES
    }
    told: dict[str, list[list[float]]] = {name: [] for name in SIDES}
    for _ in range(rounds + 1):  # the first call compiles and does not count as a round
        for name, process in running.items():
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write("\n")
                process.stdin.flush()
            except BrokenPipeError:
                continue
            if line := process.stdout.readline():
                told[name].append([float(number) for number in line.split()])
    for process in running.values():
        process.communicate()
    return {
        name: (found[0][0], statistics.median(row[1] for row in found[1:]), found[-1][2])
        for name, found in told.items()
        if len(found) > rounds
    }


def rows_of(V: int, H: int, rounds: int) -> list[Row]:
    """Make the rows of a size: time and memory against each peer.

    Raises:
      RuntimeError: the losses of two sides differ.
    """
    found = compared(V, H, rounds)
    loss, seconds, peak = found.pop("ours")
    rows = []
    for peer, (same, taken, held) in found.items():
        if abs(same - loss) > 1e-5 * abs(loss):
            raise RuntimeError(f"{peer} has a loss of {same}, not {loss}, at V={V}")
        name = f"loss, V {V:,}, H {H}"
        rows.append(row(name, "ms", 1e3 * seconds, 1e3 * taken, peer))
        rows.append(row(name, "MB", peak, held, peer))
    return rows


def main() -> None:
    chosen = command.options(__doc__ or "")
    found, failures = [], []
    for V, H in SIZES:
        if not re.search(chosen.rows, f"loss, V {V:,}, H {H}"):
            continue
        try:
            found += rows_of(V, H, chosen.rounds)
        except RuntimeError as error:
            failures.append(str(error))
    show(found)
    command.finish(found, chosen, failures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        side(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
