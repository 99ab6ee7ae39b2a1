"""Which text is read, and how."""

from typing import Annotated, Any, Literal

from pydantic import Field

from lm_jax.config.task import REAL, Sequences, Task
from lm_jax.settings import Adjustable, Size, settings

IDLE = {"tokenizer": "char", "tokenizer_file": None, "vocabulary_size": None, "min_count": 1}


@settings
class Data:
    """Which text, cut into which tokens, read in which order."""

    source: Literal["builtin", "tfds", "file", "memory", "task"] | None = None
    """builtin: the documentation inside CPython; tfds: a TensorFlow data set; file: files of your
    own; memory: text handed to `lm_jax.train`; task: generated, one of --data.task
    {temporal-order, adding, multiplication, copy, memorisation, permutation, markov}. None: tfds
    where data.name is given, file where data.train is, task where data.task is, else builtin."""
    name: str | None = None
    """tfds: the data set, as `tiny_shakespeare` or `wiki40b/en`."""
    text_key: str | None = None
    """tfds: the feature that holds the text; None finds it."""
    train: str | None = None
    """file: path of the training text; alone, it is cut 90 / 5 / 5 into the three splits, words at
    the end of a line, or, in a text that is one long line, between two words. Or a folder with
    three files, their names holding train, valid (validation, dev) and test."""
    validation: str | None = None
    """file: path of the validation text."""
    test: str | None = None
    """file: path of the test text."""
    task: Annotated[Task | None, Field(discriminator="kind")] = None
    """task: temporal-order, adding, multiplication, copy, memorisation, permutation or markov."""
    tokenizer: Literal["char", "byte", "word", "bpe"] = "char"
    """char: Unicode characters; byte: the 256 bytes of UTF-8; word: what white space separates,
    with <eos> at the end of each line; bpe: byte-pair encoding, of bytes."""
    tokenizer_file: str | None = None
    """bpe: path of a byte-level tokenizer.json; None: learnt from the training text."""
    vocabulary_size: Size | None = None
    """char, word: keep this many tokens, the most frequent, <unk> among them; None keeps all. bpe:
    make this many, the 256 bytes among them; None: 4096."""
    min_count: Size = 1
    """char, word: tokens seen less often than this in the training text become <unk>."""
    batching: Literal["streams", "sentences"] = "streams"
    """streams: each lane reads on where it stopped; sentences: each row of a batch is one line of
    text, from a fresh carry, in an order drawn anew every epoch."""
    batch_size: Size = 32
    """B, lanes or sentences read side by side."""
    length: Size = 64
    """T, tokens of each lane in one update; of sentences, where a longer one is cut; of a task,
    steps of each sequence, or the room for them (data.task.length)."""
    window_updates: Adjustable | None = None
    """streams: updates whose tokens are put on the device at a time, those of the next ones read
    ahead from the disk meanwhile; None: all of an epoch, unless they would take more than a quarter
    of the free memory. Changes no result."""

    @property
    def origin(self) -> str:
        """The source, also where it follows from what else is given."""
        if self.source is not None:
            return self.source
        if self.name is not None:
            return "tfds"
        if self.task is not None:
            return "task"
        return "file" if self.train is not None else "builtin"

    @property
    def drawn(self) -> bool:
        """Whether each update reads whole sequences drawn for it: of any task but a text."""
        return isinstance(self.task, Sequences)

    @property
    def steps(self) -> Any:
        """Of a task whose sequences are drawn, the steps of each; else `length`. An int, or, of a
        config with tracers for numbers, a tracer."""
        own = self.task.length if isinstance(self.task, Sequences) else None
        return self.length if own is None else own

    @property
    def real(self) -> bool:
        """Whether the inputs and the target are real numbers, and no tokens."""
        return isinstance(self.task, REAL)

    def __post_init__(self) -> None:
        belongs = {"tfds": ("name", "text_key"), "file": ("train", "validation", "test")}
        belongs["task"] = ("task",)
        for source, fields in belongs.items():
            for field in fields:
                if self.origin != source and getattr(self, field) is not None:
                    raise ValueError(f"data.{field} is read only with data.source={source}")
        if self.origin == "tfds" and not self.name:
            raise ValueError("data.source=tfds needs data.name, such as tiny_shakespeare")
        if self.origin == "file":
            given = [field for field in belongs["file"] if getattr(self, field)]
            if given not in (["train"], ["train", "validation", "test"]):
                raise ValueError(
                    "data.source=file needs data.train alone, or data.train, data.validation and "
                    f"data.test; got {', '.join(given) or 'none of them'}"
                )
        if self.origin == "task":
            self._check_task()
        if self.window_updates is not None and (self.batching != "streams" or self.drawn):
            raise ValueError(
                "data.window_updates is read only with data.batching=streams, of a text"
            )
        if self.tokenizer_file is not None and self.tokenizer != "bpe":
            raise ValueError("data.tokenizer_file is read only with data.tokenizer=bpe")
        if self.tokenizer_file is not None and self.vocabulary_size is not None:
            raise ValueError(
                "data.vocabulary_size is not read with data.tokenizer_file, which says it"
            )
        if self.tokenizer == "bpe" and self.min_count != 1:
            raise ValueError("data.min_count is read only with data.tokenizer=char or word")
        if self.tokenizer == "bpe" and (self.vocabulary_size or 256) < 256:
            raise ValueError(
                f"data.vocabulary_size={self.vocabulary_size} leaves no room for the 256 bytes of "
                "data.tokenizer=bpe"
            )
        if self.tokenizer == "byte" and (self.vocabulary_size is not None or self.min_count != 1):
            raise ValueError(
                "data.vocabulary_size and data.min_count are not read with data.tokenizer=byte: "
                "there are 256 bytes"
            )
        if self.vocabulary_size is not None and self.vocabulary_size < 3:
            raise ValueError(
                f"data.vocabulary_size={self.vocabulary_size} leaves no room for a token beside "
                "<unk> and the line's end: give 3 or more"
            )

    def _check_task(self) -> None:
        if self.task is None:
            raise ValueError("data.source=task needs data.task, such as temporal-order")
        name = f"data.task={self.task.kind}"
        if self.batching != "streams":
            raise ValueError(f"data.batching={self.batching} is not read with {name}")
        field = "data.length" if self.steps == self.length else "data.task.length"
        if self.steps < self.task.shortest:
            raise ValueError(
                f"{field}={self.steps} is too short for {name}, which takes "
                f"{self.task.shortest} steps or more"
            )
        if self.steps > self.length:
            raise ValueError(f"{field}={self.steps} is more than data.length={self.length}")
        for field, idle in IDLE.items() if self.drawn else ():
            if getattr(self, field) != idle:
                raise ValueError(f"data.{field} is not read with {name}, which is no text")
