"""N-gram runs as ARPA files, and ARPA files as runs."""

from pathlib import Path

from lm_jax import files
from lm_jax.config import Config, Data, Memory, NGram, Word
from lm_jax.exchange.arpa import write_arpa
from lm_jax.exchange.arpa_reader import read_arpa
from lm_jax.exchange.torch_files import refuse_existing
from lm_jax.training import Run
from lm_jax.training.imported import write_imported


def export_arpa(run: Run, file: str | Path) -> None:
    """Write the model of an n-gram run to an ARPA file, as `lm_jax.exchange.arpa` describes it.

    Args:
      run: a run of an n-gram model of words.
      file: path of the new file, packed by gzip if the name ends in `.gz`.

    Raises:
      UserError: there is a file of this name; as `write_arpa`.
    """
    refuse_existing(Path(file))
    write_arpa(Path(file), run.model, run.params, run.vocabulary)


def import_arpa(file: str | Path, run_dir: str | Path) -> Run:
    """Make a run directory of an ARPA file.

    Args:
      file: the ARPA file, packed or not.
      run_dir: the new directory.

    Returns:
      the run of a back-off model, at step 0, with the status "imported" and without a text.

    Raises:
      UserError: the directory holds files; as `read_arpa`.
    """
    files.refuse_used(Path(run_dir))
    model, params, vocabulary = read_arpa(str(file), str(file))
    config = Config(
        data=Data(source=Memory(), tokenizer=Word()),
        model=NGram(order=model.order, smoothing="backoff"),
        train=None,
    )
    return write_imported(Path(run_dir), config, vocabulary, params)
