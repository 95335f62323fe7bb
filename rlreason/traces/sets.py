"""A folder of traces: kept rows, rows that were stopped, and a card that says what they are."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from rlreason.config.traces import TraceFilters
from rlreason.errors import UsageError
from rlreason.rewards.registry import resolve_verifier
from rlreason.run import atomic
from rlreason.traces.filters import ORDER
from rlreason.traces.rows import KEPT, REJECTED, Rows, TraceRow, row_file
from rlreason.traces.sift import Ledger, sift
from rlreason.traces.similar import Benchmarks
from rlreason.types import Completion, Problem, RewardResult, Verdict

CARD, README = "card.json", "README.md"
_EDGES = (256, 1024, 4096, 16384, 32768)
_NUMBER = re.compile(r"\d+(?!.*\d)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOptions:
    """How a set is made. Example: ``SetOptions(filters=TraceFilters(), keep_per_problem=4, keep_rejected=True)``."""

    filters: TraceFilters
    keep_per_problem: int = 4
    keep_rejected: bool = False
    #: Folder that paths of benchmarks are relative to.
    base: Path = Path()


def write_set(rows: Rows, folder: Path, options: SetOptions) -> Ledger:
    """Filter ``rows`` and write them with their card, line by line. The same rows give the same bytes.

    Where none is kept, nothing is written: who called says so with the ledger.
    """
    wanted = options.filters.decontaminate
    benchmarks = Benchmarks.read(wanted.against, wanted.n, options.base)
    (folder / CARD).unlink(missing_ok=True)  # of a set that other filters made
    found = sift(rows, options.filters, benchmarks, options.keep_per_problem)
    ledger, tally = found.ledger, Tally()
    if not ledger.kept:
        return ledger
    folder.mkdir(parents=True, exist_ok=True)
    kept = found.marked(rows, found.places(kept=True))
    atomic.write_lines(folder / KEPT, (tally.counted(row) for row in kept))
    stopped = found.marked(rows, found.places(kept=False))
    if options.keep_rejected:
        atomic.write_lines(folder / REJECTED, (row.as_line() for row in stopped))
    else:
        (folder / REJECTED).unlink(missing_ok=True)
    card = card_of(tally, ledger, options, benchmarks)
    atomic.write_text(folder / README, _readme(folder.name, card))
    # Last: a set without its card is one that was not finished.
    atomic.write_text(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return ledger


@dataclass(slots=True)
class Tally:
    """What a card counts of the kept rows, while they are written."""

    rows: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    rates: array[float] = field(default_factory=lambda: array("d"))
    models: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)
    _lines: hashlib._Hash = field(default_factory=hashlib.sha256)

    def counted(self, row: TraceRow) -> str:
        """The row's line, which is counted."""
        line, source = row.as_line(), row.source or row.data_set or "unnamed"
        self._lines.update(line.encode())
        self.rows[source] += 1
        self.tokens[source] += row.tokens
        self.lengths[next((f"<= {edge}" for edge in _EDGES if row.tokens <= edge), "longer")] += 1
        if row.pass_rate and row.pass_rate.drawn:
            self.rates.append(row.pass_rate.correct / row.pass_rate.drawn)
        self.models.add(row.provenance.model)
        self.problems.add(row.problem_id)
        return line

    @property
    def sha256(self) -> str:
        """Of the lines."""
        return self._lines.hexdigest()


def check_free(folder: Path) -> None:
    """Raise UsageError where a set can't be written into ``folder``: what an import left that did not end is no set."""
    found = {one.name.removeprefix(".").removesuffix(".tmp") for one in folder.iterdir()} if folder.exists() else set()
    unfinished = KEPT in found and found <= {KEPT, REJECTED, README}
    if found and not unfinished:
        raise UsageError(f"{folder} is not empty: name a new folder")


def card_of(tally: Tally, ledger: Ledger, options: SetOptions, benchmarks: Benchmarks) -> dict[str, object]:
    """What the card says, as JSON."""
    rows, tokens, lengths, rates = tally.rows, tally.tokens, tally.lengths, tally.rates
    return {
        "schema": 1,
        "rows": {"drawn": ledger.drawn, "kept": ledger.kept},
        "stopped": ledger.stopped,
        "filters": options.filters.model_dump(mode="json"),
        "keep_per_problem": options.keep_per_problem,
        "problems": len(tally.problems),
        "tokens": sum(tokens.values()),
        "by_source": {name: {"rows": rows[name], "tokens": tokens[name]} for name in sorted(rows)},
        "lengths": {f"<= {edge}": lengths[f"<= {edge}"] for edge in _EDGES} | {"longer": lengths["longer"]},
        "pass_rate_mean": round(sum(rates) / len(rates), 4) if rates else None,
        "teachers": sorted(tally.models),
        "benchmarks": {
            name: {"questions": size, "n": benchmarks.n, "hits": ledger.contaminated.get(name, 0)}
            for name, size in benchmarks.sizes.items()
        },
        "sha256": tally.sha256,
        "limits": [
            "Paraphrases of benchmark questions are not found: only words in a row are compared.",
            "The thresholds of language and repetition are ours: R1's are not published.",
        ],
    }


