"""Settings of the text: its source, tokens and batches."""

from typing import Annotated, Any, Literal

from pydantic import Field

from lm_jax.config.task import REAL, Markov, Sequences, Task
from lm_jax.fields import Adjustable, OneOf, Size, fields
from lm_jax.settings import settings


@settings
class Builtin:
    """The documentation inside CPython."""

    kind: Literal["builtin"] = "builtin"


@settings
class TFDS:
    """A data set of TensorFlow Datasets."""

    kind: Literal["tfds"] = "tfds"
    name: str | None = None
    """Name of the data set, such as `tiny_shakespeare` or `wiki40b/en`."""
    text_key: str | None = None
    """Feature with the text; None: the only text feature, or `text`."""


@settings
class File:
    """Files of your own."""

    kind: Literal["file"] = "file"
    train: str | None = None
    """Path of the training text: a file, a pattern of files such as `'texts/train-*.txt'`, or a
    folder of files. Without validation and test, the text is cut 90 / 5 / 5 into the three splits.
    With tokenizer word, the cuts are at line ends, or between two words if the text is a single
    long line. Or path of a folder with the files of all three splits, named after train, valid
    (validation, val, dev) and test. Or path of WikiText, the Penn Treebank, lm1b, the Pile, text8
    or enwik8, as they are published."""
    validation: str | None = None
    """Path of the validation text: a file, a pattern or a folder."""
    test: str | None = None
    """Path of the test text: a file, a pattern or a folder."""
    text_key: str | None = None
    """JSON lines (.jsonl, packed or not): key of the text; None: `text`. Parquet and Arrow tables
    (.parquet, .arrow): column with the text; None: the only column of text, or `text`."""


@settings
class Memory:
    """Text passed to `lm_jax.train`."""

    kind: Literal["memory"] = "memory"


@settings
class Datasets:
    """A folder of Hugging Face `datasets`, or of Parquet or Arrow files."""

    kind: Literal["datasets"] = "datasets"
    folder: str | None = None
    """Path of a folder that `save_to_disk` wrote, or of a folder with files named after train,
    valid (validation, val, dev) and test, such as `train-00000-of-00002.parquet`."""
    text_key: str | None = None
    """Column with the text; None: the only column of text, or `text`."""


DataSource = Builtin | TFDS | Datasets | File | Memory | Task

# Room for a token beside <unk> and the line's end.
VocabularySize = Annotated[int, Field(ge=3, lt=2**31)]


@settings
class CountedTokens:
    """Tokens found in the training text, the most frequent first."""

    size: VocabularySize | None = None
    """Number of most frequent tokens to keep, including <unk> and the line's end; None: all."""
    min_count: Size = 1
    """Tokens seen less often than this in the training text become <unk>."""


@settings
class Char(CountedTokens):
    """Unicode characters."""

    kind: Literal["char"] = "char"


@settings
class Byte:
    """The 256 bytes of UTF-8."""

    kind: Literal["byte"] = "byte"


@settings
class Word(CountedTokens):
    """Strings between white space, with <eos> at the end of each line."""

    kind: Literal["word"] = "word"
    word_list: str | None = None
    """Path of a list of words between white space: other words become <unk>; None: no list."""


@settings
class BPE:
    """Byte-pair encoding, of bytes."""

    kind: Literal["bpe"] = "bpe"
    size: Annotated[int, Field(ge=256, lt=2**31)] | None = None
    """Number of tokens to make, including the 256 bytes; None: 4096."""
    file: str | None = None
    """Path of a byte-level tokenizer.json, which also gives the size; None: learnt from the
    training text."""

    def __post_init__(self) -> None:
        if self.file is not None and self.size is not None:
            raise ValueError(
                "data.tokenizer.size is not read with data.tokenizer.file, which says it"
            )


@settings
class Auto:
    """The usual tokens of a corpus that its files show, and characters of any other text."""

    kind: Literal["auto"] = "auto"
    size: VocabularySize | None = None
    """Number of most frequent tokens to keep; None: as is usual."""
    min_count: Size | None = None
    """Tokens seen less often than this in the training text become <unk>; None: as is usual."""


Tokenizer = Auto | Char | Byte | Word | BPE


