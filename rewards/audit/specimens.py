"""Problems with right and wrong answers to build on: our own small ones, or made of the user's data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlreason.types import Completion, Problem, Reference

_INTEGER = re.compile(r"[-+−]?\d{1,3}(,?\d{3})*")
_NUMBER = re.compile(r"[-+−]?(\d+\.\d*|\.\d+|\d+/\d+|\\[dt]?frac\{?-?\d+\}?\{?\d+\}?)%?")
_CHOICE = re.compile(r"\(?[A-J]\)?")
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """Example: ``Specimen(kind="integer", problem=Problem(…, reference="42"), right="42", wrong=("43", "24"))``."""

    kind: str
    problem: Problem
    #: A right answer without a form around it; None: not known.
    right: str | None
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A form of a response. Example: ``Style(name="boxed", form="So \\\\boxed{{answer}}.")``."""

    name: str
    #: With ``{answer}`` where the answer goes.
    form: str

    def wrap(self, answer: str) -> str:
        """A response that says ``answer``."""
        return self.form.replace("{answer}", answer)


#: No digits, and no words that a gold answer could be.
_WORK = "Let me work it out step by step."
STYLES = (
    Style(name="tags", form=f"<think>{_WORK}</think>\n<answer>{{answer}}</answer>"),
    Style(name="boxed", form=f"{_WORK}\n\nTherefore the answer is $\\boxed{{{{answer}}}}$."),
    Style(name="thought, boxed", form=f"<think>{_WORK}</think>\nTherefore the answer is \\boxed{{{{answer}}}}."),
    Style(name="boxed in tags", form=f"<think>{_WORK}</think>\n<answer>\\boxed{{{{answer}}}}</answer>"),
    Style(name="answer tag", form="<answer>{answer}</answer>"),
    Style(name="hashes", form=f"{_WORK}\n#### {{answer}}"),
    Style(name="said", form=f"{_WORK} The answer is {{answer}}."),
    Style(name="final line", form=f"{_WORK}\nFinal answer: {{answer}}"),
    Style(name="bare", form="{answer}"),
)
CODE_STYLES = (
    Style(name="code block", form="Here is the program.\n```python\n{answer}\n```"),
    Style(name="thought, code block", form=f"<think>{_WORK}</think>\n```python\n{{answer}}\n```"),
    Style(name="bare", form="{answer}"),
)


