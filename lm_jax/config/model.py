"""Which language model is trained, and with what noise.

A family of models is a class told apart by its `kind`; so is a readout. What the families share
stands in `Network`.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field

from lm_jax.settings import Chance, Scale, Size, Weight, nearest_value, settings

Activation = Literal["tanh", "sigmoid", "relu"]


@settings
class Softmax:
    """The exact softmax: p = softmax(h W_hy + b_y)."""

    kind: Literal["softmax"] = "softmax"
    """The readout: softmax, adaptive, sampled or nce. Another one brings its own flags."""
    tied: bool = False
    """W_hy is the table of the input vectors, transposed (Inan et al., 2017; Press & Wolf, 2017);
    needs model.embedding-size equal to model.hidden-size."""
    bias: bool = True
    """Whether there is a b_y."""
    label_smoothing: Chance | None = None
    """Training: share of each target's probability spread evenly over the vocabulary; None: none.
    """


@settings
class AdaptiveSoftmax:
    """Frequent tokens first, the others in clusters of falling size (Grave et al., 2017)."""

    kind: Literal["adaptive"] = "adaptive"
    """The readout: softmax, adaptive, sampled or nce. Another one brings its own flags."""
    cutoffs: tuple[Size, ...] = (2000, 10000)
    """Numbers of the tokens where a new cluster begins: rising, each below V."""
    factor: Size = 4
    """Each cluster's inputs are this many times fewer than those of the one before."""


@settings
class SampledSoftmax:
    """Trained on each target against drawn tokens (Jean et al., 2015); scored exactly."""

    kind: Literal["sampled"] = "sampled"
    """The readout: softmax, adaptive, sampled or nce. Another one brings its own flags."""
    tied: bool = False
    """W_hy is the table of the input vectors, transposed."""
    bias: bool = True
    """Whether there is a b_y."""
    samples: Size = 1024
    """Tokens drawn for each update, fewer than V, without putting any back, the frequent ones
    likelier."""


@settings
class NoiseContrastive:
    """Trained to tell targets from drawn tokens (Mnih & Teh, 2012); scored exactly."""

    kind: Literal["nce"] = "nce"
    """The readout: softmax, adaptive, sampled or nce. Another one brings its own flags."""
    tied: bool = False
    """W_hy is the table of the input vectors, transposed."""
    bias: bool = True
    """Whether there is a b_y."""
    samples: Size = 256
    """Noise tokens that stand against each target, fewer than V, the same for a whole update."""


@settings
class Dropout:
    """What is set to zero at random in training, the rest scaled up; None: nothing."""

    locked: bool = False
    """Whether one mask serves all time steps of an update (Gal & Ghahramani, 2016)."""
    inputs: Chance | None = None
    """Share of the numbers of the tokens' vectors."""
    between: Chance | None = None
    """Share of the units between one hidden layer and the next."""
    outputs: Chance | None = None
    """Share of the units that the readout sees."""
    words: Chance | None = None
    """Share of the vocabulary whose vectors are zero wherever they are read in an update."""


@settings
class RecurrentDropout(Dropout):
    """What is set to zero at random in training, the rest scaled up; None: nothing."""

    recurrent: Chance | None = None
    """Share of the entries of W_hh, the same for all steps of an update (Merity et al., 2018)."""


