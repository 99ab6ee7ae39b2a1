"""The measurements of `benchmarks.device`, one function per stage.

A time is the median of three turns of about 0.3 s, in a single process. Peers are timed in
a process of their own, after ours; `benchmarks.steps` and `benchmarks.recurrence` time the sides in
turn, with several times as much time for each row.
"""

import dataclasses
import functools
import json
import os
import pydoc_data.topics
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import sizes
from benchmarks.rows import versions
from benchmarks.side_by_side import ROOT, clock
from benchmarks.sizes import Size

MARK = "== "
"""Begins the lines of a log that belong to the table."""
TURN, TURNS = 0.3, 3
PRECISIONS = ("float32", "bfloat16")
SIZES = {
    "char lstm 512": Size("lstm", 512, 32, 128, 65),
    "word lstm 650, 2 layers": Size("lstm", 650, 20, 35, 10_000, 2),
    "word lstm 1500, 2 layers": Size("lstm", 1500, 20, 35, 10_000, 2),
    "char gru 128": Size("gru", 128, 32, 128, 65),
    "word lstm 200, 1 layer": Size("lstm", 200, 20, 35, 10_000),
}
SMALL_SIZES = {"lstm 16": Size("lstm", 16, 4, 8, 65)}
# Test files that compile little.
TESTS = (
    "models/test_recurrence models/test_cells models/test_fused models/test_precision "
    "models/test_readouts gradients/test_bptt gradients/test_forward gradients/test_spectra "
    "gradients/test_lyapunov gradients/test_jacobians gradients/test_proof training/test_devices "
    "sweeps/test_lanes generation/test_generation scoring/test_scoring"
).split()


class Stage(NamedTuple):
    """What a stage is given."""

    small: bool
    """True for a trial with tiny sizes."""
    folder: Path
    """Folder for results and for the run of the quickstart."""

    @property
    def sizes(self) -> Mapping[str, Size]:
        return SMALL_SIZES if self.small else SIZES

    @property
    def text(self) -> str:
        """A text that every Python has, about 700,000 characters."""
        text = "\n".join(pydoc_data.topics.topics.values())
        return text[:20_000] if self.small else text

    @property
    def quickstart(self) -> Path:
        """The quickstart's run."""
        return self.folder / "quickstart"


def say(line: str) -> None:
    """Prints a line of the table."""
    print(MARK + line, flush=True)


@contextmanager
def measuring(what: str) -> Iterator[None]:
    """Report a failed measurement as a line of the table, and go on."""
    try:
        yield
    except Exception as error:  # one failure must not cost the other lines
        say(f"{what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}")


def seconds_of(run: Callable[[int], object]) -> float:
    """Time a method, in seconds per call: the median of some turns.

    Args:
      run: makes a number of calls, and returns after the last is done.
    """
    run(1)
    calls, taken = 1, clock(run, 1)
    while taken < TURN / 2:
        calls = min(10 * calls, int(calls * TURN / max(taken, 1e-4)) + 1)
        taken = clock(run, calls)
    calls = max(1, int(calls * TURN / taken))
    return statistics.median(clock(run, calls) / calls for _ in range(TURNS))


def seconds_of_call(function: Callable, *given: Any) -> float:
    """Time a function of arrays, compiled, in seconds per call."""
    import jax

    compiled = jax.jit(function)

    def run(calls: int) -> None:
        for _ in range(calls):
            jax.block_until_ready(compiled(*given))

    return seconds_of(run)


def about(stage: Stage) -> None:
    """Device, memory and versions."""
    import jax

    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    say(f"{jax.device_count()} of {device.device_kind}, JAX may take {limit / 2**30:.0f} GiB")
    say(", ".join(f"{name} {version}" for name, version in versions().items()))


