"""Draw docs/quickstart.svg: bits per character of a run during training.

Command   python docs/figures/quickstart.py RUN_DIR
          RUN_DIR is the path in the last line that `make run` prints.
"""

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from svg import BLUE, GREY, RED, curve, line, page, text  # noqa: E402

from lm_jax.training.journal import read_rows  # noqa: E402

LEFT, RIGHT, TOP, BOTTOM = 56, 590, 20, 256


def main(run_dir: str) -> None:
    rows = read_rows(Path(run_dir) / "metrics.jsonl")
    train = [(r["epoch"], r["nats"] / math.log(2)) for r in rows if r["kind"] == "train"]
    epochs = {r["step"]: r["epoch"] for r in rows if r["kind"] == "train"}
    judged = [
        (epochs[r["step"]], r["bits_per_character"]) for r in rows if r["kind"] == "evaluation"
    ]
    last, high = train[-1][0], math.ceil(max(bits for _, bits in train))

    def place(epoch: float, bits: float) -> tuple[float, float]:
        down = (bits - 1) / (high - 1)
        return LEFT + (RIGHT - LEFT) * epoch / last, BOTTOM - (BOTTOM - TOP) * down

    parts = []
    for bits in range(1, high + 1):
        _, y = place(0, bits)
        parts += [line(LEFT, y, RIGHT, y), text(LEFT - 8, y + 4, bits, "end")]
    for epoch in range(0, int(last) + 1, math.ceil(last / 8)):
        parts.append(text(place(epoch, 1)[0], BOTTOM + 18, epoch))
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 38, "epochs"))
    parts.append(text(LEFT, TOP - 6, "bits a character", "start", GREY))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*at) for at in train))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    parts += curve([place(*at) for at in judged], RED)
    parts.append(text(RIGHT + 8, place(*train[-1])[1] + 4, "training", "start", BLUE))
    parts.append(text(RIGHT + 8, place(*judged[-1])[1] - 2, "validation", "start", RED))
    label = (
        "Bits per character while the quickstart trains: "
        f"from {train[0][1]:.1f} to {judged[-1][1]:.2f} on validation"
    )
    (ROOT / "docs" / "quickstart.svg").write_text(page(720, 300, label, parts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
