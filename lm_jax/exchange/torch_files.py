"""Runs as safetensors files with PyTorch's names, and such files as runs.

A file that was exported here holds, as metadata, the layout, the activation of an Elman network and
the vocabulary; a file from elsewhere holds arrays alone. A safetensors file cannot run code, and a
pickle of PyTorch, which can, is not opened.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors
import safetensors.numpy

from lm_jax import files
from lm_jax.config import BPE, RNN, Byte, Char, Config, Data, Elman, Memory, Word
from lm_jax.data.vocabulary import LINE_END, UNKNOWN, Vocabulary
from lm_jax.exchange.torch_names import Layout
from lm_jax.exchange.torch_weights import from_torch, to_torch
from lm_jax.settings import UserError
from lm_jax.training import Run
from lm_jax.training.imported import write_imported

TOKENIZERS = {"char": Char(), "byte": Byte(), "word": Word(), "bpe": BPE()}
PICKLES = ".pt", ".pth", ".pkl", ".bin", ".ckpt", ".tar"
"""Endings of the files that `torch.save` writes."""


def export_torch(
    run: Run,
    file: str | Path,
    layout: Layout = "torch",
    modules: Sequence[str] | None = None,
) -> None:
    """Write the parameters and the vocabulary of a run to a safetensors file.

    Args:
      run: a run of a recurrent model of text.
      file: path of the new file.
      layout, modules: as for `lm_jax.exchange.to_torch`.

    Raises:
      UserError: there is a file of this name; as `to_torch`.
    """
    file = Path(file)
    tensors = to_torch(run.config.model, run.params, layout, modules)
    told = {"format": "pt", "layout": layout, "vocabulary": run.vocabulary.to_json()}
    if modules is not None:
        told["modules"] = " ".join(modules)
    if isinstance(run.config.model, RNN) and isinstance(run.config.model.cell, Elman):
        told["activation"] = run.config.model.cell.activation
    save_tensors(file, tensors, told)


def import_torch(
    file: str | Path,
    run_dir: str | Path,
    layout: Layout | None = None,
    modules: Sequence[str] | None = None,
    *,
    activation: Literal["tanh", "relu"] | None = None,
    vocabulary: str | Path | None = None,
    boundary: str | None = None,
    unknown: str | None = None,
) -> Run:
    """Make a run directory of a safetensors file with PyTorch's names.

    Args:
      file: the safetensors file.
      run_dir: the new directory.
      layout, modules, activation: as for `lm_jax.exchange.from_torch`; None: as the file's metadata
        say, if the file was exported here.
      vocabulary: a text file with a word in each line, in the order of the rows of the embedding;
        or vocabulary.json of a run. None: the vocabulary in the file's metadata.
      boundary: the word in `vocabulary` that ends a line, `<eos>` in lm_jax; None: `<eos>`.
      unknown: the word that stands for words without a row, `<unk>` in lm_jax; None: `<unk>`.

    Returns:
      the run, at step 0, with the status "imported" and without a text of its own.

    Raises:
      UserError: the file is not safetensors, or has no vocabulary, or the vocabulary is not of as
        many words as the embedding has rows; the directory holds files; as `from_torch`.
    """
    file, run_dir = Path(file), Path(run_dir)
    files.refuse_used(run_dir)
    tensors, told = load_tensors(file)
    if vocabulary is None:
        if "vocabulary" not in told:
            raise UserError(
                f"{file} holds no vocabulary: name a file with a word in each line by --vocabulary"
            )
        if boundary is not None or unknown is not None:
            raise UserError("--boundary and --unknown are read only with --vocabulary")
        tokens = Vocabulary.from_json(told["vocabulary"], f"{file}: its metadata")
    else:
        tokens = read_vocabulary(Path(vocabulary), boundary, unknown)
    if tokens.tokenizer not in TOKENIZERS:
        raise UserError(f"{vocabulary or file} has the vocabulary of a task, and not of a text")
    if layout is None and modules is None and told.get("layout") in get_args(Layout):
        layout = told["layout"]
        modules = told["modules"].split(" ") if "modules" in told else None
    if activation is None and told.get("activation") in ("tanh", "relu"):
        activation = told["activation"]
    try:
        model, params = from_torch(tensors, layout, modules, activation)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    rows = len(params["embedding"]["C"])
    if rows != len(tokens):
        raise UserError(
            f"{file}: the embedding has {rows:,} rows, and {vocabulary or 'its vocabulary'} "
            f"{len(tokens):,} tokens"
        )
    data = Data(source=Memory(), tokenizer=TOKENIZERS[tokens.tokenizer])
    return write_imported(run_dir, Config(data=data, model=model, train=None), tokens, params)


def read_vocabulary(path: Path, boundary: str | None, unknown: str | None) -> Vocabulary:
    """The vocabulary in a file of words, or in a vocabulary.json; as for `import_torch`.

    Raises:
      UserError: the file cannot be read; a line is empty or repeats another; or the words of the
        boundary and of unknown words are not among the lines.
    """
    with files.reading(path, str(path)) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from None
    if path.suffix == ".json":
        if boundary is not None or unknown is not None:
            raise UserError(f"--boundary and --unknown are not read with {path}, which names both")
        return Vocabulary.from_json(text, str(path))
    words = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    for word, own, flag in (
        (boundary, LINE_END["word"], "--boundary"),
        (unknown, UNKNOWN, "--unknown"),
    ):
        if (word or own) not in words:
            hint = "" if word else f": name the word that takes its part by {flag}"
            raise UserError(f"{path} has no line {word or own}{hint}")
        if word is not None and word != own:
            words[words.index(word)] = own
    lines: dict[str, int] = {}
    for number, word in enumerate(words, 1):
        if not word or word in lines:
            said = f"repeats {word!r}, line {lines[word]}" if word else "is empty"
            raise UserError(f"{path}: line {number} {said}: each line is the word of a row")
        lines[word] = number
    return Vocabulary("word", tuple(words))


def save_tensors(file: Path, tensors: Mapping[str, np.ndarray], told: dict[str, str]) -> None:
    """Write a safetensors file with metadata, whole or not at all.

    Raises:
      UserError: there is a file of this name, or no folder for the file.
    """
    refuse_existing(file)
    partial = file.with_name(f"{file.name}.partial")
    try:
        with files.created(partial, "wb") as written:
            written.write(safetensors.numpy.save(dict(tensors), told))
            files.to_disk(written)
        partial.rename(file)
        files.names_to_disk(file.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def refuse_existing(file: Path) -> None:
    """Refuse the name of a file that is there, or that is in no folder.

    Raises:
      UserError: names the file or the folder.
    """
    if file.is_symlink() or file.exists():
        raise UserError(f"{file} is there already: an export needs a new name")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")


def refuse_pickle(file: Path) -> None:
    """Refuse a file of `torch.save`, by its name.

    Raises:
      UserError: says how to write the file anew in PyTorch.
    """
    if file.suffix in PICKLES:
        raise UserError(
            f"{file} is a pickle, which could run any code. In PyTorch: safetensors.torch.save_file"
            "({name: array.clone() for name, array in model.state_dict().items()}, "
            f"'{file.stem}.safetensors')"
        )


def load_tensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the metadata of a safetensors file.

    `safetensors.torch.save_model` writes an array with two names once, and the other name as
    metadata; both names are returned.

    Raises:
      UserError: the file cannot be read, or is not safetensors.
    """
    refuse_pickle(file)
    with files.reading(file, str(file)):
        try:
            with safetensors.safe_open(file, framework="np") as opened:
                told = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        except (safetensors.SafetensorError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is no safetensors file of numbers: {error}") from None
    for name, other in told.items():
        if name not in tensors and other in tensors:
            tensors[name] = tensors[other]
    return tensors, told