def ceilings(stage: Stage) -> None:
    """Rates of a product and of a copy, and the time of a step of a scan."""
    import jax
    import jax.numpy as jnp

    n, key = 512 if stage.small else 8192, jax.random.key(0)
    a = jax.random.normal(key, (n, n))
    for name, x, precision in (
        ("float32, default precision", a, None),
        ("float32, highest precision", a, "highest"),
        ("bfloat16", a.astype(jnp.bfloat16), None),
    ):
        taken = seconds_of_call(functools.partial(jnp.matmul, precision=precision), x, x)
        say(f"product {n} x {n}, {name}: {2 * n**3 / taken / 1e12:.1f} TFLOP/s")
    big = jnp.ones(1 << (20 if stage.small else 29))
    say(f"copy: {2 * big.nbytes / seconds_of_call(lambda x: x + 1, big) / 1e12:.2f} TB/s")
    steps = 2000

    def single(h: Any, unroll: int) -> Any:
        def body(h: Any, _: Any) -> tuple[Any, None]:
            return jnp.tanh(h) * 1.01, None

        return jax.lax.scan(body, h, None, length=steps, unroll=unroll)[0]

    for unroll in (1, 8):
        made = functools.partial(single, unroll=unroll)
        taken = seconds_of_call(made, jnp.ones((32, 512)))
        say(f"scan with a single kernel, unroll {unroll}: {taken / steps * 1e6:.2f} us a step")

    def product(h: Any, W: Any) -> Any:
        def body(h: Any, _: Any) -> tuple[Any, None]:
            return jnp.tanh((h @ W)[:, : h.shape[1]]), None

        return jax.lax.scan(body, h, None, length=200)[0]

    shapes = ((32, 512), (20, 650), (20, 656), (20, 1500), (20, 1504))
    for B, H in ((4, 16),) if stage.small else shapes:
        W = jax.random.normal(key, (H, 4 * H)) / H**0.5
        taken = seconds_of_call(product, jnp.ones((B, H)), W)
        say(f"scan with a product [{B}, {H}] x [{H}, {4 * H}]: {taken / 200 * 1e6:.1f} us a step")


def steps(stage: Stage) -> None:
    """Whole training steps of lm_jax; their compiled programs go to the folder."""
    from benchmarks import ours

    for name, size in _each_precision(stage.sizes):
        with measuring(name):
            way = ours.updates(size, 1)
            losses, taken = way.check(), seconds_of(way.run)
            say(
                f"step, {name}: {1e3 * taken:.3f} ms, "
                f"{1e6 * taken / size.length / size.layers:.1f} us a time step and layer, "
                f"{size.batch * size.length / taken / 1e3:.0f}k tokens/s, "
                f"losses {losses[0]:.4f} {losses[-1]:.4f}"
            )
    for name, size in stage.sizes.items():
        with measuring(f"program, {name}"):
            path = stage.folder / f"{name.replace(' ', '_').replace(',', '')}.hlo.txt"
            path.write_text(ours.compiled_update(size).as_text() or "", encoding="utf-8")


def peers(stage: Stage) -> None:
    """The same steps in PyTorch (eager, cuDNN), and layers alone on all sides."""
    import jax
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks import flax_peer, ours, torch_peer

    where = jax.default_backend()
    for name, size in _each_precision(stage.sizes):
        for tf32 in (True, False) if size.precision == "float32" else (True,):
            rounding = f"{name}{'' if tf32 else ', no TF32'}"
            with measuring(f"PyTorch step, {rounding}"):
                builds = torch_peer.step(where, **vars(size))
                torch.set_float32_matmul_precision("high" if tf32 else "highest")
                torch.backends.cudnn.allow_tf32 = tf32
                way = next(iter(builds.values()))()
                losses, taken = way.check(), seconds_of(way.run)
                say(
                    f"PyTorch step, {rounding}: {1e3 * taken:.3f} ms, "
                    f"losses {losses[0]:.4f} {losses[-1]:.4f}"
                )
    for name, size in stage.sizes.items():
        sized = {**vars(size), "layers": 1, "vocabulary": 0}
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        builds = {
            "ours, passes in one loop": functools.partial(ours.passes_of_a_layer, Size(**sized), 1),
            **flax_peer.layer(where, **sized),
            **torch_peer.layer(where, **sized),
        }
        for way, build in builds.items():
            if "compile" in way or "nnx" in way or ("Flax" in way and "loop" not in way):
                continue  # slower to compile, or slower than the next
            with measuring(f"layer, {name}, {way}"):
                say(f"layer, {name}, {way}: {1e3 * seconds_of(build().run):.3f} ms")


