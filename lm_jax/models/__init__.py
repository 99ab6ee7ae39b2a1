"""Neural language models as frozen dataclasses of pure methods."""

from lm_jax.models.backoff import BackoffModel
from lm_jax.models.base import LanguageModel, restart
from lm_jax.models.cells import Cell, ElmanCell, GatedCell, GRUCell, LSTMCell
from lm_jax.models.convolution import ConvolutionModel
from lm_jax.models.dropout import DropoutMasks
from lm_jax.models.embedding import Embedding
from lm_jax.models.linear_recurrences import LinearCell, LRUCell, MinGRUCell, MinLSTMCell
from lm_jax.models.make import make
from lm_jax.models.mixture import Mixture, best_weight
from lm_jax.models.ngram import NGramModel
from lm_jax.models.readout import Readout, SoftmaxReadout
from lm_jax.models.recurrence import CellLayer, Layer
from lm_jax.models.rnn import RNNModel
from lm_jax.models.transition import Transition, TransitionLayer
from lm_jax.models.window import WindowModel

__all__ = [
    "BackoffModel",
    "Cell",
    "CellLayer",
    "ConvolutionModel",
    "DropoutMasks",
    "ElmanCell",
    "Embedding",
    "GRUCell",
    "GatedCell",
    "LRUCell",
    "LSTMCell",
    "LanguageModel",
    "Layer",
    "LinearCell",
    "MinGRUCell",
    "MinLSTMCell",
    "Mixture",
    "NGramModel",
    "RNNModel",
    "Readout",
    "SoftmaxReadout",
    "Transition",
    "TransitionLayer",
    "WindowModel",
    "best_weight",
    "make",
    "restart",
]
