"""All filters over rows that go by one at a time, and the ledger of what each was the first to stop.

A long row is some ten thousand bytes of text and tokens; of one that has gone by, the filters keep a few hundred:

    every row once  ->  Seen (lengths, verdict, digests)  ->  reasons  ->  rows again, marked, written
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rlreason.config.traces import Difficulty, TraceFilters
from rlreason.errors import UsageError
from rlreason.rewards.language import thought_of
from rlreason.traces.filters import ORDER, stopped_alone
from rlreason.traces.rows import PassRate, Rows, TraceRow
from rlreason.traces.similar import Benchmarks, exact, grams, jaccard, may_be_one, near_duplicates, normal_words
from rlreason.types import Verdict

#: Share of correct, finished rows that the repetition filter may stop, of at least so many rows.
MOST_REPEATED, ENOUGH = 0.02, 50
#: Verdicts that say something of the response.
SCORED = frozenset({Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED})


@dataclass(slots=True)
class Ledger:
    """Where the rows went: drawn = kept + Σ ``stopped``."""

    drawn: int
    kept: int
    stopped: dict[str, int]
    #: Hits by benchmark.
    contaminated: dict[str, int] = field(default_factory=dict)
    #: Distinct problems of all rows, and of those that are kept.
    problems: int = 0
    problems_kept: int = 0

    def lines(self) -> list[str]:
        """As text."""
        found = [
            f"{self.drawn:,} rows of {self.problems:,} distinct problems, {self.kept:,} of {self.problems_kept:,} kept"
        ]
        return found + [f"  {name:<14}{count:>8,} stopped" for name, count in self.stopped.items()]

    def why_nothing(self) -> str:
        """Of a ledger without kept rows, which filter took most."""
        if not self.drawn:
            return "there is no row"
        name = max(self.stopped, key=lambda one: self.stopped[one])
        return (
            f"none of {self.drawn:,} rows is kept, and the filter {name} stopped most of them, {self.stopped[name]:,}"
        )


@dataclass(slots=True)
class Seen:
    """What is kept of a row that has gone by."""

    id: str
    problem_id: str
    tokens: int
    verdict: str
    cut: bool
    #: Of problem and response, as the exact duplicates are told.
    key: bytes
    gold: str
    rate: PassRate | None
    measured: dict[str, float]
    #: The benchmark that its problem shares words with.
    hit: str | None
    #: The first filter that stopped it; "": kept.
    reason: str


@dataclass(slots=True)
class Sifted:
    """What became of each row, by its place."""

    seen: list[Seen]
    ledger: Ledger

    def places(self, *, kept: bool) -> list[int]:
        """Of the rows that are kept, or of the others, in the order of their ids."""
        found = [at for at, one in enumerate(self.seen) if (not one.reason) == kept]
        return sorted(found, key=lambda at: self.seen[at].id)

    def marked(self, rows: Rows, places: Iterable[int]) -> Iterator[TraceRow]:
        """These rows, read again, with their ``first_reason``, ``pass_rate`` and ``filters``."""
        for at in places:
            row, one = rows[at], self.seen[at]
            row.first_reason, row.pass_rate = one.reason, one.rate
            row.filters |= one.measured
            yield row


def sift(rows: Rows, filters: TraceFilters, benchmarks: Benchmarks, keep_per_problem: int) -> Sifted:
    """Which rows are kept and which filter stopped the others, in two passes over ``rows``.

    It does not depend on their order. Raises UsageError where the repetition filter would stop more than 2 % of the
    correct, finished rows, with examples.
    """
    seen, questions = _looked_at(rows, filters, benchmarks)
    _set_pass_rates(seen)
    _check_repetition(seen)
    _stop_duplicates(seen, questions, filters)
    contaminated: Counter[str] = Counter()
    for one in seen:
        if not one.reason and one.hit is not None:
            one.reason = "contamination"
            contaminated[one.hit] += 1
    if filters.difficulty is not None:
        _stop_by_difficulty(seen, filters.difficulty)
    _stop_above_cap(rows, seen, keep_per_problem)
    reasons = Counter(one.reason for one in seen)
    ledger = Ledger(
        drawn=len(seen),
        kept=reasons[""],
        stopped={name: reasons[name] for name in ORDER},
        contaminated=dict(sorted(contaminated.items())),
        problems=len({one.problem_id for one in seen}),
        problems_kept=len({one.problem_id for one in seen if not one.reason}),
    )
    assert ledger.drawn == ledger.kept + sum(ledger.stopped.values()), "every row is kept or has one first reason"
    return Sifted(seen=seen, ledger=ledger)


def _looked_at(
    rows: Rows, filters: TraceFilters, benchmarks: Benchmarks
) -> tuple[list[Seen], dict[str, tuple[str, str]]]:
    """Every row as it goes by, and (question, gold answer) of each problem of which one is not stopped yet."""
    seen: list[Seen] = []
    questions: dict[str, tuple[str, str]] = {}
    asked: dict[str, tuple[str, str | None]] = {}
    same: dict[str, str] = {}  # one text of equal ones
    for row in rows:
        question = _question(row)
        name, gold = (same.setdefault(text, text) for text in (row.problem_id, gold_of(row)))
        if name not in asked or asked[name][0] != question:
            asked[name] = question, benchmarks.hit(question)
        hit = asked[name][1]
        reason, measured = stopped_alone(row, filters)
        if hit is not None:
            measured["contamination"] = 1.0
        if not reason:
            questions[name] = min((question, gold), questions.get(name, (question, gold)))
        seen.append(
            Seen(
                id=row.id,
                problem_id=name,
                tokens=row.tokens,
                verdict=same.setdefault(row.verdict, row.verdict),
                cut=row.finish_reason == "length",
                key=b"" if reason else _digest(exact(question), exact(row.response)),
                gold=gold,
                rate=row.pass_rate,
                measured=measured,
                hit=hit,
                reason=reason,
            )
        )
    return seen, questions


def _question(row: TraceRow) -> str:
    return row.prompt or "\n".join(turn.content for turn in row.messages if turn.role == "user")


def _digest(*texts: str) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def gold_of(row: TraceRow) -> str:
    """What tells the row's gold answer, or its tests, from others, in few bytes; "" where it has none."""
    told = row.reference
    if told in ("", None, [], {}):
        return ""
    text = exact(told) if isinstance(told, str) else json.dumps(told, sort_keys=True)
    return _digest(text or str(told)).hex()


