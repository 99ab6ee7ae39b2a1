"""Sections of a page on the effect of the next updates.

The title of a section is a question; the text explains how to read the figure.
"""

import numpy as np

from lm_jax.analysis.next_updates import Updates
from lm_jax.gradients.cliffs import Cliff
from lm_jax.gradients.clipping_audit import ClipSummary, Thresholds
from lm_jax.gradients.compare import Comparison
from lm_jax.gradients.exposure_bias import ExposureCosines
from lm_jax.report.page import Section, Table, figure, line


def update_sections(updates: Updates) -> list[Section]:
    """The sections of a page on the effect of the next updates, one for each part."""
    sections: list[Section] = []
    if updates.estimators is not None:
        sections.append(_estimators(updates.estimators))
    if updates.clipping is not None and updates.thresholds is not None:
        sections.append(_clipping(updates.clipping, updates.thresholds))
    if updates.cliff is not None and updates.length is not None:
        sections.append(_cliff(updates.cliff, updates.length))
    if updates.exposure is not None:
        sections.append(_exposure(updates.exposure))
    return sections


def _estimators(estimators: dict[str, Comparison]) -> Section:
    head = (
        "estimator",
        "cosine of the mean",
        "relative bias",
        "its standard error",
        "relative variance",
        "norm ratio",
        "draws",
    )
    rows = [
        (
            name,
            found.mean_cosine,
            found.relative_bias,
            found.standard_error,
            found.relative_variance,
            float(np.mean(found.norm_ratio)),
            found.draws,
        )
        for name, found in estimators.items()
    ]
    return Section(
        "What would another estimator make of it?",
        "Each estimator's gradient against full backpropagation through time, update by update, "
        "the parameters held still. The table is about the mean over updates and draws; a bias "
        "within a few standard errors is none that can be seen. RTRL and its approximations carry "
        "on what they know from one update to the next, so they reach back before the chunk.",
        [
            Table(head, rows),
            figure(
                [
                    line(name, found.cosine, mode="lines+markers")
                    for name, found in estimators.items()
                ],
                "update",
                "cosine to full BPTT",
            ),
        ],
    )


def _clipping(clipping: dict[str, ClipSummary], used: Thresholds) -> Section:
    head = (
        "clipped by",
        "threshold",
        "updates cut",
        "length left",
        "largest turn, degrees",
        "nats before",
        "after",
        "after, not clipped",
    )
    thresholds = used._asdict()
    rows = [
        (kind, *map(float, (thresholds[kind], said.often, said.ratio, said.largest_angle)))
        + tuple(map(float, (said.before, said.after, said.unclipped)))
        for kind, said in clipping.items()
    ]
    return Section(
        "What does clipping cut, and would the step not taken have been worse?",
        "The gradients of the next batches, the parameters held still: by global norm, by value "
        "and at every step within backpropagation (delta). Clipping by norm never turns a "
        "gradient, the others do. Thresholds are the run's own, or such as would cut about a tenth "
        "of the updates.",
        [Table(head, rows)],
    )


def _cliff(cliff: Cliff, length: float) -> Section:
    places = cliff.distances / length
    rows = [
        ("loss, nats a token", float(cliff.loss)),
        ("norm of the gradient", float(cliff.gradient_norm)),
        ("curvature along the gradient", float(cliff.gradient_curvature)),
        ("largest eigenvalue of the Hessian", float(cliff.eigenvalue)),
        ("its residual", float(cliff.residual)),
        ("cosine of its direction to the gradient", float(cliff.alignment)),
    ]
    return Section(
        "Is there a cliff?",
        "The loss of the next batch along its gradient and along the sharpest direction of the "
        "Hessian, found by Lanczos' method on Hessian-vector products through time. The unit of "
        "distance is the length of the next update; downhill is to the left.",
        [
            figure(
                [
                    line("along the gradient", cliff.along_gradient, places),
                    line("along the sharpest direction", cliff.along_sharpest, places),
                ],
                "distance, lengths of an update",
                "nats a token",
            ),
            Table(("at the parameters", ""), rows),
        ],
    )


def _exposure(exposure: ExposureCosines) -> Section:
    return Section(
        "Is the gradient that of the model's own text?",
        "By position in the chunk: the cosine between the gradient of that position's loss when "
        "the model reads the text and when it reads its own samples, and the norms of both.",
        [
            figure([line("cosine", exposure.cosine)], "position, steps", "cosine"),
            figure(
                [
                    line("reading the text", exposure.forced),
                    line("reading its own tokens", exposure.free),
                ],
                "position, steps",
                "norm of the gradient",
                log_y=True,
            ),
        ],
    )
