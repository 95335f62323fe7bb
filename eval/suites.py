"""Named evaluation suites: where their problems are, how they are asked and drawn, and how answers are checked."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from rlreason.errors import UsageError, nearest

__all__ = ["HELDOUT", "PROTOCOLS", "SUITES", "Protocol", "Suite", "detectable", "find_suite"]

#: One column's name, or several of which the first that the data has is taken.
Column = str | tuple[str, ...]

#: The suite that has no data of its own.
HELDOUT = "heldout"
#: As DeepSeek-R1's authors recommend for mathematics (its README), and Qwen2.5-Math's.
BOXED = "{prompt}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
#: openai/simple-evals, common.py.
CHOICE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of the letters of the options. Think step by step before "
    "answering.\n\n{prompt}"
)
#: EvalPlus, codegen for chat models.
CODE = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
    "\n\n{prompt}"
)
#: Share of the problems on which two models of like strength usually differ: for the size of a difference that a suite
#: can show at all, before anything is measured.
DIFFERING = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One suite. ``data`` is a file, hub id or task; several: the first that exists; None: the user must give one.

    Columns are those of the hub's data set and of files that say ``prompt`` and ``answer``. In a TOML file the same
    keys make a suite of one's own.

    Example: ``Suite(name="gsm8k", about="grade-school word problems", data=("gsm8k_test.jsonl",
    "openai/gsm8k:main:test"), prompt=("prompt", "question"), answer=("solution", "answer"), answer_after="####")``.
    """

    #: A suite's file is this class: pydantic refuses unknown keys.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    #: A few words for lists.
    about: str = ""
    data: str | tuple[str, ...] | None
    prompt: Column = "prompt"
    answer: Column = "answer"
    #: The gold answer is what follows this marker in the answer column.
    answer_after: str | None = None
    #: Read the rows as the hub has them of this code or multiple-choice set (``data.convert``).
    convert: str | None = None
    verifier: str = "math"
    answer_style: Literal["tags", "boxed"] = "boxed"
    #: What each question is put into, with {prompt} where it stands. None: the question alone.
    prompt_template: str | None = None
    #: How many problems its authors measure; None: it has no end, or nobody said.
    size: Annotated[int | None, Field(ge=1)] = None
    #: Longest answer that is drawn.
    max_tokens: Annotated[int, Field(ge=1)] = 512
    samples: Annotated[int, Field(ge=1)] = 1
    #: 0 is greedy.
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    #: Column with the day a problem was published, for a window of days.
    date: str | None = None
    #: Solved problems to show in few-shot prompts, in the same places and columns.
    shots: str | tuple[str, ...] | None = None
    #: Samples a problem in DeepSeek-R1's evaluation.
    r1_samples: Annotated[int, Field(ge=1)] = 16

    def __post_init__(self) -> None:
        """Raises ValueError where the template has no place for the question."""
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise ValueError("prompt_template has no {prompt}, where the question is to stand")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A way to draw that people quote. Example: ``PROTOCOLS["r1"]``."""

    name: str
    about: str
    temperature: float
    top_p: float
    max_tokens: int


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "r1": Protocol(
            name="r1",
            about="DeepSeek-R1 (arXiv 2501.12948, appendix B): no system prompt, 64, 16 or 8 samples by suite",
            temperature=0.6,
            top_p=0.95,
            max_tokens=32_768,
        )
    }
)


_QUESTION = ("prompt", "problem", "question")

SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            Suite(name=HELDOUT, about="the problems of --data, or those that a run holds out", data=None,
                  answer_style="tags"),
            Suite(name="arithmetic", about="the procedural task with its default options", data="arithmetic",
                  answer_style="tags"),
            Suite(name="countdown", about="the procedural task with its default options", data="countdown",
                  verifier="countdown", answer_style="tags"),
            Suite(name="gsm8k", about="GSM8K, grade-school word problems (arXiv 2110.14168)", size=1319,
                  data=("gsm8k_test.jsonl", "openai/gsm8k:main:test"), prompt=("prompt", "question"),
                  answer=("solution", "answer"), answer_after="####", prompt_template=BOXED, max_tokens=1024,
                  shots=("gsm8k_train.jsonl", "openai/gsm8k:main:train")),
            Suite(name="math500", about="MATH-500, competition problems (arXiv 2305.20050)", size=500,
                  data=("math500.jsonl", "HuggingFaceH4/MATH-500:default:test"), prompt=_QUESTION,
                  prompt_template=BOXED, max_tokens=4096),
            Suite(name="math", about="MATH, the whole test set (arXiv 2103.03874)", size=5000,
                  data=("math_test.jsonl", "DigitalLearningGmbH/MATH-lighteval:default:test"), prompt=_QUESTION,
                  answer=("answer", "solution"), prompt_template=BOXED, max_tokens=4096),
            Suite(name="aime24", about="AIME 2024, I and II", size=30, r1_samples=64,
                  data=("aime24.jsonl", "HuggingFaceH4/aime_2024:default:train"), prompt=_QUESTION,
                  prompt_template=BOXED, max_tokens=32_768),
            Suite(name="aime25", about="AIME 2025, I and II", size=30, r1_samples=64,
                  data=("aime25.jsonl", "math-ai/aime25:default:test"), prompt=_QUESTION, prompt_template=BOXED,
                  max_tokens=32_768),
            Suite(name="amc23", about="AMC 12 2023", size=40, r1_samples=64,
                  data=("amc23.jsonl", "math-ai/amc23:default:test"), prompt=_QUESTION, prompt_template=BOXED,
                  max_tokens=16_384),
            Suite(name="olympiadbench", about="OlympiadBench, English text-only mathematics (arXiv 2402.14008)",
                  size=675, data=("olympiadbench.jsonl", "Hothan/OlympiadBench:OE_TO_maths_en_COMP:train"),
                  prompt=_QUESTION, answer=("answer", "final_answer"), prompt_template=BOXED, max_tokens=16_384),
            Suite(name="mmlu", about="MMLU, 57 subjects (arXiv 2009.03300)", size=14_042, convert="mmlu",
                  data=("mmlu.jsonl", "cais/mmlu:all:test"), prompt_template=CHOICE, max_tokens=2048, r1_samples=1),
            Suite(name="mmlu_stem", about="MMLU, the subjects of science and engineering", size=3018, convert="mmlu",
                  data=("mmlu_stem.jsonl", "TIGER-Lab/MMLU-STEM:default:test"), prompt_template=CHOICE,
                  max_tokens=2048, r1_samples=1),
            Suite(name="mmlu_pro", about="MMLU-Pro, ten options (arXiv 2406.01574)", size=12_032, convert="mmlu_pro",
                  data=("mmlu_pro.jsonl", "TIGER-Lab/MMLU-Pro:default:test"), prompt_template=CHOICE,
                  max_tokens=4096, r1_samples=1),
            Suite(name="arc", about="ARC-Challenge, school science (arXiv 1803.05457)", size=1172, convert="arc",
                  data=("arc_challenge.jsonl", "allenai/ai2_arc:ARC-Challenge:test"), prompt_template=CHOICE,
                  max_tokens=2048, r1_samples=1),
            Suite(name="gpqa_diamond", about="GPQA-diamond, graduate-level science (arXiv 2311.12022)", size=198,
                  data=("gpqa_diamond.jsonl", "Idavidrein/gpqa:gpqa_diamond:train"), convert="gpqa",
                  prompt_template=CHOICE, max_tokens=16_384, r1_samples=64),
            Suite(name="humaneval", about="HumanEval, functions from their docstrings (arXiv 2107.03374)", size=164,
                  data=("humaneval.jsonl", "openai/openai_humaneval:openai_humaneval:test"), convert="humaneval",
                  verifier="code", prompt_template=CODE, max_tokens=1024),
            Suite(name="humaneval_plus", about="HumanEval+, 80 times the tests (arXiv 2305.01210)", size=164,
                  data=("humaneval_plus.jsonl", "evalplus/humanevalplus:default:test"), convert="humaneval_plus",
                  verifier="code", prompt_template=CODE, max_tokens=1024),
            Suite(name="mbpp", about="MBPP, the sanitized test set (arXiv 2108.07732)", size=257, convert="mbpp",
                  data=("mbpp_sanitized.jsonl", "google-research-datasets/mbpp:sanitized:test"), verifier="code",
                  prompt_template=CODE, max_tokens=1024),
            Suite(name="mbpp_plus", about="MBPP+, 35 times the tests (arXiv 2305.01210)", size=378,
                  data=("mbpp_plus.jsonl", "evalplus/mbppplus:default:test"), convert="mbpp_plus", verifier="code",
                  prompt_template=CODE, max_tokens=1024),
            Suite(name="livecodebench", about="LiveCodeBench, dated contest problems (arXiv 2403.07974)", size=880,
                  data=("livecodebench.jsonl", "livecodebench/code_generation_lite:default:test"),
                  convert="livecodebench", verifier="code", date="contest_date", max_tokens=16_384, samples=1,
                  r1_samples=8),
            Suite(name="code_contests", about="CodeContests, programs on stdin (arXiv 2203.07814)", size=165,
                  data=("code_contests.jsonl", "deepmind/code_contests:default:test"), convert="code_contests",
                  verifier="code", max_tokens=16_384, r1_samples=8),
        )
    }
)  # fmt: skip


def find_suite(name: str) -> Suite:
    """A suite by its name, or one's own by its .toml file. Raises UsageError."""
    if not name.endswith(".toml"):
        if name not in SUITES:
            raise UsageError(
                f"unknown suite {name!r}{nearest(name, SUITES)}; suites: {', '.join(SUITES)}, or a .toml file"
            )
        return SUITES[name]
    try:
        table = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"suite {name}: can't be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"suite {name}: not valid TOML: {error}") from None
    try:
        suite = TypeAdapter(Suite).validate_python(table)
    except ValidationError as error:
        raise UsageError(f"suite {name}: {_explained(error)}") from None
    if suite.name in SUITES:
        raise UsageError(f"suite {name}: name = {suite.name!r} is that of a shipped suite; choose another")
    return suite


def _explained(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    fields = Suite.__dataclass_fields__
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        return f"unknown key {place!r}{nearest(place, fields)}; there are: {', '.join(fields)}"
    return f"{place + ': ' if place else ''}{first['msg']}"


def detectable(problems: int, differing: float = DIFFERING) -> float:
    """The difference of two models that 80 % of paired comparisons with one sample a problem would call one.

    2.8 √(differing / problems): the 97.5 % and 80 % quantiles of the normal distribution times the standard error of
    the difference, where the models disagree on the share ``differing`` of the problems; at least 6 problems.
    """
    return min(1.0, max(2.8016 * math.sqrt(differing / problems), 6 / problems))
