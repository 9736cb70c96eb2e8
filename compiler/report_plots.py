"""Plots of a report as SVG: points on two axes, the Pareto front through the best, labels that do not cover each other.

Colours are the classes `c0`, `c1`, ... of the page's style sheet; the drawing is 460 wide and scales with the page.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 16, 46
_CHARACTER, _LINE = 6.3, 13  # of a label, in units of the drawing
_SHAPES = ("circle", "square", "diamond", "triangle", "down")


@dataclass(frozen=True)
class Point:
    """A cell on a plot. `series` decides colour and shape."""

    x: float
    y: float
    label: str
    series: int
    title: str


@dataclass(frozen=True)
class Axis:
    """A quantity: `form` writes a tick; on a logarithmic axis what is 0 stands at `least`."""

    label: str
    form: Callable[[float], str]
    log: bool = False
    higher_is_better: bool = False
    least: float = 1e-12


@dataclass(frozen=True)
class _Scale:
    """From values to units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    least: float

    def __call__(self, value: float) -> float:
        share = (self.measure(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def measure(self, value: float) -> float:
        return math.log10(max(value, self.least)) if self.log else value

    def ticks(self) -> list[float]:
        if self.log and self.high - self.low > 0.5:
            return _powers(self.low, self.high)
        return _round_steps(10**self.low, 10**self.high) if self.log else _round_steps(self.low, self.high)


def front(points: Sequence[Point], x: Axis, y: Axis) -> list[Point]:
    """The points that no other is at least as good as on both axes and better on one, by x."""
    return sorted((one for one in points if not any(_beats(other, one, x, y) for other in points)), key=lambda p: p.x)


def plot(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """A figure in SVG of the points that have finite values; its front is a stepped line."""
    points = [one for one in points if math.isfinite(one.x) and math.isfinite(one.y)]
    across = _scale([one.x for one in points], x, LEFT, WIDTH - RIGHT)
    up = _scale([one.y for one in points], y, HEIGHT - BOTTOM, TOP)
    best = front(points, x, y)
    parts = [*_axes(across, up, x, y), _steps(best, across, up, x)]
    parts += [_mark(one, across(one.x), up(one.y)) for one in points]
    parts += _labels([*best, *(one for one in points if one not in best)], across, up, best)
    told = escape(f"{y.label} over {x.label}, {len(points)} cells")
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">{"".join(parts)}</svg>'


def swatch(series: int) -> str:
    """The mark of a series, for a legend."""
    mark = _shape(series, 7, 7)
    return f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true"><g class="c{series % 6}">{mark}</g></svg>'


def _beats(one: Point, other: Point, x: Axis, y: Axis) -> bool:
    pairs = [(one.x, other.x, x), (one.y, other.y, y)]
    ahead = [(a - b) * (1 if axis.higher_is_better else -1) for a, b, axis in pairs]
    return min(ahead) >= 0 and max(ahead) > 0


def _scale(values: Sequence[float], axis: Axis, start: float, end: float) -> _Scale:
    told = [math.log10(max(v, axis.least)) if axis.log else v for v in values] or [0.0]
    low, high = min(told), max(told)
    pad = 0.08 * (high - low) or (0.3 if axis.log else max(abs(high) * 0.1, 1e-3))
    bottom = low - pad
    if not axis.log and bottom < 0 <= low:
        bottom = -0.04 * high  # a quantity that is never negative: just enough for marks at 0
    return _Scale(bottom, high + pad, start, end, axis.log, axis.least)


def _powers(low: float, high: float) -> list[float]:
    if high - low < 1.3:
        held = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 1.5, 2, 3, 5, 7)]
        return [value for value in held if low <= math.log10(value) <= high]
    step = max(1, math.ceil((high - low) / 6))
    return [10.0**e for e in range(math.ceil(low), math.floor(high) + 1) if e % step == 0]


def _round_steps(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [place * step for place in range(first, math.floor(high / step) + 1)]


def _axes(across: _Scale, up: _Scale, x: Axis, y: Axis) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in across.ticks():
        at = across(value)
        yield f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(x.form(value))}</text>'
    for value in up.ticks():
        at = up(value)
        yield f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(y.form(value))}</text>'
    yield f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
    middle = (TOP + bottom) / 2
    yield f'<text class="name" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>'
    yield (
        f'<text class="name" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{escape(y.label)}</text>"
    )


def _steps(best: Sequence[Point], across: _Scale, up: _Scale, x: Axis) -> str:
    """A line that between two points stays where the worse of both would be."""
    if len(best) < 2:
        return ""
    places = [(across(one.x), up(one.y)) for one in best]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for place_x, place_y in places[1:]:
        path += f"V{place_y:.1f}H{place_x:.1f}" if x.higher_is_better else f"H{place_x:.1f}V{place_y:.1f}"
    return f'<path class="front" d="{path}"/>'


def _mark(one: Point, x: float, y: float) -> str:
    return f'<g class="c{one.series % 6} point"><title>{escape(one.title)}</title>{_shape(one.series, x, y)}</g>'


def _shape(series: int, x: float, y: float) -> str:
    kind = _SHAPES[series % len(_SHAPES)]
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -5.6), (5.6, 0), (0, 5.6), (-5.6, 0)),
        "triangle": ((0, -5.4), (5.2, 4), (-5.2, 4)),
        "down": ((0, 5.4), (5.2, -4), (-5.2, -4)),
    }[kind]
    return '<polygon points="' + " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners) + '"/>'


def _labels(points: Sequence[Point], across: _Scale, up: _Scale, best: Sequence[Point]) -> Iterator[str]:
    """A label beside each point where there is room; the first points have the first choice."""
    taken = [(across(one.x) - 5, up(one.y) - 5, across(one.x) + 5, up(one.y) + 5) for one in points]
    for one in points:
        x, y, width = across(one.x), up(one.y), _CHARACTER * len(one.label)
        found = next((box for box in _places(x, y, width) if _free(box, taken)), None)
        if found is None:
            continue
        taken.append(found)
        told = "label best" if one in best else "label"
        yield f'<text class="{told}" x="{found[0]:.1f}" y="{found[3] - 3:.1f}">{escape(one.label)}</text>'


def _places(x: float, y: float, width: float) -> Iterator[tuple[float, float, float, float]]:
    left, middle = -width - 8, -width / 2
    offsets = [(8, -7), (left, -7), (middle, -19), (middle, 7), (7, -18), (7, 5), (left, -18), (left, 5)]
    for dx, dy in offsets:
        yield x + dx, y + dy, x + dx + width, y + dy + _LINE


def _free(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM
    return inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