@settings
class Network:
    """What every family of neural models has."""

    embedding_size: Size | None = 64
    """E, the length of a token's learned vector; None: one-hot vectors."""
    vectors: str | None = None
    """Path of pretrained vectors of words, word2vec, GloVe or fastText's .vec, plain or gzipped;
    None: none."""
    vectors_sha256: str | None = None
    """The file of the vectors as it was when the run began; filled in."""
    freeze_vectors: bool = False
    """Whether the pretrained vectors stay as they are."""
    readout: Annotated[
        Softmax | AdaptiveSoftmax | SampledSoftmax | NoiseContrastive, Field(discriminator="kind")
    ] = Softmax()
    dropout: Dropout = Dropout()
    activation_penalty: Weight | None = None
    """alpha: training adds alpha times the mean square of what the readout sees to the mean nats
    (Merity et al., 2017); None: none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the factors of each matrix product, whose sums, as all else, stay float32; bfloat16 is for
    GPUs and TPUs."""
    uniform: Scale | None = None
    """s: every initial weight and bias is drawn from U(-s, s); None: each by its own rule."""

    def __post_init__(self) -> None:
        if self.embedding_size is None:
            for field in ("inputs", "words"):
                if getattr(self.dropout, field) is not None:
                    raise ValueError(
                        f"model.dropout.{field} needs learned vectors: model.embedding_size is None"
                    )
            if self.vectors is not None:
                raise ValueError("model.vectors needs model.embedding_size, the vectors' length")
        if self.uniform is not None:
            for field, idle in (("gain", 1.0), ("init", "orthogonal"), ("forget_bias", None)):
                if getattr(self, field, idle) != idle:
                    raise ValueError(f"model.{field} is not read with model.uniform")
        if self.freeze_vectors and self.vectors is None:
            raise ValueError("model.freeze_vectors is read only with model.vectors")
        if isinstance(self.readout, AdaptiveSoftmax):
            cutoffs = self.readout.cutoffs
            if not cutoffs or list(cutoffs) != sorted(set(cutoffs)):
                raise ValueError(f"model.readout.cutoffs={cutoffs} must rise, one of them at least")
        elif self.readout.tied and self.embedding_size != self._readout_inputs():
            raise ValueError(
                f"model.readout.tied needs model.embedding_size={self.embedding_size} to be what "
                f"the readout reads, {self._readout_inputs()}"
            )

    def _readout_inputs(self) -> Any:
        return getattr(self, "hidden_size", None)


@settings
class Window(Network):
    """The fixed-window model of Bengio et al. (2003): n - 1 tokens in, the next one out."""

    kind: Literal["window"] = "window"
    """The family of models: window, convolution, rnn or ngram. Another brings its own flags."""
    order: Annotated[int, Field(ge=2, le=1024)] = 5
    """n: the model reads the last n - 1 tokens."""
    hidden_size: Size = 256
    """H, units of each hidden layer."""
    layers: Size = 1
    """Hidden layers; the first one reads the window."""
    activation: Activation = "tanh"
    """The hidden layers' nonlinearity."""
    direct: bool = False
    """Whether the readout sees the window's vectors beside the hidden layer (Bengio's W)."""
    gain: Scale = 1.0
    """Initial hidden weights: the standard deviation of W times the square root of its inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direct and self.embedding_size is None:
            raise ValueError("model.direct needs learned vectors: model.embedding_size is None")
        _refuse_between(self)

    def _readout_inputs(self) -> int:
        window = (self.order - 1) * (self.embedding_size or 0) if self.direct else 0
        return self.hidden_size + window


@settings
class Convolution(Network):
    """Causal convolutions over time: each layer reads a few steps of the layer below."""

    kind: Literal["convolution"] = "convolution"
    """The family of models: window, convolution, rnn or ngram. Another brings its own flags."""
    width: Annotated[int, Field(gt=0, le=1024)] = 4
    """k: steps that each layer reads."""
    hidden_size: Size = 256
    """H, channels of each layer."""
    layers: Size = 1
    """Layers on one another."""
    dilation: Size = 1
    """Layer l reads every dilation^(l - 1)-th step, counting layers from 1."""
    activation: Literal["tanh", "sigmoid", "relu", "glu"] = "tanh"
    """The layers' nonlinearity; glu: half of the channels gate the other half (Dauphin et al.,
    2017)."""
    pooling: Size | None = None
    """Each channel's maximum over this many last steps is what the readout sees; None: the last
    step only."""
    residual: bool = False
    """Whether each layer from the second on adds its input to its output."""
    gain: Scale = 1.0
    """Initial weights: their standard deviation times the square root of a layer's inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_between(self)
        for field in ("layers", "width"):
            if self.dilation > 1 and getattr(self, field) == 1:
                raise ValueError(f"model.dilation needs model.{field} of 2 or more")


GATED = ("elman", "lstm", "gru")
CELLS = (*GATED, "mingru", "minlstm", "diagonal")
READ_BY = {
    "activation": ("elman",),
    "forget_bias": ("lstm",),
    "peepholes": ("lstm",),
    "layer_norm": ("lstm",),
    "reset": ("gru",),
    "init": GATED,
    "gain": GATED,
}


