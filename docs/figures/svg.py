"""Draw the shapes of the figures in docs/ as SVG."""

INK, GREY, BLUE, RED = "#222", "#666", "#1f77b4", "#d62728"


def text(x: float, y: float, words: object, anchor: str = "middle", fill: str = GREY) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = "#e5e5e5") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"/>'


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {at} fill="{fill}"/>'


def curve(places: list[tuple[float, float]], stroke: str) -> list[str]:
    """Draw a line through the places, and a dot at each place."""
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{stroke}"/>' for x, y in places]
    return [f'<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="2"/>', *dots]


def page(width: int, height: int, label: str, parts: list[str]) -> str:
    """Assemble a whole figure; `label` is the text for screen readers."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui,sans-serif" font-size="13" aria-label="{label}">'
    )
    return "\n".join([head, box(0, 0, width, height, "#fff"), *parts, "</svg>", ""])