def _readme(name: str, card: dict[str, object]) -> str:
    rows, stopped, sources = card["rows"], card["stopped"], card["by_source"]
    assert isinstance(rows, dict)
    assert isinstance(stopped, dict)
    assert isinstance(sources, dict)
    lines = [
        f"# {name}",
        "",
        f"{rows['kept']:,} traces of {card['problems']:,} problems, {card['tokens']:,} tokens; {rows['drawn']:,} rows "
        "were looked at.",
        "",
        "| filter | rows that it was the first to stop |",
        "|---|---|",
        *(f"| {one} | {stopped[one]:,} |" for one in ORDER),
        "",
        "| source | rows | tokens |",
        "|---|---|---|",
        *(f"| {key} | {one['rows']:,} | {one['tokens']:,} |" for key, one in sources.items()),
        "",
        "Limits:",
        "",
        *(f"- {one}" for one in card["limits"]),  # type: ignore[attr-defined]
        "",
        f"sha256 of {KEPT}: `{card['sha256']}`",
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `rlreason traces check` found."""

    rows: int
    verified: int
    #: What is wrong, each with its row.
    faults: tuple[str, ...]
    #: By verifier: correct rows that were judged by an answer one off theirs, and how many of those it still took for
    #: correct: its wrong positives, which a filter on its verdicts lets through.
    perturbed: Mapping[str, tuple[int, int]]


class _Card(BaseModel):
    """What a card must say to be checked."""

    class Counts(BaseModel):
        """Of rows."""

        kept: int

    rows: Counts
    tokens: int
    sha256: str
    filters: TraceFilters
    keep_per_problem: int


def _read_card(path: Path) -> _Card:
    try:
        return _Card.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path.parent} is no folder of traces: {path.name} can't be read ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"{path.parent} is no folder of traces: {path.name}, {place}: {first['msg']}; make the set again with "
            "`rlreason traces import` or a reject stage with filters"
        ) from error


def check_set(folder: Path, *, verify: bool = True) -> Checked:
    """Verify every kept row again, filter it again, and count the card anew, one row in memory at a time.

    Raises UsageError for what is no set.
    """
    card = _read_card(folder / CARD)
    with row_file(folder / KEPT) as file:
        rows = _Verified(file, verify=verify)
        filters = card.filters.model_copy(update={"difficulty": None})
        again = sift(rows, filters, Benchmarks({}, 10), card.keep_per_problem)
    faults = []
    if rows.tally.sha256 != card.sha256:
        faults.append(f"{KEPT}: its sha256 is not the card's")
    count = len(again.seen)
    if count != card.rows.kept or sum(rows.tally.tokens.values()) != card.tokens:
        faults.append(f"{KEPT}: {count} rows, and the card counts others")
    faults += rows.faults
    faults += [f"row {one.id}: the filter {one.reason} stops it" for one in again.seen if one.reason]
    return Checked(rows=count, verified=rows.verified, faults=tuple(faults), perturbed=rows.perturbed)


class _Verified:
    """Rows of a set, each counted and judged again as it goes by."""

    def __init__(self, rows: Rows, *, verify: bool) -> None:
        self._rows, self._verify = rows, verify
        self.tally, self.verified = Tally(), 0
        self.faults: list[str] = []
        self.perturbed: dict[str, tuple[int, int]] = {}

    def __getitem__(self, at: int, /) -> TraceRow:
        return self._rows[at]

    def __iter__(self) -> Iterator[TraceRow]:
        for row in self._rows:
            self.tally.counted(row)
            if self._verify and row.verifier and row.reference != "":
                self._judge(row)
            yield row

    def _judge(self, row: TraceRow) -> None:
        self.verified += 1
        found = verdict_of(row)
        if found != row.verdict:
            self.faults.append(f"row {row.id}: its verdict is {row.verdict}, and {row.verifier} says {found} now")
            row.verdict = found
        other = _one_off(row)
        if found == Verdict.CORRECT and other is not None:
            tried, taken = self.perturbed.get(row.verifier, (0, 0))
            self.perturbed[row.verifier] = (tried + 1, taken + (verdict_of(other) == Verdict.CORRECT))


def _one_off(row: TraceRow) -> TraceRow | None:
    """The row with another gold answer: the last number of it one more. None where there is none to change."""
    if not isinstance(row.reference, str):
        return None
    changed, count = _NUMBER.subn(lambda found: str(int(found.group()) + 1), row.reference)
    return row.model_copy(update={"reference": changed}) if count else None


def judge(row: TraceRow) -> TraceRow:
    """The row with what its verifier says of it, where it has one and a gold answer."""
    if row.verifier and row.reference != "":
        row.verdict = verdict_of(row)
    return row


def verdict_of(row: TraceRow) -> str:
    """What the row's verifier says of it now."""
    reference = tuple(row.reference) if isinstance(row.reference, list) else row.reference
    problem = Problem(id=row.problem_id, prompt=row.prompt, verifier=row.verifier, reference=reference)
    result = resolve_verifier(row.verifier).function(problem, Completion.from_text(row.response))
    if isinstance(result, RewardResult):
        return str(result.verdict)
    return str(Verdict.CORRECT if result else Verdict.WRONG)
