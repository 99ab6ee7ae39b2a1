"""Cost of probes of the gradient: during training, and for a large state alone.

    python -m benchmarks.probes

(a) ‖∂loss/∂h_t‖ at every time step in every update, in addition to the quickstart's training. The
two programs are a run with `train.probe=live`, with only `deltas` switched on, and a run
without a probe. The losses and parameters of both runs must agree, and the norms must agree with
autodiff through the plain scan, or the program ends with an error.

(b) The default live probes at the default interval, `LiveProbe()`: the time of a call of the
compiled probes, divided by the time of the updates between two calls, plus the share of (a). The
spectra must agree with NumPy, and the gradients by lag with autodiff through every step.

(c) Lag norms of the cells alone, H = 1024 and T = 32, matrix-free: the seconds of a call, and the
memory of the compiled program besides arguments and results, according to XLA, compared with the
memory of the exact method and of the T Jacobians. The target: less memory than a single Jacobian.
The first two lags must agree with the exact method; the residuals show the accuracy of the others.

(a) and (b) are timed in turn, A B C B A C, on the current parameters of the run.
"""

import itertools
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import command
from benchmarks.rows import Row, row
from lm_jax import gradients as g
from lm_jax.config import Config, LiveProbe, resolve, train_of
from lm_jax.data.corpus import Corpus, load
from lm_jax.experiment import load_experiment
from lm_jax.gradients.live_probe import Measurements, live
from lm_jax.models import cells
from lm_jax.models.base import Carry, Params
from lm_jax.models.cells import Cell
from lm_jax.training.state import TrainState
from lm_jax.training.step import eval_model, init, peek_batch, run_until
from lm_jax.training.trainer import pipeline_of
from lm_jax.trees import norm

ROUNDS = 12
UPDATES = 100  # updates in a round
MOST_DELTAS, MOST_LIVE = 0.02, 0.10
WATCHED = "an update of the quickstart, its deltas watched"

H, STEPS = 1024, 32
EXACT_LAGS = 2  # lags to check; the exact singular values take seconds per lag
CALLS = 3

DELTAS = LiveProbe(every=10**9, by_lag=False, spectra=False, lyapunov=False)


class Training:
    """A run's compiled program and current state."""

    def __init__(self, config: Config, corpus: Corpus):
        self.config, self.vocab_size = config, len(corpus.vocabulary)
        self.model = eval_model(config, self.vocab_size)
        self.source = pipeline_of(config, corpus).whole()
        self.state: TrainState = init(config, self.vocab_size)
        self.made = 0

    def go_on(self) -> None:
        """Makes `UPDATES` further updates, in a single compiled loop."""
        self.made += UPDATES
        self.state = run_until(self.config, self.state, self.source, self.made, self.vocab_size)
        self.state.step.block_until_ready()

    def next(self) -> tuple[Params, Carry, Any]:
        """Copy the params, carry and batch of the next update; the update donates the originals."""
        seen = peek_batch(self.config, self.state, self.source, self.vocab_size)
        return jax.tree.map(jnp.copy, (self.state.params, *seen))