def _set_pass_rates(seen: Sequence[Seen]) -> None:
    """Of the draws that have a verdict: what broke, timed out or was never judged is in no statistic."""
    drawn = Counter(one.problem_id for one in seen if one.verdict in SCORED)
    correct = Counter(one.problem_id for one in seen if one.verdict == Verdict.CORRECT)
    rates: dict[str, PassRate] = {}
    for one in seen:
        if one.rate is None:  # rows from elsewhere may bring that of draws that are not here
            name = one.problem_id
            if name not in rates:
                rates[name] = PassRate(correct=correct[name], drawn=drawn[name])
            one.rate = rates[name]


def _check_repetition(seen: Sequence[Seen]) -> None:
    right = [one for one in seen if one.verdict == Verdict.CORRECT and not one.cut]
    stopped = [one.id for one in right if one.reason == "repetition"]
    if len(right) >= ENOUGH and len(stopped) > MOST_REPEATED * len(right):
        raise UsageError(
            f"the repetition filter would stop {len(stopped)} of {len(right)} correct, finished rows "
            f"({len(stopped) / len(right):.1%}; more than {MOST_REPEATED:.0%} says that it is wrong for this data), "
            f"such as {', '.join(stopped[:10])}: look at them, and raise filters.repetition, or say 1 to leave it out: "
            "resume the run with stage.NAME.filters.repetition=1, which draws nothing anew, or import with --filter "
            "repetition=1"
        )


def _stop_duplicates(seen: Sequence[Seen], questions: dict[str, tuple[str, str]], filters: TraceFilters) -> None:
    """Equal answers to equal problems, then problems that are nearly another; of one gold answer, where it is known."""
    known: dict[bytes, list[str]] = {}
    for one in sorted((one for one in seen if not one.reason), key=lambda one: one.id):
        golds = known.setdefault(one.key, [])
        if any(may_be_one(one.gold, other) for other in golds):
            one.reason = "duplicate"
        else:
            golds.append(one.gold)
    left = dict.fromkeys(one.problem_id for one in seen if not one.reason)
    texts, golds_of = ({name: questions[name][part] for name in left} for part in (0, 1))
    near = near_duplicates(texts, filters.near_duplicate, golds_of)
    for one in seen:
        if not one.reason and one.problem_id in near:
            one.reason = "duplicate"


def _stop_by_difficulty(seen: Sequence[Seen], band: Difficulty) -> None:
    for one in seen:
        rate = one.rate
        if one.reason or rate is None or rate.drawn < band.min_draws:
            continue
        if not band.above < rate.correct / rate.drawn <= band.at_most:
            one.reason = "difficulty"


def _stop_above_cap(rows: Rows, seen: Sequence[Seen], most: int) -> None:
    """Of each problem at most so many: the shortest, then always the one farthest from those that are chosen."""
    by_problem: dict[str, list[int]] = {}
    for at, one in enumerate(seen):
        if not one.reason:
            by_problem.setdefault(one.problem_id, []).append(at)
    for group in by_problem.values():
        left = sorted(group, key=lambda at: (seen[at].tokens, seen[at].id))
        if len(left) <= most:
            continue
        shapes = {at: grams(normal_words(thought_of(rows[at].response)), 4) for at in left}
        chosen = [left.pop(0)]
        nearest = {at: jaccard(shapes[at], shapes[chosen[0]]) for at in left}
        while len(chosen) < most:
            best = min(left, key=lambda at: (nearest[at], seen[at].tokens, seen[at].id))
            left.remove(best)
            chosen.append(best)
            nearest = {at: max(nearest[at], jaccard(shapes[at], shapes[best])) for at in left}
        for at in left:
            seen[at].reason = "cap"
