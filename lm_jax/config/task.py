"""Which generated data is read: tasks where memory is the point, and a source of known entropy."""

from typing import Annotated, Literal

from pydantic import Field

from lm_jax.config.model import RNN, Network, Softmax
from lm_jax.config.train import Train
from lm_jax.settings import Size, settings

MOST_CONTEXTS = 4096  # of a Markov source: its stationary distribution solves as many equations

Alphabet = Annotated[int, Field(ge=2)]


@settings
class TemporalOrder:
    """In which order two symbols came (Hochreiter & Schmidhuber, 1997; Pascanu et al., 2013)."""

    kind: Literal["temporal-order"] = "temporal-order"
    """The task; another one brings its own flags."""

    @property
    def shortest(self) -> int:
        """The least data.length."""
        return 10


@settings
class Adding:
    """The sum of two marked numbers (Hochreiter & Schmidhuber, 1997)."""

    kind: Literal["adding"] = "adding"
    """The task; another one brings its own flags."""

    @property
    def shortest(self) -> int:
        return 4


@settings
class Multiplication:
    """The product of two marked numbers (Hochreiter & Schmidhuber, 1997)."""

    kind: Literal["multiplication"] = "multiplication"
    """The task; another one brings its own flags."""

    @property
    def shortest(self) -> int:
        return 4


@settings
class Copy:
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
class Memorisation:
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
class Permutation:
    """The first of many symbols, at the end (Hochreiter & Schmidhuber, 1997; Pascanu et al., 2013).

    They draw the symbols in between with replacement, and so does this.
    """

    kind: Literal["permutation"] = "permutation"
    """The task; another one brings its own flags."""
    symbols: Annotated[int, Field(ge=3)] = 100
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
    order: Annotated[int, Field(ge=1)] = 2
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


def refuse_misfits(task: Task, model: Network, train: Train) -> None:
    """Refuses what a task that is no text cannot be learnt by.

    Raises:
      ValueError: names the field.
    """
    name, kind = f"data.task={task.kind}", getattr(model, "kind", None)
    if train.feeding.kind != "teacher":
        raise ValueError(
            f"train.feeding.kind={train.feeding.kind} is not read with {name}: what the model says "
            "is no input of it"
        )
    if model.vectors is not None:
        raise ValueError(f"model.vectors is not read with {name}, whose symbols are no words")
    if not isinstance(task, REAL):
        return
    if not isinstance(model, RNN):
        raise ValueError(
            f"{name} reads real numbers, which model.kind={kind} does not: take model.kind=rnn"
        )
    if model.readout != Softmax():
        raise ValueError(f"model.readout is not read with {name}, whose target is a number")
    if model.dropout.words is not None:
        raise ValueError(f"model.dropout.words is not read with {name}, which has no words")
