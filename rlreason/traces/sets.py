"""A folder of traces: kept rows, rows that were stopped, and a card that says what they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlreason.config.traces import TraceFilters
from rlreason.errors import UsageError
from rlreason.rewards.registry import resolve_verifier
from rlreason.run import atomic
from rlreason.traces.filters import ORDER, Ledger, filter_rows
from rlreason.traces.rows import KEPT, REJECTED, TraceRow, read_rows, sha256_of
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


def write_set(rows: Sequence[TraceRow], folder: Path, options: SetOptions) -> Ledger:
    """Filter ``rows`` and write them with their card. The same rows give the same bytes."""
    wanted = options.filters.decontaminate
    benchmarks = Benchmarks.read(wanted.against, wanted.n, options.base)
    ledger = filter_rows(rows, options.filters, benchmarks, options.keep_per_problem)
    kept = sorted((row for row in rows if not row.first_reason), key=lambda one: one.id)
    stopped = sorted((row for row in rows if row.first_reason), key=lambda one: one.id)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / KEPT, "".join(row.as_line() for row in kept))
    if options.keep_rejected:
        atomic.write_text(folder / REJECTED, "".join(row.as_line() for row in stopped))
    card = card_of(kept, ledger, options, benchmarks)
    atomic.write_text(folder / README, _readme(folder.name, card))
    # Last: a set without its card is one that was not finished.
    atomic.write_text(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return ledger


def check_free(folder: Path) -> None:
    """Raise UsageError where a set can't be written into ``folder``: what an import left that did not end is no set."""
    found = {one.name.removeprefix(".").removesuffix(".tmp") for one in folder.iterdir()} if folder.exists() else set()
    unfinished = KEPT in found and found <= {KEPT, REJECTED, README}
    if found and not unfinished:
        raise UsageError(f"{folder} is not empty: name a new folder")


def card_of(kept: Sequence[TraceRow], ledger: Ledger, options: SetOptions, benchmarks: Benchmarks) -> dict[str, object]:
    """What the card says, as JSON."""
    rows, tokens = Counter(_source(row) for row in kept), Counter[str]()
    for row in kept:
        tokens[_source(row)] += row.tokens
    lengths = Counter(next((f"<= {edge}" for edge in _EDGES if row.tokens <= edge), "longer") for row in kept)
    rates = [row.pass_rate.correct / row.pass_rate.drawn for row in kept if row.pass_rate and row.pass_rate.drawn]
    models = sorted({row.provenance.model for row in kept})
    return {
        "schema": 1,
        "rows": {"drawn": ledger.drawn, "kept": ledger.kept},
        "stopped": ledger.stopped,
        "filters": options.filters.model_dump(mode="json"),
        "keep_per_problem": options.keep_per_problem,
        "problems": len({row.problem_id for row in kept}),
        "tokens": sum(tokens.values()),
        "by_source": {name: {"rows": rows[name], "tokens": tokens[name]} for name in sorted(rows)},
        "lengths": {f"<= {edge}": lengths[f"<= {edge}"] for edge in _EDGES} | {"longer": lengths["longer"]},
        "pass_rate_mean": round(sum(rates) / len(rates), 4) if rates else None,
        "teachers": models,
        "benchmarks": {
            name: {"questions": size, "n": benchmarks.n, "hits": ledger.contaminated.get(name, 0)}
            for name, size in benchmarks.sizes.items()
        },
        "sha256": sha256_of(kept),
        "limits": [
            "Paraphrases of benchmark questions are not found: only words in a row are compared.",
            "The thresholds of language and repetition are ours: R1's are not published.",
        ],
    }


def _source(row: TraceRow) -> str:
    return row.source or row.data_set or "unnamed"


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


def check_set(folder: Path, *, verify: bool = True) -> Checked:
    """Verify every kept row again, filter it again, and count the card anew. Raises UsageError for what is no set."""
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} is no folder of traces: {path.name} can't be read ({error})") from error
    rows = list(read_rows(folder / KEPT))
    faults, verified, perturbed = [], 0, dict[str, tuple[int, int]]()
    if sha256_of(rows) != card["sha256"]:
        faults.append(f"{KEPT}: its sha256 is not the card's")
    if len(rows) != card["rows"]["kept"] or sum(row.tokens for row in rows) != card["tokens"]:
        faults.append(f"{KEPT}: {len(rows)} rows, and the card counts others")
    filters = TraceFilters.model_validate(card["filters"]).model_copy(update={"difficulty": None})
    recorded = [(row.id, row.verdict, row.pass_rate) for row in rows]
    for row in rows if verify else ():
        if not row.verifier or row.reference == "":
            continue
        verified += 1
        found = verdict_of(row)
        if found != row.verdict:
            faults.append(f"row {row.id}: its verdict is {row.verdict}, and {row.verifier} says {found} now")
            row.verdict = found
        other = _one_off(row)
        if found == Verdict.CORRECT and other is not None:
            tried, taken = perturbed.get(row.verifier, (0, 0))
            perturbed[row.verifier] = (tried + 1, taken + (verdict_of(other) == Verdict.CORRECT))
    again = [row.model_copy(deep=True) for row in rows]
    filter_rows(again, filters, Benchmarks({}, 10), card["keep_per_problem"])
    for row, (key, _, _) in zip(again, recorded, strict=True):
        if row.first_reason:
            faults.append(f"row {key}: the filter {row.first_reason} stops it")
    return Checked(rows=len(rows), verified=verified, faults=tuple(faults), perturbed=perturbed)


def _one_off(row: TraceRow) -> TraceRow | None:
    """The row with another gold answer: the last number of it one more. None where there is none to change."""
    if not isinstance(row.reference, str):
        return None
    changed, count = _NUMBER.subn(lambda found: str(int(found.group()) + 1), row.reference)
    return row.model_copy(update={"reference": changed}) if count else None


def verdict_of(row: TraceRow) -> str:
    """What the row's verifier says of it now."""
    reference = tuple(row.reference) if isinstance(row.reference, list) else row.reference
    problem = Problem(id=row.problem_id, prompt=row.prompt, verifier=row.verifier, reference=reference)
    result = resolve_verifier(row.verifier).function(problem, Completion.from_text(row.response))
    if isinstance(result, RewardResult):
        return str(result.verdict)
    return str(Verdict.CORRECT if result else Verdict.WRONG)
