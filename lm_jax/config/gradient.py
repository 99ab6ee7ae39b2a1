"""Settings of the gradient estimator."""

from typing import Literal

from lm_jax.fields import Positive, Probability, Size
from lm_jax.settings import settings


@settings
class Backpropagation:
    """Backward in time."""

    clip_delta: Positive | None = None
    """Threshold of the norm of δ_t, inside backpropagation at every time step t. δ_t is the
    gradient of a sequence's summed loss that arrives at a layer's state from step t + 1 and from
    the layer above at t. None: no clipping."""


@settings
class FullBackpropagation(Backpropagation):
    """Through all T steps of a chunk."""

    recompute: Literal["none", "sqrt"] = "none"
    """Memory of backpropagation. none: keep everything that the backward pass reads of every step;
    sqrt: keep the states between √T segments and compute each segment a second time, for long
    chunks."""


@settings
class Explicit(FullBackpropagation):
    """Backpropagation through all T steps, by a hand-written backward pass if the cell has one."""

    kind: Literal["explicit"] = "explicit"


@settings
class Full(FullBackpropagation):
    """Backpropagation through all T steps, by autodiff."""

    kind: Literal["full"] = "full"


@settings
class Truncated(Backpropagation):
    """An update every k1 steps, backpropagated k2 steps, beyond the chunk's edge if k2 > k1."""

    kind: Literal["truncated"] = "truncated"
    k1: Size | None = None
    """Tokens of a sequence between updates; None: data.length."""
    k2: Size | None = None
    """Time steps that the gradient goes back from each update."""


@settings
class ARTBP:
    """Backpropagation randomly truncated, unbiased (Tallec & Ollivier, 2017)."""

    kind: Literal["artbp"] = "artbp"
    cut_rate: Probability | None = None
    """Probability of a cut between each time step and the next."""


@settings
class RTRL:
    """Real-time recurrent learning, forward in time: exact, for small models."""

    kind: Literal["rtrl"] = "rtrl"


@settings
class SnAp1:
    """Sparse approximation of RTRL, forward in time (Menick et al., 2021).

    Exact for a single layer of mingru, minlstm or lru.
    """

    kind: Literal["snap1"] = "snap1"


@settings
class UORO:
    """Unbiased rank-one approximation of RTRL, forward in time (Tallec & Ollivier, 2018)."""

    kind: Literal["uoro"] = "uoro"


Gradient = Explicit | Full | Truncated | ARTBP | RTRL | SnAp1 | UORO

Online = RTRL | SnAp1 | UORO
"""Gradients carried forward in time; an update processes its time steps in sequence."""
