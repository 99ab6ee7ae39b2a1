"""Section of a page on a learning-rate range test (Smith, 2017, section 3.3).

The learning rate rises from update to update (`train.schedule=range`), and the loss over the rate
shows which rates learn. The training loss of each record is smoothed by a running mean
(`lm_jax.figures.smoothed`). The loss falls most steeply, in nats for each factor e of the rate,
where learning begins, and the rate is too large from the lowest loss on.
"""

import functools
from collections.abc import Sequence

import numpy as np

from lm_jax import figures
from lm_jax.files import Row
from lm_jax.report.page import Drawing, Section
from lm_jax.report.study import column

FEW = 8  # records that a range test needs


def range_section(trained: Sequence[Row]) -> Section:
    """The section on a range test.

    Args:
      trained: rows of metrics.jsonl of kind train.
    """
    title = "Which learning rates does it learn with?"
    # The first record is a single update.
    rates, nats = (column(trained[1:], name) for name in ("learning_rate", "nats"))
    there = np.isfinite(nats)
    if np.count_nonzero(there) < FEW:
        few = f"There are too few records for a range test: {np.count_nonzero(there)}."
        return Section(title, f"{few} A smaller train.log_every makes more.", [])
    rates, nats = rates[there], nats[there]
    smooth = figures.smoothed(nats)
    lowest = int(np.argmin(smooth))
    if lowest == 0:
        said = f"The loss fell at no rate: it was lowest at {rates[0]:.2g}, the first."
    else:
        slopes = np.gradient(smooth[: lowest + 1], np.log(rates[: lowest + 1]))
        said = f"The loss fell most steeply at a learning rate of {rates[np.argmin(slopes)]:.2g}"
        said += f", and was lowest, {smooth[lowest]:.3f}, at {rates[lowest]:.2g}"
        if lowest == len(rates) - 1:
            said += ", the largest rate tried."
        else:
            said += f"; at {rates[-1]:.2g} it was {smooth[-1]:.3g}."
    if not there.all():
        said += " Records without a finite loss are left out."
    rows = {"each record": (rates, nats), "running mean": (rates, smooth)}
    axes = {"x": "learning rate", "y": "training loss", "log_x": True, "log_y": True}
    drawn = functools.partial(figures.lines, rows, **axes, dots=["each record"])
    note = (
        "The rate rises by the same factor at each update. Rates worth trying lie between the "
        "steepest fall, which is the first easy gain, and the lowest loss, where the rate is "
        "already too large. Rates that fail only after many updates pass this test."
    )
    return Section(title, said, [Drawing("learning-rate-range", drawn, said)], note)
