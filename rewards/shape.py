"""Rewards for the shape of a completion: format, tags, length, conciseness, overlong, repetition. None of them reads
the gold answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from rlreason.rewards.extract import boxes
from rlreason.rewards.language import words
from rlreason.rewards.registry import reward
from rlreason.types import Completion, Problem, Verdict

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@reward("format")
def format_reward(problem: Problem, completion: Completion, *, style: Literal["tags", "boxed"] = "tags") -> float:
    """1 if the response has the asked form, else 0 (DeepSeek-R1, arXiv 2501.12948, section 2.2.2: format rewards).

    ``tags``: exactly one ``<think>…</think>`` then exactly one ``<answer>…</answer>``, nothing outside, neither blank.
    ``boxed``: exactly one ``<think>…</think>``, then text with exactly one non-blank ``\\boxed{}``.
    """
    if style not in {"tags", "boxed"}:
        raise ValueError(f"format: style must be 'tags' or 'boxed', not {style!r}")
    response = completion.response.strip()
    if not response.startswith("<think>") or response.count("<think>") != 1 or response.count("</think>") != 1:
        return 0.0
    thought, rest = response.removeprefix("<think>").split("</think>")
    rest = rest.strip()
    if not thought.strip():
        return 0.0
    if style == "boxed":
        found = boxes(rest)
        return float(len(found) == 1 and bool((found[0].text or "").strip()))
    if any(tag in thought for tag in _TAGS) or rest.count("<answer>") != 1 or rest.count("</answer>") != 1:
        return 0.0
    inside = rest.startswith("<answer>") and rest.endswith("</answer>")
    return float(inside and bool(rest.removeprefix("<answer>").removesuffix("</answer>").strip()))


@reward("tags")
def tags(problem: Problem, completion: Completion) -> float:
    """Share of the four tags of R1's format that stand in the response exactly once (``tag_count_reward`` of Open R1,
    Hugging Face 2025): a slope towards ``format``, which pays for the whole form alone.

    A closing tag before its opening one does not count.
    """
    text = completion.response
    once = {tag: text.count(tag) == 1 for tag in _TAGS}
    for opening, closing in (_TAGS[:2], _TAGS[2:]):
        if once[closing] and text.find(closing) < text.find(opening):
            once[closing] = False
    return sum(once.values()) / len(_TAGS)


@reward("conciseness")
def conciseness(problem: Problem, completions: Sequence[Completion], *, verdicts: Sequence[Verdict]) -> list[float]:
    """Length reward of Kimi k1.5 (arXiv 2501.12599, section 2.3.3), within the completions of a problem.

    ``0.5 - (tokens - fewest) / (most - fewest)`` for right answers, and no more than 0 for others: of two right answers
    the shorter gains, and a short wrong one gains nothing. 0 for all where all are of one length.
    """
    lengths = [len(one.token_ids) for one in completions]
    fewest, most = min(lengths), max(lengths)
    if fewest == most:
        return [0.0] * len(lengths)
    slopes = [0.5 - (length - fewest) / (most - fewest) for length in lengths]
    pairs = zip(slopes, verdicts, strict=True)
    return [slope if verdict is Verdict.CORRECT else min(0.0, slope) for slope, verdict in pairs]


@reward("length")
def length(
    problem: Problem,
    completion: Completion,
    *,
    verdict: Verdict,
    max_tokens: int,
    correct: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-0.5, 0.0),
) -> float:
    """Cosine length reward (Yeo et al. 2025, "Demystifying Long Chain-of-Thought", arXiv 2502.03373, eq. 1).

    ``v0 + (vL - v0) * (1 - cos(pi * t / max_tokens)) / 2`` with ``(v0, vL)`` the values at length 0 and at
    ``max_tokens``, for right and wrong answers apart: right answers gain by being short, wrong ones by thinking longer.
    """
    if max_tokens <= 0:
        raise ValueError(f"length: max_tokens must be positive, not {max_tokens}")
    start, end = correct if verdict is Verdict.CORRECT else wrong
    share = min(len(completion.token_ids) / max_tokens, 1.0)
    return start + (end - start) * (1.0 - math.cos(math.pi * share)) / 2.0


@reward("overlong")
def overlong(problem: Problem, completion: Completion, *, max_tokens: int, buffer: int) -> float:
    """Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13).

    0 up to ``max_tokens - buffer`` tokens, then falling in a line to -1 at ``max_tokens``; -1 beyond, and for a
    completion cut off at the limit.
    """
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"overlong: need 0 < buffer <= max_tokens, not buffer={buffer}, max_tokens={max_tokens}")
    if completion.finish_reason == "length":
        return -1.0
    excess = len(completion.token_ids) - (max_tokens - buffer)
    return -min(max(excess / buffer, 0.0), 1.0)


@reward("repetition")
def repetition(problem: Problem, completion: Completion, *, ngram: int = 4) -> float:
    """Minus the share of word n-grams that are repeats: 0 for none, towards -1 for a loop.

    Repetition penalty of Yeo et al. 2025 (arXiv 2502.03373, section 4), as a share so that length does not matter.
    """
    if ngram < 1:
        raise ValueError(f"repetition: ngram must be at least 1, not {ngram}")
    text = words(re.sub(r"[^\w\s]", " ", completion.response))
    grams = [tuple(text[i : i + ngram]) for i in range(len(text) - ngram + 1)]
    if not grams:
        return 0.0
    return len(set(grams)) / len(grams) - 1.0
