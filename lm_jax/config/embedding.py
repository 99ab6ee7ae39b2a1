"""Settings of the vectors that stand for the tokens at the input."""

from typing import Annotated, Literal

from pydantic import Field

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


@settings
class CharacterInputs:
    """A convolution over the characters of a word, and highway layers (Kim et al., 2016)."""

    kind: Literal["characters"] = "characters"
    character_size: Size = 15
    """Length of a character's vector."""
    widths: tuple[Size, ...] = (1, 2, 3, 4, 5, 6)
    """Characters that the filters of each group read."""
    filters: tuple[Size, ...] = (25, 50, 75, 100, 125, 150)
    """Number of filters of each group. If their sum is not model.embedding-size, a matrix maps them
    to as many numbers."""
    highway: Annotated[int, Field(ge=0, le=64)] = 1
    """Highway layers."""
    longest: Size = 65
    """Characters of a word that are read, from its beginning."""

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.filters):
            raise ValueError(
                f"model.embedding.widths={self.widths} and model.embedding.filters={self.filters} "
                "must have one number for each group, one group at least"
            )
        if max(self.widths) > self.longest + 2:
            raise ValueError(
                f"model.embedding.widths={self.widths} must be at most {self.longest + 2}: "
                f"model.embedding.longest={self.longest} characters and the word's two ends"
            )


Embedding = Table | AdaptiveInputs | CharacterInputs
