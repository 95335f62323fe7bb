"""``math``: is the answer mathematically equal to the gold answer?

Extraction in ``extract``, reading in ``read`` (tokeniser, Pratt parser, typed tree), comparison in
``compare``. Nothing here evaluates text as code, sets a signal, or needs a main thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from rlreason.rewards.extract import boxes
from rlreason.rewards.math import symbolic as math_symbolic
from rlreason.rewards.math.choices import settled_choice
from rlreason.rewards.math.compare import equal
from rlreason.rewards.math.content import opened, plain_text
from rlreason.rewards.math.evaluate import Undecided
from rlreason.rewards.math.extract import extract, statement
from rlreason.rewards.math.letters import small_choice
from rlreason.rewards.math.marked import Found, Wanted, boxed
from rlreason.rewards.math.parse import parse
from rlreason.rewards.math.prose import stated
from rlreason.rewards.math.read import Answer, read, simplify, strip
from rlreason.rewards.math.renamed import equal_up_to_letters
from rlreason.rewards.math.tree import MathError, Node
from rlreason.rewards.math.values import Options
from rlreason.rewards.math.verdicts import YES_NO, says
from rlreason.rewards.math.wording import UNDER_WAY
from rlreason.rewards.registry import verifier
from rlreason.types import Completion, Problem, Reference, RewardResult, Verdict

_OPTION_KEYS = ("ordered", "tolerance", "units", "percent_as_unit")


@verifier("math")
def math(
    problem: Problem,
    completion: Completion,
    *,
    ordered: bool = False,
    tolerance: float = 0.0,
    units: bool = False,
    marked_only: bool = False,
) -> RewardResult:
    """Right if the extracted answer equals one of the golds.

    The reference is a gold, several golds of which one suffices, or ``{"answer": gold, "ordered": true, ...}`` with
    options of this problem. ``ordered``: lists compare in order; ``tolerance``: relative, for numbers; ``units``: a
    gold with a unit refuses a bare number; ``marked_only``: only boxes, answer tags, ``####`` and "answer is" count.
    """
    options = Options(ordered=ordered, tolerance=tolerance, units=units)
    return check(completion.response, problem.reference, options, marked_only=marked_only)


def check(
    response: str, reference: Reference, options: Options | None = None, *, marked_only: bool = False
) -> RewardResult:
    """``math`` on plain text. Example: ``check("so \\\\boxed{0.5}", "\\\\frac12").verdict is Verdict.CORRECT``."""
    options = options or Options()
    if isinstance(reference, Mapping):
        try:
            options, marked_only, reference = _options(options, marked_only, reference)
        except (TypeError, ValueError, KeyError) as error:
            return _broken(f"the reference is unusable: {error}")
    golds = [gold_answer(g) for g in ((reference,) if isinstance(reference, str) else reference)]
    golds = [g for g in golds if g.words not in _NO_GOLD]
    readable = [g for g in golds if g.node is not None or g.letter]
    wanted = _wanted(readable or golds)
    found = extract(response, wanted, marked_only=marked_only)
    if not readable:
        same = found.text is not None and any(g.text and strip(found.text) == g.text for g in golds)
        if same:
            return RewardResult(score=1.0, verdict=Verdict.CORRECT, extracted=found.text, detail="identical text")
        return _broken("the gold answer can't be read")
    if found.text is None:
        return RewardResult(score=0.0, verdict=Verdict.UNPARSED, detail=found.how)
    answer = read_answer(found.text, wanted)
    verdicts = [same_answer(gold, answer, options) for gold in readable]
    if True not in verdicts and None in verdicts:
        return _by_sympy([g for g, v in zip(readable, verdicts, strict=True) if v is None], answer, found)
    right = True in verdicts
    return RewardResult(
        score=float(right), verdict=Verdict.CORRECT if right else Verdict.WRONG, extracted=found.text, detail=found.how
    )


def _by_sympy(golds: list[Answer], answer: Answer, found: Found) -> RewardResult:
    """The last rung, for golds with an integral, a limit or an infinite sum in them."""
    decisions = {
        math_symbolic.decide(gold.node, answer.node)
        for gold in golds
        if gold.node is not None and answer.node is not None and math_symbolic.applies(gold.node, answer.node)
    }
    if "equal" in decisions:
        return RewardResult(score=1.0, verdict=Verdict.CORRECT, extracted=found.text, detail=f"{found.how}; sympy")
    for failure, verdict in (("timed_out", Verdict.TIMED_OUT), ("broken", Verdict.BROKEN)):
        if failure in decisions:
            return RewardResult(score=None, verdict=verdict, extracted=found.text, detail="sympy reached its limits")
    return RewardResult(score=0.0, verdict=Verdict.WRONG, extracted=found.text, detail=f"{found.how}; not shown equal")


def _options(options: Options, marked_only: bool, reference: Mapping[str, object]) -> tuple[Options, bool, Reference]:
    settings: dict[str, object] = {key: getattr(options, key) for key in _OPTION_KEYS}
    settings["marked_only"] = marked_only
    for key, value in reference.items():
        if key in settings:
            settings[key] = _fit(key, value, settings[key])
        elif key != "answer":
            raise ValueError(f"unknown option {key!r}; allowed: answer, {', '.join(settings)}")
    answer = reference["answer"]
    if isinstance(answer, list):
        answer = tuple(answer)
    if not isinstance(answer, (str, tuple)) or not all(isinstance(one, str) for one in answer):
        raise ValueError("'answer' must be text or a list of texts")
    marked_only = bool(settings.pop("marked_only"))
    return Options(**settings), marked_only, answer  # type: ignore[arg-type]  # _fit saw to their types


def _fit(key: str, value: object, default: object) -> object:
    """An option's value in the type of its default: ``"false"`` is no truth value."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"option {key!r} must be true or false, not {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"option {key!r} must be a number from 0 up, not {value!r}")
    return float(value)