def farthest(found: Any, expected: Any) -> float:
    """Largest difference, as a share of the largest expected number."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def demand(what: str, found: Any, expected: Any, tolerance: float) -> None:
    """Ends the program if two results differ by more than a relative tolerance."""
    # Written as `not <=`, to refuse NaN as well.
    if not (off := farthest(found, expected)) <= tolerance:
        sys.exit(f"{what}: they differ by {off:.1e} of their largest")


def check_deltas(plain: Training, watching: Training) -> None:
    """Checks two runs of equal length: equal training, and norms equal to autodiff."""
    demand(
        "the loss with and without deltas",
        watching.state.record.nats,
        plain.state.record.nats,
        1e-4,
    )
    demand(
        "the parameters with and without deltas", watching.state.params, plain.state.params, 1e-2
    )
    at, model = watching.next(), watching.model
    ways = [way(model, delta_norms=True) for way in (g.explicit_bptt, g.full_bptt)]
    explicit, full = (jax.jit(way)(*at)[3].delta_norms for way in ways)
    demand("the deltas and autodiff's", explicit, full, 1e-3)


def check_answers(probe: LiveProbe, training: Training, answers: Measurements) -> None:
    """Checks the spectra against NumPy, and the gradient by lag against autodiff."""
    params, carry, batch = training.next()
    W = np.asarray(params["layers"][0]["W_hh"], float)
    eigenvalues = np.abs(np.linalg.eigvals(W))
    demand("the spectral radius", answers["spectral_radius"]["0"], [eigenvalues.max()], 1e-2)
    demand("the singular value", answers["singular_value"]["0"], [np.linalg.norm(W, 2)], 1e-3)
    expected = by_autodiff(probe, training, params, carry, batch)
    demand("the gradient by lag", answers["gradient_by_lag"], expected, 1e-3)


def by_autodiff(
    probe: LiveProbe, training: Training, params: Params, carry: Carry, batch: Any
) -> jax.Array:
    """Compute ‖g_l‖ by autodiff with respect to separate parameters for every time step."""
    example = g.single_example(training.model)
    few = probe.sequences
    steps = batch.x.shape[0]

    def nats(at_t: Any, carry: Carry, x: jax.Array, y: jax.Array, asked: jax.Array) -> jax.Array:
        """Compute the nats [T] of a sequence, with separate layer parameters for every step."""

        def advance(carry: Carry, at: Any) -> tuple[Carry, jax.Array]:
            layers, x, y, asked = at
            whole = {**params, "layers": layers}
            carry = example.step(whole, carry, x)
            return carry, jnp.where(asked, example.loss(params, carry, y), 0)

        return jax.lax.scan(advance, carry, (at_t, x, y, asked))[1]

    @jax.jit
    def by_lag(carry: Carry, batch: Any) -> jax.Array:
        at_t = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[None], (steps, *leaf.shape)), params["layers"]
        )

        def of_target(t: jax.Array) -> Any:
            def total(at_t: Any) -> jax.Array:
                first = jax.tree.map(lambda leaf: leaf[:few], carry)
                cut = (batch.x[:, :few], batch.y[:, :few], batch.mask[:, :few])
                each = jax.vmap(nats, (None, 0, 1, 1, 1))(at_t, first, *cut)
                return jnp.sum(each[:, t])

            return jax.grad(total)(at_t)

        def add(t: jax.Array, sums: Any) -> Any:
            # Step k's share of target t has the lag t - k.
            lag = (t - jnp.arange(steps)) % steps
            return jax.tree.map(lambda old, new: old + new[lag], sums, of_target(t))

        none = jax.tree.map(jnp.zeros_like, at_t)
        lags = jax.lax.fori_loop(0, steps, add, none)
        count = jnp.sum(batch.mask[:, :few])
        return norm(lags, kept=1) / count

    return by_lag(carry, batch)


def while_training(rounds: int) -> Row:
    """Measure the time of probes, relative to an update of the quickstart."""
    config = resolve(load_experiment("quickstart").config)
    corpus = load(config.data)
    train = train_of(config)
    plain = Training(config, corpus)
    watching = Training(replace(config, train=replace(train, probe=DELTAS)), corpus)
    probe, questions = LiveProbe(), live(LiveProbe(), plain.model)
    answers: list[Measurements] = []

    def ask() -> None:
        answers.append(jax.block_until_ready(questions(*at)))

    plain.go_on()
    watching.go_on()
    check_deltas(plain, watching)
    at = plain.next()
    ask()
    check_answers(probe, plain, answers[-1])

    seconds: list[list[float]] = []
    for number in range(rounds):
        at = jax.block_until_ready(plain.next())
        # The order alternates between rounds, because the first run fills the processor's caches.
        turn = 1 if number % 2 else -1
        pair = timed(*(plain.go_on, watching.go_on)[::turn])[::turn]
        seconds.append([*pair, *timed(ask)])

    updates, watched, asked = (statistics.median(column) for column in zip(*seconds, strict=True))
    print("the quickstart, milliseconds: median")
    print(f"  an update{1e3 * updates / UPDATES:38.3f}")
    print(f"  an update, δ watched{1e3 * watched / UPDATES:27.3f}")
    print(f"  the live questions, one call{1e3 * asked:19.1f}")
    deltas = [b / a - 1 for a, b, _ in seconds]
    calls = [c / (a / UPDATES * probe.every) for a, _, c in seconds]
    show("norms of δ in every update", deltas, MOST_DELTAS)
    show(f"the questions every {probe.every} updates", calls)
    both = [a + b for a, b in zip(deltas, calls, strict=True)]
    show("the default live probes", both, MOST_LIVE)
    per_update = 1e3 * watched / UPDATES, 1e3 * updates / UPDATES
    return row(WATCHED, "ms", *per_update, "lm_jax, no probe")


def timed(*ways: Callable[[], None]) -> list[float]:
    """Time several functions in turn, in seconds."""
    edges = [time.perf_counter()]
    for way in ways:
        way()
        edges.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(edges)]


def show(what: str, shares: list[float], most: float | None = None) -> None:
    """Prints a row: the relative cost, the median over the rounds."""
    share = statistics.median(shares)
    line = f"{what:38}{share:9.1%}   from {min(shares):.1%} to {max(shares):.1%}"
    verdict = "met" if most is not None and share <= most else "missed"
    print(line if most is None else f"{line}   target {most:.0%}: {verdict}")


def transition(cell: Cell) -> tuple[Callable[[Params, Carry, jax.Array], Carry], Params, Carry]:
    """Return a cell's transition of a single example, the params and the initial carry.

    The transition reads pre-activations.
    """

    def step(params: Params, carry: Carry, z_x: jax.Array) -> Carry:
        lane = jax.tree.map(lambda leaf: leaf[None], carry)
        return jax.tree.map(lambda leaf: leaf[0], cell.step(params, lane, z_x[None]))

    carry = jax.tree.map(lambda leaf: leaf[0], cell.init_carry(1))
    return step, cell.init(jax.random.key(0)), carry


def of_a_large_state(name: str, cell: Cell) -> None:
    step, params, carry = transition(cell)
    xs = jax.random.normal(jax.random.key(1), (STEPS, cell.width))
    n = optax.tree.size(carry)
    at = params, carry, xs

    def compiled(way: Callable[..., Any], max_lag: int, **settings: Any) -> Any:
        return jax.jit(lambda *at: way(step, *at, max_lag, **settings)).lower(*at).compile()

    free = compiled(g.lanczos_lag_norms, STEPS)
    exact = compiled(g.lag_norms, STEPS, method="exact")
    norms, residuals = jax.block_until_ready(free(*at))
    few = compiled(g.lag_norms, EXACT_LAGS, method="exact")(*at)
    demand(f"{name}, the first lag norms", norms[: EXACT_LAGS + 1], few, 1e-3)
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        jax.block_until_ready(free(*at))
        seconds.append(time.perf_counter() - began)
    jacobians = STEPS * n**2 * norms.dtype.itemsize
    own, others = (way.memory_analysis().temp_size_in_bytes for way in (free, exact))
    verdict = "met" if own < jacobians / STEPS else "missed"
    print(
        f"{name:6}{n:8,}{statistics.median(seconds):12.1f}"
        + "".join(f"{size / 2**20:14.1f}" for size in (own, others, jacobians))
        + f"{float(jnp.max(residuals)):12.0e}   target less than one: {verdict}"
    )


def main() -> None:
    chosen = command.options(__doc__ or "", ROUNDS)
    found: list[Row] = []
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores")
    if re.search(chosen.rows, WATCHED):
        found.append(while_training(chosen.rounds))
    if not chosen.rows:
        print(f"lag norms, H = {H}, T = {STEPS}; MiB that the program needs")
        print(
            f"{'':6}{'n':>8}{'seconds':>12}{'matrix-free':>14}{'exact':>14}{'T Jacobians':>14}"
            f"{'residual':>12}"
        )
        for name, cell in (("elman", cells.ElmanCell(H)), ("lstm", cells.LSTMCell(H))):
            of_a_large_state(name, cell)
    command.finish(found, chosen)


if __name__ == "__main__":
    main()
