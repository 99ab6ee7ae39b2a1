"""The run directory of a model from another program.

The run has no updates: one checkpoint, at step 0, with the parameters; no row of metrics.jsonl; and
the status "imported" in result.json. The config names neither a text (`data.source=memory`) nor a
training (`train=None`).
"""

from pathlib import Path

import numpy as np
import optax

from lm_jax import files
from lm_jax.config import Config
from lm_jax.data.corpus import Corpus, Split
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models.base import Params
from lm_jax.training import directory, journal
from lm_jax.training.checkpoint import Checkpoints, tree_digest
from lm_jax.training.runs import Run, load_run
from lm_jax.training.state import FixedState


def write_imported(run_dir: Path, config: Config, vocabulary: Vocabulary, params: Params) -> Run:
    """Write a run directory for parameters from another program, and load the run.

    The directory is written under another name and renamed once complete.

    Args:
      run_dir: a new directory, or an empty one.
      config: the config, with the model's settings.
      vocabulary: the tokens.
      params: the parameters, structured as `model.init` of the config's model returns them.

    Raises:
      UserError: the directory holds files, or cannot be made.
    """
    with files.new_folder(run_dir) as partial:
        _write(partial, config, vocabulary, params)
    return load_run(run_dir)


def _write(run_dir: Path, config: Config, vocabulary: Vocabulary, params: Params) -> None:
    none = Split(np.zeros(0, np.uint8), 0, 0)
    digest = files.sha256(vocabulary.to_json())  # there is no text
    corpus = Corpus(vocabulary, none, none, none, digest)
    directory.write_files(run_dir, config, corpus)
    log = journal.Journal(run_dir)
    log.close()
    checkpoints = Checkpoints(run_dir, -1, directory.known(run_dir, config, digest))
    try:
        checkpoints.save(FixedState(np.zeros((), np.int32), params), log.kept)
        checkpoints.finish(log.whole)
    finally:
        checkpoints.close()
    result = {
        "status": "imported",
        "step": 0,
        "stopped_early": False,
        "parameters_step": 0,
        "splits": {},
        "parameters": optax.tree.size(params),
        "sha256": tree_digest(params),
        "seconds": 0.0,
        "tokens_per_second": 0.0,
    }
    journal.write_result(run_dir, result)
