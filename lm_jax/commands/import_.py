"""The command `import`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lm_jax import exchange
from lm_jax.commands.shared import RunDir, by_ending, only_with
from lm_jax.exchange import Layout
from lm_jax.exchange.torch_files import refuse_pickle
from lm_jax.training import Run

InFile = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]


def import_(
    file: InFile,
    run_dir: RunDir,
    layout: Layout | None = None,
    modules: tuple[str, ...] = (),
    activation: Literal["tanh", "relu"] | None = None,
    vocabulary: Path | None = None,
    boundary: str | None = None,
    unknown: str | None = None,
) -> int:
    """Make a run directory of a model trained elsewhere, to score, sample and probe.

    Args:
      file: weights under PyTorch's names, NAME.safetensors; or an n-gram model, NAME.arpa or
        NAME.arpa.gz, for which no flag is read.
      run_dir: the new run directory.
      layout: names of the arrays; recognised if not given.
      modules: layout torch: names of your modules of the embedding, the recurrent layers and the
        readout; embedding rnn decoder if not given.
      activation: nonlinearity of a torch.nn.RNN; tanh if not given.
      vocabulary: a word in each line, in the order of the embedding's rows; or vocabulary.json of a
        run; the vocabulary in the file if not given.
      boundary: word of the vocabulary that ends a line; <eos> if not given.
      unknown: word of the vocabulary for all other words; <unk> if not given.
    """

    def from_torch() -> Run:
        return exchange.import_torch(
            file,
            run_dir,
            layout,
            modules or None,
            activation=activation,
            vocabulary=vocabulary,
            boundary=boundary,
            unknown=unknown,
        )

    def from_arpa() -> Run:
        only_with(
            "a .safetensors file",
            None,
            layout=layout,
            modules=modules or None,
            activation=activation,
            vocabulary=vocabulary,
            boundary=boundary,
            unknown=unknown,
        )
        return exchange.import_arpa(file, run_dir)

    refuse_pickle(file)
    ways = {".safetensors": from_torch, ".arpa": from_arpa, ".arpa.gz": from_arpa}
    print(by_ending(file, ways)().path)
    return 0
