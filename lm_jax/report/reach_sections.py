"""Sections of a page on the reach of a gradient, made from the numbers in probe.json."""

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lm_jax import figures
from lm_jax.files import Row
from lm_jax.report.eigenvalues import eigenvalue_section
from lm_jax.report.page import Drawing, Part, Section
from lm_jax.report.study import numbers, within

PREDICTED = {
    "step_norms": "product of the steps' norms",
    "radius": "ρ(W_hh)ˡ",
    "slope_norm": "(σ_max(W_hh) γ)ˡ",
    "exponent": "exp(λ₁ l)",
}


def reach_sections(reach: Row, cell: str, name: str) -> list[Section]:
    """The sections on the reach of a gradient through time.

    Args:
      reach: `reach` of probe.json; parts that were not asked for are missing.
      cell: kind of the model's cell, or of the model.
      name: stem of the names of the figures.
    """
    sections: list[Section] = []
    if by_lag := reach.get("by_lag"):
        sections.append(_truncation(by_lag, name))
    if lags := reach.get("lags"):
        sections.append(_lags(lags, name))
    if dynamics := reach.get("dynamics"):
        sections += [eigenvalue_section(dynamics, cell, name), _exponents(dynamics, name)]
    if credit := reach.get("credit"):
        sections += [_credit(credit, name), *_by_frequency(credit, name)]
    if sensitivity := reach.get("sensitivity"):
        sections.append(_sensitivity(sensitivity, name))
    return sections


def horizons_in_words(horizons: Mapping[str, float | None]) -> str:
    """The truncation lengths that bring the gradient within each distance of the full gradient."""
    parts = [
        f"{within(share)}{'' if place else ' of the full gradient'} "
        + ("at no length measured" if steps is None else f"after {steps:.0f} steps")
        for place, (share, steps) in enumerate(horizons.items())
    ]
    return ", ".join(parts)


def _truncation(by_lag: Row, name: str) -> Section:
    truncated = by_lag["truncations"]
    found = {within(share): steps for share, steps in by_lag["horizon"].items() if steps}
    said = horizons_in_words(by_lag["horizon"])
    return Section(
        "How far must truncated backpropagation reach?",
        f"The truncated gradient of the recurrent weights comes {said}; the full one goes back "
        f"{len(by_lag['norms'])} steps.",
        [
            Drawing(
                f"{name}-truncation",
                functools.partial(
                    figures.truncation_curve,
                    numbers(truncated["cosine"]),
                    numbers(truncated["relative_error"]),
                    found,
                ),
                f"Cosine and relative error of the truncated gradient by length: {said}",
            ),
            Drawing(
                f"{name}-gradient-by-lag",
                functools.partial(figures.gradient_by_lag, numbers(by_lag["norms"])),
                "Norm of the gradient at each lag",
            ),
        ],
        "The gradient is split by the lag from a loss back to the step that used the weights. Its "
        "prefix sums are the gradients of all truncation lengths k2 at once.",
    )


def _lags(lags: Row, name: str) -> Section:
    measured = numbers(lags["measured"])
    predicted = {
        PREDICTED[which]: numbers(values)
        for which, values in lags["predicted"].items()
        if values is not None
    }
    last = len(measured) - 1
    ends = {which: float(values[-1]) for which, values in predicted.items()}
    near = min(ends, key=lambda which: _apart(ends[which], float(measured[-1])))
    kept = float(measured[-1])
    way = "shrinks to" if kept < 0.5 else "grows to" if kept > 2 else "stays at"
    return Section(
        "How long does a change of the state last?",
        f"In {last} steps the most persistent change of the state {way} {kept:.3g} times its "
        f"length. Of the simple "
        f"formulas, {near} comes nearest, with {ends[near]:.3g}.",
        [
            Drawing(
                f"{name}-lag-norms",
                functools.partial(figures.lag_norms, measured, predicted),
                f"Norm of ∂h_T/∂h_(T-l) by lag: {kept:.3g} after {last} steps",
            )
        ],
        "The spectral norm of ∂h_T/∂h_{T−l}, the mean over places in the text. The product of the "
        "steps' own norms is an upper bound; the largest Lyapunov exponent λ₁ gives the rate for "
        "large lags.",
    )


def _apart(a: float, b: float) -> float:
    """Distance of two positive numbers on a logarithmic scale."""
    return abs(np.log(a) - np.log(b)) if a > 0 and b > 0 else np.inf


