"""Build a model from its config; no other module in `models` reads settings."""

import jax
from jaxtyping import Array

from lm_jax import config as settings
from lm_jax.models import cells, linear, own
from lm_jax.models.adaptive import adaptive_softmax
from lm_jax.models.base import LanguageModel, Params, scaled_normal
from lm_jax.models.convolution import convolution
from lm_jax.models.dropout import Noise
from lm_jax.models.embedding import Embedding
from lm_jax.models.ngram import ngram
from lm_jax.models.readout import Readout, softmax
from lm_jax.models.recurrence import Layer, layer
from lm_jax.models.regression import regression
from lm_jax.models.rnn import rnn
from lm_jax.models.sampled import noise_contrastive, sampled_softmax
from lm_jax.models.window import window
from lm_jax.settings import UserError


def make(config: settings.Model, vocab_size: int, *, real: bool = False) -> LanguageModel:
    """The model described by a config.

    Args:
      config: `Config.model`; the numbers may be tracers.
      vocab_size: V.
      real: for an RNN: if True, x is V real numbers at each step, [T, B, V], y is a real number,
        and the squared error replaces the nats (`lm_jax.models.regression`).
    """
    if isinstance(config, settings.NGram):
        return ngram(order=config.order, bounded=config.bounded)
    readout = regression(config.precision) if real else _readout(config, vocab_size)
    embedding = Embedding(vocab_size, config.embedding_size, readout.tied, config.precision)
    if isinstance(config, settings.Window):
        model = window(
            embedding,
            readout,
            order=config.order,
            hidden_size=config.hidden_size,
            layers=config.layers,
            activation=config.activation,
            direct=config.direct,
            gain=config.gain,
            noise=_noise(config.dropout),
            activation_penalty=config.activation_penalty,
            precision=config.precision,
        )
    elif isinstance(config, settings.Convolution):
        model = convolution(
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
            noise=_noise(config.dropout),
            activation_penalty=config.activation_penalty,
            precision=config.precision,
        )
    else:
        assert isinstance(config, settings.RNN)
        model = rnn(
            embedding,
            _layers(config, embedding),
            readout,
            hidden_size=config.hidden_size,
            residual=config.residual,
            real=real,
            noise=_noise(config.dropout),
            activation_penalty=config.activation_penalty,
            change_penalty=config.change_penalty,
        )
    return model if config.uniform is None else _uniform(model, config.uniform)


def _readout(config: settings.Network, vocab_size: int) -> Readout:
    kind, precision = config.readout, config.precision
    if isinstance(kind, settings.AdaptiveSoftmax):
        return adaptive_softmax(
            vocab_size, cutoffs=kind.cutoffs, factor=kind.factor, precision=precision
        )
    if isinstance(kind, settings.Softmax):
        return softmax(
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
    drawn = sampled_softmax if isinstance(kind, settings.SampledSoftmax) else noise_contrastive
    return drawn(
        vocab_size, samples=kind.samples, tied=kind.tied, bias=kind.bias, precision=precision
    )


def _noise(dropout: settings.Dropout) -> Noise:
    return Noise(
        locked=dropout.locked,
        inputs=dropout.inputs,
        between=dropout.between,
        outputs=dropout.outputs,
        words=dropout.words,
        recurrent=dropout.recurrent if isinstance(dropout, settings.RecurrentDropout) else None,
    )


def _layers(config: settings.RNN, embedding: Embedding) -> list[Layer]:
    H = config.hidden_size
    if ":" in config.cell:
        first = embedding.vocab_size if embedding.size is None else embedding.size
        return [
            own.layer(config.cell, inputs, H, config.cell_sha256)
            for inputs in [first] + [H] * (config.layers - 1)
        ]
    cell = _cell(config)
    above = lambda key, width: scaled_normal(key, H, width)  # noqa: E731
    return [
        layer(cell, above if place else embedding.init_projection) for place in range(config.layers)
    ]


def _cell(config: settings.RNN) -> cells.Cell:
    H = config.hidden_size
    parallel = {
        "mingru": linear.mingru,
        "minlstm": linear.minlstm,
        "diagonal": linear.diagonal,
    }
    if config.cell in parallel:
        # These cells have no W_hh, and the product with W_xh belongs to the layer.
        return parallel[config.cell](H)._replace(precision=config.precision)
    W_hh = cells.recurrent_weights(config.init, config.gain)
    precision = config.precision
    if config.cell == "lstm":
        bias = 1.0 if config.forget_bias is None else config.forget_bias
        return cells.lstm(
            H,
            forget_bias=bias,
            peepholes=config.peepholes,
            layer_norm=config.layer_norm,
            W_hh=W_hh,
            precision=precision,
        )
    if config.cell == "gru":
        return cells.gru(H, reset_after=config.reset != "before", W_hh=W_hh, precision=precision)
    return cells.elman(H, config.activation or "tanh", W_hh=W_hh, precision=precision)


def _uniform(model: LanguageModel, s: float | Array) -> LanguageModel:
    """The model with every initial parameter drawn from U(-s, s)."""

    def init(key: Array) -> Params:
        leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, key))
        keys = jax.random.split(key, len(leaves))
        return structure.unflatten(
            [
                jax.random.uniform(k, leaf.shape, leaf.dtype, -s, s)
                for k, leaf in zip(keys, leaves, strict=True)
            ]
        )

    return model._replace(init=init)
