"""Settings of the language model and its dropout.

Each family of models is a class, and the field `kind` distinguishes the classes. `Network` holds
the settings shared by all neural families.
"""

import abc
import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field

from lm_jax.config.block import Block, NoBlock
from lm_jax.config.cell import (
    GATED,
    GRU,
    LRU,
    LSTM,
    MLSTM,
    Activation,
    Cell,
    CustomCell,
    Elman,
    Mogrifier,
)
from lm_jax.config.embedding import AdaptiveInputs, CharacterInputs, Embedding, Table
from lm_jax.config.readout import AdaptiveSoftmax, MixtureOfSoftmaxes, Readout, Softmax
from lm_jax.fields import NonNegative, OneOf, PositiveFinite, Probability, Size
from lm_jax.settings import settings


@settings
class Dropout:
    """Dropout rates in training; the remaining values are scaled up. None: no dropout."""

    locked: bool = False
    """Use the same mask at all time steps of an update (Gal & Ghahramani, 2016)."""
    inputs: Probability | None = None
    """Share of the entries of the input vectors."""
    between: Probability | None = None
    """Share of the units between each hidden layer and the next."""
    outputs: Probability | None = None
    """Share of the readout's inputs."""
    embedding: Probability | None = None
    """Share of the vocabulary with all-zero vectors throughout an update."""


@settings
class RecurrentDropout(Dropout):
    """Dropout rates in training; the remaining values are scaled up. None: no dropout."""

    recurrent: Probability | None = None
    """Share of the entries of W_hh, fixed over all steps of an update (Merity et al., 2018)."""
    zoneout: Probability | None = None
    """Share of the units of h that keep their old value at a step (Krueger et al., 2017); in use,
    each unit keeps this share of its old value."""
    zoneout_cell: Probability | None = None
    """The same for the cell state c of an LSTM."""