def bits(stage: Stage) -> None:
    """Whether a run repeats its bits, and keeps them when stopped and resumed."""
    path = stage.folder / "text.txt"
    path.write_text(stage.text[:300_000], encoding="utf-8")
    for said, flag in {
        "as it is": "",
        "deterministic operations": "--xla_gpu_deterministic_ops=true",
    }.items():
        with measuring(said):
            for line in _run_apart(stage, flag, 90, _RUNS, str(path)).splitlines():
                say(f"{said}: {line}")


_RUNS = """
import sys, tempfile
import lm_jax
from lm_jax.config import LSTM, RNN, Config, Data, Memory, Train, override

base = Config(
    data=Data(source=Memory(), batch_size=16, length=32),
    model=RNN(cell=LSTM(), hidden_size=128),
    train=Train(validate_every=50, checkpoint_every=50, log_every=50),
)
text = open(sys.argv[1], encoding="utf-8").read()

def parameters(embedding, *stops):
    folder = tempfile.mkdtemp()
    for stop in stops:
        changed = override(base, {"model.embedding_size": embedding, "train.steps": stop})
        run = lm_jax.train(changed, folder, text=text)
    return run.result["sha256"]

for name, embedding in (("one-hot inputs", None), ("embedding of 64", 64)):
    once, again, resumed = (parameters(embedding, *stops) for stops in ((200,), (200,), (100, 200)))
    said = {True: "the same bits", False: "OTHER bits"}
    print(f"{name}: run twice {said[once == again]}, stopped and resumed {said[once == resumed]}")
"""


def lanes(stage: Stage) -> None:
    """An update of 1, 8 and 64 lanes, and the way of their states to the host and back."""
    import jax

    from lm_jax.config import GRU, LSTM, RNN, Config, Data, Train, override, resolve
    from lm_jax.data.batches import streams
    from lm_jax.sweeps.vmapped_runs import VmappedRuns
    from lm_jax.training.step import init

    V = 65
    tokens = np.random.default_rng(0).integers(0, V, 200_000).astype(np.uint8)
    small = (GRU(), 16, 4, 8)
    for cell, H, B, T in (small,) if stage.small else ((GRU(), 64, 16, 32), (LSTM(), 512, 32, 128)):
        config = resolve(
            Config(
                data=Data(batch_size=B, length=T),
                model=RNN(cell=cell, hidden_size=H),
                train=Train(steps=10**6, clip_norm=1.0),
            )
        )
        source = streams(tokens, 0, B)
        for count in (1, 2) if stage.small else (1, 8, 64):
            what = f"{cell.kind} {H}, B {B} T {T}, {count} lanes"
            with measuring(what):
                configs = [override(config, {"seed": seed}) for seed in range(count)]
                runs, reached = VmappedRuns(V, source, count), 0
                runs.stack([init(each, V) for each in configs], configs)

                def advance(updates: int, runs: VmappedRuns = runs, count: int = count) -> None:
                    nonlocal reached
                    reached += updates
                    runs.advance([reached] * count)

                taken = seconds_of(advance)
                to_host = time.perf_counter()
                states = runs.unstack(count)
                back = time.perf_counter()
                runs.stack(states, configs)
                runs.advance([reached] * count)
                end = time.perf_counter()
                size = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) / 1e6
                peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9
                say(
                    f"{what}: {1e3 * taken:.2f} ms for all, {1e3 * taken / count:.3f} a lane; "
                    f"states {size:.0f} MB, to the host {1e3 * (back - to_host):.0f} ms, "
                    f"back {1e3 * (end - back):.0f} ms; peak {peak:.2f} GB"
                )


def quickstart(stage: Stage) -> None:
    """The commands of a first visit: train, verify, sample."""
    few = ["--train.steps", "20"] if stage.small else []
    began = time.perf_counter()
    _command("train", "quickstart", "--run-dir", str(stage.quickstart), *few)
    taken = time.perf_counter() - began
    result = json.loads((stage.quickstart / "result.json").read_text())
    nats = result["splits"]["validation"]["nats"]
    say(f"train quickstart: {taken:.0f} s, {result['seconds']:.1f} s of training, {nats:.4f} nats")
    for words in (
        ("verify", "quickstart"),
        ("sample", str(stage.quickstart), "--length", "2000"),
    ):
        with measuring(words[0]):
            began = time.perf_counter()
            _command(*words)
            say(f"{words[0]}: {time.perf_counter() - began:.1f} s")


