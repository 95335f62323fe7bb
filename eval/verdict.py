"""What comparisons of models say, in words with numbers, corrected for how many they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlreason.eval.paired import LEVEL, Paired, compare, holm

#: Share of answers cut off at max_tokens from which a comparison says so.
CUT_OFF = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One model on one suite. ``counts``: problem id -> (correct answers, verified answers).

    Example: ``Contender(model="grpo", counts={"p1": (1, 1)}, truncated=0.0)``.
    """

    model: str
    counts: Mapping[str, tuple[int, int]]
    #: Share of answers that ended at max_tokens.
    truncated: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on one suite. ``p``: that of ``paired``, corrected for all comparisons that were made together."""

    suite: str
    first: Contender
    second: Contender
    paired: Paired
    p: float
    #: Comparisons that were made together.
    family: int

    @property
    def called(self) -> bool:
        """Whether one of the two is better, with at most a 5 % chance of saying so of any pair without a difference."""
        return self.p < LEVEL


def judge(pairs: Sequence[tuple[str, Contender, Contender]]) -> list[Comparison]:
    """Compare the second with the first of each (suite, first, second), and correct the p-values for all (Holm).

    Pairs that have no problem in common are left out.
    """
    found = [
        (suite, first, second, compare(first.counts, second.counts))
        for suite, first, second in pairs
        if any(of and second.counts.get(name, (0, 0))[1] for name, (_, of) in first.counts.items())
    ]
    corrected = holm([paired.p for *_, paired in found])
    return [
        Comparison(suite=suite, first=first, second=second, paired=paired, p=p, family=len(found))
        for (suite, first, second, paired), p in zip(found, corrected, strict=True)
    ]


def sentence(one: Comparison) -> str:
    """The verdict in a sentence, such as "B is better than A by 3.1 points on gsm8k, 95 % 0.4 to 5.8, on 1,319 …"."""
    paired, gain = one.paired, one.paired.gain
    test = f"p = {_p(one.p)}" + (f" corrected for {one.family} comparisons" if one.family > 1 else "")
    flips = f"{paired.better:,} problems better, {paired.worse:,} worse"
    on = f"on {paired.problems:,} problem{'s' if paired.problems > 1 else ''}"
    if not one.called:
        said = (
            f"On {one.suite} nothing can be said below {100 * paired.detectable:.1f} points: {one.second.model} has "
            f"{_signed(gain.value)} points against {one.first.model}, "
            f"95 % {_signed(gain.low)} to {_signed(gain.high)}, {on} ({flips}; {test})"
        )
    else:
        better, other, sign = one.second.model, one.first.model, 1
        if gain.value < 0:
            better, other, sign = other, better, -1
        low, high = sorted((sign * gain.low, sign * gain.high))
        said = (
            f"{better} is better than {other} by {100 * abs(gain.value):.1f} points on {one.suite}, 95 % "
            f"{100 * low:.1f} to {100 * high:.1f}, {on} ({flips}; {test})"
        )
    cut = [side for side in (one.first, one.second) if side.truncated >= CUT_OFF]
    warned = " and ".join(f"{side.truncated:.0%} of {side.model}'s" for side in cut)
    return said + (f"; {warned} answers were cut off at max_tokens" if cut else "")


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.01 else f"{value:.1g}"
