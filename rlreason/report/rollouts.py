"""Picks the rollouts that the page carries: whole groups, spread evenly over the run, within a budget.

A page that holds every completion of a long run would take minutes to open. Groups are kept whole, because an
advantage means nothing without the other completions of its group.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlreason.report.read import Json, Run, Stage, as_dict, json_lines, number, open_lines, whole
from rlreason.secrets import mask
from rlreason.types import Verdict

#: Rollouts and bytes of text that one page carries, over all stages.
MAX_ROLLOUTS = 4_000
MAX_BYTES = 8_000_000
#: Longest response and longest other text kept of one rollout, in characters.
MAX_RESPONSE = 20_000
MAX_TEXT = 4_000


VERDICTS = tuple(verdict.value for verdict in Verdict)


@dataclass(slots=True)
class Located:
    """One group: where its lines are, as (number of the file, byte offset in its text)."""

    offsets: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRollouts:
    """The rollouts of one stage: those kept for the page, and counts over all of them."""

    stage: str
    #: Where they came from, relative to stages/.
    source: str
    groups: list[Json]
    shown: int
    total: int
    verdicts: Mapping[str, int]
    torn: int


def verdict_order(verdict: str) -> tuple[int, str]:
    """Verdicts are listed from right to broken everywhere; words that are no verdict come last."""
    return (VERDICTS.index(verdict) if verdict in VERDICTS else len(VERDICTS), verdict)


def clip(value: object, limit: int = MAX_TEXT) -> str | None:
    """Text of at most `limit` characters; other JSON is written out as JSON; None stays None."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[:limit] + f" … ({len(text) - limit:,} more characters)"


def sources(stage: Stage) -> list[Path]:
    """The files that hold a stage's rollouts: two where `logging.rollouts.compress` was changed on the way."""
    names = ("rollouts.jsonl", "rollouts.jsonl.gz")
    return [stage.folder / name for name in names if (stage.folder / name).is_file()] if stage.folder else []


def locate(paths: Sequence[Path]) -> tuple[dict[tuple[str, int], Located], Counter[str], int]:
    """First pass: the groups of the files in order, all verdicts counted, and the number of unreadable lines."""
    groups: dict[tuple[str, int], Located] = {}
    verdicts: Counter[str] = Counter()
    torn = 0
    for number_of_file, path in enumerate(paths):
        for offset, length, row in json_lines(path):
            if row is None:
                torn += 1
                continue
            group = groups.setdefault((str(row.get("group_id")), whole(row.get("step")) or 0), Located())
            group.offsets.append((number_of_file, offset))
            group.size += min(length, MAX_RESPONSE + 3 * MAX_TEXT)
            verdicts[clip(row.get("verdict"), 40) or "?"] += 1
    return groups, verdicts, torn


def pick(groups: list[Located], max_rollouts: int, max_bytes: int) -> list[Located]:
    """An even choice of groups that fits both budgets; at least one where there is any."""
    rollouts = sum(len(group.offsets) for group in groups)
    size = sum(group.size for group in groups)
    if rollouts <= max_rollouts and size <= max_bytes:
        return groups
    share = min(max_rollouts / rollouts, max_bytes / size)
    picked = [group for i, group in enumerate(groups) if int((i + 1) * share) > int(i * share)]
    return picked or groups[:1]


def compact(row: Json) -> Json:
    """One completion as the page's script reads it."""
    response = row.get("response")
    response = response if isinstance(response, str) else clip(response) or ""
    parts = {str(key)[:80]: number(value) for key, value in list(as_dict(row.get("parts")).items())[:40]}
    return {
        "sample": whole(row.get("sample")),
        "response": response[:MAX_RESPONSE],
        "cut": max(0, len(response) - MAX_RESPONSE),
        "verdict": clip(row.get("verdict"), 40) or "?",
        "score": number(row.get("score")),
        "extracted": clip(row.get("extracted")),
        "parts": parts,
        "detail": mask(clip(row.get("detail")) or ""),
        "advantage": number(row.get("advantage")),
        "tokens": whole(row.get("tokens")),
        "finish": clip(row.get("finish_reason"), 40),
        "version": whole(row.get("policy_version")),
    }


def load_rows(paths: Sequence[Path], wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Json]:
    """Second pass: the rows at these places, each file read forwards once."""
    found = {}
    for number_of_file, path in enumerate(paths):
        with open_lines(path) as file:
            for place in sorted(one for one in wanted if one[0] == number_of_file):
                file.seek(place[1])
                found[place] = json.loads(file.readline())
    return found


def load_group(rows: Sequence[Json]) -> Json:
    """One group, with what its completions share said once."""
    first = rows[0]
    rendered = next((text for row in rows if (text := clip(row.get("rendered_prompt")))), None)
    return {
        "step": whole(first.get("step")) or 0,
        "group": clip(first.get("group_id"), 400),
        "problem": clip(first.get("problem_id"), 400) or "?",
        "prompt": clip(first.get("prompt")) or "",
        "rendered": rendered,
        # Some completions of a group that is not logged, kept because their check failed.
        "partial": all(row.get("logged_for") == "failure" for row in rows),
        "reference": clip(first.get("reference")),
        "rows": [compact(row) for row in rows],
    }


def stage_rollouts(stage: Stage, max_rollouts: int, max_bytes: int) -> StageRollouts | None:
    """The rollouts of one stage; None where it wrote none."""
    paths = sources(stage)
    if not paths:
        return None
    located, verdicts, torn = locate(paths)
    picked = pick(list(located.values()), max_rollouts, max_bytes)
    rows = load_rows(paths, [place for group in picked for place in group.offsets])
    groups = [load_group([rows[place] for place in group.offsets]) for group in picked]
    return StageRollouts(
        stage=stage.name,
        source="/".join(paths[-1].parts[-2:]),
        groups=groups,
        shown=sum(len(group["rows"]) for group in groups),
        total=verdicts.total(),
        verdicts={verdict: verdicts[verdict] for verdict in sorted(verdicts, key=verdict_order)},
        torn=torn,
    )


def read_rollouts(run: Run) -> list[StageRollouts]:
    """The rollouts that the page carries, by stage, each stage with an equal part of the budget."""
    writers = [stage for stage in run.stages if sources(stage)]
    if not writers:
        return []
    found = (stage_rollouts(s, MAX_ROLLOUTS // len(writers), MAX_BYTES // len(writers)) for s in writers)
    return [one for one in found if one is not None and one.total]
