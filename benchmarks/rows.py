"""Rows of the benchmarks: their fields, the printed table, and the output file.

A row compares a figure of lm_jax with a figure of a peer, both medians over rounds, timed in turn.
The `ratio` is above 1 if lm_jax is better, for a time as well as for a rate. `limit_fraction` is
the share of lm_jax's time needed by the matrix products alone, at the speed of this machine for
products of equal shape (`benchmarks.products`).
"""

import datetime
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")


class Row(TypedDict):
    """A line of the table, and an entry of results.json."""

    name: str
    unit: str
    """ms, s, MB or MiB (less is better), or a rate such as tokens/s (more is better)."""
    ours: float
    peer: float
    peer_name: str
    ratio: float
    limit_fraction: float | None


def row(
    name: str,
    unit: str,
    ours: float,
    peer: float,
    peer_name: str,
    limit_fraction: float | None = None,
) -> Row:
    """Make a row, and compute the ratio."""
    ratio = ours / peer if is_rate(unit) else peer / ours
    return Row(
        name=name,
        unit=unit,
        ours=ours,
        peer=peer,
        peer_name=peer_name,
        ratio=ratio,
        limit_fraction=limit_fraction,
    )


def is_rate(unit: str) -> bool:
    """True if the unit is a rate: more is better."""
    return unit.endswith("/s")


def geometric_mean(rows: Iterable[Row]) -> float:
    """Geometric mean of the ratios; among rows of equal name, only the best peer counts."""
    worst: dict[str, float] = {}
    for each in rows:
        worst[each["name"]] = min(each["ratio"], worst.get(each["name"], each["ratio"]))
    return statistics.geometric_mean(worst.values())


def results(rows: Sequence[Row], device: str) -> dict[str, Any]:
    """Content of results.json."""
    return {
        "machine": machine(device),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": list(rows),
    }


def machine(device: str) -> dict[str, Any]:
    """Describe the machine of the measurements.

    Args:
      device: JAX's name for the device.
    """
    return {
        "device": device,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages among `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(path: Path, content: Any) -> None:
    """Writes strict JSON (no NaN or infinity)."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "unit", "ours", "peer", "ratio", "of the limit"):
        table.add_column(heading, justify="left" if heading in ("", "unit") else "right")
    table.add_column("the peer")
    for each in rows:
        fraction = each["limit_fraction"]
        table.add_row(
            each["name"],
            each["unit"],
            f"{each['ours']:,.4g}",
            f"{each['peer']:,.4g}",
            f"{each['ratio']:.2f}",
            "" if fraction is None else f"{fraction:.2f}",
            each["peer_name"],
        )
    console = Console()
    # In a file or a pipe, a row is not wrapped.
    Console(width=console.width if console.is_terminal else 140).print(table)
