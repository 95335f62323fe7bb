"""Named evaluation suites: where their problems are and how their answers are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One suite. ``data`` is a file, hub id or task; several: the first that exists; None: the user must give one.

    Example: ``Suite(name="gsm8k", data=("gsm8k_test.jsonl", "openai/gsm8k:main:test"))``.
    """

    name: str
    data: str | tuple[str, ...] | None
    verifier: str = "math"
    answer_style: Literal["tags", "boxed"] = "tags"
    answer_after: str | None = None


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            Suite(name="heldout", data=None),
            Suite(name="arithmetic", data="arithmetic"),
            Suite(name="countdown", data="countdown", verifier="countdown"),
            Suite(name="gsm8k", data=("gsm8k_test.jsonl", "openai/gsm8k:main:test"), answer_after="####"),
            Suite(name="math500", data=("math500.jsonl", "HuggingFaceH4/MATH-500"), answer_style="boxed"),
        )
    }
)
