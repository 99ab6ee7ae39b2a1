"""Which generated data is read: tasks where memory is the point, and a source of known entropy."""

from typing import Annotated, Literal

from pydantic import Field

from lm_jax.settings import PositiveCount, Size, settings

MOST_CONTEXTS = 4096  # of a Markov source: its stationary distribution solves as many equations

Alphabet = Annotated[int, Field(ge=2, lt=2**31)]


@settings
class Sequences:
    """A task whose every sequence is drawn for the update that reads it."""

    length: PositiveCount | None = None
    """Steps of each sequence from its first input to its last target, where they are fewer than
    data.length, the room for them: what is read after them asks for nothing. Sequences of any
    length share the compiled program of their room. None: data.length."""


@settings
class TemporalOrder(Sequences):
    """In which order two symbols came (Hochreiter & Schmidhuber, 1997; Pascanu et al., 2013)."""

    kind: Literal["temporal-order"] = "temporal-order"
    """The task; another one brings its own flags."""

    @property
    def shortest(self) -> int:
        """The least steps of a sequence."""
        return 10


@settings
class Adding(Sequences):
    """The sum of two marked numbers (Hochreiter & Schmidhuber, 1997)."""

    kind: Literal["adding"] = "adding"
    """The task; another one brings its own flags."""

    @property
    def shortest(self) -> int:
        return 4


@settings
class Multiplication(Sequences):
    """The product of two marked numbers (Hochreiter & Schmidhuber, 1997)."""

    kind: Literal["multiplication"] = "multiplication"
    """The task; another one brings its own flags."""

    @property
    def shortest(self) -> int:
        return 4


@settings
class Copy(Sequences):
    """Some symbols, said again when the cue comes (Hochreiter & Schmidhuber, 1997)."""

    kind: Literal["copy"] = "copy"
    """The task; another one brings its own flags."""
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
    """The task; another one brings its own flags."""
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

    They draw the symbols in between with replacement, and so does this.
    """

    kind: Literal["permutation"] = "permutation"
    """The task; another one brings its own flags."""
    symbols: Annotated[int, Field(ge=3, lt=2**31)] = 100
    """Symbols in all: the two that are to be remembered, and the others."""

    @property
    def shortest(self) -> int:
        return 2


@settings
class Markov:
    """A text whose every symbol depends on the last few, by a table drawn once.

    It is read like any other text; its entropy rate, known exactly, is the floor of the loss.
    """

    kind: Literal["markov"] = "markov"
    """The task; another one brings its own flags."""
    symbols: Annotated[int, Field(ge=2, le=62)] = 8
    """K, symbols of the alphabet."""
    order: Annotated[int, Field(ge=1, le=12)] = 2
    """m, the symbols on which the next one depends."""
    sharpness: Annotated[float, Field(ge=0, le=5)] = 2.0
    """ln P(next | context) is this times a standard normal draw, but for the sum to be 1; 0: every
    symbol is as likely as any other."""
    characters: Size = 1_000_000
    """Length of the text, which is cut 90 / 5 / 5."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the table and the text."""

    @property
    def shortest(self) -> int:
        return 1

    def __post_init__(self) -> None:
        contexts = self.symbols**self.order
        if contexts > MOST_CONTEXTS:
            raise ValueError(
                f"data.task.symbols={self.symbols} with data.task.order={self.order} make "
                f"{contexts:,} contexts; {MOST_CONTEXTS:,} are the most"
            )


Task = TemporalOrder | Adding | Multiplication | Copy | Memorisation | Permutation | Markov

REAL = (Adding, Multiplication)  # inputs and target
