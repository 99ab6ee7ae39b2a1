"""Words of tables and pages: settings and their values, and the figures of a loss."""

from collections.abc import Iterable
from typing import Any

from lm_jax.data.vocabulary import Vocabulary
from lm_jax.files import Row

FIGURES = {
    "nats": ("nats a token", ".4f"),
    "bits_per_token": ("bits a token", ".4f"),
    "perplexity": ("perplexity", ".3f"),
    "perplexity_per_word": ("perplexity a word", ".3f"),
    "bits_per_byte": ("bits a byte", ".4f"),
    "bits_per_character": ("bits a character", ".4f"),
}
"""Heading and format of each figure of `lm_jax.scoring.Loss.row`."""
_USUAL = {
    "char": ("nats", "perplexity", "bits_per_character"),
    "byte": ("nats", "perplexity", "bits_per_byte", "bits_per_character"),
    "word": ("nats", "bits_per_token", "perplexity", "bits_per_character"),
    "bpe": ("nats", "perplexity", "perplexity_per_word", "bits_per_byte", "bits_per_character"),
}
SPACED = "every word is one character, and the white space between words is none"


def is_spaced(row: Row) -> bool:
    """True if a loss is that of a spaced text (`lm_jax.data.sizes`)."""
    return "words" in row and row["words"] is None


def usual_figures(vocabulary: Vocabulary, rows: Iterable[Row]) -> tuple[str, ...]:
    """Names of the figures that papers give for models with such tokens (docs/runs.md).

    Args:
      vocabulary: the tokens.
      rows: the losses, each as of `lm_jax.scoring.Loss.row`.
    """
    return _USUAL["char" if any(map(is_spaced, rows)) else vocabulary.tokenizer]


def in_words(value: Any) -> str:
    """The text of a setting's value; None is "off"."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, "g") if isinstance(value, float) else str(value)


def short(path: str, others: Iterable[str]) -> str:
    """The shortest end of a path that is unique among `others`, in words with blanks."""
    path = path.removesuffix(".kind")
    others = [other.removesuffix(".kind") for other in others]
    parts = path.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in others) == 1:
            return end.replace("_", " ")
    return path.replace("_", " ")
