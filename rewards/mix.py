"""The recipe's ``[reward]`` table: a weighted sum of named parts.

``{"accuracy": 1.0, "format": 0.1, "overlong": {"weight": 0.5, "max_tokens": 48, "buffer": 16}}``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rlreason.rewards.calling import MAX_DETAIL, Asked, Scored, as_result, ask, plain_text
from rlreason.rewards.parts import MixPart, read_part
from rlreason.rewards.plugins import parse
from rlreason.types import Completion, Problem, RewardResult, Verdict

__all__ = ["MAX_DETAIL", "MixPart", "RewardMix", "as_result", "plain_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardMix:
    """Scores completions with every part. Picklable: workers look the functions up again by name.

    The *main* part decides the verdict: ``accuracy`` or another verifier where there is one, else the first part.
    Its score None (BROKEN, TIMED_OUT, unreadable gold) makes the whole score None; None from another part
    means that it does not apply, and adds nothing. An exception in any part is BROKEN. ``verified`` is the main part's
    verdict where that part is a verifier, whatever the others did.

    Every part is given a problem of its own, so that none sees what another did to its reference.
    """

    parts: tuple[MixPart, ...]

    @classmethod
    def from_table(cls, table: Mapping[str, object], copies: Mapping[str, str] | None = None) -> RewardMix:
        """Check names, weights and options of a ``[reward]`` table; ValueError says which key is wrong and why.

        ``copies``: a plug-in as named in the table -> the one that is loaded instead of it.
        """
        if not table:
            raise ValueError("reward: the table is empty; it needs at least one part, such as accuracy = 1.0")
        labels = _labels(table)
        parts = tuple(
            read_part(key, value, labels[key], copies[key] if copies and key in copies else key)
            for key, value in table.items()
        )
        main = next((one for one in parts if _is_verifier(one)), parts[0])
        return cls(parts=_with_gates((main, *(one for one in parts if one is not main)), labels))

    @property
    def verification(self) -> RewardMix:
        """The verifier alone, as evaluations ask it: each problem's own, with this table's options for accuracy."""
        accuracy = next((part for part in self.parts if part.is_accuracy), MixPart(name="accuracy", weight=1.0))
        bare = replace(accuracy, weight=1.0, gate="", sources=(), schedule=())
        return RewardMix(parts=(bare,))

    def __call__(self, problem: Problem, completion: Completion) -> RewardResult:
        """Score one completion in this process; it is its own group."""
        scored: dict[int, Scored] = {}
        for index in range(len(self.parts)):
            if self.asks(index, problem, scored):
                scored[index] = _asked_here(self.parts[index], Asked((problem,), (completion,), (verdict_of(scored),)))
                if scored[index].failed:
                    break
        return self.combined(problem, scored, 0)

    def asks(self, index: int, problem: Problem, scored: Mapping[int, Scored]) -> bool:
        """Whether part ``index`` is called for a completion, as far as ``scored`` tells: not for a problem of another
        source, nor where the part that it depends on is known and not right."""
        part = self.parts[index]
        if part.sources and not part.applies(problem):
            return False
        gate = self._index(part.gate) if part.gate else None
        return gate is None or gate not in scored or _is_right(scored[gate])

    def combined(self, problem: Problem, scored: Mapping[int, Scored], step: int) -> RewardResult:
        """The reward of a completion, of what its parts said: part's place in ``parts`` -> its result."""
        main = scored[0].result if 0 in scored and not scored[0].failed else None
        verified = main.verdict if main is not None and main.score is not None and _is_verifier(self.parts[0]) else None
        total, values = 0.0, dict[str, float]()
        for index, one in sorted(scored.items()):
            part, result = self.parts[index], one.result
            if one.failed:
                continue
            if result.parts:
                values.update({f"{part.name}/{name}": value for name, value in result.parts.items()})
            if result.score is not None:
                values[part.name] = result.score
                if self._counts(part, problem, scored):
                    total += part.weight_of(problem, step) * result.score
        seconds = sum(one.result.seconds for one in scored.values())
        failed = next((scored[index].result for index in sorted(scored) if scored[index].failed), None)
        if failed is not None:
            return replace(
                main or failed,
                score=failed.score,
                verdict=failed.verdict,
                verified=verified if verified is not None else failed.verified,
                parts=values,
                detail=failed.detail,
                seconds=seconds,
            )
        if main is None:  # of another source: it says nothing of this problem
            main = RewardResult(score=0.0, verdict=Verdict.UNPARSED, detail=f"{self.parts[0].name} does not apply")
        detail = main.detail if main.verdict is not Verdict.BROKEN else f"{self.parts[0].name}: {main.detail}"
        score = None if main.score is None else total
        return replace(main, score=score, verified=verified, parts=values, detail=detail, seconds=seconds)

    def _counts(self, part: MixPart, problem: Problem, scored: Mapping[int, Scored]) -> bool:
        if part.sources and not part.applies(problem):
            return False
        gate = scored.get(self._index(part.gate)) if part.gate else None
        return not part.gate or (gate is not None and _is_right(gate))

    def _index(self, name: str) -> int:
        return next(index for index, part in enumerate(self.parts) if part.name == name)


def verdict_of(scored: Mapping[int, Scored]) -> Verdict:
    """The main part's verdict, as the others are told it."""
    return scored[0].result.verdict if 0 in scored and not scored[0].failed else Verdict.UNPARSED


def _asked_here(part: MixPart, asked: Asked) -> Scored:
    try:
        return ask(part, asked)[0]
    except MemoryError as error:
        result = RewardResult(score=None, verdict=Verdict.BROKEN, detail=f"{part.name}: MemoryError: {error}")
        return Scored(result=result, failed=True)


def _is_right(scored: Scored) -> bool:
    return not scored.failed and scored.result.verdict is Verdict.CORRECT


def _labels(keys: Iterable[str]) -> dict[str, str]:
    """Key of the table -> name in metrics: short where that names one alone."""
    short = {key: _label(key) for key in keys}
    counts = Counter(short.values())
    return {key: label if counts[label] == 1 else key for key, label in short.items()}


def _label(key: str) -> str:
    return parse(key).label if ":" in key else key


def _is_verifier(part: MixPart) -> bool:
    return part.is_accuracy or part.reward.verifier


def _with_gates(parts: tuple[MixPart, ...], labels: Mapping[str, str]) -> tuple[MixPart, ...]:
    """Gates by the names of parts, checked: another part of the table, which depends on none itself."""
    names = {part.name for part in parts}
    named = tuple(
        replace(part, gate=labels.get(part.gate) or _label(part.gate)) if part.gate else part for part in parts
    )  # a plug-in may be named as in the table, with its folders
    for part in named:
        if part.gate and (part.gate not in names or part.gate == part.name):
            others = ", ".join(sorted(names - {part.name})) or "none"
            raise ValueError(
                f"reward.{part.name}: gate {part.gate!r} is no other part of the table (there are: {others})"
            )
    gated = {part.name: part.gate for part in named if part.gate}
    for name, gate in gated.items():
        if gate in gated:
            raise ValueError(f"reward.{name}: its gate {gate!r} has a gate itself; name {gated[gate]!r} or drop one")
    if named[0].gate:
        raise ValueError(f"reward.{named[0].name}: the part that gives the verdict has no gate")
    return named
