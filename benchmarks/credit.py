"""Time to split the gradient over time, against computing each part alone.

    python -m benchmarks.credit

(a) The gradient by lag, all T = 64 lags, B = 8 sequences, against T separate truncated gradients,
k2 = 1 … T. Each truncation is a call of a single compiled program for all k2: given the states, the
program goes k2 steps back from all losses at once, and computes the weight gradient as a single
product at the end. The prefix sums of the lags must equal the truncations, or the program ends with
an error.

(b) The credit map over T = 128 against T backward passes, each a call of a single compiled program
for all t: the gradient of J_t by autodiff of the plain scan, with respect to a term added to each
carry. The target refers to this program. A leaner program is timed as well: it skips the forward
pass and walks back only from t to 0, half as far on average. All three maps must be equal, or the
program ends with an error.

H = 128. The methods are timed in turn, A B A B. The cells are the plain recurrence of the lecture
(the targets refer to this cell) and the LSTM.
"""

import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command
from benchmarks.rows import Row, row
from lm_jax import gradients as g
from lm_jax.models import cells
from lm_jax.models.base import Carry, Params
from lm_jax.models.cells import Cell

H, B = 128, 8
LAGS, STEPS = 64, 128
LEAST_BY_LAG, LEAST_MAP = 5, 10


def step_of(cell: Cell) -> Callable[[Params, Carry, jax.Array], Carry]:
    """Convert a cell for batches to a transition of a single example."""

    def step(params: Params, carry: Carry, x: jax.Array) -> Carry:
        rows = jax.tree.map(lambda leaf: leaf[None], carry)
        z_x = x[None] @ params["W_xh"] + params["b_h"][None]
        return jax.tree.map(lambda leaf: leaf[0], cell.step(params, rows, z_x))

    return step


def loss_of(cell: Cell) -> Callable[[Params, Carry, jax.Array], jax.Array]:
    """Squared distance of h to a target: a cheap loss, to measure the transition."""

    def loss(params: Params, carry: Carry, y: jax.Array) -> jax.Array:
        h = cell.output(jax.tree.map(lambda leaf: leaf[None], carry))[0]
        return jnp.sum((h - y) ** 2)

    return loss


def data(cell: Cell, steps: int, batch_size: int) -> tuple[Params, Carry, jax.Array, jax.Array]:
    """Draw params, carry, xs and ys, with a batch axis."""
    own, first, x, y = jax.random.split(jax.random.key(0), 4)
    params = {"W_xh": jax.random.normal(first, (H, cell.width)) / np.sqrt(H), **cell.init(own)}
    xs, ys = (jax.random.normal(k, (steps, batch_size, H)) for k in (x, y))
    return params, cell.init_carry(batch_size), xs, ys


def trajectory(step: Callable, params: Params, carry: Carry, xs: Any) -> tuple[Carry, Carry]:
    """Compute the carries before and after every step, for all sequences."""

    def advance(carry: Carry, x: Any) -> tuple[Carry, tuple[Carry, Carry]]:
        after = jax.vmap(step, (None, 0, 0))(params, carry, x)
        return after, (carry, after)

    return jax.lax.scan(advance, carry, xs)[1]


def rows(tree: Any) -> Any:
    """Merge the axes of steps and sequences."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def truncation_by_itself(step: Callable, loss: Callable) -> Callable:
    """Make (params, before, after, xs, ys, k2) -> truncated gradient; k2 is traced."""

    @jax.jit
    def truncated(params, before, after, xs, ys, k2):
        before, after, xs, ys = rows((before, after, xs, ys))
        count = xs.shape[0]
        a = jax.vmap(jax.grad(loss, 1), (None, 0, 0))(params, after, ys)
        _, back = jax.vjp(lambda c: jax.vmap(step, (None, 0, 0))(params, c, xs), before)

        def lag(_, state):
            a, delta = state
            (a,) = back(a)
            a = jax.tree.map(lambda leaf: jnp.concatenate([leaf[B:], jnp.zeros_like(leaf[:B])]), a)
            return a, jax.tree.map(jnp.add, delta, a)

        _, delta = jax.lax.fori_loop(1, k2, lag, (a, a))
        _, weights = jax.vjp(lambda p: jax.vmap(step, (None, 0, 0))(p, before, xs), params)
        return jax.tree.map(lambda leaf: leaf / count, weights(delta)[0])

    return truncated


def pass_by_itself(step: Callable, loss: Callable) -> Callable:
    """Make (params, carry, xs, ys, t) -> row t of the map, for a single example; t is traced."""

    @jax.jit
    def row(params, carry, xs, ys, t):
        def nats(added):
            def advance(carry, at):
                x, more = at
                carry = jax.tree.map(jnp.add, step(params, carry, x), more)
                return carry, carry

            after = jax.lax.scan(advance, carry, (xs, added))[1]
            after_t, y = jax.tree.map(lambda leaf: leaf[t], (after, ys))
            return loss(params, after_t, y)

        delta = jax.grad(nats)(jax.tree.map(lambda leaf: jnp.zeros((STEPS, *leaf.shape)), carry))
        return jnp.sqrt(sum(jnp.sum(leaf**2, axis=1) for leaf in jax.tree.leaves(delta)))

    return row


def walk_by_itself(step: Callable, loss: Callable) -> Callable:
    """Make (params, before, after, xs, ys, t) -> row t of the map, for an example; t is traced."""

    @jax.jit
    def row(params, before, after, xs, ys, t):
        after_t, y = jax.tree.map(lambda leaf: leaf[t], (after, ys))
        delta = jax.grad(loss, 1)(params, after_t, y)

        def size(delta):
            return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(delta)))

        def back(number, state):
            delta, sizes = state
            k = t - number
            sizes = sizes.at[k].set(size(delta))
            before_k, x = jax.tree.map(lambda leaf: leaf[k], (before, xs))
            _, pull = jax.vjp(lambda c: step(params, c, x), before_k)
            return pull(delta)[0], sizes

        return jax.lax.fori_loop(0, t + 1, back, (delta, jnp.zeros(STEPS)))[1]

    return row


def by_lag(cell: Cell) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Make two methods: every truncation separately, and all lags at once."""
    step, loss = step_of(cell), loss_of(cell)
    params, carry, xs, ys = data(cell, LAGS, B)
    states = jax.jit(lambda p, c, x: trajectory(step, p, c, x))
    truncated = truncation_by_itself(step, loss)

    def apart() -> list[Params]:
        before, after = states(params, carry, xs)
        return [truncated(params, before, after, xs, ys, k2) for k2 in range(1, LAGS + 1)]

    @jax.jit
    def split(params, carry, xs, ys):
        return g.gradient_by_lag(step, loss, params, carry, xs, ys, LAGS - 1, batched=True)

    return apart, lambda: split(params, carry, xs, ys)


