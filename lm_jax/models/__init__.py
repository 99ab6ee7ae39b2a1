"""Neural language models as frozen dataclasses of pure methods."""

from lm_jax.models.backoff import BackoffModel
from lm_jax.models.base import LanguageModel, restart
from lm_jax.models.blocks import BlockLayer, GLUBlockLayer, MLPBlockLayer
from lm_jax.models.cells import Cell, ElmanCell, GatedCell, GRUCell, LSTMCell
from lm_jax.models.convolution import ConvolutionModel
from lm_jax.models.dropout import DropoutMasks
from lm_jax.models.embedding import Embedding
from lm_jax.models.layers import CellLayer, Layer
from lm_jax.models.linear_recurrences import (
    LinearCell,
    LRUCell,
    MinGRUCell,
    MinLSTMCell,
    RGLRUCell,
)
from lm_jax.models.make import make, vocab_of
from lm_jax.models.mixture import Mixture, best_weight
from lm_jax.models.mogrifier import MogrifierLayer
from lm_jax.models.ngram import NGramModel
from lm_jax.models.readout import Readout, SoftmaxReadout
from lm_jax.models.rnn import RNNModel
from lm_jax.models.sru import SRUCell
from lm_jax.models.transition import Transition, TransitionLayer
from lm_jax.models.window import WindowModel
from lm_jax.models.xlstm import MLSTMCell, SLSTMCell

__all__ = [
    "BackoffModel",
    "BlockLayer",
    "Cell",
    "CellLayer",
    "ConvolutionModel",
    "DropoutMasks",
    "ElmanCell",
    "Embedding",
    "GLUBlockLayer",
    "GRUCell",
    "GatedCell",
    "LRUCell",
    "LSTMCell",
    "LanguageModel",
    "Layer",
    "LinearCell",
    "MLPBlockLayer",
    "MLSTMCell",
    "MinGRUCell",
    "MinLSTMCell",
    "Mixture",
    "MogrifierLayer",
    "NGramModel",
    "RGLRUCell",
    "RNNModel",
    "Readout",
    "SLSTMCell",
    "SRUCell",
    "SoftmaxReadout",
    "Transition",
    "TransitionLayer",
    "WindowModel",
    "best_weight",
    "make",
    "restart",
    "vocab_of",
]
