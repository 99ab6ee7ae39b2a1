"""Build a model from its config; no other module in `models` reads settings."""

import functools
from typing import Any

from lm_jax import config as settings
from lm_jax.data.characters import Vocab, size_of, word_characters
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models import custom_cell
from lm_jax.models.adaptive import AdaptiveSoftmaxReadout
from lm_jax.models.adaptive_embedding import AdaptiveEmbedding
from lm_jax.models.backoff import BackoffModel
from lm_jax.models.base import LanguageModel
from lm_jax.models.blocks import GLUBlockLayer, MLPBlockLayer
from lm_jax.models.cells import (
    Cell,
    ElmanCell,
    GRUCell,
    LSTMCell,
    RecurrentInit,
    ResetBeforeGRUCell,
)
from lm_jax.models.character_embedding import CharacterEmbedding
from lm_jax.models.convolution import ConvolutionModel
from lm_jax.models.dropout import DropoutMasks
from lm_jax.models.embedding import Embedding
from lm_jax.models.layers import CellLayer, Layer
from lm_jax.models.linear_recurrences import LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
from lm_jax.models.matmul import Precision
from lm_jax.models.mixture_of_softmaxes import MixtureOfSoftmaxesReadout
from lm_jax.models.mogrifier import MogrifierLayer
from lm_jax.models.ngram import NGramModel
from lm_jax.models.readout import Readout, RegressionReadout, SoftmaxReadout
from lm_jax.models.rnn import RNNModel
from lm_jax.models.sampled import NoiseContrastiveReadout, SampledSoftmaxReadout
from lm_jax.models.sru import SRUCell
from lm_jax.models.window import WindowModel
from lm_jax.models.xlstm import MLSTMCell, SLSTMCell
from lm_jax.settings import UserError


def vocab_of(model: settings.Model, vocabulary: Vocabulary) -> Vocab:
    """Vocabulary as `make` takes it: V, or the characters of the words if the model reads them.

    Raises:
      UserError: the model reads characters, and the tokens are no words.
    """
    kind = model.embedding if isinstance(model, settings.Network) else None
    if not isinstance(kind, settings.CharacterInputs):
        return len(vocabulary)
    return word_characters(vocabulary, kind.longest)


def make(config: settings.Model, vocab: Vocab, *, regression: bool = False) -> LanguageModel:
    """The model described by a config.

    Args:
      config: `Config.model`; the numbers may be tracers.
      vocab: V; or the words' characters, for `--model.embedding characters` (`vocab_of`).
      regression: for an RNN: if True, x is V real numbers at each step, [T, B, V], y is a real
        number, and the squared error replaces the nats (`lm_jax.models.readout`).
    """
    vocab_size = size_of(vocab)
    if isinstance(config, settings.NGram):
        backoff = config.smoothing == "backoff" or config.entropy_threshold is not None
        kind = BackoffModel if backoff else NGramModel
        return kind(order=config.order, sentence_boundaries=config.sentence_boundaries)
    readout = RegressionReadout(config.precision) if regression else _readout(config, vocab_size)
    embedding = _embedding(config, vocab, readout.tied)
    shared: dict[str, Any] = {
        "projection": config.projection,
        "dropout": _dropout(config.dropout),
        "activation_penalty": config.activation_penalty,
        "uniform": config.uniform,
    }
    if isinstance(config, settings.Window):
        return WindowModel(
            embedding,
            readout,
            order=config.order,
            hidden_size=config.hidden_size,
            layers=config.layers,
            activation=config.activation,
            skip_connections=config.skip_connections,
            gain=config.gain,
            precision=config.precision,
            **shared,
        )
    if isinstance(config, settings.Convolution):
        return ConvolutionModel(
            embedding,
            readout,
            width=config.width,
            hidden_size=config.hidden_size,
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
        hidden_size=config.sizes[-1],
        layers=_layers(config, embedding),
        residual=config.residual,
        real_inputs=regression,
        change_penalty=config.change_penalty,
        **shared,
    )