@settings
class RNN(Network):
    """A recurrent model: stacked cells, unrolled over time layer by layer."""

    kind: Literal["rnn"] = "rnn"
    """The family of models: window, convolution, rnn or ngram. Another brings its own flags."""
    cell: str = "elman"
    """elman, lstm, gru, mingru, minlstm or diagonal; or a cell of your own, or of Flax, as
    FILE.py:NAME or package.module:NAME."""
    cell_sha256: str | None = None
    """SHA-256 of the file of a cell of your own, so that another file is another run; filled in."""
    activation: Activation | None = None
    """elman: f in h_t = f(x_t W_xh + h_{t-1} W_hh + b_h); None: tanh."""
    forget_bias: Weight | None = None
    """lstm: initial bias of the forget gate; None: 1."""
    peepholes: bool = False
    """lstm: whether the gates see the cell state (Gers & Schmidhuber, 2000)."""
    layer_norm: bool = False
    """lstm: whether both products and the cell state are normalised (Ba et al., 2016)."""
    reset: Literal["before", "after"] | None = None
    """gru: whether r scales the state before W_hh multiplies it (Cho et al., 2014) or the product
    after; None: after."""
    hidden_size: Size = 256
    """H, units of each layer."""
    layers: Size = 1
    """Cells stacked on one another."""
    residual: bool = False
    """Whether each layer from the second on adds its input to its output."""
    init: Literal["orthogonal", "identity", "spectral", "normal"] = "orthogonal"
    """elman, lstm, gru: initial W_hh, a block a gate: orthogonal; the identity; normal entries
    scaled to a spectral radius of 1; normal entries of variance 1 / H. Times model.gain."""
    gain: Scale = 1.0
    """elman, lstm, gru: factor of the initial W_hh."""
    change_penalty: Weight | None = None
    """beta: training adds beta times the mean square of h_t - h_{t-1} of the last layer to the mean
    nats (Merity et al., 2017); None: none."""
    dropout: RecurrentDropout = RecurrentDropout()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell not in CELLS and ":" not in self.cell:
            raise ValueError(
                f"model.cell={self.cell!r}: choose from {', '.join(CELLS)}, or name one of your "
                f"own as FILE.py:NAME{nearest_value('model.cell', self.cell, CELLS)}"
            )
        defaults = {field.name: field.default for field in dataclasses.fields(type(self))}
        for field, cells in READ_BY.items():
            if self.cell not in cells and getattr(self, field) != defaults[field]:
                raise ValueError(f"model.{field} is read only with model.cell={' or '.join(cells)}")
        if self.cell == "diagonal" and self.hidden_size % 2:
            raise ValueError(
                f"model.hidden_size={self.hidden_size} must be even with model.cell=diagonal, "
                "whose units are real and imaginary parts"
            )
        if ":" in self.cell and self.precision != "float32":
            raise ValueError(
                f"model.precision={self.precision} does not reach into a cell of your own, "
                f"model.cell={self.cell}: round within the cell"
            )
        if self.cell not in GATED and self.dropout.recurrent is not None:
            raise ValueError(
                f"model.dropout.recurrent is read only with model.cell={' or '.join(GATED)}"
            )
        _refuse_between(self)


@settings
class NGram:
    """The n-gram model: counted, not trained."""

    kind: Literal["ngram"] = "ngram"
    """The family of models: window, convolution, rnn or ngram. Another brings its own flags."""
    order: Size = 5
    """n: the model reads the last n - 1 tokens."""
    smoothing: Literal["kneser-ney", "interpolated", "add-k", "none"] = "kneser-ney"
    """kneser-ney: interpolated and modified (Chen & Goodman, 1999); interpolated: each order with a
    weight fitted on the validation text (Jelinek & Mercer, 1980); add-k; none: maximum likelihood.
    """
    k: Scale | None = None
    """add-k: what is added to each count; None: 1."""
    bounded: bool = True
    """Whether a context ends at its line's beginning; otherwise the text is one stream."""

    def __post_init__(self) -> None:
        if self.k is not None and self.smoothing != "add-k":
            raise ValueError("model.k is read only with model.smoothing=add-k")


def _refuse_between(model: Any) -> None:
    if model.layers == 1:
        if model.dropout.between is not None:
            raise ValueError("model.dropout.between needs model.layers of 2 or more")
        if getattr(model, "residual", False):
            raise ValueError("model.residual needs model.layers of 2 or more")


Model = Window | Convolution | RNN | NGram
