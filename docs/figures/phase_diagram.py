"""Draw docs/phase_diagram.svg: success and gradient norm over initial gain and length.

Command   python docs/figures/phase_diagram.py SWEEP_DIR
          SWEEP_DIR is the path in the last line that `python run.py sweep phase_diagram` prints.
          The script prints the numbers quoted in the pages.

Left, the share of right answers on held-out sequences, the mean over the seeds. Right, the norm of
∂h_T/∂h_1 before the first update, the geometric mean over the seeds, coloured by the logarithm:
grey for a norm of about 1, blue for vanishing gradients, red for exploding gradients.
"""

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from svg import GREY, INK, box, page, text  # noqa: E402

from lm_jax.report.measures import Measure, at, cell, measures, varied  # noqa: E402
from lm_jax.sweeps.results import read_results  # noqa: E402

WIDTH, HEIGHT, TOP = 46, 34, 62
LEFTS = (70, 460)
LENGTH, GAIN = "data.length", "model.cell.gain"
POWER = 8  # decades to full colour


def mixed(share: float, low: tuple[int, ...], high: tuple[int, ...]) -> str:
    """Mix two colours: `low` at share 0, `high` at share 1."""
    share = min(max(share, 0.0), 1.0)
    parts = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def of_success(mean: float) -> str:
    """Colour of a success: white at chance, green if all answers are right."""
    return mixed((mean - 0.25) / 0.75, (250, 250, 250), (44, 140, 70))


def of_norm(mean: float) -> str:
    """Colour of a gradient norm: blue below 1, red above."""
    power = math.log10(mean) if mean > 0 else -POWER
    return mixed(
        abs(power) / POWER, (240, 240, 240), (31, 119, 180) if power < 0 else (214, 39, 40)
    )


def written(mean: float, *, log: bool) -> str:
    if not log:
        return f"{mean:.0%}"
    return f"10{exponent(round(math.log10(mean)))}" if mean > 0 else "0"


def exponent(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def main(sweep_dir: str) -> None:
    rows = read_results(sweep_dir)
    known: dict[str, Measure] = {measure.name: measure for measure in measures(rows)}
    values = {LENGTH: sorted({row["settings"][LENGTH] for row in rows}), GAIN: varied(rows)[GAIN]}
    parts = []
    for left, name, title, colour in (
        (LEFTS[0], "success", "right, of held-out sequences", of_success),
        (LEFTS[1], "first_probe.lag_norm", "‖∂h_T/∂h_1‖ before the first update", of_norm),
    ):
        parts.append(text(left, TOP - 36, title, "start", INK))
        parts.append(text(left - 10, TOP - 10, "T", "end"))
        for down, length in enumerate(reversed(values[LENGTH])):
            y = TOP + HEIGHT * down
            parts.append(text(left - 10, y + 0.63 * HEIGHT, length, "end"))
            shown = []
            for across, gain in enumerate(values[GAIN]):
                found = cell(at(rows, {LENGTH: length, GAIN: gain}), known[name])
                x = left + WIDTH * across
                fill = "#fff" if found.mean is None else colour(found.mean)
                words = "" if found.mean is None else written(found.mean, log=known[name].log)
                words += f" ×{found.lost}" if found.lost else ""
                parts.append(box(x + 1, y + 1, WIDTH - 2, HEIGHT - 2, fill))
                parts.append(text(x + WIDTH / 2, y + 0.63 * HEIGHT, words, "middle", INK))
                shown.append("none" if found.mean is None else f"{found.mean:.3g}")
            print(f"{name}, T = {length}: {', '.join(shown)}")
        bottom = TOP + HEIGHT * len(values[LENGTH])
        for across, gain in enumerate(values[GAIN]):
            parts.append(text(left + WIDTH * (across + 0.5), bottom + 18, f"{gain:g}"))
        centre = left + WIDTH * len(values[GAIN]) / 2
        parts.append(text(centre, bottom + 38, "initial gain of W_hh", "middle", GREY))
    label = (
        "Initial gain against length on the temporal order task: the share of sequences that are "
        "right, and how much of a gradient comes back to the first step before training"
    )
    width = LEFTS[1] + WIDTH * len(values[GAIN]) + 20
    height = TOP + HEIGHT * len(values[LENGTH]) + 52
    (ROOT / "docs" / "phase_diagram.svg").write_text(
        page(width, height, label, parts), encoding="utf-8"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
