"""Draw docs/horizon.svg: how far back a run's gradient lies during training.

Command   python docs/figures/horizon.py RUN_DIR
          RUN_DIR is the path in the last line that `python run.py train quickstart
          --train.probe live` prints. The script prints the numbers quoted in the pages.
"""

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from svg import BLUE, GREY, INK, RED, curve, line, page, text  # noqa: E402

from lm_jax.training.journal import read_rows  # noqa: E402

LEFT, RIGHT, TOP, BOTTOM = 56, 590, 24, 256
COLOURS = {"0.5": INK, "0.9": BLUE, "0.99": RED}


def main(run_dir: str) -> None:
    rows = [row for row in read_rows(Path(run_dir) / "metrics.jsonl") if row["kind"] == "probe"]
    if not rows:
        sys.exit(f"{run_dir}: metrics.jsonl has no rows of kind probe; train it with a live probe")
    last = max(row["step"] for row in rows)
    high = 5 * math.ceil(max(max(row["horizon"].values()) for row in rows) / 5)

    def place(step: float, back: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * step / last, BOTTOM - (BOTTOM - TOP) * back / high

    parts = []
    for back in range(0, high + 1, 5):
        _, y = place(0, back)
        parts += [line(LEFT, y, RIGHT, y), text(LEFT - 8, y + 4, back, "end")]
    parts += [text(place(row["step"], 0)[0], BOTTOM + 18, f"{row['step']:,}") for row in rows]
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 38, "updates"))
    parts.append(text(LEFT, TOP - 8, "steps back", "start", GREY))
    for share, colour in COLOURS.items():
        places = [place(row["step"], row["horizon"][share]) for row in rows]
        parts += curve(places, colour)
        words = f"{float(share):.0%} of the gradient"
        parts.append(text(RIGHT + 8, places[-1][1] + 4, words, "start", colour))
        steps = ", ".join(f"{row['horizon'][share]:.0f}" for row in rows)
        print(f"{share} of the gradient, steps back: {steps}")
    for row in rows:
        radii = [radius for blocks in row["spectral_radius"].values() for radius in blocks]
        largest = ", ".join(f"{radius:.2f}" for radius in radii)
        print(f"step {row['step']:,}: spectral radii {largest}, exponent {row['lyapunov']:.3f}")
    ends = ", ".join(
        f"{float(share):.0%} of it within {rows[-1]['horizon'][share]:.0f} steps"
        for share in COLOURS
    )
    label = f"How far back the gradient lies while the quickstart trains: in the end {ends}"
    (ROOT / "docs" / "horizon.svg").write_text(page(760, 300, label, parts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
