"""Initial parameters that are not drawn: pretrained word vectors, and the parameters of a run.

Parameters are named by their dotted paths, such as `layers.0.W_hh`, and chosen by patterns, such as
`layers.*`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_jax import models
from lm_jax.config import Config, Network
from lm_jax.data.corpus import Corpus
from lm_jax.data.vectors import read_vectors
from lm_jax.files import Row
from lm_jax.models.base import Params
from lm_jax.settings import UserError
from lm_jax.training.checkpoint import tree_digest
from lm_jax.training.runs import load_run
from lm_jax.trees import by_name, matching

OF_TOKENS = ("embedding.", "readout.")  # with a row or a column for each token


class Given(NamedTuple):
    """Initial parameters from files."""

    params: dict[str, Any]
    """The arrays, by name."""
    rows: list[Row]
    """Rows of metrics.jsonl that tell where the arrays are from."""


def given_params(config: Config, corpus: Corpus) -> Given:
    """The initial parameters that a config takes from files.

    Args:
      config: a resolved config.
      corpus: the text of the run.

    Raises:
      UserError: a file or a run cannot be read, or does not fit the model; a pattern matches no
        parameter.
    """
    params, rows, model = {}, [], config.model
    if not isinstance(model, Network):
        return Given(params, rows)
    if model.init_from is not None or model.freeze:
        vocab = models.vocab_of(model, corpus.vocabulary)
        network = models.make(model, vocab, regression=config.data.regression)
        drawn = jax.eval_shape(network.init, jax.random.key(0))
        _check_patterns("model.freeze", model.freeze, drawn)
        if all(matching(name, model.freeze) for name in by_name(drawn)):
            raise UserError(f"model.freeze={' '.join(model.freeze)} leaves nothing to train")
        if model.init_from is not None:
            params, row = _of_run(model.init_from, model.init_parts, corpus, drawn)
            rows.append(row)
    if model.vectors is not None and model.embedding_size is not None:
        vectors = read_vectors(
            model.vectors,
            corpus.vocabulary,
            model.embedding_size,
            name=f"model.vectors={model.vectors}",
            seed=config.seed,
            counts=np.bincount(corpus.train.tokens, minlength=len(corpus.vocabulary)),
        )
        params = {**params, "embedding.C": vectors.table}
        place = {"step": 0, "kind": "vectors", "split": "train", "found": vectors.found}
        rows.append({**place, "of": len(corpus.vocabulary), "covered": vectors.covered})
    return Given(params, rows)


def _of_run(
    path: str, patterns: Sequence[str], corpus: Corpus, drawn: Params
) -> tuple[dict[str, Any], Row]:
    _check_patterns("model.init_parts", patterns, drawn)
    run = load_run(path)
    theirs, ours = by_name(run.params), by_name(drawn)
    taken = [name for name in ours if matching(name, patterns)]
    for name in taken:
        here = list(ours[name].shape)
        if name not in theirs:
            raise UserError(
                f"model.init_from={path} has no {name} {here}: its parameters are "
                f"{', '.join(theirs)}; choose with model.init_parts"
            )
        if name.startswith(OF_TOKENS) and run.vocabulary.tokens != corpus.vocabulary.tokens:
            raise UserError(
                f"model.init_from={path} has another vocabulary, and {name} has numbers for each "
                "token: leave it out with model.init_parts, or take the run's text and tokenizer"
            )
        if list(theirs[name].shape) != here:
            raise UserError(
                f"model.init_from={path}: {name} is {list(theirs[name].shape)} there and {here} "
                "here"
            )
    found = {name: np.asarray(theirs[name]) for name in taken}
    count = sum(array.size for array in found.values())
    row = {"step": 0, "kind": "init_from", "split": "train", "run": path, "parameters": count}
    return found, {**row, "run_step": run.step, "sha256": tree_digest(found)}


def _check_patterns(setting: str, patterns: Sequence[str], params: Params) -> None:
    names = by_name(params)
    for pattern in patterns:
        if not any(matching(name, [pattern]) for name in names):
            raise UserError(
                f"{setting}={pattern!r} matches no parameter: the parameters are {', '.join(names)}"
            )