def evaluation(stage: Stage) -> None:
    """Reading with the quickstart's model: as one sequence, in parallel segments, and drawing."""
    import jax

    import lm_jax
    from lm_jax import generation
    from lm_jax.data.text import in_memory
    from lm_jax.scoring.blocks import batches
    from lm_jax.scoring.parallel import parallel_scorer, stretch_length
    from lm_jax.scoring.score import reading, token_nats

    run = lm_jax.load_run(stage.quickstart)
    model, params, vocabulary = run.model, run.params, run.vocabulary
    text = stage.text[: 3000 if stage.small else 70_000]
    tokens = np.asarray(vocabulary.encode(text))

    def read_through() -> float:
        read = token_nats(model, params, reading(tokens, vocabulary))
        return float(sum(np.sum(block, dtype=np.float64) for block in read)) / len(tokens)

    nats, taken = _second_time(read_through)
    say(f"one sequence: {1e6 * taken / len(tokens):.1f} us a token, {nats:.5f} nats")
    for precision in ("default", "highest"):
        with jax.default_matmul_precision(precision), measuring(f"segments, {precision}"):
            jax.clear_caches()
            scorer = parallel_scorer(model, stretch_length(len(vocabulary)))
            held: list[bool] = []

            def read_segments(scorer: Any = scorer, held: list[bool] = held) -> float:
                state, total = scorer.init(params, 1), 0.0
                for piece, batch in batches(vocabulary, in_memory("text", text), scorer.length):
                    state, nats = scorer.score_chunk(params, state, batch)
                    total += float(np.sum(np.asarray(nats, float)[: len(piece.tokens)]))
                    held.append(bool(state.forgets))
                return total / len(tokens)

            nats, taken = _second_time(read_segments)
            say(
                f"parallel segments, {precision} precision: {1e6 * taken / len(tokens):.1f} us a "
                f"token, {nats:.5f} nats, seams held: {all(held)}"
            )
    drawn = functools.partial(generation.sample, model, params, vocabulary, length=2048)
    _, taken = _second_time(drawn)
    say(f"drawing: {1e6 * taken / 2048:.0f} us a character")


def numerics(stage: Stage) -> None:
    """Distance of gradients and probes from those with full float32 products."""
    import jax
    import jax.numpy as jnp

    from lm_jax import gradients, models
    from lm_jax.config import LSTM, RNN
    from lm_jax.data.batches import Batch

    size = next(iter(stage.sizes.values()))
    model = models.make(
        RNN(cell=LSTM(), embedding_size=size.hidden, hidden_size=size.hidden), size.vocabulary
    )
    params = jax.tree.map(jnp.asarray, sizes.weights(size))
    x, y = map(jnp.asarray, sizes.passage(size))
    batch = Batch(x, y, jnp.ones(x.shape, bool), jnp.ones(size.batch, bool))
    example, far = gradients.single_example(model), min(32, size.length - 1)
    carry = model.init_carry(size.batch)

    def measured() -> dict[str, np.ndarray]:
        found = {
            "explicit": jax.jit(gradients.explicit_bptt(model))(params, carry, batch)[2],
            "full": jax.jit(gradients.full_bptt(model))(params, carry, batch)[2],
            "Lyapunov exponents": jax.jit(
                lambda x: gradients.lyapunov_spectrum(example.step, params, example.carry, x, 2)
            )(x[:, 0]),
            "lag norms": jax.jit(
                lambda x: gradients.lag_norms(example.step, params, example.carry, x, far)
            )(x[: far + 1, 0]),
        }
        return {
            name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(each)])
            for name, each in found.items()
        }

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    exact = None
    for precision in ("highest", "default", "tensorfloat32", "bfloat16"):
        with jax.default_matmul_precision(precision), measuring(precision):
            found = measured()
            exact = exact or found
            off = ", ".join(f"{name} {apart(found[name], exact[name]):.1e}" for name in exact)
            by_hand = apart(found["explicit"], found["full"])
            say(f"{precision}, distance from highest: {off}; explicit from full {by_hand:.1e}")
        jax.clear_caches()


