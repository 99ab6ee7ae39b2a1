"""The command `export`."""

from pathlib import Path
from typing import Annotated

import tyro

from lm_jax import exchange
from lm_jax.commands.shared import RunDir, by_ending, only_with, reading_text
from lm_jax.exchange import Layout
from lm_jax.training import Run

OutFile = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]


def export(
    run_dir: RunDir, file: OutFile, layout: Layout | None = None, modules: tuple[str, ...] = ()
) -> int:
    """Write a model for other programs: PyTorch's weights, an ARPA file, or functions of JAX.

    Args:
      run_dir: run directory of the model.
      file: a new file NAME.safetensors, for the weights under PyTorch's names; NAME.arpa or
        NAME.arpa.gz, for an n-gram model of words; or a new folder, for functions to be called
        without lm_jax, with weights and vocabulary.
      layout: names of the arrays in a .safetensors file: those of pytorch/examples'
        word_language_model, of awd-lstm-lm, or of torch.nn modules; torch if not given.
      modules: layout torch: names of your modules of the embedding, the recurrent layers and the
        readout; embedding rnn decoder if not given.
    """

    def to_torch(run: Run) -> None:
        exchange.export_torch(run, file, layout or "torch", modules or None)

    def to_arpa(run: Run) -> None:
        only_with("a .safetensors file", None, layout=layout, modules=modules or None)
        exchange.export_arpa(run, file)

    def to_folder(run: Run) -> None:
        only_with("a .safetensors file", None, layout=layout, modules=modules or None)
        exchange.export_functions(run, file)

    ways = {".safetensors": to_torch, ".arpa": to_arpa, ".arpa.gz": to_arpa, "": to_folder}
    by_ending(file, ways)(reading_text(run_dir))
    print(file)
    return 0
