"""Kinds of work for processes that are killed, or whose power is cut, and what is left of each."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time

import jax
import tiny
from diverging import diverging_config

import lm_jax
from lm_jax import files
from lm_jax.config import RNN, Config, Copy, Data, Memory, NGram, Train
from lm_jax.report.study import write_study
from lm_jax.sweeps.halving import Halving
from lm_jax.sweeps.processes import Processes
from lm_jax.training.checkpoint import steps_saved
from lm_jax.training.manifest import Contents

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
BETWEEN = 0.1  # seconds between two signals
SHORT = {"steps": 60, "log_every": 5, "validate_every": 15, "checkpoint_every": 4}
TASK = Config(
    data=Data(source=Copy(symbols=3, items=2), length=9, batch_size=4),
    model=RNN(embedding_size=None, hidden_size=5),
    train=Train(steps=40, log_every=5, validate_every=10, checkpoint_every=5),
)


def text_run(place):
    lm_jax.train(tiny.config(train=SHORT), place, text=tiny.TEXT)


def task_run(place):
    lm_jax.train(TASK, place)


def diverging_run(place):
    lm_jax.train(diverging_config(on_divergence="restore", steps=15), place, text=tiny.TEXT)


def counted_run(place):
    lm_jax.train(Config(data=Data(source=Memory()), model=NGram(order=3)), place, text=tiny.TEXT)


def probed_run(place):
    run = lm_jax.train(tiny.config(train={"steps": 5}), place, text=tiny.TEXT)
    write_study(run, lm_jax.probe(run, text=tiny.TEXT, length=4, only=["lags"]), "probe-lags")


def sweep(place, rates=(0.01, 0.1), **how):
    points = {str(rate): {"train.learning_rate": rate} for rate in rates}
    lm_jax.sweep(tiny.config(train=SHORT), points, place, text=tiny.TEXT, **how)


WORK = {
    "text": text_run,
    "task": task_run,
    "counted": counted_run,
    "probe": probed_run,
    "diverging": diverging_run,
    "sweep": sweep,
    "halving": lambda place: sweep(place, (0.01, 0.03, 0.1, 0.3), halving=Halving(18, factor=2)),
    "processes": lambda place: sweep(place, executor=Processes(2)),
}


def work(name, place, cache, told, after=None, operation=None, numbers=()):
    """In a process of its own: do it, and get signals after some seconds, or be killed at a file
    operation."""
    os.environ["LM_JAX_CACHE"] = str(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    count = 0

    def see(event, arguments):
        nonlocal count
        if event in OPERATIONS and str(place) in str(arguments[0]):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)
    for nth, number in enumerate(numbers):
        threading.Timer(after + nth * BETWEEN, os.kill, (os.getpid(), number)).start()
    began = time.monotonic()
    try:
        WORK[name](place)
        told.write_text(json.dumps([count, time.monotonic() - began]))
    except KeyboardInterrupt:  # multiprocessing would print it
        os._exit(130)
    os._exit(0)  # without waiting for the timer


def started(*given, do=work, **killed):
    """The exit status of a process that works; it has the modules from the one that it is forked
    from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "orbax.checkpoint.v1"])
    process = context.Process(target=do, args=given, kwargs=killed)
    process.start()
    process.join(300)
    return process.exitcode


def contents(place):
    """Rows and results without the clock's figures, and the arrays of the newest checkpoints."""
    found = {}
    for metrics in sorted(place.rglob("metrics.jsonl")):
        run_dir = metrics.parent
        name = str(run_dir.relative_to(place))
        step = max(steps_saved(run_dir))
        saved = run_dir / "checkpoints" / f"{step:08d}" / "manifest.json"
        result = files.read_sealed(run_dir / "result.json")
        arrays = files.read_sealed(saved, Contents).leaves
        found[name] = tiny.rows_of(run_dir), result["sha256"], result["splits"], step, arrays
    if (place / "results.jsonl").exists():
        rows = lm_jax.sweeps.read_results(place)
        found["table"] = [{k: v for k, v in row.items() if k not in tiny.CLOCKS} for row in rows]
    for study in place.glob("probe-*.json"):
        found[study.name] = files.read_json(study)
    return found
