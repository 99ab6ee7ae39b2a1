"""The stages of `benchmarks.device` that check lm_jax on the accelerator: bits, numerics, tests."""

import functools
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from benchmarks import sizes
from benchmarks.device_stage import Stage, command, measuring, run_apart, say, second_time
from benchmarks.rows import versions
from benchmarks.side_by_side import ROOT

# Test files that compile little.
TESTS = (
    "models/test_recurrence models/test_cells models/test_fused models/test_precision "
    "models/test_readouts gradients/test_bptt gradients/test_forward gradients/test_spectra "
    "gradients/test_lyapunov gradients/test_jacobians gradients/test_proof training/test_devices "
    "sweeps/test_lanes generation/test_generation scoring/test_scoring"
).split()
TESTS_LIMIT = 140  # seconds


def about(stage: Stage) -> None:
    """Device, memory and versions."""
    import jax

    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    say(f"{jax.device_count()} of {device.device_kind}, JAX may take {limit / 2**30:.0f} GiB")
    say(", ".join(f"{name} {version}" for name, version in versions().items()))


def bits(stage: Stage) -> None:
    """Whether a run repeats its bits, and keeps them when stopped and resumed."""
    path = stage.folder / "text.txt"
    path.write_text(stage.text[:300_000], encoding="utf-8")
    for said, flag in {
        "as it is": "",
        "deterministic operations": "--xla_gpu_deterministic_ops=true",
    }.items():
        with measuring(said):
            for line in run_apart(stage, flag, 90, _RUNS, str(path)).splitlines():
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


def quickstart(stage: Stage) -> None:
    """The commands of a first visit: train, verify, sample."""
    few = ["--train.steps", "20"] if stage.small else []
    began = time.perf_counter()
    command("train", "quickstart", "--run-dir", str(stage.quickstart), *few)
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
            command(*words)
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

    nats, taken = second_time(read_through)
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

            nats, taken = second_time(read_segments)
            say(
                f"parallel segments, {precision} precision: {1e6 * taken / len(tokens):.1f} us a "
                f"token, {nats:.5f} nats, seams held: {all(held)}"
            )
    drawn = functools.partial(generation.sample, model, params, vocabulary, length=2048)
    _, taken = second_time(drawn)
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


def tests(stage: Stage) -> None:
    """Test files that compile little, on the accelerator."""
    files = TESTS[:1] if stage.small else TESTS
    limit = 600 if stage.small else TESTS_LIMIT
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
    command("probe", str(stage.quickstart))
    say(f"probe of the quickstart: {time.perf_counter() - began:.0f} s")