def _broken(detail: str) -> RewardResult:
    return RewardResult(score=None, verdict=Verdict.BROKEN, detail=detail)


@lru_cache(maxsize=16_384)
def gold_answer(gold: str) -> Answer:
    """Read a gold: as the data set writes it, boxed, or as the last sentence of a solution."""
    found = boxes(gold) if "box" in gold else []
    if found:
        if found[-1].text is None:  # a gold cut off at its closing brace still says what it says
            return read(gold[found[-1].start :].partition("{")[2])
        return read(boxed(gold, found, Wanted(many=True)).text or "")
    answer = read(gold)
    if "\n" in gold and not answer.letter and re.match(r"[A-H] [A-Z][a-z]+\n", gold):
        return read(gold[0])  # a choice and its text over several lines
    letter = re.search(r"answer is\W+\(?([A-Z])\)?(?![A-Za-z])", gold)
    if letter and not answer.letter:
        return read(letter[1])
    if answer.node is not None and answer.node.kind == "relation" and _is_sentence(answer.node):
        answer = read_answer(gold, Wanted())
    if answer.node is None or answer.node.kind == "text":
        said = statement(gold)
        if said is not None:
            return read(said)
    if (answer.node is None or answer.node.kind == "text") and re.search(r"\$|\banswer\b|\n", gold):
        extracted = extract(gold, Wanted())
        if extracted.text is not None and "answer" in gold:
            return read(extracted.text)
    return answer


def _wanted(golds: list[Answer]) -> Wanted:
    return Wanted(
        letter=any(g.letter for g in golds),
        many=any(g.node is not None and g.node.kind in ("group", "pm") for g in golds),
        words=all(g.node is not None and g.node.kind == "text" for g in golds) and not any(g.letter for g in golds),
    )


