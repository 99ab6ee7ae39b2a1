"""Neural language models as tuples of pure functions."""

from lm_jax.models.base import LanguageModel, count, restart
from lm_jax.models.cells import Cell, elman, gru, lstm
from lm_jax.models.convolution import convolution
from lm_jax.models.dropout import Noise
from lm_jax.models.embedding import Embedding
from lm_jax.models.linear import diagonal, mingru, minlstm
from lm_jax.models.make import make
from lm_jax.models.mixture import best_weight, mixture
from lm_jax.models.readout import Readout, softmax
from lm_jax.models.recurrence import Layer, layer
from lm_jax.models.rnn import rnn
from lm_jax.models.transition import Transition
from lm_jax.models.window import window

__all__ = [
    "Cell",
    "Embedding",
    "LanguageModel",
    "Layer",
    "Noise",
    "Readout",
    "Transition",
    "best_weight",
    "convolution",
    "count",
    "diagonal",
    "elman",
    "gru",
    "layer",
    "lstm",
    "make",
    "mingru",
    "minlstm",
    "mixture",
    "restart",
    "rnn",
    "softmax",
    "window",
]
