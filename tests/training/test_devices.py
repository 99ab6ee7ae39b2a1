"""The lanes of a batch on several devices: what one device computes, to rounding.

Four devices of the CPU are made in a process of its own, where the comparisons are made; here its
findings are judged.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lm_jax.settings import UserError
from lm_jax.training.devices import device_count, make_mesh, on_the_host

WORK = """
import json, os, re, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_enable_x64", True)
import numpy as np
import lm_jax, tiny
from lm_jax.config import (
    RNN, Config, Data, Explicit, Full, LiveProbe, Memory, RecurrentDropout, Softmax, Train,
    Truncated,
)
from lm_jax.settings import UserError
from lm_jax.training.trainer import pipeline_of
from lm_jax.training.loop import prepared
from lm_jax.training.step import chunk_length, init, run_until, shard
from lm_jax.training.devices import make_mesh

def config(model, batch_size=4, **train):
    data = Data(source=Memory(), batch_size=batch_size, length=8)
    model = tiny.changed(RNN(hidden_size=8, embedding_size=4), **model)
    return Config(data=data, model=model, train=Train(**train))

def apart(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()) for a, b in pairs)

CASES = {{
    "lstm": (dict(cell="lstm", layers=2), dict(clip_norm=0.1)),
    "tied": (dict(embedding_size=8, readout=Softmax(tied=True, label_smoothing=0.1)), dict()),
    "gru": (dict(cell="gru", dropout=RecurrentDropout(outputs=0.3)), dict()),
    "watched": (dict(cell="gru"), dict(probe=LiveProbe(), gradient=Explicit(recompute="sqrt"))),
    "full": (dict(), dict(gradient=Full())),
    "truncated": (dict(), dict(gradient=Truncated(k1=4, k2=8))),
}}
found = {{"apart": {{}}, "within": {{}}, "fetched": {{}}, "sharded": {{}}}}
for name in {names!r}:
    model, train = CASES[name]
    chosen, corpus = prepared(config(model, **train), tiny.TEXT)
    V, ends = len(corpus.vocabulary), []
    source = pipeline_of(chosen, corpus).whole()
    for devices in (1, 4):
        mesh = make_mesh(devices, chosen.data.batch_size)
        state = shard(chosen, init(chosen, V), V, mesh)
        compiled = run_until.lower(chosen, state, source, 3, V, mesh).compile()
        ends.append(compiled(chosen, state, source, 3))
    found["apart"][name] = apart(*((s.params, s.opt_state, s.carry, s.record) for s in ends))
    sent = [line for line in compiled.as_text().splitlines()
            if re.search(r" (all-|collective-|reduce-scatter)[\\w-]*\\(", line)]
    found["within"][name] = sum(line.count("while/body") > 1 for line in sent)
    found["fetched"][name] = sum("all-gather" in line for line in sent)
    found["sharded"][name] = [
        [len(leaf.addressable_shards), leaf.addressable_shards[0].data.size * 4 == leaf.size]
        for leaf in jax.tree.leaves(ends[1].carry)
    ]
ends = []
for folder, counts in (("a", (1, 1, 1)), ("b", (4, 1, 2))):
    for steps, count in zip((2, 4, 6), counts):
        run = lm_jax.train(config(dict(cell="lstm"), steps=steps, validate_every=2),
                           os.path.join({folder!r}, folder), text=tiny.TEXT, devices=count)
    ends.append(run.params)
found["resumed"] = [int(run.step), apart(*ends)]
try:
    path = os.path.join({folder!r}, "c")
    lm_jax.train(config(dict(), batch_size=6), path, text=tiny.TEXT, devices=4)
except UserError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


QUICK = ("lstm",)
OTHERS = ("gru", "tied", "watched", "full", "truncated")


@pytest.fixture(scope="module", params=[QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)])
def found(request, tmp_path_factory):
    import jax

    work = WORK.format(
        root=str(Path(__file__).parents[2]),
        names=request.param,
        folder=str(tmp_path_factory.mktemp("runs")),
        cache=str(jax.config.jax_compilation_cache_dir),
    )
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", work], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return json.loads(made.stdout.splitlines()[-1])


def test_several_devices_train_as_one_does(found):
    """Parameters, optimizer and carry after three updates, with dropout, and with δ_t watched."""
    assert max(found["apart"].values()) < 1e-12


def test_each_device_has_its_own_lanes(found):
    for leaves in found["sharded"].values():
        assert leaves == [[4, True]] * len(leaves)


def test_no_device_waits_for_another_within_the_recurrence(found):
    for name in {"lstm", "gru"} & {*found["within"]}:  # "watched" adds up once a segment
        assert found["within"][name] == 0


def test_no_device_fetches_the_lanes_of_another(found):
    """Or it would do the work of all of them, in the readout above all."""
    for name in {"lstm", "gru", "tied"} & {*found["fetched"]}:
        assert found["fetched"][name] == 0


def test_a_run_goes_on_with_another_number_of_devices(found):
    step, apart = found["resumed"]
    assert step == 6
    assert apart < 1e-12


def test_a_batch_that_cannot_be_divided_is_refused(found):
    assert "data.batch_size=6 cannot be shared evenly by 4 devices" in found["refused"]


def test_more_devices_than_there_are_is_refused():
    for devices in (0, 1000):
        with pytest.raises(UserError, match=f"devices={devices}"):
            device_count(devices, 4)
    assert device_count(1, 4) == 1
    assert make_mesh(1, 3) is None


@pytest.mark.parametrize(("batch_size", "count"), [(8, 4), (6, 3), (7, 1)])
def test_as_many_devices_as_divide_the_batch_are_used_unasked(batch_size, count, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert device_count(None, batch_size) == count


def test_on_a_tpu_the_first_state_is_made_by_the_cpu(monkeypatch):
    """A TPU compiles QR for minutes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with on_the_host():
        assert jax.config.jax_default_device == jax.devices("cpu")[0]
    assert jax.config.jax_default_device is None
    monkeypatch.undo()
    with on_the_host():
        assert jax.config.jax_default_device is None
