"""The trials of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_jax.config import Config


@dataclass(frozen=True, eq=False)  # each is itself alone, and may be a key
class Trial:
    """A point of a sweep, and the run that it is."""

    number: int
    """From 1."""
    name: str
    point: Mapping[str, Any]
    config: Config
    """Resolved and prepared."""
    directory: str
    """In the sweep's."""
