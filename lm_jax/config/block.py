"""Settings of the block around each recurrent layer."""

from typing import Literal

from lm_jax.fields import Size
from lm_jax.settings import settings

Norm = Literal["layer", "rms"]


@settings
class NoBlock:
    """No block: each layer is the recurrence alone."""

    kind: Literal["off"] = "off"


@settings
class GLUBlock:
    """Norm, recurrence, gated linear unit, and a skip around them (Orvieto et al., 2023)."""

    kind: Literal["glu"] = "glu"
    norm: Norm = "layer"
    """Normalisation before the recurrence. layer: layer normalisation; rms: division by the root
    mean square."""


@settings
class MLPBlock:
    """Norm, short convolution, recurrence and a skip; norm, MLP and a skip (Feng et al., 2024)."""

    kind: Literal["mlp"] = "mlp"
    norm: Norm = "rms"
    """Normalisation before the recurrence and before the MLP. layer: layer normalisation; rms:
    division by the root mean square."""
    expansion: Size = 4
    """Hidden units of the MLP, as a multiple of model.hidden-size."""
    convolution: Size | None = 4
    """Steps that a convolution of each unit by itself reads before the recurrence; None: no
    convolution."""


Block = NoBlock | GLUBlock | MLPBlock
