"""One model on one suite as a comparison sees it: just measured, or read from the folder that it left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlreason.errors import UsageError
from rlreason.eval.suites import HELDOUT
from rlreason.eval.verdict import Contender
from rlreason.evaluation.run import Measured
from rlreason.types import Interval

#: Options that change what a model reads, or how far it may write.
ASKED = ("system", "prompt_template", "chat_template_kwargs", "answer_style", "shots", "max_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to a problem. ``verdict`` None: its check gave none."""

    verdict: str | None
    text: str
    extracted: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One model on one suite. The shares are of all answers; ``passes`` and ``majorities`` by k."""

    suite: str
    model: str
    accuracy: Interval
    answers: Mapping[str, Sequence[Answer]]
    passes: Mapping[int, float]
    majorities: Mapping[int, float]
    rerun_deviation: float | None
    truncated: float
    unparsed: float
    timed_out: float
    broken: float
    mean_tokens: float
    #: How its problems were asked: those of ``ASKED`` that its results name.
    asked: Mapping[str, object]

    @property
    def contender(self) -> Contender:
        """What is compared of it."""
        counts = {
            name: (
                sum(one.verdict == "correct" for one in answers),
                sum(one.verdict is not None for one in answers),
            )
            for name, answers in self.answers.items()
        }
        return Contender(model=self.model, counts=counts, truncated=self.truncated)


def side_of(measured: Measured) -> Side:
    """A model that was just measured."""
    report = measured.report
    answers = {
        group.problem.id: [
            Answer(
                verdict=None if reward.verified is None else str(reward.verified),
                text=completion.response,
                extracted=reward.extracted,
            )
            for completion, reward in zip(group.completions_G, group.rewards_G, strict=True)
        ]
        for group in measured.groups
    }
    return Side(
        suite=report.suite,
        model=report.model,
        accuracy=report.accuracy,
        answers=answers,
        passes=report.pass_at_k,
        majorities=report.majority_at_k,
        rerun_deviation=report.rerun_deviation,
        truncated=report.truncated,
        unparsed=report.unparsed,
        timed_out=report.timed_out,
        broken=report.broken,
        mean_tokens=report.mean_tokens,
        asked=_asked(measured.options),
    )


def _asked(options: Mapping[str, object]) -> dict[str, object]:
    return {name: options[name] for name in ASKED if name in options}


def asked_otherwise(first: Side, second: Side) -> str:
    """What was not the same for both, so that more than the models is compared; "" where nothing is known to differ."""
    both = [name for name in ASKED if name in first.asked and name in second.asked]
    differing = [name for name in both if first.asked[name] != second.asked[name]]
    said = [f"{name} {json.dumps(first.asked[name])} and {json.dumps(second.asked[name])}" for name in differing]
    return f"{first.suite}: {first.model} and {second.model} were asked otherwise: {'; '.join(said)}" if said else ""


def stored_sides(folder: Path, suites: Sequence[str]) -> list[Side]:
    """What an evaluation left in ``folder``. Raises UsageError where a suite is not there, or is no such file."""
    found = []
    for name in suites or (HELDOUT,):
        suite = Path(name).stem if name.endswith(".toml") else name
        path = folder / f"{suite}.json"
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            found.append(_stored(row, suite, path.with_suffix(".completions.jsonl"), folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"--against {folder}: no results of suite {suite!r} there ({type(error).__name__}: {error}); "
                f"measure it with --out {folder}, or name a model"
            ) from None
    return found


def _stored(row: Mapping[str, Any], suite: str, completions: Path, folder: Path) -> Side:
    return Side(
        suite=suite,
        model=f"{row['model']} ({folder})",
        accuracy=Interval(**row["accuracy"]),
        answers=_answers(completions),
        passes={int(k): float(value) for k, value in row["pass_at_k"].items()},
        majorities={int(k): float(value) for k, value in row["majority_at_k"].items()},
        rerun_deviation=row["rerun_deviation"],
        asked=_asked(row["options"]),
        **{key: float(row[key]) for key in ("truncated", "unparsed", "timed_out", "broken", "mean_tokens")},
    )


def _answers(path: Path) -> dict[str, list[Answer]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        row["problem_id"]: [
            Answer(
                verdict=one["reward"]["verified"],
                text=one["prefill"] + one["text"],
                extracted=one["reward"]["extracted"],
            )
            for one in row["completions"]
        ]
        for row in rows
    }
