"""Ten filters in a fixed order, cheap ones first, and the ledger of what each was the first to stop."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlreason.config.traces import TraceFilters
from rlreason.errors import UsageError
from rlreason.rewards.language import language, thought_of
from rlreason.rewards.shape import format_reward
from rlreason.traces.rows import PassRate, TraceRow
from rlreason.traces.similar import Benchmarks, exact, grams, jaccard, may_be_one, near_duplicates, normal_words
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
#: Share of correct, finished rows that the repetition filter may stop, of at least so many rows.
MOST_REPEATED, ENOUGH = 0.02, 50
#: Verdicts that say something of the response.
SCORED = frozenset({Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED})
_THINK = re.compile(r"\A\s*<think>(.*?)</think>(.*)\Z", re.DOTALL)


@dataclass(slots=True)
class Ledger:
    """Where the rows went: drawn = kept + Σ ``stopped``."""

    drawn: int
    kept: int
    stopped: dict[str, int]
    #: Hits by benchmark.
    contaminated: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """As text."""
        found = [f"{self.drawn:,} rows, {self.kept:,} kept"]
        return found + [f"  {name:<14}{count:>8,} stopped" for name, count in self.stopped.items()]


def filter_rows(
    rows: Sequence[TraceRow], filters: TraceFilters, benchmarks: Benchmarks, keep_per_problem: int
) -> Ledger:
    """Set ``first_reason``, ``pass_rate`` and ``filters`` of every row; the ledger of it.

    Which rows are kept does not depend on their order. Raises UsageError where the repetition filter would stop more
    than 2 % of the correct, finished rows, with examples.
    """
    _set_pass_rates(rows)
    for row in rows:
        row.first_reason = _alone(row, filters)
    _check_repetition(rows)
    _stop_duplicates(rows, filters)
    contaminated: Counter[str] = Counter()
    hits = {row.problem_id: benchmarks.hit(_question(row)) for row in rows}
    for row in rows:
        name = hits[row.problem_id]
        if name is not None:
            row.filters["contamination"] = 1.0
        if not row.first_reason and name is not None:
            row.first_reason = "contamination"
            contaminated[name] += 1
    _stop_by_difficulty(rows, filters)
    _stop_above_cap(rows, keep_per_problem)
    reasons = Counter(row.first_reason for row in rows)
    ledger = Ledger(
        drawn=len(rows),
        kept=reasons[""],
        stopped={name: reasons[name] for name in ORDER},
        contaminated=dict(sorted(contaminated.items())),
    )
    assert ledger.drawn == ledger.kept + sum(ledger.stopped.values()), "every row is kept or has one first reason"
    return ledger


def _question(row: TraceRow) -> str:
    return row.prompt or "\n".join(turn.content for turn in row.messages if turn.role == "user")


def _set_pass_rates(rows: Sequence[TraceRow]) -> None:
    """Of the draws that have a verdict: what broke, timed out or was never judged is in no statistic."""
    drawn = Counter(row.problem_id for row in rows if row.verdict in SCORED)
    correct = Counter(row.problem_id for row in rows if row.verdict == Verdict.CORRECT)
    for row in rows:
        if row.pass_rate is None:  # rows from elsewhere may bring that of draws that are not here
            row.pass_rate = PassRate(correct=correct[row.problem_id], drawn=drawn[row.problem_id])


def _alone(row: TraceRow, filters: TraceFilters) -> str:
    """The first filter that stops the row and looks at nothing but it."""
    if filters.finished and row.finish_reason == "length":
        return "finished"
    if not has_form(row.response, filters.format):
        return "format"
    if filters.correct and row.verdict != Verdict.CORRECT:
        return "correct"
    if filters.language:
        share = language(_PROBLEM, Completion.from_text(row.response), target=filters.target)
        assert isinstance(share, float)
        row.filters["language"] = round(share, 4)
        if share < filters.language:
            return "language"
    if filters.repetition < 1:
        share, looped = repeated(row.response)
        row.filters["repetition"] = round(share, 4)
        if looped or share > filters.repetition:
            return "repetition"
    if filters.max_tokens and row.tokens > filters.max_tokens:
        return "length"
    return ""


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


def _check_repetition(rows: Sequence[TraceRow]) -> None:
    right = [row for row in rows if row.verdict == Verdict.CORRECT and row.finish_reason != "length"]
    stopped = [row.id for row in right if row.first_reason == "repetition"]
    if len(right) >= ENOUGH and len(stopped) > MOST_REPEATED * len(right):
        raise UsageError(
            f"the repetition filter would stop {len(stopped)} of {len(right)} correct, finished rows "
            f"({len(stopped) / len(right):.1%}; more than {MOST_REPEATED:.0%} says that it is wrong for this data), "
            f"such as {', '.join(stopped[:10])}: look at them, and raise filters.repetition, or say 1 to leave it out"
        )


def _stop_duplicates(rows: Sequence[TraceRow], filters: TraceFilters) -> None:
    """Equal answers to equal problems, then problems that are nearly another; of one gold answer, where it is known."""
    seen: dict[tuple[str, str], list[str]] = {}
    for row in sorted((one for one in rows if not one.first_reason), key=lambda one: one.id):
        golds = seen.setdefault((exact(_question(row)), exact(row.response)), [])
        if any(may_be_one(gold_of(row), one) for one in golds):
            row.first_reason = "duplicate"
        else:
            golds.append(gold_of(row))
    left = {row.problem_id: row for row in rows if not row.first_reason}
    questions = {name: _question(row) for name, row in left.items()}
    near = near_duplicates(questions, filters.near_duplicate, {name: gold_of(row) for name, row in left.items()})
    for row in rows:
        if not row.first_reason and row.problem_id in near:
            row.first_reason = "duplicate"


def gold_of(row: TraceRow) -> str:
    """What tells the row's gold answer, or its tests, from others, in few bytes; "" where it has none."""
    told = row.reference
    if told in ("", None, [], {}):
        return ""
    text = exact(told) if isinstance(told, str) else json.dumps(told, sort_keys=True)
    return hashlib.blake2b((text or str(told)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _stop_by_difficulty(rows: Sequence[TraceRow], filters: TraceFilters) -> None:
    band = filters.difficulty
    if band is None:
        return
    for row in rows:
        rate = row.pass_rate
        if row.first_reason or rate is None or rate.drawn < band.min_draws:
            continue
        if not band.above < rate.correct / rate.drawn <= band.at_most:
            row.first_reason = "difficulty"


def _stop_above_cap(rows: Sequence[TraceRow], most: int) -> None:
    """Of each problem at most so many: the shortest, then always the one farthest from those that are chosen."""
    by_problem: dict[str, list[TraceRow]] = {}
    for row in rows:
        if not row.first_reason:
            by_problem.setdefault(row.problem_id, []).append(row)
    for group in by_problem.values():
        left = sorted(group, key=lambda one: (one.tokens, one.id))
        if len(left) <= most:
            continue
        shapes = {row.id: grams(normal_words(thought_of(row.response)), 4) for row in left}
        chosen = [left.pop(0)]
        while len(chosen) < most:
            nearest = {row.id: max(jaccard(shapes[row.id], shapes[one.id]) for one in chosen) for row in left}
            best = min(left, key=lambda one: (nearest[one.id], one.tokens, one.id))
            left.remove(best)
            chosen.append(best)
        for row in left:
            row.first_reason = "cap"
