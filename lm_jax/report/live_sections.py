"""Sections of a page on what a live probe measured during training."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from lm_jax import figures
from lm_jax.files import Row
from lm_jax.report.eigenvalues import block_name
from lm_jax.report.page import Drawing, Section
from lm_jax.report.study import column, numbers, within


def live_sections(probed: Sequence[Row], cell: str) -> list[Section]:
    """The sections on what was probed during training.

    Args:
      probed: two rows or more of kind probe, of metrics.jsonl.
      cell: kind of the model's cell, for the names of its gates.
    """
    steps, sections = column(probed, "step"), []
    if "horizon" in probed[0]:
        horizons = {
            within(share): numbers([row["horizon"][share] for row in probed])
            for share in probed[0]["horizon"]
        }
        name = within("0.9") if within("0.9") in horizons else next(iter(horizons))
        first, last = horizons[name][0], horizons[name][-1]
        said = (
            f"Before training the gradient came {name} of the full gradient after "
            f"{_steps(first)} back, in the end after {_steps(last)}."
        )
        by_lag = numbers([row["gradient_by_lag"] for row in probed])
        sections.append(
            Section(
                "Does the gradient reach farther as training goes on?",
                said,
                [
                    Drawing("horizon", functools.partial(figures.horizon, steps, horizons), said),
                    Drawing(
                        "gradient-by-lag-over-training",
                        functools.partial(
                            figures.over_training_by_lag, steps, by_lag, "norm of the gradient"
                        ),
                        "Norm of the recurrent weights' gradient by lag over training",
                    ),
                ],
                "Steps back after which the truncated gradient of the recurrent weights comes "
                "within a distance of the full one, on a few sequences of the next batch.",
            )
        )
    if "lag_norms" in probed[0]:
        norms = numbers([row["lag_norms"] for row in probed])
        said = (
            f"‖∂h_T/∂h_(T−{norms.shape[1] - 1})‖ went from {norms[0, -1]:.2g} to "
            f"{norms[-1, -1]:.2g}."
        )
        sections.append(
            Section(
                "How long does a change of the state last, as training goes on?",
                said,
                [
                    Drawing(
                        "lag-norms-over-training",
                        functools.partial(
                            figures.over_training_by_lag, steps, norms, "‖∂h_T/∂h_{T−l}‖"
                        ),
                        said,
                    )
                ],
            )
        )
    return [*sections, *_dynamics(probed, steps, cell)]


def _dynamics(probed: Sequence[Row], steps: np.ndarray, cell: str) -> list[Section]:
    parts, said = [], []
    if probed[0].get("spectral_radius"):
        radii = {
            block_name(f"layer {layer}", cell, place, len(blocks)): numbers(
                [row["spectral_radius"][layer][place] for row in probed]
            )
            for layer, blocks in probed[0]["spectral_radius"].items()
            for place in range(len(blocks))
        }
        ends = [float(curve[-1]) for curve in radii.values()]
        said.append(
            f"{sum(end > 1 for end in ends)} of {len(ends)} blocks of W_hh end with a spectral "
            f"radius above 1, the largest with {max(ends):.3g}."
        )
        draw = functools.partial(
            figures.over_training, steps, radii, "spectral radius", level={"1": 1.0}
        )
        parts.append(Drawing("spectral-radius", draw, said[0]))
    if "lyapunov" in probed[0]:
        exponents = column(probed, "lyapunov")
        way = "expands" if exponents[-1] > 0 else "contracts"
        said.append(
            f"The largest Lyapunov exponent went from {exponents[0]:.3f} to {exponents[-1]:.3f} "
            f"nats a step: along the text the state {way}."
        )
        draw = functools.partial(
            figures.over_training,
            steps,
            exponents,
            "largest Lyapunov exponent, nats a step",
            level={"no growth": 0.0},
        )
        parts.append(Drawing("lyapunov-over-training", draw, said[-1]))
    if not parts:
        return []
    return [Section("Vanishing or exploding?", " ".join(said), parts)]


def _steps(count: float) -> str:
    return f"{count:.0f} steps" if math.isfinite(count) else "more steps than the chunk has"
