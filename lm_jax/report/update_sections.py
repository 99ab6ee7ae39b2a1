"""Sections of a page on the effect of the next updates, made from the numbers in probe.json."""

import functools

import numpy as np

from lm_jax import figures
from lm_jax.files import Row
from lm_jax.report.page import Drawing, Section, Table
from lm_jax.report.study import numbers


def update_sections(updates: Row, name: str) -> list[Section]:
    """The sections on the effect of the next updates.

    Args:
      updates: `updates` of probe.json; parts that were not asked for are missing.
      name: stem of the names of the figures.
    """
    sections: list[Section] = []
    if estimators := updates.get("estimators"):
        sections.append(_estimators(estimators, name))
    if clipping := updates.get("clipping"):
        sections.append(_clipping(clipping, updates["thresholds"]))
    if cliff := updates.get("cliff"):
        sections.append(_cliff(cliff, updates["length"], name))
    if exposure := updates.get("exposure"):
        sections.append(_exposure(exposure, name))
    return sections


def _estimators(estimators: Row, name: str) -> Section:
    head = (
        "estimator",
        "cosine",
        "relative bias",
        "± standard error",
        "relative variance",
        "draws",
    )
    rows = [
        (
            estimator,
            found["mean_cosine"],
            found["relative_bias"],
            found["standard_error"],
            found["relative_variance"],
            found["draws"],
        )
        for estimator, found in estimators.items()
    ]
    cosine = {row[0]: -np.inf if row[1] is None else row[1] for row in rows}
    best, worst = (pick(cosine, key=lambda one: cosine[one]) for pick in (max, min))
    unseen = [row[0] for row in rows if None not in row[2:4] and row[3] and row[2] < 3 * row[3]]
    said = (
        f"Nearest to the full gradient is {best}, with a cosine of {cosine[best]:.3f}; farthest is "
        f"{worst}, with {cosine[worst]:.3f}."
    )
    if unseen:
        said += f" The bias is below three standard errors for {', '.join(unseen)}."
    return Section(
        "How near do cheaper estimators come?",
        said,
        [
            Drawing(
                f"{name}-estimators",
                functools.partial(
                    figures.estimator_cosines,
                    {one: numbers(found["cosine"]) for one, found in estimators.items()},
                ),
                said,
            ),
            Table(head, rows, list(estimators).index(best)),
        ],
        "Each estimator's gradient against full backpropagation through time, update by update, "
        "with the parameters held still. The table is about the mean over updates and draws. RTRL "
        "and its approximations carry on what they know from one update to the next, so they reach "
        "back before the chunk.",
    )


def _clipping(clipping: Row, thresholds: Row) -> Section:
    head = (
        "clipped by",
        "threshold",
        "updates cut, %",
        "length left",
        "largest turn, °",
        "nats before",
        "after",
        "after, not clipped",
    )
    rows = [
        (
            kind,
            thresholds[kind],
            None if said["often"] is None else 100 * said["often"],
            said["ratio"],
            said["largest_angle"],
            said["before"],
            said["after"],
            said["unclipped"],
        )
        for kind, said in clipping.items()
    ]
    gains = {
        kind: said["unclipped"] - said["after"]
        for kind, said in clipping.items()
        if said["unclipped"] is not None and said["after"] is not None
    }
    if not gains:
        finding = "A step was not finite: no loss can be compared."
    elif max(map(abs, gains.values())) < 1e-4:
        finding = "Clipping made no step better or worse by 0.0001 nats a token."
    else:
        most = max(gains, key=lambda kind: abs(gains[kind]))
        way = "lower" if gains[most] > 0 else "higher"
        finding = (
            f"Clipping by {most} changes the loss after a step most: it is "
            f"{abs(gains[most]):.2g} nats a token {way} than without clipping."
        )
    return Section(
        "What does clipping cut, and would the step not taken have been worse?",
        finding,
        [Table(head, rows)],
        "The gradients of the next batches, the parameters held still: by global norm, by value "
        "and at every step within backpropagation (delta). Clipping by norm never turns a "
        "gradient, the others do. Thresholds are the run's own, or clip about a tenth of the "
        "updates.",
    )


def _cliff(cliff: Row, length: float, name: str) -> Section:
    places = numbers(cliff["distances"]) / length
    gradient, sharpest = numbers(cliff["along_gradient"]), numbers(cliff["along_sharpest"])
    one = int(np.argmin(np.abs(places - 1)))
    wall = float(np.nanmax(gradient) / cliff["loss"])
    where = float(places[int(np.nanargmax(gradient))])
    said = (
        f"Within ten lengths of an update along the gradient the loss reaches {wall:.2f} times the "
        f"present one, at {where:+.0f}{': a cliff' if wall > 2 else ''}. The largest eigenvalue of "
        f"the Hessian is {cliff['eigenvalue']:.3g}; its direction has a cosine of "
        f"{cliff['alignment']:.3f} to the gradient, and one update's length along it changes the "
        f"loss by {float(sharpest[one]) - cliff['loss']:.2g} nats."
    )
    rows = [
        ("loss, nats a token", cliff["loss"]),
        ("norm of the gradient", cliff["gradient_norm"]),
        ("curvature along the gradient", cliff["gradient_curvature"]),
        ("largest eigenvalue of the Hessian", cliff["eigenvalue"]),
        ("its residual", cliff["residual"]),
    ]
    return Section(
        "Is there a cliff?",
        said,
        [
            Drawing(
                f"{name}-loss-slices",
                functools.partial(figures.loss_slices, places, gradient, sharpest),
                said,
            ),
            Table(("at the parameters", ""), rows),
        ],
        "The loss of the next batch along its gradient and along the sharpest direction, found by "
        "Lanczos' method on Hessian-vector products through time. The unit of distance is the "
        "length of the next update; downhill is to the left. A cliff is a loss of more than twice "
        "the present one.",
    )


def _exposure(exposure: Row, name: str) -> Section:
    cosine = numbers(exposure["cosine"])
    late = float(np.nanmean(cosine[1:])) if len(cosine) > 1 else float("nan")
    ratio = float(np.nanmean(numbers(exposure["free"])) / np.nanmean(numbers(exposure["forced"])))
    said = (
        f"After the first token the gradients on the text and on the model's own samples have a "
        f"mean cosine of {late:.2f}; those on its samples are {ratio:.2f} times as long."
    )
    norms = {
        "reading the text": numbers(exposure["forced"]),
        "reading its own tokens": numbers(exposure["free"]),
    }
    return Section(
        "Is the gradient that of the model's own text?",
        said,
        [
            Drawing(f"{name}-exposure", functools.partial(figures.exposure, cosine), said),
            Drawing(
                f"{name}-exposure-norms",
                functools.partial(
                    figures.by_lag, norms, "norm of the gradient", x="position, steps"
                ),
                "Norms of both gradients by position",
            ),
        ],
        "By position in the chunk: the cosine between the gradient of that position's loss when "
        "the model reads the text and when it reads its own samples. 1 is the same gradient, 0 an "
        "unrelated one.",
    )
