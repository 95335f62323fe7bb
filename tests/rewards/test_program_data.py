"""HumanEval and MBPP: every reference solution is correct, and what is broken in it is found."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlreason.rewards.jail.jail import Limits, capabilities
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import Verdict

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the shared data sets in {DATA}"),
    pytest.mark.skipif(capabilities().level == "none", reason=f"needs a jail: {capabilities()}"),
]
Problem = tuple[str, str, dict[str, object]]


def problems(name: str) -> Iterator[Problem]:
    """Id, reference program, tests."""
    with (DATA / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            prompt = row["prompt"] if name == "humaneval" else ""
            yield row["id"], prompt + row["solution"], row["tests"]


@pytest.mark.parametrize(("name", "count"), [("humaneval", 164), ("mbpp_sanitized", 427)])
def test_reference_solutions(name: str, count: int) -> None:
    limits = Limits(wall_seconds=60.0, cpu_seconds=30.0, total_seconds=120.0)  # mbpp-123 needs 5 s
    results = {key: check_program(source, tests, limits=limits) for key, source, tests in problems(name)}
    assert {key: r for key, r in results.items() if r.verdict is not Verdict.CORRECT} == {}
    assert [key for key, r in results.items() if r.detail] == []  # none ran the weaker way
    assert len(results) == count


class _Empty(ast.NodeTransformer):
    """Empty body: every function returns nothing."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [ast.Pass()]
        return node


class _WrongConstant(ast.NodeTransformer):
    """Every function returns a constant that no test expects."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [ast.Return(ast.Constant("never expected"))]
        return node


class _OffByOne(ast.NodeTransformer):
    """Every integer result is one more; other results stay."""

    def visit_Return(self, node: ast.Return) -> ast.Return:
        if node.value is not None:
            node.value = ast.Call(ast.Name("_off_by_one", ast.Load()), [node.value], [])
        return node


_OFF_BY_ONE = "def _off_by_one(value):\n    return value + 1 if type(value) in (int, float) else value\n\n\n"


def _mutated(source: str, change: Callable[[], ast.NodeTransformer]) -> str:
    return _OFF_BY_ONE + ast.unparse(ast.fix_missing_locations(change().visit(ast.parse(source))))


def _returns_numbers(tests: dict[str, object]) -> bool:
    """Whether a test compares the result itself with an integer other than through a tolerance."""
    lines = [*map(str, tests.get("asserts", [])), *str(tests.get("code", "")).splitlines()]  # type: ignore[call-overload]
    return any(line.strip().startswith("assert ") and line.strip()[-1:].isdigit() and "==" in line for line in lines)


@pytest.mark.parametrize("name", ["humaneval", "mbpp_sanitized"])
@pytest.mark.parametrize("change", [_Empty, _WrongConstant, _OffByOne], ids=lambda c: c.__name__.strip("_"))
def test_mutations_fail(name: str, change: Callable[[], ast.NodeTransformer]) -> None:
    pool = [p for p in problems(name) if change is not _OffByOne or _returns_numbers(p[2])]
    chosen = random.Random(4).sample(pool, min(60, len(pool)))
    limits = Limits(wall_seconds=5.0, cpu_seconds=5.0)
    verdicts = {key: check_program(_mutated(source, change), tests, limits=limits) for key, source, tests in chosen}
    assert {key: r for key, r in verdicts.items() if r.verdict not in {Verdict.WRONG, Verdict.TIMED_OUT}} == {}
