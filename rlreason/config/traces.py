"""Which drawn completions become traces: the filters of a reject stage and of `rlreason traces import`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlreason.config.engine import Section


class Decontamination(Section):
    """Problems that share words with a benchmark are left out. Paraphrases are not found."""

    #: Words in a row that must not be shared; shorter problems are compared whole.
    n: int = Field(10, ge=3)
    #: JSONL files of benchmarks, each row with its question in prompt, problem or question.
    against: tuple[str, ...] = ()


class Difficulty(Section):
    """Problems by the share of their draws that are correct."""

    #: Least share of correct draws, which is left out itself.
    above: float = Field(0.0, ge=0, lt=1)
    #: Largest share of correct draws.
    at_most: float = Field(0.9, gt=0, le=1)
    #: A problem with fewer draws that have a verdict is not judged.
    min_draws: int = Field(8, ge=1)


class TraceFilters(Section):
    """Filters of traces, applied in this order; each says how many rows it was the first to stop (docs/distill.md)."""

    #: The response ended by itself.
    finished: bool = True
    #: think: one closed think block and an answer behind it. tags, boxed: as the reward `format`. none: any.
    format: Literal["think", "tags", "boxed", "none"] = "think"
    #: Only what the verifier calls correct.
    correct: bool = True
    #: Least share of words of ``target`` in the reasoning; 0: not looked at. R1's threshold is not published.
    language: float = Field(0.9, ge=0, le=1)
    #: Language of the reasoning, as the reward `language` names it.
    target: str = "en"
    #: Largest share of repeated word 20-grams, and no block of 32 words three times running; 1: not looked at.
    repetition: float = Field(0.2, ge=0, le=1)
    #: Most tokens of the response; 0: no limit.
    max_tokens: int = Field(32768, ge=0)
    #: Jaccard similarity of word 5-grams from which two problems are one; 1: only equal ones. Those of different gold
    #: answers never are.
    near_duplicate: float = Field(0.8, gt=0, le=1)
    decontaminate: Decontamination = Decontamination()
    #: Band of pass rates. Default: not looked at.
    difficulty: Difficulty | None = None