@settings
class Network(abc.ABC):
    """Settings shared by all neural models."""

    embedding_size: Size | None = 64
    """E, length of a token's learned vector; None: one-hot vectors."""
    embedding: Annotated[Embedding, OneOf()] = Table()
    """From a token to its learned vector."""
    vectors: str | None = None
    """Path of pretrained word vectors: word2vec, GloVe or fastText's .vec, plain or gzipped; None:
    none."""
    vectors_sha256: str | None = None
    """SHA-256 of the file of vectors at the start of the run; filled in."""
    init_from: str | None = None
    """Directory of a run whose parameters this run begins with, for instance to fine-tune them;
    None: every parameter is drawn."""
    init_parts: tuple[str, ...] = ("*",)
    """Patterns of the parameters taken from model.init-from, such as layers.* or embedding.C."""
    freeze: tuple[str, ...] = ()
    """Patterns of the parameters that training leaves as they are."""
    readout: Annotated[Readout, OneOf()] = Softmax()
    """From the last hidden layer to the probabilities of the next token."""
    dropout: Dropout = Dropout()
    activation_penalty: NonNegative | None = None
    """alpha: training adds alpha times the mean square of the readout's inputs to the mean loss
    (Merity et al., 2017); None: none."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of the factors of each matrix product in training; sums and everything else stay
    float32. tf32 and bfloat16 are for GPUs and TPUs. Scores, samples and probes do not round."""
    projection: Size | None = None
    """Numbers that the readout reads, by a linear layer without bias from the last hidden layer;
    None: the hidden layer itself."""
    uniform: PositiveFinite | None = None
    """s: draw every initial weight and bias from U(-s, s); None: each by its own rule."""

    def __post_init__(self) -> None:
        if self.embedding_size is None:
            for field in ("inputs", "embedding"):
                if getattr(self.dropout, field) is not None:
                    raise ValueError(
                        f"model.dropout.{field} needs learned vectors: model.embedding_size is None"
                    )
            if self.vectors is not None:
                raise ValueError("model.vectors needs model.embedding_size, the vectors' length")
        if not isinstance(self.embedding, Table):
            self._check_embedding(self.embedding)
        if self.uniform is not None:
            for place, part in (("model", self), ("model.cell", getattr(self, "cell", None))):
                for field, idle in (("gain", 1.0), ("init", "orthogonal"), ("forget_bias", 1.0)):
                    if getattr(part, field, idle) != idle:
                        raise ValueError(f"{place}.{field} is not read with model.uniform")
        if self.init_from is None and self.init_parts != ("*",):
            raise ValueError("model.init_parts is read only with model.init_from")
        if isinstance(self.readout, AdaptiveSoftmax):
            _check_cutoffs("model.readout.cutoffs", self.readout.cutoffs)
        elif isinstance(self.readout, MixtureOfSoftmaxes):
            size = self.readout.size or self.embedding_size
            if size is None:
                raise ValueError("model.readout.size is needed: model.embedding_size is None")
            if self.readout.tied and size != self.embedding_size:
                raise ValueError(
                    f"model.readout.tied needs model.readout.size={size} to be "
                    f"model.embedding_size={self.embedding_size}"
                )
        elif self.readout.tied and self.embedding_size != (self.projection or self.outputs):
            raise ValueError(
                f"model.readout.tied needs model.embedding_size={self.embedding_size} to be what "
                f"the readout reads, {self.projection or self.outputs}: set model.projection to "
                "model.embedding_size"
            )

    def _check_embedding(self, embedding: AdaptiveInputs | CharacterInputs) -> None:
        """Refuse settings that need one table of vectors."""
        needs_table = {
            "model.embedding_size=None": self.embedding_size is None,
            f"model.vectors={self.vectors}": self.vectors is not None,
            "model.readout.tied=True": getattr(self.readout, "tied", False),
        }
        for setting, is_so in needs_table.items():
            if is_so:
                raise ValueError(f"{setting} does not go with model.embedding={embedding.kind}")
        if isinstance(embedding, AdaptiveInputs):
            _check_cutoffs("model.embedding.cutoffs", embedding.cutoffs)

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Outputs of the last hidden layer."""


@settings
class Window(Network):
    """The fixed-window model of Bengio et al. (2003): n - 1 tokens in, the next one out."""

    kind: Literal["window"] = "window"
    order: Annotated[int, Field(ge=2, le=1024)] = 5
    """n: the model reads the last n - 1 tokens."""
    hidden_size: Size = 256
    """H, units of each hidden layer."""
    layers: Size = 1
    """Hidden layers; the first one reads the window."""
    activation: Activation = "tanh"
    """Nonlinearity of the hidden layers."""
    skip_connections: bool = False
    """Also connect the window's vectors directly to the readout (Bengio's W)."""
    gain: PositiveFinite = 1.0
    """Initial hidden weights: standard deviation of W times the square root of its inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip_connections and self.embedding_size is None:
            raise ValueError(
                "model.skip_connections needs learned vectors: model.embedding_size is None"
            )
        _refuse_between(self)

    @property
    def outputs(self) -> int:
        window = (self.order - 1) * (self.embedding_size or 0) if self.skip_connections else 0
        return self.hidden_size + window


