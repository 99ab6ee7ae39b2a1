"""The stages of `benchmarks.device` that take times on the accelerator.

Peers are timed in a process of their own, after ours; `benchmarks.steps` and
`benchmarks.recurrence` time the sides in turn, with several times as much time for each row.
"""

import dataclasses
import functools
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import sizes
from benchmarks.device_stage import Stage, measuring, say, seconds_of, seconds_of_call
from benchmarks.sizes import Size

ROUNDINGS = {"float32": "highest", "TF32": "tensorfloat32", "bfloat16": "default"}
"""Rounding of the factors of products -> JAX's precision of a float32 product."""


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
    import jax

    from benchmarks import ours

    for name, size, rounding in _each_rounding(stage.sizes):
        with measuring(name), jax.default_matmul_precision(ROUNDINGS[rounding]):
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
    for name, size, rounding in _each_rounding(stage.sizes):
        with measuring(f"PyTorch step, {name}"):
            builds = torch_peer.step(where, **vars(size))
            torch.set_float32_matmul_precision("highest" if rounding == "float32" else "high")
            torch.backends.cudnn.allow_tf32 = rounding != "float32"
            way = next(iter(builds.values()))()
            losses, taken = way.check(), seconds_of(way.run)
            say(
                f"PyTorch step, {name}: {1e3 * taken:.3f} ms, "
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


def kernels(stage: Stage) -> None:
    """Updates whose recurrence is a scan, and one kernel each way, by units and precision."""
    from benchmarks import ours

    cells = ("gru", 128), ("lstm", 128), ("gru", 64)
    compared = {f"char {cell} {H}": Size(cell, H, 32, 128, 65) for cell, H in cells}
    for name, size in (stage.sizes if stage.small else compared).items():
        for precision in ("float32", "bfloat16"):
            for recurrence in ("scan", "pallas"):
                what = f"{name}, {precision}, {recurrence}"
                with measuring(what):
                    changes = {"model.recurrence": recurrence, "model.precision": precision}
                    way = ours.updates(size, 1, changes)
                    losses, taken = way.check(), seconds_of(way.run)
                    say(f"{what}: {1e3 * taken:.3f} ms, losses {losses[0]:.5f} {losses[-1]:.5f}")


def launches(stage: Stage) -> None:
    """Kernels of an update and calls of the driver that start them, by JAX's profiler."""
    from benchmarks import ours
    from benchmarks.profile import trace

    updates = 3
    for name, size in stage.sizes.items():
        with measuring(f"launches, {name}"):
            way = ours.updates(size, 1)
            way.run(2)
            events = trace(lambda way=way: way.run(updates))
            kernels, calls = _counted(events)
            said = ", ".join(f"{call} {count / updates:.0f}" for call, count in calls.items())
            say(
                f"launches, {name}: {kernels / updates:.0f} operations an update, "
                f"{kernels / updates / size.length / size.layers:.1f} a time step and layer; "
                f"calls an update: {said or 'none seen'}"
            )


def _counted(events: Sequence[dict]) -> tuple[int, Counter[str]]:
    """Count the operations on a device's streams, or on a CPU, and the driver's calls by name."""
    named = {
        (event["name"], event["pid"], event.get("tid")): event["args"].get("name", "")
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }
    kernels, calls = 0, Counter()
    for event in events:
        if event.get("ph") != "X":
            continue
        stream = named.get(("thread_name", event["pid"], event.get("tid")), "")
        on_cpu = "CPU" in named.get(("process_name", event["pid"], None), "")
        kernels += stream.startswith("Stream") or (on_cpu and "hlo_op" in event.get("args", {}))
        if re.match(r"cu(da)?(Launch|GraphLaunch|Memcpy|Memset)", event["name"]):
            calls[event["name"]] += 1
    return kernels, calls


def live_probe(stage: Stage) -> None:
    """An update with and without ‖δ‖ of every step, and a call of the live probe."""
    import jax
    import jax.numpy as jnp

    from benchmarks import ours
    from lm_jax.config import LiveProbe
    from lm_jax.data.batches import Batch
    from lm_jax.gradients.live_probe import live
    from lm_jax.training.step import eval_model

    for name, size in stage.sizes.items():
        if size.vocabulary > 1000:
            continue
        for said, changes in {"off": {}, "on": {"train.probe": "live"}}.items():
            with measuring(f"live probe {said}, {name}"):
                taken = seconds_of(ours.updates(size, 1, changes).run)
                say(f"live probe {said}, {name}: {1e3 * taken:.3f} ms an update")
        model = eval_model(ours.config_of(size), size.vocabulary)
        params = jax.tree.map(jnp.asarray, sizes.weights(size))
        x, y = map(jnp.asarray, sizes.passage(size))
        batch = Batch(x, y, jnp.ones(x.shape, bool), jnp.ones(size.batch, bool))
        for said, probe in {"": LiveProbe(), ", with lags": LiveProbe(lags=True)}.items():
            with measuring(f"call of the live probe{said}, {name}"):
                carry = model.init_carry(size.batch)
                taken = seconds_of_call(live(probe, model), params, carry, batch)
                say(f"call of the live probe{said}, {name}: {1e3 * taken:.1f} ms")


def lanes(stage: Stage) -> None:
    """An update of 1, 8 and 64 lanes, a record of all, and the way of their states to the host."""
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
                runs, reached = VmappedRuns(V, source, configs), 0
                for run, each in enumerate(configs):
                    runs.put(run, init(each, V))

                def advance(updates: int, runs: VmappedRuns = runs, count: int = count) -> None:
                    nonlocal reached
                    reached += updates
                    runs.advance(dict.fromkeys(range(count), reached))

                def record(times: int, runs: VmappedRuns = runs, count: int = count) -> None:
                    for _ in range(times):
                        runs.reset_metrics(range(count))
                        runs.summary(0)

                taken, recorded = seconds_of(advance), seconds_of(record)
                to_host = time.perf_counter()
                states = [jax.device_get(runs.get(run)) for run in range(count)]
                end = time.perf_counter()
                size = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) / 1e6
                peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9
                say(
                    f"{what}: {1e3 * taken:.2f} ms for all, {1e3 * taken / count:.3f} a lane; "
                    f"a record of all {1e3 * recorded:.2f} ms; states {size:.0f} MB, to the host "
                    f"{1e3 * (end - to_host):.0f} ms; peak {peak:.2f} GB"
                )


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
            fused.TILE = fused.ACCELERATOR_TILE = 1 << tile
            fused.MOST = 1024 if tile < 28 else 4096
            jax.clear_caches()
            with measuring(f"V {V:,}, tile 2^{tile}"):
                fused._summed.cache_clear()
                both = jax.value_and_grad(fused.fused_cross_entropy, (0, 1, 2))
                taken = seconds_of_call(both, W, b, h, y, mask)
                say(f"V {V:,}, H {H}, {N} targets, tile 2^{tile}: {1e3 * taken:.2f} ms")


def _each_rounding(found: Mapping[str, Size]) -> Iterator[tuple[str, Size, str]]:
    """Yield name, size and rounding of each row."""
    for name, size in found.items():
        for rounding in ROUNDINGS:
            precision = "bfloat16" if rounding == "bfloat16" else "float32"
            yield f"{name}, {rounding}", dataclasses.replace(size, precision=precision), rounding
