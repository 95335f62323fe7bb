"""Held-out accuracy over the whole chain as one SVG picture: a panel a stage, one scale for all.

Each panel has its own axis of steps. The whisker at a panel's end is the final evaluation with its 95 % interval;
the dashed line is the model that the stage started from. Colours are CSS classes, so the same picture follows the
page's theme inside the report and the reader's system theme as a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from rlreason.report.findings import Suite, round_top
from rlreason.report.read import Run, heldout_points
from rlreason.report.words import kind, percent, plural, visible
from rlreason.types import Interval

HEIGHT, TOP, BOTTOM, LEFT, GAP = 300, 62, 42, 62, 18

#: Style of the picture as a file of its own. The report's style sheet has the same classes.
STANDALONE = """
.curve { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.curve .paper { fill: #ffffff; stroke: #d9dbde; }
.curve .ink { fill: #1b1d21; } .curve .strong { font-weight: 600; } .curve .soft { fill: #555b63; }
.curve .grid { stroke: #e3e5e8; } .curve .axis { stroke: #9aa0a8; }
.curve .line { stroke: #1f5fa8; } .curve .dot { fill: #1f5fa8; } .curve .halo { stroke: #ffffff; }
.curve .base { stroke: #6b727b; }
@media (prefers-color-scheme: dark) {
  .curve .paper { fill: #15181c; stroke: #343940; }
  .curve .ink { fill: #e8eaed; } .curve .soft { fill: #a9b0b9; }
  .curve .grid { stroke: #2b3036; } .curve .axis { stroke: #6b727b; }
  .curve .line { stroke: #7ab3f0; } .curve .dot { fill: #7ab3f0; } .curve .halo { stroke: #15181c; }
  .curve .base { stroke: #8d95a0; }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One stage of the chain."""

    title: str
    kind: str
    points: list[tuple[int, float]]
    #: How many steps were recorded, and the number of the last one: steps count from 0.
    steps: int
    last_step: int
    final: Interval | None
    base: tuple[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a panel is drawn: left and right edge of its plot, and the accuracy at the top of the scale."""

    left: float
    right: float
    top_value: float

    def x(self, step: float, last: int) -> float:
        """Horizontal place of a step; room is left at the right for the whisker and the label."""
        return self.left + 5 + (self.right - self.left - 12) * step / max(last, 1)

    def y(self, value: float) -> float:
        """Vertical place of an accuracy."""
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(value / self.top_value, 1.0)


def panels(run: Run, suite: Suite | None) -> list[Panel]:
    """The stages that trained a model whose held-out accuracy is known."""
    models = {model.result.model: model for model in suite.models} if suite else {}
    found = []
    for stage in run.stages:
        points = heldout_points(stage.steps)
        model = models.get(stage.name)
        # The metrics of an eval stage are one line a model, not a course over steps.
        if stage.kind == "eval" or (model is None and not points):
            continue
        base = (model.base.model, model.base.accuracy.value) if model and model.base else None
        found.append(
            Panel(
                title=stage.name,
                kind=kind(stage.kind),
                points=points,
                steps=len(stage.steps),
                last_step=int(stage.steps[-1]["step"] or 0) if stage.steps else 0,
                final=model.result.accuracy if model else None,
                base=base,
            )
        )
    return found


def scale_top(found: list[Panel]) -> float:
    """Where the common scale ends."""
    values = [value for panel in found for _, value in panel.points]
    values += [panel.final.high for panel in found if panel.final]
    values += [panel.base[1] for panel in found if panel.base]
    return round_top(values)


def clean(content: str) -> str:
    """Text as XML may hold it."""
    return escape(visible(content))


def text(x: float, y: float, content: str, css: str, anchor: str = "start") -> str:
    """One line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{clean(content)}</text>'


def shorten(title: str, width: float) -> str:
    """The title, cut to about `width` pixels."""
    fits = max(3, int(width / 6.3))
    return title if len(title) <= fits else title[: fits - 1] + "…"


def subtitle(panel: Panel, width: float) -> str:
    """Kind and number of steps; the number alone where both don't fit; nothing to say where no steps are known."""
    if not panel.steps:
        return shorten(panel.kind, width)
    steps = plural(panel.steps, "step")
    both = f"{panel.kind}, {steps}"
    return both if both == shorten(both, width) else shorten(steps, width)


def grid(frame: Frame, labelled: bool) -> list[str]:
    """Horizontal lines at quarters of the scale, with percentages left of the first panel."""
    marks = []
    for quarter in range(5):
        value = frame.top_value * quarter / 4
        y = frame.y(value)
        css = "grid" if quarter else "axis"
        marks.append(f'<line x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="{css}"/>')
        if labelled:
            digits = 1 if frame.top_value < 0.04 else 0
            marks.append(text(frame.left - 6, y + 4, percent(value, digits), "soft", "end"))
    return marks


def draw_panel(panel: Panel, frame: Frame) -> list[str]:
    """Title, dashed base, line with its points, whisker and end label of one stage."""
    width = frame.right - frame.left
    marks = [
        text(frame.left, 26, shorten(panel.title, width), "ink strong"),
        text(frame.left, 42, subtitle(panel, width), "soft"),
    ]
    bottom = HEIGHT - BOTTOM
    if panel.base:
        name, value = panel.base
        y = frame.y(value)
        ends = f'x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        marks.append(f'<line {ends} class="base" stroke-dasharray="3 3"/>')
        # Below the line where the curve is likely above it, that is at the start of a climb; the label is at the left.
        below = not panel.points or panel.points[0][1] >= value
        marks.append(text(frame.left + 4, y + (14 if below else -5), shorten(f"from {name}", width), "soft"))
    if panel.points:
        spots = [(frame.x(step, panel.last_step), frame.y(value)) for step, value in panel.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        marks.append(f'<polyline points="{line}" class="line" fill="none" stroke-width="2" stroke-linejoin="round"/>')
        if len(spots) <= 40:
            marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" class="dot"/>' for x, y in spots]
        marks.append(text(frame.left, bottom + 16, "0", "soft"))
        marks.append(text(frame.right, bottom + 16, f"{panel.last_step:,}", "soft", "end"))
    return marks + end_label(panel, frame)


def end_label(panel: Panel, frame: Frame) -> list[str]:
    """The last value in bold, with a whisker where it was evaluated."""
    if panel.final is None:
        value = panel.points[-1][1]
        x = frame.x(panel.points[-1][0], panel.last_step)
        return [text(x, frame.y(value) - 9, percent(value), "ink strong", "end")]
    x, final = frame.right - 7, panel.final
    low, high = frame.y(final.low), frame.y(final.high)
    caps = "".join(f"M{x - 4:.1f} {y:.1f}H{x + 4:.1f}" for y in (low, high))
    return [
        f'<path d="M{x:.1f} {low:.1f}V{high:.1f}{caps}" class="line" fill="none" stroke-width="1.5"/>',
        f'<circle cx="{x:.1f}" cy="{frame.y(final.value):.1f}" r="4.5" class="dot halo" stroke-width="1.5"/>',
        text(frame.right, max(TOP - 4, high - 8), percent(final.value), "ink strong", "end"),
    ]


def describe(found: list[Panel]) -> str:
    """The picture in words, for those who don't see it."""
    ends = []
    for panel in found:
        value = panel.final.value if panel.final else panel.points[-1][1]
        ends.append(f"{panel.title} ends at {percent(value)}")
    return "Held-out accuracy over the chain of stages: " + "; ".join(ends) + "."


def draw(found: list[Panel], width: int, top: float, paper: bool = False) -> str:
    """The picture as an `<svg>` element, accuracies from 0 to `top`; `paper` paints its own background."""
    room = (width - LEFT - 14 - GAP * (len(found) - 1)) / len(found)
    marks = []
    for i, panel in enumerate(found):
        left = LEFT + i * (room + GAP)
        frame = Frame(left=left, right=left + room, top_value=top)
        marks += grid(frame, labelled=i == 0) + draw_panel(panel, frame)
    sheet = f'<rect x="0.5" y="0.5" width="{width - 1}" height="{HEIGHT - 1}" rx="8" class="paper"/>' if paper else ""
    axis = text(LEFT + (width - LEFT - 14) / 2, HEIGHT - 8, "step within the stage", "soft", "middle")
    side = f'<g transform="translate(17 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">'
    side += text(0, 0, "held-out accuracy", "soft", "middle") + "</g>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curve" viewBox="0 0 {width} {HEIGHT}" role="img"'
        f' aria-label="{clean(describe(found))}">{sheet}{"".join(marks)}{axis}{side}</svg>'
    )


def standalone(found: list[Panel], width: int = 960) -> str:
    """The picture as a file: with its own style for light and dark, and a fixed size."""
    svg = draw(found, width, scale_top(found), paper=True)
    opening = f'<svg width="{width}" height="{HEIGHT}" '
    return svg.replace("<svg ", opening, 1).replace(">", f"><style>{STANDALONE}</style>", 1) + "\n"
