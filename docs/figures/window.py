"""Draw docs/window.svg: a window model's parameters grow with n, with separate weights per place.

Command   python docs/figures/window.py
Time      two and a half minutes of CPU time; a second call reads the runs back from
          runs/window-figure.

Window models of n = 2 … 8 learn the characters of CPython's documentation. Left, the parameters of
W, (n - 1) E H, and the bits per character on validation. Right, for n = 6, the norm ‖W_i‖ of each
place's block and, for each pair of places, the cosine ⟨W_i, W_j⟩ / ‖W_i‖‖W_j‖ of their blocks. If
the places shared what each one learns, the cosine would be near 1.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from svg import BLUE, GREY, INK, RED, box, curve, line, page, text  # noqa: E402

import lm_jax  # noqa: E402
from lm_jax.config import Config, Cosine, Data, Train, Window  # noqa: E402

ORDERS = range(2, 9)
SHOWN = 6
E, H = 32, 128
TOP, BOTTOM = 50, 250


def trained(order: int) -> lm_jax.Run:
    """Train the window model of an order, or read the trained model back."""
    config = Config(
        data=Data(batch_size=16, length=64),
        model=Window(order=order, embedding_size=E, hidden_size=H),
        train=Train(steps=2000, learning_rate=0.003, schedule=Cosine(warmup_steps=100)),
    )
    return lm_jax.train(config, ROOT / "runs" / "window-figure" / f"n{order}")


def cosines(W: np.ndarray) -> np.ndarray:
    """Compute the cosine of each pair of blocks of W [n - 1, E, H]: [n - 1, n - 1]."""
    flat = W.reshape(len(W), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat.T


def growth(sizes: list[int], bits: list[float]) -> list[str]:
    """Draw the left part: two curves over n, with separate scales."""
    left, right = 60, 330
    high = 5000 * -(-max(sizes) // 5000)
    low_bits, high_bits = np.floor(min(bits) * 5) / 5, np.ceil(max(bits) * 5) / 5
    xs = [left + 20 + (right - left - 40) * i / (len(sizes) - 1) for i in range(len(sizes))]

    def down(share: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * share

    parts = []
    for tick in range(5):
        y = down(tick / 4)
        parts.append(line(left, y, right, y))
        parts.append(text(left - 6, y + 4, f"{high * tick / 4:,.0f}", "end", BLUE))
        value = low_bits + (high_bits - low_bits) * tick / 4
        parts.append(text(right + 6, y + 4, f"{value:.2f}", "start", RED))
    parts += [text(x, BOTTOM + 18, n) for x, n in zip(xs, ORDERS, strict=True)]
    parts += [text((left + right) / 2, BOTTOM + 36, "n")]
    parts += curve([(x, down(size / high)) for x, size in zip(xs, sizes, strict=True)], BLUE)
    share = [(bit - low_bits) / (high_bits - low_bits) for bit in bits]
    parts += curve([(x, down(s)) for x, s in zip(xs, share, strict=True)], RED)
    parts.append(text(left - 45, 20, "parameters of W", "start", BLUE))
    parts.append(text(right + 40, 20, "validation, bits a character", "end", RED))
    return parts


def norms(values: np.ndarray) -> list[str]:
    """Draw the middle part: a bar for each place."""
    left, width, gap = 430, 26, 8
    parts = [text(left - 4, 20, f"‖W_i‖, n = {SHOWN}", "start", INK)]
    parts.append(line(left - 4, BOTTOM, left + len(values) * (width + gap), BOTTOM, GREY))
    for place, value in enumerate(values):
        height = (BOTTOM - TOP - 14) * value / max(values)
        x = left + place * (width + gap)
        parts.append(box(x, BOTTOM - height, width, height, BLUE))
        parts.append(text(x + width / 2, BOTTOM - height - 5, f"{value:.1f}"))
        parts.append(text(x + width / 2, BOTTOM + 18, place - len(values) + 1))
    centre = left + len(values) * (width + gap) / 2
    return [*parts, text(centre, BOTTOM + 36, "place, the newest is 0")]


def likeness(table: np.ndarray) -> list[str]:
    """Draw the right part: a square for each pair of places."""
    left, side = 680, (BOTTOM - TOP) / len(table)
    parts = [text(left, 20, "cosine of W_i and W_j", "start", INK)]
    for (i, j), value in np.ndenumerate(table):
        shade = 255 - round(155 * min(abs(value), 1))
        x, y = left + j * side, TOP + i * side
        fill = f"rgb({shade},{shade},255)" if value >= 0 else f"rgb(255,{shade},{shade})"
        parts.append(box(x, y, side - 2, side - 2, fill))
        parts.append(text(x + side / 2 - 1, y + side / 2 + 4, f"{value:.2f}", fill=INK))
    for place in range(len(table)):
        name, middle = place - len(table) + 1, (place + 0.5) * side
        parts.append(text(left + middle, BOTTOM + 18, name))
        parts.append(text(left - 6, TOP + middle + 4, name, "end"))
    return [*parts, text(left + (BOTTOM - TOP) / 2, BOTTOM + 36, "place")]


def main() -> None:
    runs = {order: trained(order) for order in ORDERS}
    bits = [run.result["splits"]["validation"]["bits_per_character"] for run in runs.values()]
    sizes = [run.params["W"].size for run in runs.values()]
    W = np.asarray(runs[SHOWN].params["W"], np.float64)
    sides, table = np.linalg.norm(W, axis=(1, 2)), cosines(W)
    for order, size, bit in zip(ORDERS, sizes, bits, strict=True):
        print(f"n = {order}: {size:,} parameters in W, {bit:.3f} bits a character on validation")
    print("norms of the blocks, the oldest place first:", np.round(sides, 2))
    print("cosines:", np.round(table, 3), sep="\n")
    label = "Window models: W grows with n, and the blocks of W for different places are not alike"
    parts = [*growth(sizes, bits), *norms(sides), *likeness(table)]
    (ROOT / "docs" / "window.svg").write_text(page(900, 300, label, parts), encoding="utf-8")


if __name__ == "__main__":
    main()
