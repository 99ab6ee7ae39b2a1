"""Curves and figures as dicts in Plotly's format, for a page (`lm_jax.report.page`)."""

from collections.abc import Sequence
from typing import Any

from lm_jax.report.page import Figure


def line(name: str, y: Any, x: Any = None, **more: Any) -> dict[str, Any]:
    """A curve; by default x is 0, 1, 2, …"""
    values = [float(value) for value in y]
    places = list(range(len(values))) if x is None else [float(value) for value in x]
    return {"type": "scatter", "mode": "lines", "name": name, "x": places, "y": values, **more}


def figure(data: Sequence[dict[str, Any]], x: str, y: str, **layout: Any) -> Figure:
    """A figure with axis titles x and y; log_y=True gives a logarithmic y axis."""
    kind = {"type": "log", "exponentformat": "power"} if layout.pop("log_y", False) else {}
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, **kind}}
    return {"data": list(data), "layout": {**axes, **layout}}
