"""Files of the gradient analysis of a run: numbers in probe.json, figures in probe.html."""

from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.analysis import Probe
from lm_jax.config import RNN
from lm_jax.files import write_json
from lm_jax.report.page import write_page
from lm_jax.report.reach_sections import reach_sections
from lm_jax.report.terminal import spike_in_words
from lm_jax.report.update_sections import update_sections
from lm_jax.settings import VERSION
from lm_jax.training import Run


def write_study(run: Run, probe: Probe, stem: str) -> Path:
    """Write the results of a probe into the directory of the run.

    Args:
      run: the run.
      probe: the results.
      stem: stem of the file names, `probe`, `probe-1234` or `probe-lags`.

    Returns:
      the path of the page.
    """
    numbers = {"version": VERSION, **as_plain(probe)}
    for name in ("reach", "updates"):
        asked = {part: found for part, found in numbers.pop(name).items() if found is not None}
        numbers |= {name: asked} if asked else {}
    write_json(run.run_dir / f"{stem}.json", numbers, indent=1)
    model, data = run.config.model, run.config.data
    what = model.cell.kind if isinstance(model, RNN) else model.kind
    chunk = (
        f"{probe.sequences} sequences of {data.source.kind}, {probe.length} steps each. "
        if data.generated
        else f"{probe.sequences} sequences of {probe.length} tokens ({data.tokenizer.kind}). "
    )
    loss = "loss of what is asked for" if data.generated else "nats per token"
    words = (
        f"{run.run_dir.name}: {what}, parameters of step {probe.parameters_step:,}; updates from "
        f"step {probe.step:,} on. {'' if probe.sequences is None else chunk}A gradient is that of "
        f"the mean {loss} unless it says otherwise."
    )
    if probe.spike is not None:
        words += f" {spike_in_words(probe.spike)}."
    page = run.run_dir / f"{stem}.html"
    sections = [*reach_sections(probe.reach), *update_sections(probe.updates)]
    write_page(page, "How the gradient travels through time", words, sections)
    return page


def as_plain(value: Any) -> Any:
    """The value for JSON: named tuples as dicts, arrays as lists, complex as [real, imaginary]."""
    if hasattr(value, "_asdict"):
        return {name: as_plain(inner) for name, inner in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): as_plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(inner) for inner in value]
    if hasattr(value, "shape"):
        array: Any = np.asarray(value)
        if np.iscomplexobj(array):
            array = np.stack([array.real, array.imag], axis=-1)
        return array.tolist()
    return value
