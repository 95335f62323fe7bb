"""The code data sets that can be read, by name, and a row of one made into a problem."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rlreason.data.code_sets import contests, functions
from rlreason.data.code_sets.cells import BadRow, Cells, HubRow
from rlreason.data.code_sets.shape import CodeProblem
from rlreason.errors import UsageError, suggest

__all__ = ["CODE_SETS", "BadRow", "CodeSet", "code_set"]

#: Digits of an integer in test cases, where Python itself stops at 4,300.
_DIGITS: Final = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSet:
    """A code data set. Example: ``CODE_SETS["humaneval"]``."""

    name: str
    #: Where it is, of those that have its columns the best known.
    hub: str
    read: Callable[[HubRow], CodeProblem]
    #: What is read of a hub id that names no split.
    split: str = "train"

    def problem(self, cells: Cells) -> dict[str, object]:
        """``cells``, a row of the set, as a row of a problem file: ``id``, ``prompt``, ``tests``, … Raises BadRow.

        A row of a problem file stays what it is, but for what answers need (``functions.completed``).
        """
        tests = cells.get("tests")
        if isinstance(tests, Mapping) and "type" in tests and "prompt" in cells:
            return functions.completed(cells, tests)
        with long_integers():
            return _written(self.read(HubRow(cells)).row())


_SETS: Final = (
    CodeSet(name="apps", hub="codeparrot/apps", read=contests.apps),
    CodeSet(name="taco", hub="BAAI/TACO", read=contests.taco),
    CodeSet(name="livecodebench", hub="livecodebench/code_generation_lite", read=contests.livecodebench, split="test"),
    CodeSet(name="code_contests", hub="deepmind/code_contests", read=contests.code_contests),
    CodeSet(name="code_contests_plus", hub="ByteDance-Seed/Code-Contests-Plus", read=contests.code_contests_plus),
    CodeSet(name="codeforces", hub="open-r1/codeforces", read=contests.codeforces),
    CodeSet(name="verifiable_coding", hub="PrimeIntellect/verifiable-coding-problems", read=contests.verifiable_coding),
    CodeSet(name="deepcoder", hub="agentica-org/DeepCoder-Preview-Dataset", read=contests.deepcoder),
    CodeSet(name="humaneval", hub="openai/openai_humaneval", read=functions.humaneval, split="test"),
    CodeSet(name="humaneval_plus", hub="evalplus/humanevalplus", read=functions.humaneval, split="test"),
    CodeSet(name="mbpp", hub="google-research-datasets/mbpp", read=functions.mbpp),
    CodeSet(name="mbpp_plus", hub="evalplus/mbppplus", read=functions.mbpp_plus, split="test"),
    CodeSet(name="leetcode", hub="newfacade/LeetCodeDataset", read=functions.leetcode),
    CodeSet(name="kodcode", hub="KodCode/KodCode-V1", read=functions.kodcode),
)
CODE_SETS: Mapping[str, CodeSet] = {one.name: one for one in _SETS}


def code_set(name: str) -> CodeSet:
    """The set called ``name``. Raises UsageError with the names that there are."""
    if name not in CODE_SETS:
        raise UsageError(f"no code data set {name!r}: {suggest(name, CODE_SETS)}")
    return CODE_SETS[name]


def _written(row: dict[str, object]) -> dict[str, object]:
    """``row``, where JSON can write it. Half a surrogate pair, as texts cut in the middle of an emoji have, is a ?."""
    try:
        text = json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise BadRow("its tests hold values that JSON can't write") from None
    try:
        text.encode()
    except UnicodeEncodeError:
        whole: dict[str, object] = json.loads(text.encode("utf-8", "replace"))
        return whole
    return row


@contextmanager
def long_integers() -> Iterator[None]:
    """Integers of some ten thousand digits, which test cases have, are read and written."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(_DIGITS)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)