@settings
class Convolution(Network):
    """Causal convolutions over time: each layer reads a few steps of the layer below."""

    kind: Literal["convolution"] = "convolution"
    width: Annotated[int, Field(gt=0, le=1024)] = 4
    """k: time steps that each layer reads."""
    hidden_size: Size = 256
    """H, channels of each layer."""
    layers: Size = 1
    """Number of stacked layers."""
    dilation: Size = 1
    """Layer l reads every dilation^(l - 1)-th step, counting layers from 1."""
    activation: Literal["tanh", "sigmoid", "relu", "glu"] = "tanh"
    """Nonlinearity of the layers; glu: half of the channels gate the other half (Dauphin et al.,
    2017)."""
    pooling: Size | None = None
    """Number of last steps over which the readout takes each channel's maximum; None: the last step
    only."""
    residual: bool = False
    """Add each layer's input to its output, from the second layer on."""
    gain: PositiveFinite = 1.0
    """Initial weights: standard deviation times the square root of a layer's inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_between(self)
        for field in ("layers", "width"):
            if self.dilation > 1 and getattr(self, field) == 1:
                raise ValueError(f"model.dilation needs model.{field} of 2 or more")

    @property
    def outputs(self) -> int:
        return self.hidden_size


@settings
class RNN(Network):
    """A recurrent model: stacked cells, unrolled over time layer by layer."""

    kind: Literal["rnn"] = "rnn"
    cell: Annotated[Cell, OneOf()] = Elman()
    """The recurrent cell; or your own cell, or a Flax cell, as FILE.py:NAME or
    package.module:NAME."""
    hidden_size: Size | Annotated[tuple[Size, ...], Field(min_length=1)] = 256
    """H, units of each layer; or the units of one layer after another, from the first to the last.
    """
    layers: Size = 1
    """Number of stacked cells."""
    block: Annotated[Block, OneOf()] = NoBlock()
    """The nonlinear layers around each cell. Without any, several layers of model.cell=lru are a
    single linear map."""
    residual: bool = False
    """Add each layer's input to its output, from the second layer on."""
    recurrence: Literal["scan", "pallas"] = "scan"
    """Time steps of an update on an NVIDIA GPU: scan, a loop over the steps; pallas, all steps of a
    layer in one kernel (docs/performance.md). Other devices, scores and samples take the scan."""
    change_penalty: NonNegative | None = None
    """beta: training adds beta times the mean square of h_t - h_{t-1} of the last layer to the mean
    loss (Merity et al., 2017); None: none."""
    dropout: RecurrentDropout = RecurrentDropout()

    def __post_init__(self) -> None:
        if isinstance(self.hidden_size, tuple) and len(self.hidden_size) != self.layers:
            raise ValueError(
                f"model.hidden_size={self.hidden_size} has {len(self.hidden_size)} sizes, and "
                f"model.layers={self.layers}"
            )
        super().__post_init__()
        if self.residual and len(set(self.sizes)) > 1:
            raise ValueError(
                f"model.residual needs layers of one size: model.hidden_size={self.hidden_size}"
            )
        if isinstance(self.cell, LRU) and any(size % 2 for size in self.sizes):
            raise ValueError(
                f"model.hidden_size={self.hidden_size} must be even with model.cell=lru, whose "
                "units are real and imaginary parts"
            )
        if isinstance(self.cell, MLSTM) and any(size % self.cell.heads for size in self.sizes):
            raise ValueError(
                f"model.hidden_size={self.hidden_size} must be a multiple of "
                f"model.cell.heads={self.cell.heads}"
            )
        if (
            isinstance(self.cell, Mogrifier)
            and isinstance(self.block, NoBlock)
            and self.embedding_size is None
        ):
            raise ValueError(
                "model.cell=mogrifier gates learned vectors: model.embedding_size is None"
            )
        if not isinstance(self.block, NoBlock):
            for name, value in {
                "residual": self.residual or None,
                "dropout.recurrent": self.dropout.recurrent,
                "dropout.zoneout": self.dropout.zoneout,
                "dropout.zoneout_cell": self.dropout.zoneout_cell,
            }.items():
                if value is not None:
                    raise ValueError(
                        f"model.{name}={value} does not go with model.block={self.block.kind}"
                    )
        if isinstance(self.cell, CustomCell) and self.precision != "float32":
            raise ValueError(
                f"model.precision={self.precision} does not reach into a cell of your own, "
                f"model.cell={self.cell.kind}: round within the cell"
            )
        for name, cells in {
            "recurrent": GATED,
            "zoneout": (Elman.kind, LSTM.kind, GRU.kind),
            "zoneout_cell": (LSTM.kind,),
        }.items():
            if getattr(self.dropout, name) is not None and self.cell.kind not in cells:
                raise ValueError(
                    f"model.dropout.{name} is read only with model.cell={' or '.join(cells)}"
                )
        if self.recurrence == "pallas":
            cells = [kind for kind in GATED if kind != Mogrifier.kind]
            if self.cell.kind not in cells:
                raise ValueError(
                    f"model.recurrence=pallas is read only with model.cell={' or '.join(cells)}"
                )
            for field, value in {"layer_norm": True, "reset": "before"}.items():
                if getattr(self.cell, field, None) == value:
                    raise ValueError(
                        f"model.recurrence=pallas does not go with model.cell.{field}={value}"
                    )
        _refuse_between(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each layer."""
        sizes = self.hidden_size
        return sizes if isinstance(sizes, tuple) else (sizes,) * self.layers

    @property
    def outputs(self) -> int:
        return self.sizes[-1]


def _check_cutoffs(name: str, cutoffs: tuple[int, ...]) -> None:
    if not cutoffs or list(cutoffs) != sorted(set(cutoffs)):
        raise ValueError(f"{name}={cutoffs} must rise, and have one number at least")


def unrounded(model: Any) -> Any:
    """The model without rounding and with scans, to score, sample and probe it."""
    if isinstance(model, RNN):
        model = dataclasses.replace(model, recurrence="scan")
    return dataclasses.replace(model, precision="float32") if isinstance(model, Network) else model


@settings
class NGram:
    """The n-gram model: counted, not trained."""

    kind: Literal["ngram"] = "ngram"
    order: Size = 5
    """n: the model reads the last n - 1 tokens."""
    smoothing: Literal["kneser-ney", "interpolated", "add-k", "none", "backoff"] = "kneser-ney"
    """kneser-ney: interpolated and modified (Chen & Goodman, 1999); interpolated: each order with a
    weight fitted on the validation text (Jelinek & Mercer, 1980); add-k; none: maximum likelihood;
    backoff: the probabilities of an ARPA file, which are read and not counted."""
    k: PositiveFinite | None = None
    """add-k: constant added to each count; None: 1."""
    sentence_boundaries: bool = True
    """Stop each context at the beginning of its line; False: read the text as a single stream."""
    prune: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = ()
    """Leave out k-grams that occur this often or less in the training text: a number for each order
    from 1 on, the first one 0 and none below the one before, such as 0 0 1; the last number holds
    for all further orders. Empty: none."""
    entropy_threshold: PositiveFinite | None = None
    """Leave out each n-gram without which the perplexity rises by a smaller share (Stolcke, 1998),
    such as 1e-8; None: none."""

    def __post_init__(self) -> None:
        if self.k is not None and self.smoothing != "add-k":
            raise ValueError("model.k is read only with model.smoothing=add-k")
        if self.prune:
            if self.prune[0] or list(self.prune) != sorted(self.prune):
                raise ValueError(f"model.prune={self.prune} must begin with 0 and never fall")
            if len(self.prune) > self.order:
                raise ValueError(
                    f"model.prune={self.prune} has more numbers than model.order={self.order}"
                )
        if self.entropy_threshold is not None and self.smoothing == "add-k":
            raise ValueError("model.entropy_threshold is not read with model.smoothing=add-k")
        if self.smoothing == "backoff" and (self.prune or self.entropy_threshold is not None):
            raise ValueError(
                "model.prune and model.entropy_threshold are not read with model.smoothing=backoff"
            )


def _refuse_between(model: Any) -> None:
    if model.layers == 1:
        if model.dropout.between is not None:
            raise ValueError("model.dropout.between needs model.layers of 2 or more")
        if getattr(model, "residual", False):
            raise ValueError("model.residual needs model.layers of 2 or more")


Model = Window | Convolution | RNN | NGram
