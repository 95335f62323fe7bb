"""``rlreason score --reward`` and ``rlreason rescore``: a reward tried on completions that are there already."""

from __future__ import annotations

import importlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TextIO

from rlreason.errors import UsageError
from rlreason.outputs import checked_output, opened
from rlreason.progress import Watch
from rlreason.reward_rows import RewardRow, RewardRows, Tokenize, rows_of_file
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.running import Limits, Request, RewardRunner, mix_of
from rlreason.types import RewardResult, Verdict

#: What is said of lengths that are not those of token ids.
LENGTHS = {
    "tokens": "",
    "counts": "token ids are not stored: rewards see as many tokens as were drawn, each another number; "
    "--tokenizer FOLDER gives them",
    "words": "no tokens in the rows: rewards see one for each word; --tokenizer FOLDER gives them",
}


def tokenizer_of(folder: str | None) -> Tokenize | None:
    """How responses become token ids; None without a folder. Raises UsageError where there is no tokenizer."""
    if folder is None:
        return None
    if (Path(folder) / "tokenizer.json").is_file():  # of a model, or alone
        tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(folder)
    else:
        from rlreason.policy.loading import load_tokenizer

        tokenizer = load_tokenizer(folder)
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def options_of(given: Sequence[str]) -> dict[str, object]:
    """``["limit=30", "style=boxed"]`` as options: what is JSON is read as such. Raises UsageError."""
    options: dict[str, object] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise UsageError(f"--option {one}: write name=value, such as limit=30")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def reward_of(name: str, options: Mapping[str, object]) -> tuple[RewardMix, str | None]:
    """The reward alone, as a mix, and the verifier that it is. Raises UsageError."""
    try:
        return (RewardMix.from_table({name: {"weight": 1.0, **options}}), None) if options else mix_of(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def score_rows(
    mix: RewardMix, verifier: str | None, rows: Sequence[RewardRow], limits: Limits, watch: Watch
) -> list[RewardResult]:
    """The result of each row, as a run gives it: groups together, steps together, in worker processes."""
    with RewardRunner(mix, limits) as runner:
        asked: list[Future[tuple[RewardResult, ...]]] = []
        for requests in _steps(rows):
            for request in requests:
                problem = request.problem if verifier is None else replace(request.problem, verifier=verifier)
                asked.append(runner.submit(replace(request, problem=problem)))
        results: list[RewardResult] = []
        for future in asked:
            results.extend(future.result())
            watch(len(results), len(rows))
    return results


def _steps(rows: Sequence[RewardRow]) -> Iterator[list[Request]]:
    """The requests of each step."""
    for step, of_step in groupby(rows, key=lambda row: row.step):
        groups = [list(group) for _, group in groupby(of_step, key=lambda row: row.group)]
        keys = tuple(f"{number}/{group[0].group}" for number, group in enumerate(groups))
        number = step.rpartition("/")[2]
        yield [
            Request(
                key=key,
                problem=group[0].problem,
                completions=tuple(row.completion for row in group),
                together=keys,
                step=int(number) if number.isdecimal() else 0,
            )
            for key, group in zip(keys, groups, strict=True)
        ]


def write_results(out: TextIO, rows: Sequence[RewardRow], results: Sequence[RewardResult]) -> dict[str, int]:
    """A line a row, in order; how many got each verdict."""
    counts: Counter[str] = Counter()
    for row, result in zip(rows, results, strict=True):
        counts[result.verdict.value] += 1
        line = {
            "id": row.key,
            "verdict": result.verdict.value,
            "score": result.score,
            "extracted": result.extracted,
            "seconds": round(result.seconds, 6),
            "detail": result.detail,
            "parts": dict(result.parts),
        }
        out.write(json.dumps(line, default=str) + "\n")
    return dict(counts)


def mean_of(results: Sequence[RewardResult]) -> str:
    """For people: "mean score 0.25 over 8 of 10"."""
    scores = [result.score for result in results if result.score is not None]
    if not scores:
        return f"no score for any of {len(results)} rows"
    return f"mean score {sum(scores) / len(scores):.4g} over {len(scores)} of {len(results)} rows"


def score_reward(
    reward: str,
    options: Sequence[str],
    paths: tuple[Path, Path],
    tokenizer: str | None,
    limits: Limits,
    watch: Watch = lambda done, total: None,
) -> list[str]:
    """Score the rows of a file, the first of ``paths``, into the second; the lines to print. Raises UsageError."""
    output = checked_output(paths[1], "--output")
    mix, verifier = reward_of(reward, options_of(options))
    found = rows_of_file(paths[0], tokenizer_of(tokenizer))
    results = score_rows(mix, verifier, found.rows, limits, watch)
    with opened(output) as out:
        counts = write_results(out, found.rows, results)
    failed = [one for one in results if one.score is None]
    lines = [f"{mean_of(results)}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}"]
    lines += [f"without a score {len(failed)}; the first: {failed[0].detail}"] if failed else []
    return lines + ([LENGTHS[found.lengths]] if LENGTHS[found.lengths] else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A reward beside what a run gave, on the same completions. Example: ``Comparison(rows=64, both=64, old_mean=0.25,
    new_mean=0.31, rank_correlation=0.8, agreement=0.94, now_right=(…), now_wrong=(…))``."""

    rows: int
    #: Rows that have both scores.
    both: int
    old_mean: float
    new_mean: float
    #: Spearman's, over ``both``; NaN where one of them is the same for all.
    rank_correlation: float
    #: Share of ``both`` that both call right, or both wrong; NaN without any.
    agreement: float
    #: Places of rows that were wrong and are right now, and the other way round.
    now_right: tuple[int, ...]
    now_wrong: tuple[int, ...]
    #: Rows without a score now, and of those the first's reason.
    failed: int = 0
    reason: str = ""


def compare(rows: Sequence[RewardRow], results: Sequence[RewardResult]) -> Comparison:
    """Right means: verified as correct where a verifier spoke, else a score above 0."""
    pairs = [
        (place, row, result)
        for place, (row, result) in enumerate(zip(rows, results, strict=True))
        if row.score is not None and result.score is not None
    ]
    old = [row.score for _, row, _ in pairs if row.score is not None]
    new = [result.score for _, _, result in pairs if result.score is not None]
    was = [_right(row.verified, row.score) for _, row, _ in pairs]
    now = [_right(result.verified, result.score) for _, _, result in pairs]
    failed = [result for result in results if result.score is None]
    return Comparison(
        rows=len(rows),
        both=len(pairs),
        old_mean=_mean(old),
        new_mean=_mean(new),
        rank_correlation=rank_correlation(old, new),
        agreement=_mean([float(a == b) for a, b in zip(was, now, strict=True)]),
        now_right=tuple(place for (place, _, _), a, b in zip(pairs, was, now, strict=True) if b and not a),
        now_wrong=tuple(place for (place, _, _), a, b in zip(pairs, was, now, strict=True) if a and not b),
        failed=len(failed),
        reason=failed[0].detail if failed else "",
    )


def _right(verified: Verdict | None, score: float | None) -> bool:
    return verified is Verdict.CORRECT if verified is not None else score is not None and score > 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's coefficient: Pearson's of the ranks, equal values sharing the mean of theirs. NaN where one varies in
    nothing."""
    a, b = _ranks(first), _ranks(second)
    mean_a, mean_b = _mean(a), _mean(b)
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return both / spread if spread > 0 else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda place: values[place])
    ranks = [0.0] * len(values)
    start = 0
    for _, same in groupby(order, key=lambda place: values[place]):
        places = list(same)
        for place in places:
            ranks[place] = start + (len(places) - 1) / 2
        start += len(places)
    return ranks


def as_text(found: Comparison, rows: RewardRows, name: str, examples: int = 5) -> str:
    """For people."""
    lines = [
        f"{found.rows} completions, {found.both} with both scores",
        f"mean score      run {found.old_mean:.4g}   {name} {found.new_mean:.4g}",
        f"rank correlation {found.rank_correlation:.3f} (Spearman)",
        f"same verdict    {found.agreement:.1%} (right: verified, or a score above 0 where no verifier spoke)",
        f"changed         {len(found.now_right)} wrong -> right, {len(found.now_wrong)} right -> wrong",
    ]
    if found.failed:
        lines.append(f"no score        {found.failed} completions; the first: {found.reason}")
    for title, places in (("wrong -> right", found.now_right), ("right -> wrong", found.now_wrong)):
        for place in places[:examples]:
            row = rows.rows[place]
            reference = str(row.problem.reference)[:40]
            lines.append(f"  {title}: {row.key}, reference {reference!r}: …{row.completion.response[-60:]!r}")
    return "\n".join(lines)