def _exponents(dynamics: Row, name: str) -> Section:
    convergence, windows = numbers(dynamics["convergence"]), numbers(dynamics["windows"])
    largest = float(convergence[-1, 0])
    drift = float(np.ptp(convergence[len(convergence) // 2 :, 0]))
    above = int(np.sum(windows > 0))
    way = "grow" if largest > 0 else "shrink"
    shown = slice(0, 40)
    return Section(
        "Does the state expand along this text?",
        f"Small changes {way} by a factor of {np.exp(largest):.3g} a step (λ₁ = {largest:.3f} "
        f"nats; it moved by {drift:.2g} over the second half of {len(convergence):,} tokens). The "
        f"state expands in {above} of {len(windows)} windows of the text.",
        [
            Drawing(
                f"{name}-lyapunov-exponents",
                functools.partial(figures.lyapunov_convergence, convergence),
                f"The largest exponents after ever more tokens; in the end λ₁ = {largest:.3f}",
            ),
            Drawing(
                f"{name}-local-exponents",
                functools.partial(
                    figures.local_exponents, windows[shown], list(dynamics["text"][shown])
                ),
                "The largest exponent in each window of the text",
            ),
        ],
        "Above zero a small change grows, and the gradient with it: red windows expand, blue ones "
        "contract. The second figure shows the first windows, with their tokens.",
    )


def _credit(credit: Row, name: str) -> Section:
    # For a task, only time steps with a target have a row.
    asked = [
        (row, said) for row, said in zip(credit["map"], credit["targets"], strict=True) if said
    ]
    said = horizons_in_steps(credit["horizon"])
    return Section(
        "Which tokens does a loss look back to?",
        f"Over the text, {said}.",
        [
            Drawing(
                f"{name}-credit-map",
                functools.partial(
                    figures.credit_map,
                    numbers([row for row, _ in asked]),
                    _line_ends(credit["words"]),
                    _line_ends([word for _, word in asked]),
                ),
                f"Credit of each token read for each token to be said; {said}",
            )
        ],
        "Each row is a token to be said, each column a token read before it. The colour is "
        "‖∂J_t/∂h_k‖: how much the loss at t would change with the state after reading the token "
        "at k. ␣ is a space, ↲ the end of a line.",
    )


def _line_ends(words: Sequence[str]) -> list[str]:
    """The words with ends of lines for `\\n`, as probe.json writes these."""
    return [word.replace("\\n", "\n") for word in words]


def horizons_in_steps(horizons: Mapping[str, float | None]) -> str:
    """The number of steps back for each share of the credit."""
    parts = [
        f"{100 * float(share):.3g} % lies "
        + ("beyond the chunk" if steps is None else f"within {steps:.1f} steps")
        for share, steps in horizons.items()
    ]
    return f"of the credit, {', '.join(parts)}"


def _by_frequency(credit: Row, name: str) -> list[Section]:
    """The section on the frequency of tokens; empty for a task, whose tokens have none."""
    if not credit.get("bands"):
        return []
    parts: list[Part] = []
    for rows, where, file in (
        (credit["by_word"], "read", "credit-by-read"),
        (credit["by_target"], "to be said", "credit-by-said"),
    ):
        bands = dict(zip(credit["bands"], map(numbers, rows), strict=True))
        draw = functools.partial(figures.by_lag, bands, f"credit, by the token {where}")
        parts.append(Drawing(f"{name}-{file}", draw, f"Mean credit by lag and token {where}"))
    often, rare = (numbers(credit["by_word"][place]) for place in (0, -1))
    reach = [_mean_lag(row) for row in (often, rare)]
    longer = "longer than" if reach[1] > 1.1 * reach[0] else "no longer than"
    found = (
        f"The rarest quarter is remembered {longer} the most frequent: the mean lag of its credit "
        f"is {reach[1]:.1f} steps, against {reach[0]:.1f}."
    )
    if not np.isfinite(reach).all():
        found = "No token of the rarest quarter, or of the most frequent, was read."
    return [
        Section(
            "Are rare tokens remembered longer?",
            found,
            parts,
            "The mean credit by lag for tokens of different frequency; each band holds about a "
            "quarter of the text.",
        )
    ]


def _mean_lag(credit: np.ndarray) -> float:
    """The mean lag, weighted by the credit; lags that no token has are left out; NaN if all are."""
    seen = np.isfinite(credit)
    if not seen.any():
        return math.nan
    return float(np.sum(np.arange(len(credit))[seen] * credit[seen]) / np.sum(credit[seen]))


def _growth(curve: np.ndarray) -> float:
    """The last value divided by the first, zeros left out: h_0 = 0 has no sensitivity to W_hh."""
    seen = curve[curve > 0]
    return float(seen[-1] / seen[0]) if seen.size else 1.0


def _sensitivity(sensitivity: Row, name: str) -> Section:
    curves = {weight: numbers(probed["norm"]) for weight, probed in sensitivity.items()}
    growth = {weight: _growth(curve) for weight, curve in curves.items()}
    most = max(growth, key=lambda weight: abs(np.log(growth[weight])))
    return Section(
        "How sensitive is the state to each weight?",
        f"Along the chunk the sensitivity to {most} changes most, by a factor of "
        f"{growth[most]:.3g}.",
        [
            Drawing(
                f"{name}-sensitivity",
                functools.partial(figures.by_lag, curves, "‖∂h_t/∂θ‖", x="t, steps"),
                "Sensitivity of the state to each weight along the chunk",
            )
        ],
        "‖∂h_t/∂θ‖ by block of the recurrent layers' parameters, estimated from random directions. "
        "The sensitivity grows with memory, also where nothing explodes.",
    )
