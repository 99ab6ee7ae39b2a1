"""Generated tasks that need memory: the target at the end depends on earlier inputs.

A batch is a function of a key and a step alone. Training on a task therefore stops and resumes like
any other training, and no two updates read the same sequences. A batch has T steps (the config's
`data.length`). A sequence has L ≤ T steps (`data.source.length`, by default T) and starts from a
fresh carry. The loss counts only the steps with a target; the mask marks these steps. Draws are
uniform and independent.

- *temporal order* (Hochreiter & Schmidhuber, 1997; Pascanu et al., 2013): distractors c … f, except
  for an A or B at one step of [L/10, 2L/10) and at one step of [5L/10, 6L/10). Target at the last
  step: AA, AB, BA or BB.
- *adding*, *multiplication*: each step is a number from [0, 1) and a mark. The mark is 1 at one
  step of the first tenth and at one step of [L/10, L/2), else 0. Target at the last step: the sum,
  or the product, of the two marked numbers. Inputs and target are real, and the loss is the squared
  error.
- *copy*, *memorisation*: some symbols, then blanks, with a cue in place of the blank just before
  the last `items` steps. Targets at the last `items` steps: the symbols, in their order.
- *permutation*: the first symbol is one of two; every other step holds one of the other symbols.
  Target at the last step: the first symbol.

The *chance level* of a task is the least mean loss of a predictor without memory, given only the
step and its input: ln 4 for temporal order; the variance of the target for adding (1/6) and
multiplication (7/144); ln of the number of symbols for copy and memorisation; ln 2 for permutation.

Letters: B sequences, T steps of a batch, L steps of a sequence.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lm_jax import config as settings
from lm_jax.config import Data
from lm_jax.config.task import REAL, Sequences
from lm_jax.data.batches import Batch, Generated
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.files import sha256
from lm_jax.settings import VERSION, to_json

EPOCH = 1000  # updates that count as an epoch
TOLERANCE = 0.04  # largest error of a right answer (Hochreiter & Schmidhuber, 1997)
HELD_OUT_BATCHES, HELD_OUT_SEQUENCES = (
    10,
    100,
)  # batches of validation (and of test), sequences each
HELD_OUT = {"validation": 1 << 20, "test": 1 << 21}  # folded into the key of each split


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Task(Generated):
    """Generator of a task's sequences, with the task's symbols and chance level."""

    symbols: tuple[str, ...]
    """Tokens, or names of the real inputs, as in vocabulary.json."""
    chance: float
    """Chance level: least mean loss without memory, in nats or as a mean squared error."""
    real: bool
    """True if inputs and target are real numbers."""

    def right(self, predicted: Float[Array, "T B V"], batch: Batch) -> Bool[Array, " B"]:
        """Return, for each sequence, True if the predictions of all targets are right.

        Args:
          predicted: `LanguageModel.logits`; for a real task, the predicted number (V = 1).
          batch: the batch that was read.
        """
        if self.real:
            right = jnp.abs(predicted[..., 0] - batch.y) < TOLERANCE
        else:
            right = jnp.argmax(predicted, axis=-1) == batch.y
        return jnp.all(right | ~batch.mask, axis=0)

    @property
    def vocabulary(self) -> Vocabulary:
        """The symbols, in the order of their numbers."""
        return Vocabulary("task", self.symbols)


@functools.lru_cache(maxsize=64)
def task(config: Sequences, batch_size: int, length: int) -> Task:
    """Return the task of a config.

    Args:
      config: `Data.source`. `config.length` is ignored: `Task.batch` takes the length as an
        argument.
      batch_size: B.
      length: T.
    """
    if config.length is not None:
        return task(dataclasses.replace(config, length=None), batch_size, length)
    chance, real = 0.0, isinstance(config, REAL)
    if isinstance(config, settings.TemporalOrder):
        symbols, chance = tuple("ABcdef") + ("AA", "AB", "BA", "BB"), math.log(4)
        draw = functools.partial(temporal_order, room=length)
    elif isinstance(config, settings.Adding):
        symbols, chance = ("number", "mark"), 1 / 6
        draw = functools.partial(two_marked, room=length, combine=jnp.add)
    elif isinstance(config, settings.Multiplication):
        symbols, chance = ("number", "mark"), 7 / 144
        draw = functools.partial(two_marked, room=length, combine=jnp.multiply)
    elif isinstance(config, settings.Permutation):
        symbols, chance = tuple(map(str, range(config.symbols))), math.log(2)
        draw = functools.partial(permutation, room=length, symbols=config.symbols)
    else:
        assert isinstance(config, (settings.Copy, settings.Memorisation))
        numbered = tuple(map(str, range(config.symbols)))
        symbols, chance = (*numbered, "blank", "cue"), math.log(config.symbols)
        draw = functools.partial(recall, room=length, symbols=config.symbols, items=config.items)

    def batch(key: Array, step: Array | int, length: Array | int = length) -> Batch:
        keys = jax.random.split(jax.random.fold_in(key, step), batch_size)
        x, y, mask = jax.vmap(draw, (0, None), 1)(keys, length)
        return Batch(x, y, mask, jnp.ones(batch_size, bool))

    return Task(batch, EPOCH, symbols, chance, real)


def task_of(data: Data) -> Task | None:
    """Return the training task of a config, or None if the config reads a text."""
    if not isinstance(data.source, Sequences):
        return None
    return task(data.source, data.batch_size, data.length)


def held_out(data: Data, split: str) -> list[Callable[[], Batch]]:
    """Return the held-out batches of a task, equal for every seed and batch size.

    Args:
      data: a config that reads a task.
      split: validation or test.

    Returns:
      functions without arguments, each generates a batch; training never reads these batches.
    """
    assert isinstance(data.source, Sequences)
    read = _compiled(task(data.source, HELD_OUT_SEQUENCES, data.length))
    key = jax.random.fold_in(jax.random.key(0), HELD_OUT[split])
    return [functools.partial(read, key, step, data.steps) for step in range(HELD_OUT_BATCHES)]


@functools.lru_cache(maxsize=16)
def _compiled(task: Task) -> Callable[[Array, int, int], Batch]:
    return jax.jit(task.batch)


def task_digest(data: Data) -> str:
    """Digest of a config's task, in hex digits; tasks that differ only in length share a digest."""
    assert isinstance(data.source, Sequences)
    any_length = dataclasses.replace(data.source, length=None)
    key = json.dumps([to_json(any_length), data.length, VERSION])
    return sha256(key)


