"""Build a model from its config; no other module in `models` reads settings."""

from typing import Any

from lm_jax import config as settings
from lm_jax.models import custom_cell
from lm_jax.models.adaptive import AdaptiveSoftmaxReadout
from lm_jax.models.base import LanguageModel
from lm_jax.models.cells import (
    Cell,
    ElmanCell,
    GRUCell,
    LSTMCell,
    RecurrentInit,
    ResetBeforeGRUCell,
)
from lm_jax.models.convolution import ConvolutionModel
from lm_jax.models.dropout import DropoutMasks
from lm_jax.models.embedding import Embedding
from lm_jax.models.linear_recurrences import LRUCell, MinGRUCell, MinLSTMCell
from lm_jax.models.ngram import NGramModel
from lm_jax.models.readout import Readout, RegressionReadout, SoftmaxReadout
from lm_jax.models.recurrence import CellLayer, Layer
from lm_jax.models.rnn import RNNModel
from lm_jax.models.sampled import NoiseContrastiveReadout, SampledSoftmaxReadout
from lm_jax.models.window import WindowModel
from lm_jax.settings import UserError


def make(config: settings.Model, vocab_size: int, *, regression: bool = False) -> LanguageModel:
    """The model described by a config.

    Args:
      config: `Config.model`; the numbers may be tracers.
      vocab_size: V.
      regression: for an RNN: if True, x is V real numbers at each step, [T, B, V], y is a real
        number, and the squared error replaces the nats (`lm_jax.models.readout`).
    """
    if isinstance(config, settings.NGram):
        return NGramModel(order=config.order, bounded=config.bounded)
    readout = RegressionReadout(config.precision) if regression else _readout(config, vocab_size)
    embedding = Embedding(vocab_size, config.embedding_size, readout.tied, config.precision)
    shared: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "dropout": _dropout(config.dropout),
        "activation_penalty": config.activation_penalty,
        "uniform": config.uniform,
    }
    if isinstance(config, settings.Window):
        return WindowModel(
            embedding,
            readout,
            order=config.order,
            layers=config.layers,
            activation=config.activation,
            direct=config.direct,
            gain=config.gain,
            precision=config.precision,
            **shared,
        )
    if isinstance(config, settings.Convolution):
        return ConvolutionModel(
            embedding,
            readout,
            width=config.width,
            layers=config.layers,
            dilation=config.dilation,
            activation=config.activation,
            pooling=config.pooling,
            residual=config.residual,
            gain=config.gain,
            precision=config.precision,
            **shared,
        )
    assert isinstance(config, settings.RNN)
    return RNNModel(
        embedding,
        readout,
        layers=_layers(config, embedding),
        residual=config.residual,
        real_inputs=regression,
        change_penalty=config.change_penalty,
        **shared,
    )


def _readout(config: settings.Network, vocab_size: int) -> Readout:
    kind, precision = config.readout, config.precision
    if isinstance(kind, settings.AdaptiveSoftmax):
        return AdaptiveSoftmaxReadout(
            vocab_size, cutoffs=kind.cutoffs, factor=kind.factor, precision=precision
        )
    if isinstance(kind, settings.Softmax):
        return SoftmaxReadout(
            vocab_size,
            tied=kind.tied,
            bias=kind.bias,
            label_smoothing=kind.label_smoothing,
            precision=precision,
        )
    if kind.samples >= vocab_size:
        raise UserError(
            f"model.readout.samples={kind.samples} must be below V={vocab_size}: draw fewer, or "
            "take model.readout.kind=softmax, which sees every token"
        )
    sampled = isinstance(kind, settings.SampledSoftmax)
    return (SampledSoftmaxReadout if sampled else NoiseContrastiveReadout)(
        vocab_size, samples=kind.samples, tied=kind.tied, bias=kind.bias, precision=precision
    )


def _dropout(dropout: settings.Dropout) -> DropoutMasks:
    return DropoutMasks(
        locked=dropout.locked,
        inputs=dropout.inputs,
        between=dropout.between,
        outputs=dropout.outputs,
        words=dropout.words,
        recurrent=dropout.recurrent if isinstance(dropout, settings.RecurrentDropout) else None,
    )


def _layers(config: settings.RNN, embedding: Embedding) -> tuple[Layer, ...]:
    H = config.hidden_size
    if ":" in config.cell:
        first = embedding.vocab_size if embedding.size is None else embedding.size
        inputs = [first] + [H] * (config.layers - 1)
        return tuple(custom_cell.layer(config.cell, n, H, config.cell_sha256) for n in inputs)
    cell = _cell(config)
    return tuple(CellLayer(cell, H if number else embedding) for number in range(config.layers))


def _cell(config: settings.RNN) -> Cell:
    H, precision = config.hidden_size, config.precision
    without_W_hh = {
        "mingru": MinGRUCell,
        "minlstm": MinLSTMCell,
        "diagonal": LRUCell,
    }
    if config.cell in without_W_hh:
        return without_W_hh[config.cell](H, precision=precision)
    W_hh = RecurrentInit(config.init, config.gain)
    if config.cell == "lstm":
        return LSTMCell(
            H,
            forget_bias=1.0 if config.forget_bias is None else config.forget_bias,
            peepholes=config.peepholes,
            layer_norm=config.layer_norm,
            W_hh=W_hh,
            precision=precision,
        )
    if config.cell == "gru":
        gru = ResetBeforeGRUCell if config.reset == "before" else GRUCell
        return gru(H, W_hh=W_hh, precision=precision)
    return ElmanCell(H, config.activation or "tanh", W_hh=W_hh, precision=precision)