def _embedding(config: settings.Network, vocab: Vocab, tied: bool) -> Embedding:
    kind, size, precision = config.embedding, config.embedding_size, config.precision
    vocab_size = size_of(vocab)
    if isinstance(kind, settings.CharacterInputs):
        if isinstance(vocab, int):
            raise UserError("model.embedding=characters needs words, whose characters it reads")
        return CharacterEmbedding(
            vocab_size,
            size,
            precision=precision,
            words=vocab,
            character_size=kind.character_size,
            widths=kind.widths,
            filters=kind.filters,
            highway=kind.highway,
        )
    if isinstance(kind, settings.AdaptiveInputs):
        bands = {"cutoffs": kind.cutoffs, "factor": kind.factor}
        return AdaptiveEmbedding(vocab_size, size, precision=precision, **bands)
    return Embedding(vocab_size, size, tied, precision)


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
    if isinstance(kind, settings.MixtureOfSoftmaxes):
        size = kind.size or config.embedding_size
        assert size is not None
        return MixtureOfSoftmaxesReadout(
            vocab_size,
            components=kind.components,
            size=size,
            tied=kind.tied,
            bias=kind.bias,
            precision=precision,
        )
    if kind.samples >= vocab_size:
        raise UserError(
            f"model.readout.samples={kind.samples} must be below V={vocab_size}: draw fewer, or "
            "take model.readout=softmax, which sees every token"
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
        embedding=dropout.embedding,
        **(
            {name: getattr(dropout, name) for name in ("recurrent", "zoneout", "zoneout_cell")}
            if isinstance(dropout, settings.RecurrentDropout)
            else {}
        ),
    )


def _layers(config: settings.RNN, embedding: Embedding) -> tuple[Layer, ...]:
    sizes, block, precision = config.sizes, config.block, config.precision
    pairs = list(zip((embedding, *sizes), sizes, strict=False))
    if isinstance(block, settings.NoBlock):
        return tuple(_recurrence(config, inputs, H) for inputs, H in pairs)
    inner = [_recurrence(config, H, H) for H in sizes]
    if isinstance(block, settings.GLUBlock):
        of_kind = functools.partial(GLUBlockLayer, norm=block.norm, precision=precision)
    else:
        of_kind = functools.partial(
            MLPBlockLayer,
            norm=block.norm,
            precision=precision,
            expansion=block.expansion,
            convolution=block.convolution,
        )
    return tuple(of_kind(layer, *pair) for layer, pair in zip(inner, pairs, strict=True))


def _recurrence(config: settings.RNN, inputs: Embedding | int, H: int) -> Layer:
    cell, size = config.cell, _length(inputs)
    if isinstance(cell, settings.CustomCell):
        return custom_cell.layer(cell, size, H)
    in_kernels = config.recurrence == "pallas"
    layer = CellLayer(_cell(cell, H, config.precision), inputs, in_kernels)
    if isinstance(cell, settings.Mogrifier):
        return MogrifierLayer(layer, size, rounds=cell.rounds, rank=cell.rank)
    return layer


def _length(inputs: Embedding | int) -> int:
    """Numbers that a layer reads at each step; V for one-hot vectors."""
    if not isinstance(inputs, Embedding):
        return inputs
    return inputs.vocab_size if inputs.size is None else inputs.size


def _cell(config: settings.Cell, H: int, precision: Precision) -> Cell:
    if isinstance(config, settings.MinGRU):
        return MinGRUCell(H, precision=precision)
    if isinstance(config, settings.MinLSTM):
        return MinLSTMCell(H, precision=precision)
    if isinstance(config, settings.LRU):
        return LRUCell(H, precision=precision)
    if isinstance(config, settings.RGLRU):
        return RGLRUCell(H, precision=precision)
    if isinstance(config, settings.SRU):
        return SRUCell(H, precision=precision)
    if isinstance(config, settings.MLSTM):
        return MLSTMCell(H, heads=config.heads, precision=precision)
    assert isinstance(config, settings.Gated)
    W_hh = RecurrentInit(config.init, config.gain)
    if isinstance(config, settings.LSTM):
        return LSTMCell(
            H,
            forget_bias=config.forget_bias,
            peepholes=config.peepholes,
            layer_norm=config.layer_norm,
            W_hh=W_hh,
            precision=precision,
        )
    if isinstance(config, settings.Mogrifier):
        return LSTMCell(H, forget_bias=config.forget_bias, W_hh=W_hh, precision=precision)
    if isinstance(config, settings.SLSTM):
        return SLSTMCell(H, W_hh=W_hh, precision=precision)
    if isinstance(config, settings.GRU):
        gru = ResetBeforeGRUCell if config.reset == "before" else GRUCell
        return gru(H, W_hh=W_hh, precision=precision)
    assert isinstance(config, settings.Elman)
    return ElmanCell(H, config.activation, W_hh=W_hh, precision=precision)
