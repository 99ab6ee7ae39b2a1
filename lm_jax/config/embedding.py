"""Settings of the vectors that stand for the tokens at the input."""

from typing import Literal

from lm_jax.fields import Size
from lm_jax.settings import settings


@settings
class Table:
    """A vector of its own for each token."""

    kind: Literal["table"] = "table"


@settings
class AdaptiveInputs:
    """Long vectors for frequent tokens, short ones for rare tokens (Baevski & Auli, 2019)."""

    kind: Literal["adaptive"] = "adaptive"
    cutoffs: tuple[Size, ...] = (2000, 10000)
    """Token numbers at which a new band begins: rising, each below V."""
    factor: Size = 4
    """Each band has vectors this many times shorter than those of the band before it."""


Embedding = Table | AdaptiveInputs
