"""Sections of a page on the reach of a gradient.

The title of a section is a question; the text explains how to read the figure.
"""

from typing import Any

import numpy as np

from lm_jax.analysis.reach import ByLag, Credit, Dynamics, Lags, Reach
from lm_jax.gradients.sensitivity import Probed
from lm_jax.report.page import Section, Table, figure, line


def reach_sections(reach: Reach) -> list[Section]:
    """The sections of a page on the reach of a gradient through time, one or more for each part."""
    sections: list[Section] = []
    if reach.by_lag is not None:
        sections.append(_horizon(reach.by_lag))
    if reach.lags is not None:
        sections.append(_lags(reach.lags))
    if reach.credit is not None:
        sections += [_credit(reach.credit), *_bands(reach.credit)]
    if reach.dynamics is not None:
        sections += [_spectra(reach.dynamics), _exponents(reach.dynamics)]
    if reach.sensitivity is not None:
        sections.append(_sensitivity(reach.sensitivity))
    return sections


def _horizon(by_lag: ByLag) -> Section:
    lengths = range(1, 1 + len(by_lag.norms))
    marks = [
        {
            "type": "line",
            "x0": steps,
            "x1": steps,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"dash": "dot", "width": 1, "color": "#666"},
            "label": {"text": f"{100 * float(share):g} %", "textposition": "end", "textangle": 0},
        }
        for share, steps in by_lag.horizon.items()
        if np.isfinite(steps)
    ]
    truncated = by_lag.truncations
    found = ", ".join(
        f"{float(share):.0%} within {steps:.0f}" for share, steps in by_lag.horizon.items()
    )
    return Section(
        "Which length of truncated backpropagation?",
        "The gradient of the recurrent weights, split by the lag from a loss back to the step that "
        "used them. Its prefix sums are the gradients of all truncation lengths k2 at once; their "
        "distance from the full gradient, and the angle to it, say what a truncation costs. "
        f"Of the full gradient, in steps: {found}.",
        [
            figure(
                [
                    line("cosine to the full gradient", truncated.cosine, lengths),
                    line("relative error", truncated.relative_error, lengths),
                ],
                "k2, steps",
                "of the full gradient",
                shapes=marks,
            ),
            figure(
                [line("norm of the gradient at a lag", by_lag.norms)],
                "lag, steps",
                "nats per unit of the weights",
                log_y=True,
            ),
        ],
    )


def _lags(lags: Lags) -> Section:
    guesses = lags.predicted
    curves = [line("measured", lags.measured, line={"width": 3})]
    for name, values in (
        ("product of the steps' norms", guesses.step_norms),
        ("ρ(W_hh)^l", guesses.radius),
        ("(σ_max(W_hh) γ)^l", guesses.slope_norm),
        ("exp(λ₁ l)", guesses.exponent),
    ):
        if values is not None:
            curves.append(line(name, values, line={"dash": "dash"}))
    return Section(
        "How long does a change of the state last?",
        "The spectral norm of ∂h_T/∂h_{T-l}, the mean over places in the text, beside what simple "
        "formulas would have it be. The product of the steps' own norms is an upper bound; the "
        "largest Lyapunov exponent λ₁ gives the rate for large lags.",
        [figure(curves, "lag l, steps", "‖∂h_T/∂h_{T-l}‖", log_y=True)],
    )


def _credit(credit: Credit) -> Section:
    # For a task, only time steps with a target have a row. The upper triangle is empty, not zero.
    asked = [(row, said) for row, said in zip(credit.map, credit.targets, strict=True) if said]
    logs = [[float(np.log10(value)) if value > 0 else None for value in row] for row, _ in asked]
    targets = [said for _, said in asked]
    found = ", ".join(
        f"{float(share):.0%} within {steps:.1f}" for share, steps in credit.horizon.items()
    )
    return Section(
        "Which words does a loss look back to?",
        "Each row is a word to be said, each column a word that was read before it: the colour is "
        "the logarithm to base 10 of ‖∂J_t/∂h_k‖, how much the loss at t would change with the "
        f"state after reading the word at k. Over the text, in steps back: {found}.",
        [
            figure(
                [
                    {
                        "type": "heatmap",
                        "z": logs,
                        "customdata": [
                            [[_seen(said), _seen(read)] for read in credit.words]
                            for said in targets
                        ],
                        "colorscale": "Viridis",
                        "hovertemplate": "said: %{customdata[0]} (%{y})<br>"
                        "read: %{customdata[1]} (%{x})<br>10^%{z:.2f}<extra></extra>",
                    }
                ],
                "read",
                "to be said",
                height=200 + 560 * len(targets) // len(credit.words),
                xaxis={**_ticks(credit.words), "title": {"text": "read"}},
                yaxis={
                    **_ticks(targets),
                    "autorange": "reversed",
                    "title": {"text": "to be said"},
                },
            )
        ],
    )


