"""The command `probe`."""

from pathlib import Path
from typing import get_args

import numpy as np

import lm_jax
from lm_jax.analysis.probing import Part
from lm_jax.commands.shared import SAMPLE_LENGTH, RunDir, filled, text_of
from lm_jax.data.encoding import encoded
from lm_jax.report.run_page import sample_of, write_run
from lm_jax.report.study import write_study
from lm_jax.report.terminal import show_probe, waiting
from lm_jax.settings import UserError


def probe(
    run_dir: RunDir,
    step: str | None = None,
    text: Path | None = None,
    sentence: str | None = None,
    length: int | None = None,
    sequences: int | None = None,
    seed: int = 0,
    only: tuple[Part, ...] = (),
) -> int:
    """Analyse how the gradient of a trained recurrent model travels through time.

    Writes numbers to probe.json in the run directory (with --step, probe-STEP.json; with --only,
    probe-PART.json), and figures into the run's page, report.html.

    Args:
      run_dir: run directory of the model.
      step: analyse the run after this many updates; or spike: before the update with the largest
        rise of the loss. If not given, analyse the kept parameters.
      text: file to read instead of the run's validation text. A run on generated sequences instead
        reads whole validation sequences, never trained on; only --sequences then sets their number.
      sentence: sentence for the credit map; a line of the text if not given.
      length: T, tokens of the chunk; as in training, but at most 64, if not given.
      sequences: B, number of sequences, taken from different places of the text; 4 if not given.
      seed: seed of the random directions and of the model's own tokens.
      only: analyse only these parts, in seconds. Of the reach: lags, by_lag, dynamics, credit,
        sensitivity; of the next updates: estimators, clipping, cliff, exposure; spike finds the
        update with the largest rise of the loss. If not given, all parts, and the spike with
        --step spike.
    """
    run = lm_jax.load_run(run_dir)
    if text is not None and run.config.data.generated:
        raise UserError(f"--text={text}: {run_dir} was trained on sequences that are drawn")
    # Python reads no integer of thousands of digits.
    if step not in (None, "spike") and not (step.isdecimal() and len(step) < 19):
        raise UserError(f"--step={step} must be a number of updates, or spike")
    tokens = None
    if text is not None:
        pieces = encoded(run.vocabulary, text_of(run, text))
        tokens = np.concatenate([numbers for numbers, _ in pieces])
    with waiting("measuring; the first time, compiling takes some minutes"):
        found = lm_jax.probe(
            run,
            step=None if step is None else "spike" if step == "spike" else int(step),
            tokens=tokens,
            sentence=sentence,
            seed=seed,
            only=only or None,
            **filled({"length": length, "sequences": sequences}),
        )
    show_probe(found)
    named = () if step is None else (str(found.step),)
    parts = (part for part in get_args(Part) if part in only)
    write_study(run, found, "-".join(("probe", *named, *parts)))
    print(write_run(run_dir, run, sample_of(run, SAMPLE_LENGTH)))
    return 0
