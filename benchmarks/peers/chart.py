"""Line charts as SVG, by hand: a plotting library would be a large thing to ask for two figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 560, 300, 60, 36, 44, 190
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")

Curve = Sequence[tuple[float, float]]


def chart(title: str, x_name: str, y_name: str, curves: Mapping[str, Curve]) -> str:
    """Curves over a common x axis whose marks are the points' own; y begins at zero."""
    marks = sorted({x for curve in curves.values() for x, _ in curve})
    most_x = max(marks, default=1.0)
    most_y = 1.08 * max((y for curve in curves.values() for _, y in curve), default=1.0)

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + _WIDTH * x / most_x, _TOP + _HEIGHT * (1 - y / most_y)

    parts = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>',
        _text(_LEFT, _TOP - 14, title, weight="bold"),
        _text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 38, x_name, anchor="middle"),
        _text(_LEFT + 6, _TOP + 16, y_name, colour="#555"),
    ]
    for mark in marks:
        x, y = place(mark, 0)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{y + 4:.1f}" stroke="#999"/>')
        parts.append(_text(x, y + 18, f"{mark:g}", anchor="middle"))
    for step in range(5):
        value = most_y * step / 4
        parts.append(_text(_LEFT - 6, place(0, value)[1] + 4, f"{value:.3g}", anchor="end"))
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [place(x, y) for x, y in sorted(curve)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(_LEFT + _WIDTH + 12, _TOP + 16 + 20 * number, name, colour=colour))
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="13">\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", colour: str = "#222", weight: str = "normal"
) -> str:  # fmt: skip
    style = f'text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