def _ticks(words: list[str]) -> dict[str, Any]:
    """Axis settings with a label for every word."""
    shown = [_seen(word) for word in words]
    return {"tickmode": "array", "tickvals": list(range(len(words))), "ticktext": shown}


def _seen(word: str) -> str:
    """The word with a visible sign for each space."""
    return word.replace(" ", "\N{OPEN BOX}")


def _bands(credit: Credit) -> list[Section]:
    """The section on word frequency; empty if words have no frequency."""
    if credit.bands is None or credit.by_word is None or credit.by_target is None:
        return []
    figures = [
        figure(
            [line(name, row) for name, row in zip(credit.bands, rows, strict=True)],
            "lag, steps",
            f"mean ‖∂J_t/∂h_k‖ by the word {place}",
            log_y=True,
        )
        for place, rows in (("read", credit.by_word), ("to be said", credit.by_target))
    ]
    words = (
        "The mean credit by lag, for words of different frequency: of the word that was read, and "
        "of the word to be said. Each band holds about a quarter of the text."
    )
    return [Section("Are rare words remembered longer?", words, figures)]


def _spectra(dynamics: Dynamics) -> Section:
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = {"line": {"dash": "dot", "color": "#666"}, "hoverinfo": "skip"}
    points = [line("unit circle", np.sin(angle), np.cos(angle), **circle)]
    rows = []
    for layer, spectra in dynamics.spectra.items():
        for gate, block in enumerate(spectra.blocks):
            name = f"{layer}, block {gate}" if len(spectra.blocks) > 1 else layer
            values: Any = block.eigenvalues
            points.append(line(name, values.imag, values.real, mode="markers"))
            rows.append((name, block.radius, block.norm))
    if not rows:
        return Section("What are the eigenvalues of W_hh?", "This cell has no matrix W_hh.", [])
    return Section(
        "What are the eigenvalues of W_hh?",
        "A linear network would forget along eigenvectors inside the unit circle and explode along "
        "those outside. A gated cell has a block for each gate.",
        [
            Table(("block", "spectral radius", "largest singular value"), rows),
            figure(
                points,
                "real part",
                "imaginary part",
                height=520,
                yaxis={"scaleanchor": "x", "title": {"text": "imaginary part"}},
            ),
        ],
    )


def _exponents(dynamics: Dynamics) -> Section:
    curves = [line(f"λ{k + 1}", row) for k, row in enumerate(dynamics.convergence.T)]
    spectrum = ", ".join(f"{value:.3f}" for value in dynamics.convergence[-1])
    return Section(
        "Does the state expand along this text?",
        "The largest Lyapunov exponents, in nats a step, after ever more tokens; and the largest "
        "one in each window of the text, with its words. Above zero a small change grows, and the "
        f"gradient with it. In the end: {spectrum}.",
        [
            figure(curves, "tokens", "exponents so far, nats a step"),
            figure(
                [
                    line(
                        "largest exponent of a window",
                        dynamics.windows,
                        mode="lines+markers",
                        text=dynamics.text,
                        hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
                    )
                ],
                "window",
                "nats a step",
            ),
        ],
    )


def _sensitivity(sensitivity: dict[str, Probed]) -> Section:
    return Section(
        "How sensitive is the state to each weight?",
        "‖∂h_t/∂θ‖ along the chunk, by block of the recurrent layers' parameters, estimated from "
        "random directions. It grows with memory, also where nothing explodes.",
        [
            figure(
                [line(name, probed.norm) for name, probed in sensitivity.items()],
                "t, steps",
                "‖∂h_t/∂θ‖",
                log_y=True,
            )
        ],
    )
