"""One page of an evaluation: the verdict, accuracies and differences with their intervals, every flip to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from rlreason.eval.verdict import Comparison, sentence
from rlreason.evaluation.sides import Answer, Side
from rlreason.report import page
from rlreason.types import Interval, Problem

#: Flips in each direction of one comparison that are shown in full, rows of its table, characters of an answer.
FLIPS, ROWS, CHARACTERS = 30, 2_000, 4_000
#: Width of a plot in the units of its picture.
_WIDE = 460


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A problem on which one model does better than the other, with an answer of each."""

    problem: str
    prompt: str
    reference: str
    first: Answer
    second: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One comparison on the page. ``rows``: (problem, share of the first, share of the second)."""

    comparison: Comparison
    verdict: str
    plot: Markup
    gained: Sequence[Flip]
    lost: Sequence[Flip]
    rows: Sequence[tuple[str, str, str]]
    rows_left_out: int


def write_page(
    path: Path,
    sides: Sequence[Side],
    comparisons: Sequence[Comparison],
    problems: Mapping[tuple[str, str], Problem],
) -> None:
    """Write the page. ``problems``: (suite, id) -> the problem, for those to read."""
    text = (
        page.environment()
        .from_string(page.asset("eval.html"))
        .render(
            sides=[(side, accuracy_plot(side.accuracy)) for side in sides],
            sections=[_section(one, sides, problems) for one in comparisons],
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            style=Markup(page.asset("style.css")),
            limit=FLIPS,
        )
    )
    page.write_atomically(path, text)


def accuracy_plot(accuracy: Interval) -> Markup:
    """A point with its interval on a scale from 0 to 100 %."""
    return _plot(accuracy.value, accuracy.low, accuracy.high, (0.0, 1.0), zero=None)


def gain_plot(gain: Interval) -> Markup:
    """A difference with its interval, and where there is none."""
    reach = max(abs(gain.low), abs(gain.high), 0.02) * 1.1
    return _plot(gain.value, gain.low, gain.high, (-reach, reach), zero=0.0)


def _plot(value: float, low: float, high: float, scale: tuple[float, float], zero: float | None) -> Markup:
    def x(share: float) -> float:
        return 6 + (_WIDE - 12) * (share - scale[0]) / (scale[1] - scale[0])

    middle = (
        "" if zero is None else f'<line x1="{x(zero):.1f}" x2="{x(zero):.1f}" y1="0" y2="20" stroke-dasharray="2 3"/>'
    )
    # Only numbers go into it, so nothing is there to escape.
    return Markup(
        f'<svg viewBox="0 0 {_WIDE} 20" width="{_WIDE}" height="20" role="img" aria-label="{100 * value:.1f}, 95 % '
        f'{100 * low:.1f} to {100 * high:.1f}" stroke="currentColor" fill="currentColor">'
        f'<line x1="6" x2="{_WIDE - 6}" y1="10" y2="10" opacity="0.2"/>{middle}'
        f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="10" y2="10" stroke-width="3"/>'
        f'<circle cx="{x(value):.1f}" cy="10" r="4.5"/></svg>'
    )


def _section(one: Comparison, sides: Sequence[Side], problems: Mapping[tuple[str, str], Problem]) -> Section:
    answers = [
        next(side.answers for side in sides if (side.suite, side.model) == (one.suite, contender.model))
        for contender in (one.first, one.second)
    ]
    shares = list(_shares(one))
    rows = [(name, _written(one.first.counts[name]), _written(one.second.counts[name])) for name, _, _ in shares]
    gained = [name for name, old, new in sorted(shares, key=lambda row: row[1] - row[2]) if new > old]
    lost = [name for name, old, new in sorted(shares, key=lambda row: row[2] - row[1]) if new < old]

    def flip(name: str, *, gains: bool) -> Flip:
        problem = problems.get((one.suite, name))
        return Flip(
            problem=name,
            prompt=problem.prompt if problem else "",
            reference=str(problem.reference)[:400] if problem else "",
            first=_shown(answers[0][name], right=not gains),
            second=_shown(answers[1][name], right=gains),
        )

    return Section(
        comparison=one,
        verdict=sentence(one),
        plot=gain_plot(one.paired.gain),
        gained=[flip(name, gains=True) for name in gained[:FLIPS]],
        lost=[flip(name, gains=False) for name in lost[:FLIPS]],
        rows=rows[:ROWS],
        rows_left_out=len(rows[ROWS:]),
    )


def _shares(one: Comparison) -> Iterator[tuple[str, float, float]]:
    for name, (right, of) in one.first.counts.items():
        other = one.second.counts.get(name, (0, 0))
        if of and other[1]:
            yield name, right / of, other[0] / other[1]


def _written(counts: tuple[int, int]) -> str:
    right, of = counts
    return ("right" if right else "wrong") if of == 1 else f"{right} of {of}"


def _shown(answers: Sequence[Answer], *, right: bool) -> Answer:
    """A verified answer that is right, or one that is not; the first where there is none."""
    verified = [one for one in answers if one.verdict is not None]
    one = next((one for one in verified if (one.verdict == "correct") == right), verified[0])
    text = one.text if len(one.text) <= CHARACTERS else f"… {one.text[-CHARACTERS:]}"
    return Answer(verdict=one.verdict, text=text, extracted=one.extracted)