@settings
class Data:
    """Settings of the text: its source, tokens and batches."""

    source: Annotated[DataSource, OneOf()] = Builtin()
    """Source of the text, or a generated task."""
    tokenizer: Annotated[Tokenizer, OneOf()] = Auto()
    """Units of the text; auto: words of WikiText, the Penn Treebank and lm1b, bytes of enwik8 and
    the Pile, each recognised by its files, and characters of any other text."""
    batching: Literal["streams", "sentences"] = "streams"
    """streams: each sequence goes on from its last update; sentences: each sequence is a line of
    the text, from a fresh carry, in a new random order every epoch."""
    batch_size: Size = 32
    """B, sequences of a batch."""
    length: Size = 64
    """T, time steps of an update; sentences: longer sentences are cut every T tokens; a task: steps
    of each sequence, or the maximum if data.source.length is set."""
    jitter: Size | None = None
    """streams: largest number of tokens by which each border between two chunks of an epoch moves,
    drawn anew in each epoch. A chunk then has between T - 2 jitter and T + 2 jitter tokens, and its
    share of T scales the learning rate of its update (Merity et al., 2018, section 4.1). None: no
    border moves."""
    window_updates: Adjustable | None = None
    """streams: updates in a window, the part of the text on the device; the next window is read
    ahead from the disk. None: the whole text, unless it would take more than a quarter of the free
    memory. Changes no result."""

    @property
    def generated(self) -> bool:
        """True if the sequences are generated for each update: any task but the Markov text."""
        return isinstance(self.source, Sequences)

    @property
    def steps(self) -> Any:
        """Steps of each sequence: `source.length` of a generated task, else `length`.

        An int, or a tracer if the config holds tracers in place of numbers.
        """
        own = self.source.length if isinstance(self.source, Sequences) else None
        return self.length if own is None else own

    @property
    def regression(self) -> bool:
        """True if the inputs and the target are real numbers instead of tokens."""
        return isinstance(self.source, REAL)

    def __post_init__(self) -> None:
        source = self.source
        if isinstance(source, TFDS) and not source.name:
            raise ValueError("data.source=tfds needs data.source.name, such as tiny_shakespeare")
        if isinstance(source, Datasets) and not source.folder:
            raise ValueError("data.source=datasets needs data.source.folder, a path")
        if isinstance(source, File):
            names = ("train", "validation", "test")
            given = [name for name in names if getattr(source, name)]
            if given not in (["train"], list(names)):
                raise ValueError(
                    "data.source=file needs data.source.train alone, or data.source.train, "
                    "data.source.validation and data.source.test; got "
                    f"{', '.join(given) or 'none of them'}"
                )
        if isinstance(source, Sequences | Markov):
            self._check_task(source)
        if self.jitter is not None:
            if self.batching != "streams" or self.generated:
                raise ValueError("data.jitter is read only with data.batching=streams, of a text")
            if self.length <= 2 * self.jitter:
                raise ValueError(
                    f"data.jitter={self.jitter} must be below half of data.length={self.length}"
                )
            if self.window_updates is not None:
                raise ValueError(
                    "data.jitter does not go with data.window_updates: it moves chunks over the "
                    "edges of windows"
                )
        if self.window_updates is not None and (self.batching != "streams" or self.generated):
            raise ValueError(
                "data.window_updates is read only with data.batching=streams, of a text"
            )

    def _check_task(self, task: Task) -> None:
        name = f"data.source={task.kind}"
        if self.batching != "streams":
            raise ValueError(f"data.batching={self.batching} is not read with {name}")
        if isinstance(task, Markov):
            return
        field = "data.length" if self.steps == self.length else "data.source.length"
        if self.steps < task.shortest:
            raise ValueError(
                f"{field}={self.steps} is too short for {name}, which takes "
                f"{task.shortest} steps or more"
            )
        if self.steps > self.length:
            raise ValueError(f"{field}={self.steps} is more than data.length={self.length}")
        idle = [*fields(Auto(), "data.tokenizer."), *fields(Char(), "data.tokenizer.")]
        for setting in fields(self.tokenizer, "data.tokenizer."):
            if setting not in idle:
                raise ValueError(
                    f"{setting[0]}={setting[1]} is not read with {name}, which is no text"
                )
