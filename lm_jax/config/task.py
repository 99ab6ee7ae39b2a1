"""Settings of generated data: tasks that need memory, and a text of known entropy."""

from typing import Annotated, Literal

from pydantic import Field

from lm_jax.fields import PositiveCount, Size
from lm_jax.settings import settings

MOST_CONTEXTS = 4096  # of a Markov source; the stationary distribution takes as many equations

Alphabet = Annotated[int, Field(ge=2, lt=2**31)]


@settings
class Sequences:
    """A task with new sequences for every update."""

    length: PositiveCount | None = None
    """L, steps from the first input to the last target, at most data.length; later steps have no
    target. Changing L compiles nothing again. None: data.length."""


@settings
class TemporalOrder(Sequences):
    """The order of two symbols (Hochreiter & Schmidhuber, 1997; Pascanu et al., 2013)."""

    kind: Literal["temporal-order"] = "temporal-order"

    @property
    def shortest(self) -> int:
        """Minimum length of a sequence, in steps."""
        return 10


@settings
class Adding(Sequences):
    """The sum of two marked numbers (Hochreiter & Schmidhuber, 1997)."""

    kind: Literal["adding"] = "adding"

    @property
    def shortest(self) -> int:
        return 4


@settings
class Multiplication(Sequences):
    """The product of two marked numbers (Hochreiter & Schmidhuber, 1997)."""

    kind: Literal["multiplication"] = "multiplication"

    @property
    def shortest(self) -> int:
        return 4


@settings
class Copy(Sequences):
    """Repeat the first symbols after a cue (Hochreiter & Schmidhuber, 1997)."""

    kind: Literal["copy"] = "copy"
    symbols: Alphabet = 8
    """Symbols to draw from."""
    items: Size = 10
    """Symbols to remember."""

    @property
    def shortest(self) -> int:
        return 2 * self.items + 1


@settings
class Memorisation(Sequences):
    """Noiseless memorisation: the copy task in the size of Pascanu et al. (2013)."""

    kind: Literal["memorisation"] = "memorisation"
    symbols: Alphabet = 5
    """Symbols to draw from."""
    items: Size = 10
    """Symbols to remember."""

    @property
    def shortest(self) -> int:
        return 2 * self.items + 1


@settings
class Permutation(Sequences):
    """The first of many symbols, at the end (Hochreiter & Schmidhuber, 1997; Pascanu et al., 2013).

    The symbols in between are drawn with replacement, as in both papers.
    """

    kind: Literal["permutation"] = "permutation"
    symbols: Annotated[int, Field(ge=3, lt=2**31)] = 100
    """Number of symbols, including the two first symbols to remember."""

    @property
    def shortest(self) -> int:
        return 2


@settings
class Markov:
    """A text drawn from a Markov chain of order m with a random table.

    The text is read like any other text. The entropy rate, known exactly, is the least possible
    loss.
    """

    kind: Literal["markov"] = "markov"
    symbols: Annotated[int, Field(ge=2, le=62)] = 8
    """K, symbols of the alphabet."""
    order: Annotated[int, Field(ge=1, le=12)] = 2
    """m, number of previous symbols that determine the next symbol's distribution."""
    sharpness: Annotated[float, Field(ge=0, le=5)] = 2.0
    """Factor of the standard normal logits, P(next | context) = softmax(sharpness z); 0: all
    symbols are equally likely."""
    characters: Size = 1_000_000
    """Length of the text, cut 90 / 5 / 5 into the splits."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the table and the text."""

    def __post_init__(self) -> None:
        contexts = self.symbols**self.order
        if contexts > MOST_CONTEXTS:
            raise ValueError(
                f"data.source.symbols={self.symbols} with data.source.order={self.order} make "
                f"{contexts:,} contexts; {MOST_CONTEXTS:,} are the most"
            )


Task = TemporalOrder | Adding | Multiplication | Copy | Memorisation | Permutation | Markov

REAL = (Adding, Multiplication)  # inputs and target
