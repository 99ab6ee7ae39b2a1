"""Models trained on CPython's documentation, shared by the claims; and numbers in words.

A model is trained once, in a separate run directory; later calls read the run back.
"""

from pathlib import Path

import numpy as np

from lm_jax.config import (
    LSTM,
    RNN,
    Cell,
    Char,
    Config,
    Cosine,
    Data,
    Elman,
    Model,
    NGram,
    Train,
    Window,
    Word,
)
from lm_jax.data.batches import Batch, batch_at, streams
from lm_jax.data.corpus import load
from lm_jax.figures import plain
from lm_jax.report.progress import train
from lm_jax.training import Run

CHARACTERS = Data(tokenizer=Char(), batch_size=16, length=64)
WORDS = Data(tokenizer=Word(min_count=2), batch_size=16, length=35)
E, H = 32, 128  # sizes of the embedding and of the hidden layer
UPDATES = 1500


def trained(folder: Path, name: str, model: Model, data: Data = CHARACTERS) -> Run:
    """Train a model, or count an n-gram model; later calls read the run back."""
    if isinstance(model, NGram):
        return train(Config(data=data, model=model), folder / name)
    settings = Train(
        steps=UPDATES,
        learning_rate=0.003,
        schedule=Cosine(warmup_steps=UPDATES // 15),
        clip_norm=1.0,
        log_every=50,
    )
    return train(Config(data=data, model=model, train=settings), folder / name)


def recurrent(folder: Path, cell: Cell) -> Run:
    """An RNN of characters with a cell."""
    return trained(folder, cell.kind, RNN(cell=cell, embedding_size=E, hidden_size=H))


def elman(folder: Path) -> Run:
    """The simple RNN of characters."""
    return recurrent(folder, Elman())


def lstm(folder: Path) -> Run:
    """The LSTM of characters."""
    return recurrent(folder, LSTM())


def window(folder: Path, order: int) -> Run:
    """The window model of characters with a window of order - 1 tokens."""
    return trained(folder, f"window-{order}", Window(order=order, embedding_size=E, hidden_size=H))


def held_out(run: Run, *, sequences: int, length: int) -> Batch:
    """The first `length` tokens of each of `sequences` equal parts of the validation text."""
    tokens = np.asarray(load(run.config.data).validation.tokens)
    return batch_at(streams(tokens, run.vocabulary.boundary, sequences), 0, length)


def bits(run: Run) -> float:
    """Bits per character of a run's model on the validation text."""
    assert run.result is not None
    return run.result["splits"]["validation"]["bits_per_character"]


def short(value: int | float) -> str:
    """A number with two digits: 0.31, 1,200, 4.1·10⁻¹⁶."""
    return plain(float(f"{value:.2g}"))