def loss(stage: Stage) -> None:
    """The fused loss with gradient, by size of a tile."""
    import jax
    import jax.numpy as jnp

    from lm_jax.models import fused

    N, H = (64, 16) if stage.small else (700, 64)
    for V in (1000,) if stage.small else (10_000, 1_000_000):
        keys = jax.random.split(jax.random.key(0), 3)
        W, h = 0.1 * jax.random.normal(keys[0], (H, V)), jax.random.normal(keys[1], (N, H))
        y, b, mask = jax.random.randint(keys[2], (N,), 0, V), jnp.zeros(V), jnp.ones(N, bool)
        for tile in (21, 24, 27, 30):
            fused.TILE, fused.MOST = 1 << tile, 1024 if tile < 28 else 4096
            jax.clear_caches()
            with measuring(f"V {V:,}, tile 2^{tile}"):
                fused._summed.cache_clear()
                both = jax.value_and_grad(fused.fused_cross_entropy, (0, 1, 2))
                taken = seconds_of_call(both, W, b, h, y, mask)
                say(f"V {V:,}, H {H}, {N} targets, tile 2^{tile}: {1e3 * taken:.2f} ms")


def tests(stage: Stage) -> None:
    """Test files that compile little, on the accelerator."""
    files = TESTS[:1] if stage.small else TESTS
    limit = 600 if stage.small else STAGES["tests"].limit - 12
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-v", "-n", "2" if stage.small else "14", "--tb=line"]
        + ["-p", "no:cacheprovider", "-p", "no:benchmark", *(f"tests/{file}.py" for file in files)],
        cwd=ROOT,
        env=os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.05"},
        stdout=subprocess.PIPE,
        text=True,
    )
    end = threading.Timer(limit, process.kill)
    end.start()
    passed, failed = 0, []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        passed += " PASSED " in line
        if " FAILED " in line or " ERROR " in line:
            failed.append(line.split()[-1])
    end.cancel()
    stopped = ", stopped for want of time" if process.wait() < 0 else ""
    say(f"{passed} passed, {len(failed)} failed{stopped}")
    for name in failed[:30]:
        say(f"failed: {name[:150]}")


def probe(stage: Stage) -> None:
    """The gradient page of the quickstart's run."""
    began = time.perf_counter()
    _command("probe", str(stage.quickstart))
    say(f"probe of the quickstart: {time.perf_counter() - began:.0f} s")


class Limited(NamedTuple):
    """A measurement, and its time limit in seconds."""

    measure: Callable[[Stage], None]
    limit: float


STAGES = {
    "about": Limited(about, 60),
    "ceilings": Limited(ceilings, 60),
    "steps": Limited(steps, 150),
    "peers": Limited(peers, 120),
    "bits": Limited(bits, 90),
    "lanes": Limited(lanes, 90),
    "quickstart": Limited(quickstart, 90),
    "evaluation": Limited(evaluation, 60),
    "numerics": Limited(numerics, 90),
    "loss": Limited(loss, 60),
    "tests": Limited(tests, 150),
    "probe": Limited(probe, 200),
}
"""In the order in which they run; evaluation and probe read the quickstart's run."""


def _each_precision(found: Mapping[str, Size]) -> Iterator[tuple[str, Size]]:
    for name, size in found.items():
        for precision in PRECISIONS:
            yield f"{name}, {precision}", dataclasses.replace(size, precision=precision)


def _second_time(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds of the second call."""
    function()
    began = time.perf_counter()
    found = function()
    return found, time.perf_counter() - began


def _command(*words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    if ended.returncode:
        raise RuntimeError(f"{words[0]}: {ended.stderr.strip()[-300:]}")


def _run_apart(stage: Stage, flag: str, limit: float, program: str, *words: str) -> str:
    """Run a Python program with flags of XLA; return its output."""
    present = os.environ.get("XLA_FLAGS", "")
    if stage.small:
        flag, limit = "", 600.0  # a CPU's XLA refuses flags of GPUs
    ended = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": f"{present} {flag}".strip()},
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip().splitlines() or [""])[-1])
    return ended.stdout.strip()