def temporal_order(key: Array, length: Array | int, *, room: int) -> tuple[Array, Array, Array]:
    """Draw a sequence of temporal order; symbols A B c d e f are 0 … 5 and the answers 6 … 9."""
    noise, first, second, which = jax.random.split(key, 4)
    tenth, half = length // 10, length // 2
    here = jax.random.randint(first, (), tenth, 2 * tenth)
    there = jax.random.randint(second, (), half, half + tenth)
    a, b = jax.random.randint(which, (2,), 0, 2)
    x = jax.random.randint(noise, (room,), 2, 6).at[here].set(a).at[there].set(b)
    return _tokens(x, 6 + 2 * a + b, length)


def two_marked(
    key: Array, length: Array | int, *, room: int, combine: Callable[[Array, Array], Array]
) -> tuple[Float[Array, "T 2"], Float[Array, " T"], Bool[Array, " T"]]:
    """Draw a sequence of numbers with two marks; the answer combines the two marked numbers."""
    noise, first, second = jax.random.split(key, 3)
    tenth = jnp.maximum(length // 10, 1)
    here = jax.random.randint(first, (), 0, tenth)
    there = jax.random.randint(second, (), tenth, length // 2)
    numbers = jax.random.uniform(noise, (room,), float)
    marks = jnp.zeros(room).at[here].set(1).at[there].set(1)
    y = jnp.zeros(room).at[length - 1].set(combine(numbers[here], numbers[there]))
    return jnp.stack([numbers, marks], axis=-1), y, _last(room, length)


def recall(
    key: Array, length: Array | int, *, room: int, symbols: int, items: int
) -> tuple[Int[Array, " T"], Int[Array, " T"], Bool[Array, " T"]]:
    """Draw a sequence to repeat; the blank has number `symbols`, the cue `symbols + 1`."""
    blank, cue = symbols, symbols + 1
    said = jax.random.randint(key, (items,), 0, symbols, jnp.int32)
    blanks, answers = jnp.full(room, blank, jnp.int32), length - items + jnp.arange(items)
    x = blanks.at[:items].set(said).at[length - items - 1].set(cue)
    places = jnp.arange(room)
    return x, blanks.at[answers].set(said), (places >= length - items) & (places < length)


def permutation(
    key: Array, length: Array | int, *, room: int, symbols: int
) -> tuple[Array, Array, Array]:
    """Draw a sequence with its first symbol, 0 or 1, as the target at the last step."""
    noise, first = jax.random.split(key)
    a = jax.random.randint(first, (), 0, 2)
    return _tokens(jax.random.randint(noise, (room,), 2, symbols).at[0].set(a), a, length)


def _tokens(
    x: Int[Array, " T"], answer: Int[Array, ""], length: Array | int
) -> tuple[Int[Array, " T"], Int[Array, " T"], Bool[Array, " T"]]:
    """Return inputs as int32, targets with the answer at the last step, and the mask."""
    room = len(x)
    y = jnp.zeros(room, jnp.int32).at[length - 1].set(answer.astype(jnp.int32))
    return x.astype(jnp.int32), y, _last(room, length)


def _last(room: int, length: Array | int) -> Bool[Array, " T"]:
    return jnp.arange(room) == length - 1