def read_answer(text: str, wanted: Wanted) -> Answer:
    """Read an extracted answer; where it is a sentence, what the sentence states."""
    answer = read(text)
    if wanted.letter and not answer.letter and (small := small_choice(text)):
        return read(small)
    if wanted.letter and not answer.letter and " " in text:
        chosen = settled_choice(plain_text(text))
        return read(chosen) if chosen else answer
    line = opened(text.strip().rpartition("\n")[2])
    supposes = answer.node is not None and answer.node.kind in ("text", "named") and UNDER_WAY.search(plain_text(line))
    if supposes and not wanted.words and not wanted.letter:
        return replace(answer, node=None)  # "Let x = 5"
    if wanted.letter or wanted.words or (answer.node is not None and not _is_sentence(answer.node)):
        return answer
    said = statement(line) or stated(line)
    return read(said) if said else answer


def _is_sentence(node: Node) -> bool:
    """Text, or a relation that begins with text: ``The solution is $x = 5$``."""
    return node.kind == "text" or (node.kind == "relation" and any(a.kind == "text" for a in node.args))


def same_answer(gold: Answer, answer: Answer, options: Options) -> bool | None:
    """Do two answers agree? None where it could not be decided."""
    if gold.letter and answer.letter:
        return gold.letter == answer.letter
    if len(gold.choices) > 1 and answer.choices:
        return gold.choices == answer.choices
    if gold.choice or answer.choice:
        # "(C) 27" against 27
        return bool(same_answer(read(gold.choice or gold.text), read(answer.choice or answer.text), options))
    if gold.letter:
        return gold.text == answer.text  # "A" is no variable of a formula
    for word, other in ((gold.words, answer), (answer.words, gold)):
        if word in YES_NO:
            return says(plain_text(_COMMAND.sub(r"\1", other.text)), word)
    in_text = "text" in (gold.node and gold.node.kind, answer.node and answer.node.kind)
    if in_text and gold.words == answer.words and not gold.letter:
        return True
    if answer.in_words and not gold.in_words:
        return False
    if gold.node is None or answer.node is None:
        return bool(gold.text) and gold.text == answer.text
    try:
        result = equal(gold.node, answer.node, options)
        if result or _other_reading(gold, answer, options):
            return True
        return equal_up_to_letters(gold.text, answer.text, gold.node, answer.node, options, equal) or result
    except (Undecided, MathError, RecursionError):
        return None


#: What a missing value becomes when it is written as text.
_NO_GOLD = frozenset({"nan", "null"})
_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|textrm|mathbf)\s*\{([^{}]*)\}")
_DECIMAL_COMMA = re.compile(r"(-?)(0,\d{2,}|\d+,(?:\d{2}|\d{4,})|\d{4,},\d+)(?:\s*(?:\\?[$€%]|[a-z]+)\W*[a-z]*\W*)?")
_PYTHON_CONSTANT = re.compile(r"(?<![A-Za-z\\])[IE](?![A-Za-z(_])")
_GROUPS_OF_THREE = re.compile(r"\d{1,3}(?:,\d{3})+")


def _other_reading(gold: Answer, answer: Answer, options: Options) -> bool:
    """``1,22`` as 1.22 against a number; ``100,200,300`` as a list against a list."""
    python = [a.text for a in (gold, answer) if "*" in a.text or "sqrt(" in a.text]
    if python and any(re.search(r"(?<![A-Za-z])[IE](?![A-Za-z(_])", t) for t in python):
        readings = [read(_PYTHON_CONSTANT.sub(lambda m: m[0].lower(), a.text)) for a in (gold, answer)]
        if readings[0].node is not None and readings[1].node is not None:
            return bool(equal(readings[0].node, readings[1].node, options))
    for side, other in ((gold, answer), (answer, gold)):
        assert other.node is not None
        if "," not in side.text or ("," in other.text and other.node.kind != "group"):
            continue
        comma = _DECIMAL_COMMA.fullmatch(side.text)
        if comma and other.node.kind in ("decimal", "num") and "." in other.text:
            return bool(equal(parse((comma[1] + comma[2]).replace(",", ".")), other.node, options))
        if other.node.kind == "group" and _GROUPS_OF_THREE.search(side.text):
            return bool(equal(simplify(parse(side.text, group_commas=False)), other.node, options))
    return False
