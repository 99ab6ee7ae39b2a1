"""The programs that are compiled and lowered without a device, at the sizes of usual runs.

`shrunk` gives the same programs at tiny sizes, for tests.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.programs import Case, draw, lanes, loss, probe, score, score_in_segments, update
from lm_jax.config import (
    ARTBP,
    GRU,
    LRU,
    LSTM,
    RNN,
    RTRL,
    SGD,
    UORO,
    Adam,
    AdaptiveSoftmax,
    Config,
    Convolution,
    Data,
    Elman,
    Explicit,
    Full,
    GLUBlock,
    LiveProbe,
    MinGRU,
    MinLSTM,
    NoiseContrastive,
    RecurrentDropout,
    SampledSoftmax,
    ScheduledSampling,
    SnAp1,
    Softmax,
    Train,
    Truncated,
    Window,
    override,
    resolve,
)


def _rnn(cell: Any, H: int, layers: int = 1, **fields: Any) -> RNN:
    return RNN(**{"cell": cell, "hidden_size": H, "embedding_size": H, "layers": layers, **fields})


def _case(build: Callable, model: Any, sizes: tuple[int, int, int], **train: Any) -> Case:
    B, T, V = sizes
    trained = Train(**{"optimizer": SGD(), "learning_rate": 1.0, "clip_norm": 0.25, **train})
    config = Config(data=Data(batch_size=B, length=T), model=model, train=trained)
    return Case(build, resolve(config), V)


CHARACTERS, WORDS, MANY_WORDS = (32, 128, 65), (20, 35, 10_000), (20, 35, 1_000_000)
"""B, T, V."""

_DROPOUT = RecurrentDropout(
    locked=True, inputs=0.5, between=0.5, outputs=0.5, embedding=0.1, recurrent=0.5
)
_SMALL_LSTM = _rnn(LSTM(), 128)
_WORD_LSTM = _rnn(LSTM(), 200)

CASES: dict[str, Case] = {
    "update, char lstm 512": _case(update, _rnn(LSTM(), 512), CHARACTERS),
    "update, char gru 512": _case(update, _rnn(GRU(), 512), CHARACTERS),
    "update, char elman 512": _case(update, _rnn(Elman(), 512), CHARACTERS),
    "update, word lstm 650, 2 layers": _case(update, _rnn(LSTM(), 650, 2), WORDS),
    "update, word lstm 1500, 2 layers": _case(update, _rnn(LSTM(), 1500, 2), WORDS),
    "update, char lstm 512, bfloat16": _case(
        update, _rnn(LSTM(), 512, precision="bfloat16"), CHARACTERS
    ),
    "update, word lstm 1500, 2 layers, bfloat16": _case(
        update, _rnn(LSTM(), 1500, 2, precision="bfloat16"), WORDS
    ),
    "update, char lstm 64, pallas": _case(
        update, _rnn(LSTM(), 64, recurrence="pallas"), CHARACTERS
    ),
    "update, char gru 128, pallas": _case(
        update, _rnn(GRU(), 128, recurrence="pallas"), CHARACTERS
    ),
    "update, word lstm 650, 2 layers, pallas": _case(
        update, _rnn(LSTM(), 650, 2, recurrence="pallas"), WORDS
    ),
    "update, word lstm 650, 2 layers, dropout": _case(
        update, _rnn(LSTM(), 650, 2, dropout=_DROPOUT), WORDS
    ),
    "update, char mingru 512": _case(update, _rnn(MinGRU(), 512), CHARACTERS),
    "update, char minlstm 512": _case(update, _rnn(MinLSTM(), 512), CHARACTERS),
    "update, char lru 512": _case(update, _rnn(LRU(), 512), CHARACTERS),
    "update, char lru 512 in blocks": _case(
        update, _rnn(LRU(), 512, 2, block=GLUBlock()), CHARACTERS
    ),
    "update, char lstm 128, one-hot": _case(
        update, _rnn(LSTM(), 128, embedding_size=None), CHARACTERS
    ),
    "update, window of 5, 256 units": _case(update, Window(), WORDS),
    "update, convolution, 3 layers of 256": _case(
        update, Convolution(layers=3, activation="glu", residual=True), WORDS
    ),
    "update, char lstm 512, full": _case(update, _rnn(LSTM(), 512), CHARACTERS, gradient=Full()),
    "update, char lstm 128, clipped δ": _case(
        update, _SMALL_LSTM, CHARACTERS, gradient=Explicit(clip_delta=1.0)
    ),
    "update, char lstm 128, recompute": _case(
        update, _SMALL_LSTM, CHARACTERS, gradient=Explicit(recompute="sqrt")
    ),
    "update, char lstm 128, truncated": _case(
        update, _SMALL_LSTM, CHARACTERS, gradient=Truncated(k1=32, k2=96)
    ),
    "update, char lstm 128, artbp": _case(
        update, _SMALL_LSTM, CHARACTERS, gradient=ARTBP(cut_rate=0.1)
    ),
    "update, char elman 64, rtrl": _case(update, _rnn(Elman(), 64), CHARACTERS, gradient=RTRL()),
    "update, char gru 128, snap1": _case(update, _rnn(GRU(), 128), CHARACTERS, gradient=SnAp1()),
    "update, char elman 128, uoro": _case(update, _rnn(Elman(), 128), CHARACTERS, gradient=UORO()),
    "update, char elman 128, Ω": _case(update, _rnn(Elman(), 128), CHARACTERS, omega=0.1),
    "update, char elman 128, flossing": _case(update, _rnn(Elman(), 128), CHARACTERS, flossing=0.1),
    "update, char gru 128, own tokens": _case(
        update, _rnn(GRU(), 128), CHARACTERS, feeding=ScheduledSampling()
    ),
    "update, char gru 128, ‖δ‖ recorded": _case(
        update, _rnn(GRU(), 128), CHARACTERS, probe=LiveProbe()
    ),
    "update, word lstm 200, tied": _case(
        update, dataclasses.replace(_WORD_LSTM, readout=Softmax(tied=True)), WORDS
    ),
    "update, word lstm 200, sampled": _case(
        update, dataclasses.replace(_WORD_LSTM, readout=SampledSoftmax()), WORDS
    ),
    "update, word lstm 200, nce": _case(
        update, dataclasses.replace(_WORD_LSTM, readout=NoiseContrastive()), WORDS
    ),
    "update, word lstm 200, adaptive": _case(
        update, dataclasses.replace(_WORD_LSTM, readout=AdaptiveSoftmax(cutoffs=(2000,))), WORDS
    ),
    "update, million words, elman 64, adam": _case(
        update, _rnn(Elman(), 64), MANY_WORDS, optimizer=Adam(), keep_best=False
    ),
    "loss, million words, 64 units": _case(loss, _rnn(Elman(), 64), MANY_WORDS),
    "loss, 10,000 words, 650 units": _case(loss, _rnn(Elman(), 650), WORDS),
    "lanes, char gru 64": _case(lanes, _rnn(GRU(), 64), (16, 32, 65)),
    "lanes, char gru 64, pallas": _case(lanes, _rnn(GRU(), 64, recurrence="pallas"), (16, 32, 65)),
    "score, word lstm 650, 2 layers": _case(score, _rnn(LSTM(), 650, 2), WORDS),
    "score in segments, char lstm 512": _case(score_in_segments, _rnn(LSTM(), 512), CHARACTERS),
    "draw, char lstm 512": _case(draw, _rnn(LSTM(), 512), CHARACTERS),
    "probe, char gru 128": _case(probe, _rnn(GRU(), 128), CHARACTERS),
}

SHARED = tuple(name for name in CASES if name.startswith(("update, char lstm 512", "lanes")))
"""Programs that are compiled for several devices, too."""


def shrunk(case: Case) -> Case:
    """The same program with tiny sizes."""
    sizes: dict[str, Any] = {"data.batch_size": 4, "data.length": 6}
    model, train = case.config.model, case.config.train
    sizes["model.hidden_size"] = 4
    if getattr(model, "embedding_size", None) is not None:
        sizes["model.embedding_size"] = 4
    readout = getattr(model, "readout", None)
    if isinstance(readout, AdaptiveSoftmax):
        sizes |= {"model.readout.cutoffs": (3,), "model.readout.factor": 2}
    if isinstance(readout, SampledSoftmax | NoiseContrastive):
        sizes["model.readout.samples"] = 3
    if train is not None and isinstance(train.gradient, Truncated):
        sizes |= {"train.gradient.k1": 3, "train.gradient.k2": 5}
    if train is not None and train.flossing is not None:
        sizes["train.flossing_exponents"] = 2
    return dataclasses.replace(case, config=override(case.config, sizes), vocab_size=7)
