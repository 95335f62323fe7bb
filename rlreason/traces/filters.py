"""Ten filters in a fixed order, cheap ones first; here are those that look at one row alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlreason.config.traces import TraceFilters
from rlreason.rewards.language import language
from rlreason.rewards.shape import format_reward
from rlreason.traces.rows import TraceRow
from rlreason.types import Completion, Problem, Verdict

ORDER = (
    "finished",
    "format",
    "correct",
    "language",
    "repetition",
    "length",
    "duplicate",
    "contamination",
    "difficulty",
    "cap",
)
#: Words of a block that must not come three times running, and of the n-grams whose repetition is counted.
BLOCK, REPEATED = 32, 20
_THINK = re.compile(r"\A\s*<think>(.*?)</think>(.*)\Z", re.DOTALL)


def stopped_alone(row: TraceRow, filters: TraceFilters) -> tuple[str, dict[str, float]]:
    """The first filter that stops the row and looks at nothing but it, "" if none does; what was measured."""
    measured: dict[str, float] = {}
    if filters.finished and row.finish_reason == "length":
        return "finished", measured
    if not has_form(row.response, filters.format):
        return "format", measured
    if filters.correct and row.verdict != Verdict.CORRECT:
        return "correct", measured
    if filters.language:
        share = language(_PROBLEM, Completion.from_text(row.response), target=filters.target)
        assert isinstance(share, float)
        measured["language"] = round(share, 4)
        if share < filters.language:
            return "language", measured
    if filters.repetition < 1:
        share, looped = repeated(row.response)
        measured["repetition"] = round(share, 4)
        if looped or share > filters.repetition:
            return "repetition", measured
    if filters.max_tokens and row.tokens > filters.max_tokens:
        return "length", measured
    return "", measured


_PROBLEM = Problem(id="", prompt="", verifier="", reference="")


def has_form(response: str, form: str) -> bool:
    """Whether a response has the asked form."""
    if form == "none":
        return True
    if form in ("tags", "boxed"):
        return format_reward(_PROBLEM, Completion.from_text(response), style=form) == 1.0
    found = _THINK.match(response)
    if found is None or response.count("<think>") != 1 or response.count("</think>") != 1:
        return False
    return bool(found[1].strip()) and bool(re.sub(r"</?answer>", "", found[2]).strip())


def repeated(text: str) -> tuple[float, bool]:
    """(share of word 20-grams that are repeats, whether a block of 32 words and more comes three times running)."""
    words = text.split()
    count = len(words) - REPEATED + 1
    if count < 1:
        return 0.0, False
    share = 1.0 - len({tuple(words[at : at + REPEATED]) for at in range(count)}) / count
    return share, _looped(words)


def _looped(words: Sequence[str]) -> bool:
    """Runs of equal words at a distance: three equal blocks of d words in a row are a run of 2·d at distance d."""
    places: dict[tuple[str, ...], int] = {}
    tried: set[int] = set()
    for at in range(len(words) - BLOCK + 1):
        key = tuple(words[at : at + BLOCK])
        before = places.get(key)
        places[key] = at
        if before is None or at - before in tried:
            continue
        step = at - before
        tried.add(step)
        run, block = 0, step * -(-BLOCK // step)  # a shorter word or phrase makes blocks, too
        for place in range(step, len(words)):
            run = run + 1 if words[place] == words[place - step] else 0
            if run >= 2 * block:
                return True
    return False
