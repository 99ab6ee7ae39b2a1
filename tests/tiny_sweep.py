"""Small trials of a sweep, and their outcome."""

from typing import NamedTuple

import tiny

from lm_jax.config import LSTM, RNN, override
from lm_jax.sweeps.plan import Trial
from lm_jax.training import load_run
from lm_jax.training.loop import prepared

BASE = tiny.config(
    model=RNN(embedding_size=4, hidden_size=5, cell=LSTM()), train={"clip_norm": 1.0}
)


class Group(NamedTuple):
    trials: list[Trial]
    vectorised: bool = True


def trial(number, **changes):
    config, _ = prepared(override(BASE, {"seed": number, **changes}), tiny.TEXT)
    return Trial(number, f"trial {number}", {}, config, f"trials/{number:03d}")


def bits(path, trials):
    return {t.number: load_run(path / t.directory).result["sha256"] for t in trials}
