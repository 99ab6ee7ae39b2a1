"""Settings of the recurrent cell."""

from typing import ClassVar, Literal

from lm_jax.config.custom import Custom
from lm_jax.fields import NonNegative, PositiveFinite, Size
from lm_jax.settings import settings

Activation = Literal["tanh", "sigmoid", "relu"]


@settings
class Gated:
    """A cell with a matrix W_hh; the initial W_hh of each gate."""

    init: Literal["orthogonal", "identity", "spectral", "normal"] = "orthogonal"
    """Initial W_hh of each gate, times model.cell.gain. orthogonal; identity; spectral: normal
    entries scaled to a spectral radius of 1; normal: variance 1 / H."""
    gain: PositiveFinite = 1.0
    """Factor of the initial W_hh."""


@settings
class Elman(Gated):
    """The simple recurrent network (Elman, 1990): h_t = f(x_t W_xh + h_{t-1} W_hh + b_h)."""

    kind: Literal["elman"] = "elman"
    activation: Activation = "tanh"
    """f."""


@settings
class LSTM(Gated):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997; Gers et al., 2000)."""

    kind: Literal["lstm"] = "lstm"
    forget_bias: NonNegative = 1.0
    """Initial bias of the forget gate."""
    peepholes: bool = False
    """Connect the cell state to the gates (Gers & Schmidhuber, 2000)."""
    layer_norm: bool = False
    """Normalise both products and the cell state (Ba et al., 2016)."""


@settings
class GRU(Gated):
    """The gated recurrent unit (Cho et al., 2014)."""

    kind: Literal["gru"] = "gru"
    reset: Literal["before", "after"] = "after"
    """Place of the reset gate r. before: r scales the state, then W_hh multiplies the result (Cho
    et al., 2014); after: r scales the product of state and W_hh."""


@settings
class MinGRU:
    """A GRU whose gates do not read the state (Feng et al., 2024)."""

    kind: Literal["mingru"] = "mingru"


@settings
class MinLSTM:
    """An LSTM whose gates do not read the state (Feng et al., 2024)."""

    kind: Literal["minlstm"] = "minlstm"


@settings
class LRU:
    """The linear recurrent unit: a complex diagonal W_hh (Orvieto et al., 2023)."""

    kind: Literal["lru"] = "lru"


@settings
class RGLRU:
    """Griffin's real-gated linear recurrent unit (De et al., 2024)."""

    kind: Literal["rglru"] = "rglru"


@settings
class SRU:
    """The simple recurrent unit, without a product in each step (Lei et al., 2018)."""

    kind: Literal["sru"] = "sru"


@settings
class SLSTM(Gated):
    """The xLSTM's cell with a scalar memory and exponential input gates (Beck et al., 2024)."""

    kind: Literal["slstm"] = "slstm"


@settings
class MLSTM:
    """The xLSTM's cell with a matrix memory and gates of the input only (Beck et al., 2024)."""

    kind: Literal["mlstm"] = "mlstm"
    heads: Size = 4
    """Memories; each has model.hidden-size / heads rows and columns."""


@settings
class Mogrifier(Gated):
    """An LSTM whose inputs and states gate each other before each step (Melis et al., 2020)."""

    kind: Literal["mogrifier"] = "mogrifier"
    forget_bias: NonNegative = 1.0
    """Initial bias of the forget gate."""
    rounds: Size = 5
    """Gatings before a step: of the input by the state, then of the state by the input, and so on.
    """
    rank: Size | None = None
    """Rank of the matrix of each round, as a product of two; None: one full matrix."""


@settings
class CustomCell(Custom):
    """A cell of your own, or of Flax (`lm_jax.models.custom_cell`)."""

    setting: ClassVar[str] = "model.cell"
    passed: ClassVar[tuple[str, ...]] = ("inputs", "hidden_size", "features")


Cell = (
    Elman
    | LSTM
    | GRU
    | MinGRU
    | MinLSTM
    | LRU
    | RGLRU
    | SRU
    | SLSTM
    | MLSTM
    | Mogrifier
    | CustomCell
)

GATED = (Elman.kind, LSTM.kind, GRU.kind, Mogrifier.kind, SLSTM.kind)
