"""Small models and batches, the same for all tests, so that they compile once."""

import dataclasses
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax import models
from lm_jax.config import RNN, Config, Data, Memory, Train, Window
from lm_jax.data.batches import Batch
from lm_jax.fields import CODE, alternatives
from lm_jax.training import journal
from lm_jax.training.checkpoint import newest
from lm_jax.training.manifest import Manifest

V, B, T = 7, 3, 6

RECORD = {
    "kind": "train",
    "split": "train",
    "nats": 1.0,
    "grad_norm": 1.0,
    "grad_norm_max": 1.0,
    "grad_norm_clipped": 1.0,
    "clipped": 0.0,
    "tokens_per_second": 1.0,
    "seconds": 1.0,
}
"""A row of metrics.jsonl, but for its step."""
TEXT = "the cat sat on the mat\nand the dog lay by the cat\n\nall was still\n" * 12


def altered(model, **methods):
    """The model with other functions in place of some of its methods; equal to no other."""
    functions = {name: staticmethod(function) for name, function in methods.items()}
    made = object.__new__(type("Altered", (type(model),), functions))
    vars(made).update(vars(model))
    return made


def changed(settings, **fields):
    """The settings with other fields: a word chooses an alternative, `cell__gain` sets its gain."""
    own, nested = {}, {}
    for name, value in fields.items():
        first, _, rest = name.partition("__")
        if rest:
            nested.setdefault(first, {})[rest] = value
            continue
        known = alternatives(type(settings), name)
        if isinstance(value, str) and known:
            value = known[CODE](kind=value) if ":" in value else known[value]()
        own[name] = value
    for name, below in nested.items():
        own[name] = changed(own.get(name, getattr(settings, name)), **below)
    return dataclasses.replace(settings, **own)


def rnn(**fields):
    return models.make(changed(RNN(embedding_size=4, hidden_size=5), **fields), V)


def window(**fields):
    return models.make(changed(Window(order=4, embedding_size=4, hidden_size=5), **fields), V)


def batch(seed=0, length=T, lanes=B, start=True):
    tokens = np.random.default_rng(seed).integers(0, V, (length + 1, lanes)).astype(np.int32)
    return Batch(
        jnp.asarray(tokens[:-1]),
        jnp.asarray(tokens[1:]),
        jnp.asarray(np.ones((length, lanes), bool)),
        jnp.asarray(np.full(lanes, start)),
    )


def moved(params, seed=1, size=0.3):
    """The parameters, each shifted a little, so that no bias or block is zero."""
    normal = np.random.default_rng(seed).normal

    def shifted(leaf):
        return jnp.asarray(np.asarray(leaf) + size * normal(size=leaf.shape))

    return jax.tree.map(shifted, params)


def config(**parts):
    """A run of seconds: `config(train={"steps": 3})` changes fields of the parts."""
    data = Data(source=Memory(), batch_size=4, length=8)
    train = Train(steps=20, log_every=5, validate_every=10, checkpoint_every=5)
    return Config(
        data=changed(data, **parts.get("data", {})),
        model=parts.get("model", RNN(embedding_size=4, hidden_size=5)),
        train=changed(train, **parts.get("train", {})),
        seed=parts.get("seed", 0),
    )


KNOWN = Manifest(config="a config", corpus="a corpus")


def restored(run_dir, template, known=KNOWN):
    """The newest intact state of some checkpoints."""
    return newest(run_dir, known, lambda saved: saved.restored(template))


CLOCKS = ("seconds", "tokens_per_second")


def rows_of(run_dir):
    """metrics.jsonl without what a clock has measured."""
    rows = journal.read_rows(Path(run_dir) / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


def stopping_at(step):
    """A watcher that ends the process, as an operator or a scheduler would, once at a step."""
    left = [step]

    def watch(now, row):
        if left and now >= left[0]:
            left.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def assert_trees_close(a, b, tolerance=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