def maps(cell: Cell) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """Make three methods: each row by a backward pass, each row by a lean walk, the map at once."""
    step, loss = step_of(cell), loss_of(cell)
    params, carry, xs, ys = data(cell, STEPS, 1)
    first = jax.tree.map(lambda leaf: leaf[0], carry)
    states = jax.jit(lambda p, c, x: trajectory(step, p, c, x))
    row, walk = pass_by_itself(step, loss), walk_by_itself(step, loss)
    x, y = xs[:, 0], ys[:, 0]

    def apart() -> list[jax.Array]:
        return [row(params, first, x, y, t) for t in range(STEPS)]

    def walks() -> list[jax.Array]:
        before, after = jax.tree.map(lambda leaf: leaf[:, 0], states(params, carry, xs))
        return [walk(params, before, after, x, y, t) for t in range(STEPS)]

    whole = jax.jit(lambda *data: g.credit_map(step, loss, *data))
    return apart, walks, lambda: whole(params, first, x, y)


def farthest(found: Any, expected: Any) -> float:
    """Largest difference, as a share of the largest expected number."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def in_turn(ways: tuple[Callable[[], Any], ...], rounds: int) -> list[list[float]]:
    """Time the methods in turn, in every round; each method has already run once before."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, taken in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(way())
            taken.append(time.perf_counter() - began)
    return seconds


def show(what: str, apart: list[float], together: list[float], least: int | None = None) -> Row:
    """Prints a row: median milliseconds of both methods, and the speedup of the second."""
    ratios = [a / b for a, b in zip(apart, together, strict=True)]
    medians = [1e3 * statistics.median(taken) for taken in (apart, together)]
    ratio = statistics.median(ratios)
    line = f"{what:32}" + "".join(f"{value:12.1f}" for value in (*medians, ratio))
    line += f"{min(ratios):10.1f} … {max(ratios):.1f}"
    verdict = "met" if least is not None and ratio >= least else "missed"
    print(line if least is None else f"{line}   target {least}: {verdict}")
    return row(what, "ms", medians[1], medians[0], "lm_jax, each part by itself")


def main() -> None:
    chosen = command.options(__doc__ or "")
    found: list[Row] = []
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores")
    print(f"{'':32}{'ms apart':>12}{'ms at once':>12}{'ratio':>12}{'from … to':>16}")
    for name, cell, targets in (
        ("elman", cells.ElmanCell(H), (LEAST_BY_LAG, LEAST_MAP)),
        ("lstm", cells.LSTMCell(H), (None, None)),
    ):
        if not re.search(chosen.rows, f"{name}, by lag, credit map, leanest"):
            continue
        ways = by_lag(cell)
        each = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ways[0]())
        prefixes = jax.tree.map(lambda leaf: jnp.cumsum(leaf, axis=0), ways[1]())
        if (off := farthest(prefixes, each)) > 1e-4:
            sys.exit(f"the lags' prefix sums differ from the truncations by {off:.1e} of them")
        apart, together = in_turn(ways, chosen.rounds)
        found.append(show(f"{name}, by lag", apart, together, targets[0]))
        ways = maps(cell)
        *others, whole = [jnp.asarray(way()) for way in ways]
        if (off := max(farthest(whole, other) for other in others)) > 1e-4:
            sys.exit(f"the map differs from its rows by {off:.1e} of it")
        apart, walks, together = in_turn(ways, chosen.rounds)
        found.append(show(f"{name}, credit map", apart, together, targets[1]))
        found.append(show(f"{name}, credit map, leanest", walks, together))
    command.finish(found, chosen)


if __name__ == "__main__":
    main()
