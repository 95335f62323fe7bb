"""The lineage of a run as one SVG picture: models, traces and results, from what each was made, with their hashes.

Layers from top to bottom: a box stands below all that it was made from. An edge over several layers is led through a
place of its own in each of them, so that it crosses no box; edges from one box share it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from rlreason.report.read import Run, Stage, as_dict, words
from rlreason.report.words import kind, visible

BOX, HIGH, LANE, GAP, DOWN, MARGIN = 262, 62, 18, 22, 46, 8
#: Tables of a recipe, which no stage made.
_BASES = {"policy": "model of the recipe", "student": "model of the recipe"}


@dataclass(slots=True, eq=False)
class Node:
    """A box, or with no lines a place that an edge passes through."""

    key: str
    layer: int
    title: str = ""
    lines: tuple[str, ...] = ()
    style: str = ""
    link: str = ""
    above: list[Node] = field(default_factory=list)
    x: float = 0.0

    @property
    def width(self) -> int:
        return BOX if self.lines else LANE


def draw(run: Run) -> str | None:
    """The picture; None where no stage has begun."""
    stages = [stage for stage in run.stages if stage.parents and stage.status != "pending"]
    if not stages:
        return None
    nodes = _nodes(stages)
    layers = _layers(nodes)
    width = max(sum(one.width for one in layer) + GAP * (len(layer) - 1) for layer in layers) + 2 * MARGIN
    for layer in layers:
        at = (width - sum(one.width for one in layer) - GAP * (len(layer) - 1)) / 2
        for one in layer:
            one.x, at = at + one.width / 2, at + one.width + GAP
    height = len(layers) * (HIGH + DOWN) - DOWN + 2 * MARGIN
    every = [one for layer in layers for one in layer]
    edges = "".join(_edge(above, one) for one in every for above in one.above)
    boxes = "".join(_box(one) for one in every)
    said = escape(visible(f"Lineage of {run.name}: {len(stages)} stages"), quote=True)
    return (
        f'<svg class="lineage-graph" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" aria-label="{said}">{edges}{boxes}</svg>'
    )


def _nodes(stages: list[Stage]) -> list[Node]:
    """Boxes, each below its parents, and their edges. A name that no earlier stage has is of a model that none made."""
    found: list[Node] = []
    named: dict[str, Node] = {}
    for stage in stages:
        sources = [as_dict(one) for one in stage.made_from]
        made = {str(one.get("name")): words(one.get("sha256")) for one in sources if one.get("kind") in _ARTEFACTS}
        above = []
        for name in dict.fromkeys([*stage.parents, *made]):
            owner = name.partition("@")[0]
            if owner not in named:
                lines = (_BASES.get(owner, "from elsewhere"), _short(made.get(name)).removeprefix("· "))
                named[owner] = Node(key=f"base {owner}", layer=0, title=owner, lines=lines, style="base")
                found.append(named[owner])
            if named[owner] not in above:
                above.append(named[owner])
        read = [one for one in sources if one.get("kind") not in _ARTEFACTS]
        node = Node(
            key=stage.name,
            layer=1 + max(one.layer for one in above),
            title=stage.name,
            lines=(f"{kind(stage.kind)} {_short(stage.sha256)}", _read(read)),
            style=stage.kind,
            link=f"#stage-{stage.number}",
            above=above,
        )
        found.append(node)
        named |= {name: node for name in (stage.name, stage.checkpoint, stage.sha256) if name}
    return found


_ARTEFACTS = ("model", "traces")


def _short(sha256: str | None) -> str:
    return f"· {sha256[:10]}" if sha256 else ""


def _read(sources: list[dict[str, object]]) -> str:
    """Data and reward code in a line."""
    told = [f"{one.get('name')} {str(one.get('sha256'))[:6]}" for one in sources]
    return ("reads " + ", ".join(told)) if told else ""


def _layers(nodes: list[Node]) -> list[list[Node]]:
    """Boxes and passing places layer by layer, each near what it comes from."""
    layers: list[list[Node]] = [[] for _ in range(1 + max(one.layer for one in nodes))]
    lanes: dict[tuple[str, int], Node] = {}
    for one in nodes:
        layers[one.layer].append(one)
        one.above = [_lane(above, one.layer - 1, lanes) for above in one.above]
    for (_, layer), lane in lanes.items():
        layers[layer].append(lane)
    for upper, lower in pairwise(layers):
        place = {id(one): at for at, one in enumerate(upper)}
        lower.sort(key=lambda one: sum(place[id(up)] for up in one.above) / max(1, len(one.above)))
    return layers


def _lane(source: Node, layer: int, lanes: dict[tuple[str, int], Node]) -> Node:
    """Where an edge from ``source`` is in ``layer``: itself, or a place that all its edges pass."""
    if source.layer == layer:
        return source
    if (source.key, layer) not in lanes:
        lane = lanes[source.key, layer] = Node(key=source.key, layer=layer)
        lane.above = [_lane(source, layer - 1, lanes)]
    return lanes[source.key, layer]


def _top(node: Node) -> float:
    return MARGIN + node.layer * (HIGH + DOWN)


def _edge(above: Node, below: Node) -> str:
    start, end = _top(above) + HIGH, _top(below)
    middle = (start + end) / 2
    path = f"M{above.x:.1f} {start:.1f}C{above.x:.1f} {middle:.1f} {below.x:.1f} {middle:.1f} {below.x:.1f} {end:.1f}"
    if not below.lines:
        path += f"V{end + HIGH:.1f}"
    return f'<path class="edge{" end" if below.lines else ""}" d="{path}"/>'


def _box(node: Node) -> str:
    if not node.lines:
        return ""
    left, top = node.x - BOX / 2, _top(node)
    texts = [("name", node.title), *(("soft", line) for line in node.lines)]
    body = f'<rect x="{left:.1f}" y="{top:.1f}" width="{BOX}" height="{HIGH}" rx="6"/>'
    for at, (style, text) in enumerate(texts):
        body += f'<text class="{style}" x="{left + 12:.1f}" y="{top + 20 + 16 * at:.1f}">{_cut(text)}</text>'
    told = escape(visible(" ".join((node.title, *node.lines))))
    body = f'<g class="node {escape(visible(node.style), quote=True)}">{body}<title>{told}</title></g>'
    return f'<a href="{escape(node.link, quote=True)}">{body}</a>' if node.link else body


def _cut(text: str) -> str:
    shown = visible(text)
    return escape(shown if len(shown) <= 34 else f"{shown[:33]}…")
