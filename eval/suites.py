"""Named evaluation suites: where their problems are, which columns hold them, and how their answers are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

#: One column's name, or several of which the first that the data has is taken.
Column = str | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One suite. ``data`` is a file, hub id or task; several: the first that exists; None: the user must give one.

    Columns are those of the hub's data set and of files that say ``prompt`` and ``answer``.

    Example: ``Suite(name="gsm8k", about="grade-school word problems", data=("gsm8k_test.jsonl",
    "openai/gsm8k:main:test"), prompt=("prompt", "question"), answer=("solution", "answer"), answer_after="####")``.
    """

    name: str
    #: A few words for lists.
    about: str
    data: str | tuple[str, ...] | None
    prompt: Column = "prompt"
    answer: Column = "answer"
    verifier: str = "math"
    answer_style: Literal["tags", "boxed"] = "tags"
    #: The gold answer is what follows this marker in the answer column.
    answer_after: str | None = None


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            Suite(name="heldout", about="the problems of --data, or those that a run holds out", data=None),
            Suite(name="arithmetic", about="the procedural task with its default options", data="arithmetic"),
            Suite(
                name="countdown",
                about="the procedural task with its default options",
                data="countdown",
                verifier="countdown",
            ),
            Suite(
                name="gsm8k",
                about="GSM8K, 1,319 grade-school word problems (arXiv 2110.14168)",
                data=("gsm8k_test.jsonl", "openai/gsm8k:main:test"),
                prompt=("prompt", "question"),
                answer=("solution", "answer"),
                answer_after="####",
            ),
            Suite(
                name="math500",
                about="MATH-500, 500 competition problems (arXiv 2305.20050)",
                data=("math500.jsonl", "HuggingFaceH4/MATH-500:default:test"),
                prompt=("prompt", "problem"),
                answer_style="boxed",
            ),
        )
    }
)