def completion_of(text: str, prefill: str = "", finish: str = "stop") -> Completion:
    """A completion as a sampler gives it: four characters a token, so that rewards of length have something to see."""
    import numpy as np

    ids = np.arange(max(1, len(text) // 4) if text else 0, dtype=np.int32)
    return Completion(
        prompt_ids=np.arange(4, dtype=np.int32),
        token_ids=ids,
        sampler_logprobs=None,
        text=text,
        prefill=prefill,
        finish_reason="length" if finish == "length" else "stop",
    )


def answer_kind(reference: Reference) -> str:
    """integer, fraction, expression, set, choice, text, numbers (countdown) or code."""
    if isinstance(reference, Mapping):
        if "numbers" in reference and "target" in reference:
            return "numbers"
        if "answer" in reference:
            inner = reference["answer"]
            return answer_kind(inner if isinstance(inner, str) else str(inner))
        return "code"
    text = (reference if isinstance(reference, str) else next(iter(reference), "")).strip().strip("$").strip()
    if _INTEGER.fullmatch(text):
        return "integer"
    if _NUMBER.fullmatch(text):
        return "fraction"
    if _CHOICE.fullmatch(text):
        return "choice"
    if text.startswith(("\\{", "{", "(", "[", "\\left")) or ("," in text and re.search(r"\d", text)):
        return "set"
    words = re.sub(r"\\[A-Za-z]+|[^A-Za-z]+", " ", text).split()
    if any(len(word) > 2 for word in words) and not re.search(r"[\d^=+*]", text.replace("\\text", "")):
        return "text"
    return "expression"


def wrong_answers(gold: str) -> tuple[str, ...]:
    """Answers that can't be right, near the gold one."""
    kind, text = answer_kind(gold), gold.strip().strip("$")
    if kind == "integer":
        value = int(text.replace(",", "").replace("−", "-").removeprefix("+"))
        return tuple(dict.fromkeys(str(n) for n in (value + 1, value - 1, value + 10, value * 10 + 3, 2 * value + 5)))
    if kind == "choice":
        letter = text.strip("()")
        return tuple(text.replace(letter, other) for other in _LETTERS[:5] if other != letter)
    if kind == "text":
        others = ("none of these", "unknown", "something else entirely", "Zanzibar")
        return tuple(one for one in others if one not in text.lower())
    if kind == "set":
        return ("\\{1009\\}", "(1009, -2003)", "1009, 2003, 3001")
    if kind == "fraction" and "/" in text:
        above, _, below = text.partition("/")
        return (f"{int(above.replace('−', '-')) + int(below)}/{below}", f"{text}7", "1009/3")
    return ("1009", "-2003.5") if "infty" in text else (f"{text}+1", f"{text}+7", "1009")


def specimen_of(problem: Problem, right: str | None = None) -> Specimen | None:
    """A specimen of a problem with its reference; None where no right answer can be made of it."""
    reference: object = problem.reference
    if isinstance(reference, Mapping) and "answer" in reference:
        reference = reference["answer"]
    if isinstance(reference, (list, tuple)) and reference:
        reference = reference[0]
    if isinstance(reference, str) and reference.strip():
        wrong = wrong_answers(reference)
        return Specimen(kind=answer_kind(reference), problem=problem, right=right or reference, wrong=wrong)
    if right is None or not isinstance(problem.reference, Mapping):
        return None
    kind = answer_kind(problem.reference)
    wrong = ("pass", "print('done')") if kind == "code" else ("1+1", "0")
    return Specimen(kind=kind, problem=problem, right=right, wrong=wrong)


def _math(number: int, prompt: str, gold: str, *wrong: str) -> Specimen:
    problem = Problem(id=f"audit-math-{number}", prompt=prompt, verifier="math", reference=gold, source="audit")
    kind = answer_kind(gold)
    return Specimen(kind=kind, problem=problem, right=gold, wrong=wrong or wrong_answers(gold))


def _countdown(number: int, numbers: Sequence[int], target: int, right: str, *wrong: str) -> Specimen:
    prompt = (
        f"Using the numbers {', '.join(map(str, numbers))}, each at most once, make an expression equal to {target}."
    )
    reference = {"numbers": list(numbers), "target": target}
    problem = Problem(id=f"audit-countdown-{number}", prompt=prompt, verifier="countdown", reference=reference)
    return Specimen(kind="numbers", problem=problem, right=right, wrong=wrong)


_ADD = {
    "type": "function",
    "entry_point": "add",
    "cases": [{"args": [2, 3], "expected": 5}, {"args": [-4, 4], "expected": 0}, {"args": [10, 7], "expected": 17}],
}
_DOUBLE = {"type": "stdin", "cases": [{"input": "21\n", "output": "42\n"}, {"input": "-3\n", "output": "-6\n"}]}


def _code(number: int, prompt: str, tests: Mapping[str, object], right: str, *wrong: str) -> Specimen:
    problem = Problem(id=f"audit-code-{number}", prompt=prompt, verifier="code", reference=tests)
    return Specimen(kind="code", problem=problem, right=right, wrong=wrong)


def built_in(verifier: str) -> tuple[Specimen, ...]:
    """Small problems for a verifier, which they name; those of ``math`` for any that we don't know."""
    return tuple(replace(one, problem=replace(one.problem, verifier=verifier)) for one in _problems(verifier))


def _problems(verifier: str) -> tuple[Specimen, ...]:
    if verifier == "countdown":
        return (
            _countdown(0, (3, 7, 25), 46, "25+7*3", "25+7+3", "46", "25*3-7", "40+6", "25+7*3+0"),
            _countdown(1, (2, 8, 9, 4), 10, "8+4-2", "9+8-4", "10", "2+8+4", "5+5", "8+4-2*1"),
        )
    if verifier == "code":
        return (
            _code(0, "Write a function add(a, b) that returns the sum.", _ADD, "def add(a, b):\n    return a + b",
                  "def add(a, b):\n    return a - b", "def add(a, b):\n    return 5", "def add(a, b):\n    pass"),
            _code(1, "Read an integer and print twice its value.", _DOUBLE, "print(int(input()) * 2)",
                  "print(int(input()) + 2)", "print(42)", "pass"),
        )  # fmt: skip
    return (
        _math(0, "What is 17 + 25?", "42"),
        _math(1, "What is 3 + 5 - 2?", "6"),
        _math(2, "What is 8 - 15?", "-7"),
        _math(3, "What is 617 * 2?", "1234"),
        _math(4, "What is one half of three halves, as a fraction?", "3/4"),
        _math(5, "Expand x(x + 2).", "x^2+2x", "x^2+2", "x^2-2x", "2x"),
        _math(6, "Solve x^2 = 3x - 2; give a set.", "\\{1, 2\\}", "\\{1\\}", "\\{1, 3\\}", "\\{-1, -2\\}"),
        _math(7, "Which is largest? (A) two (B) nine (C) four (D) one", "B", "A", "C", "D"),
        _math(8, "Which day comes after Monday?", "Tuesday", "Wednesday", "Sunday", "none of these"),
    )  # fmt: skip
