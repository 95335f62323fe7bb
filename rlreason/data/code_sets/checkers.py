"""Checkers of contest sets: which the verifier can run, and those of graders that compare in a way of their own.

A checker in C++ (testlib) is not run. Where it does nothing but compare the output with the expected one, the
verifier's own comparison, or a small checker in Python, says the same; a problem with another is left out, since right
answers to it would be refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rlreason.data.code_sets.cells import BadRow

#: Words compared without regard to case.
ANY_CASE: Final = """\
def check(input, output, expected):
    return output.lower().split() == expected.lower().split()
"""
#: As CodeContests' own grader does: words without regard to case; a decimal fraction may differ by 1e-5.
CODE_CONTESTS: Final = """\
import re

_FRACTION = re.compile(r"[-+]?\\d*\\.\\d+(?:e[-+]?\\d+)?|[-+]?\\d+e[-+]?\\d+")
_NUMBER = re.compile(r"[-+]?(?:\\d+\\.?\\d*|\\.\\d+)(?:e[-+]?\\d+)?")


def _same(wanted, found):
    if wanted == found or re.fullmatch(re.escape(wanted) + r"\\.0+", found) and wanted.lstrip("-").isdigit():
        return True
    if len(wanted) > 400 or len(found) > 400:
        return False
    if not (_FRACTION.fullmatch(wanted) and _NUMBER.fullmatch(found)):
        return False
    return abs(float(wanted) - float(found)) < 1e-5


def check(input, output, expected):
    wanted, found = expected.lower().split(), output.lower().split()
    return len(wanted) == len(found) and all(map(_same, wanted, found))
"""
#: Words; fractions may differ by so much, absolutely or relative to the expected one, with ALL every number may.
_WITHIN: Final = """\
import re

_NUMBER = re.compile(r"[-+]?(?:\\d+\\.?\\d*|\\.\\d+)(?:[eE][-+]?\\d+)?")


def _same(wanted, found):
    if wanted == found:
        return True
    if len(wanted) > 400 or len(found) > 400 or not (_NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(found)):
        return False
    if not (ALL or "." in wanted or "e" in wanted.lower()):
        return False
    return abs(float(wanted) - float(found)) <= EPSILON * max(1.0, abs(float(wanted)))


def check(input, output, expected):
    wanted, found = expected.split(), output.split()
    return len(wanted) == len(found) and all(map(_same, wanted, found))
"""
_COMMENT: Final = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
_INCLUDE: Final = re.compile(r"^\s*#\s*include\b", re.MULTILINE)
_CASE: Final = re.compile(r"\b(?:upperCase|lowerCase|toupper|tolower)\b")
_FRACTIONS: Final = re.compile(r"\b(?:read(?:Double|Real|StrictDouble|StrictReal)|nextDouble)\b")
_EPSILON: Final = re.compile(r"(?<![\w.])(?:\d+\.?\d*[eE]-\d+|0\.0+[1-9]\d*)(?![\w.])")
#: Signs that more is done than to compare the two outputs one piece after the other.
_MORE: Final = re.compile(
    r"\binf\b|\bsort\b|\bset\b|\bmultiset\b|\bmap\b|\bunordered_\w+|\bnext_permutation\b|\bquitp\b|_pc\b|\bargv\s*\[\s*\d"
    r"|\bifstream\b|\bfopen\b|\bmin\b|\bmax\b"
)
_READ: Final = re.compile(r"\b(?:ans|ouf)\s*\.\s*(read\w+|next\w*|seek\w+|eof\w*|eol\w*|skip\w*|cur\w*)\b")
#: Readers of testlib whose values are words or whole numbers.
_WORDS: Final = re.compile(
    r"read(?:Token|Word|Int|Integer|Long|UnsignedLong|Line|String|Char|Space|Eoln|Eof|Tokens|Words|Ints|Longs)(?:To)?"
    r"|next(?:Token|Word|Int|Long|Line|String)?|seek\w+|eof|eoln|skip\w*|cur\w*"
)
_VALUES: Final = re.compile(r"(?:read|next)(?!Eoln|Eof|Space)\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How an output is compared: by ``checker``, or where it is None by the words (or lines) of the expected one."""

    checker: str | None = None


def comparison(source: str) -> Comparison:
    """What the verifier does in place of the checker ``source``. Raises BadRow where it can't.

    Python: the checker itself, a function ``check(input, output, expected)`` or a whole program. C++: see above.
    """
    if not source.strip():
        return Comparison()
    if _INCLUDE.search(source):
        return _of_testlib(source)
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        raise BadRow("its checker is neither Python nor C++") from None
    return Comparison(checker=source)


def _of_testlib(source: str) -> Comparison:
    code = _COMMENT.sub(" ", source)
    if _MORE.search(code):
        raise BadRow("its checker is a C++ program that does more than compare two outputs, and C++ is not run here")
    readers = {found[1] for found in _READ.finditer(code)}
    fractions = set(filter(_FRACTIONS.fullmatch, readers))
    epsilons = {float(found[0]) for found in _EPSILON.finditer(code)}
    if fractions and len(epsilons) == 1 and all(map(_WORDS.fullmatch, readers - fractions)):
        alone = not any(map(_VALUES.fullmatch, readers - fractions))  # nothing is a whole number that must be right
        return Comparison(checker=f"EPSILON, ALL = {epsilons.pop()!r}, {alone}\n{_WITHIN}")
    if not readers or not all(map(_WORDS.fullmatch, readers)):
        raise BadRow("its checker is a C++ program that compares in a way of its own, and C++ is not run here")
    return Comparison(checker=ANY_CASE if _CASE.search(code) else None)


def for_code_contests(outputs: Iterable[str]) -> str | None:
    """The checker that judges as CodeContests' own grader does; None where equal words are all there is to it."""
    plain = all(word.removeprefix("-").isdigit() for output in outputs for word in output.split())
    return None if plain else CODE_CONTESTS
