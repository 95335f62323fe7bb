"""Tests whose calls can be read off their text, as runs of a program that only states results.

For places where no judge process can stand beside the candidate (``remote``): the calls go out, plain data
comes back, and each assert is evaluated here over that data. Anything else in a test is refused by name.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain, Tree
from rlreason.rewards.programs.affordable import affordable
from rlreason.rewards.programs.compare import same_output, same_value
from rlreason.rewards.programs.tests import BadTests, CallTests, CodeTests, StdinTests, draws_of, read_tests

#: What an assert may apply to a result: harmless on plain data, and cheap.
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "abs": abs, "all": all, "any": any, "bool": bool, "dict": dict, "float": float, "frozenset": frozenset, "int": int,
    "isclose": math.isclose, "isinstance": isinstance, "len": len, "list": list, "max": max, "min": min,
    "round": round, "set": set, "sorted": sorted, "str": str, "sum": sum, "tuple": tuple,
}  # fmt: skip
_TYPES = {"bool", "int", "float", "str", "list", "tuple", "set", "dict", "frozenset"}
#: No power, product or shift: a result may be a large number or text.
_NODES = (
    ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict,
    ast.Subscript, ast.Slice, ast.Load, ast.cmpop, ast.boolop, ast.unaryop, ast.Add, ast.Sub, ast.Div, ast.keyword,
)  # fmt: skip

Trees = Mapping[int, Tree]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Example: ``Call(name="add", args=[1, 2], kwargs={})``."""

    name: str
    args: list[object]
    kwargs: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRun:
    """One start of the program: its text and input, and how its output becomes one bool per case from ``first`` on."""

    code: str
    stdin: str
    first: int
    cases: int
    judge: Callable[[str], list[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTests:
    """Tests of one problem, readable. ``needs_success``: a case counts only where the program ended with status 0."""

    cases: int
    needs_success: bool
    runs: Callable[[str], Iterator[RemoteRun]]


def remote_tests(tests: Mapping[str, object]) -> RemoteTests:
    """The runs that a tests mapping asks for. Raises BadTests: malformed, or not to be read off."""
    wanted = read_tests(tests)
    if isinstance(wanted, StdinTests):
        return _stdin(wanted)
    if isinstance(wanted, CallTests):
        return _cases(wanted)
    if wanted.kind == "check":
        return _asserts(_check_asserts(wanted.pieces[0]), {"candidate": str(wanted.entry_point)}, wanted.prelude)
    if wanted.kind == "asserts":
        return _assert_list(wanted)
    raise BadTests(f"tests of type {wanted.kind!r} need the local sandbox")


def _assert_list(tests: CodeTests) -> RemoteTests:
    if not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in _parse(tests.pieces[0]).body):
        raise BadTests("the setup of these asserts is code: they need the local sandbox")
    return _asserts([node for text in tests.pieces[1:] for node in _parse(text).body], {}, tests.prelude)


def _stdin(tests: StdinTests) -> RemoteTests:
    if tests.checker is not None:
        raise BadTests("a custom checker needs the local sandbox")

    def runs(source: str) -> Iterator[RemoteRun]:
        for at, case in enumerate(tests.cases):
            yield RemoteRun(
                code=f"{tests.prelude}\n{source}" if tests.prelude else source,
                stdin=case.input,
                first=at,
                cases=1,
                judge=lambda printed, expected=case.output: [  # type: ignore[misc]
                    same_output(expected, printed.encode("utf-8", "replace"), lines=tests.lines)
                ],
            )

    return RemoteTests(cases=len(tests.cases), needs_success=True, runs=runs)


def _cases(tests: CallTests) -> RemoteTests:
    if any(case.argument is not None for case in tests.cases):
        raise BadTests("tests that look at an argument after the call need the local sandbox")
    calls = [Call(name=tests.entry_point, args=case.args, kwargs=case.kwargs) for case in tests.cases]

    def judge(results: Trees) -> list[bool]:
        return [
            at in results and same_value(case.expected, results[at], tests.tolerance)
            for at, case in enumerate(tests.cases)
        ]

    return _called(calls, judge, len(calls), tests.prelude)


def _called(calls: list[Call], judge: Callable[[Trees], list[bool]], cases: int, prelude: str | None) -> RemoteTests:
    """All calls in one start of the program, in an order that it can't foresee from the tests' text."""
    try:
        packed = [[at, c.name, jail_data.to_tree(c.args), jail_data.to_tree(c.kwargs)] for at, c in enumerate(calls)]
    except NotPlain as error:
        raise BadTests(f"tests: an argument is no plain data: {error}") from None

    def runs(source: str) -> Iterator[RemoteRun]:
        yield RemoteRun(
            code=DRIVER,
            stdin=json.dumps([prelude or "", source, draws_of(source).sample(packed, len(packed))]),
            first=0,
            cases=cases,
            judge=lambda printed: judge(_results(printed)),
        )

    return RemoteTests(cases=cases, needs_success=False, runs=runs)


def _results(printed: str) -> dict[int, Tree]:
    """Number of each call and its result, as far as lines hold such; a program may write anything."""
    found: dict[int, Tree] = {}
    for line in printed.split("\n"):
        try:
            record = jail_data.loads(line.encode("ascii"))
        except (NotPlain, UnicodeEncodeError):
            continue
        if isinstance(record, list) and len(record) == 2 and type(record[0]) is int:
            found.setdefault(record[0], record[1])
    return found


def _parse(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTests(f"tests: {error}") from None


def _check_asserts(code: str) -> list[ast.stmt]:
    """The statements of ``def check(candidate)``."""
    for node in _parse(code).body:
        if isinstance(node, ast.FunctionDef) and node.name == "check" and len(node.args.args) == 1:
            if node.args.args[0].arg != "candidate":
                break
            return [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    raise BadTests("tests: no def check(candidate) in the code")


def _asserts(statements: list[ast.stmt], names: Mapping[str, str], prelude: str | None) -> RemoteTests:
    """Each assert as an expression over the results of its calls. ``names``: what a called name stands for."""
    reader = _Reader(names)
    tests: list[CodeType] = []
    for statement in statements:
        if not isinstance(statement, ast.Assert):
            raise BadTests(f"tests: not a plain assert, needs the local sandbox: {ast.unparse(statement)[:100]}")
        expression = ast.fix_missing_locations(ast.Expression(reader.visit(statement.test)))
        tests.append(compile(expression, "<assert>", "eval"))
    if not reader.calls:
        raise BadTests("tests: no call of a function in them")

    def judge(results: Trees) -> list[bool]:
        scope: dict[str, object] = {"__builtins__": {}, **_FUNCTIONS}
        for at, tree in results.items():
            if affordable(tree):
                try:
                    scope[f"result_{at}"] = jail_data.from_tree(tree)
                except (NotPlain, RecursionError):
                    continue
        return [_holds(test, dict(scope)) for test in tests]

    return _called(reader.calls, judge, len(tests), prelude)


def _holds(test: CodeType, scope: dict[str, object]) -> bool:
    try:
        return bool(eval(test, scope))
    except Exception:  # a missing result is a NameError; a result of an odd type anything else
        return False


class _Reader(ast.NodeTransformer):
    """Takes calls with plain arguments out of an expression; refuses what is not plain."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.calls: list[Call] = []

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if ast.unparse(node.func) == "math.isclose":
            node.func = ast.Name("isclose", ast.Load())
        if not isinstance(node.func, ast.Name):
            raise BadTests(f"tests: not plain, needs the local sandbox: {ast.unparse(node)[:100]}")
        if node.func.id in _FUNCTIONS:
            node.args = [self.visit(child) for child in node.args]
            node.keywords = [self.visit(child) for child in node.keywords]
            return node
        try:
            args = [ast.literal_eval(argument) for argument in node.args]
            kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
        except (ValueError, TypeError):
            raise BadTests(f"tests: arguments are not plain data: {ast.unparse(node)[:100]}") from None
        name = self.names.get(node.func.id, node.func.id)
        self.calls.append(Call(name=name, args=args, kwargs=kwargs))
        return ast.Name(f"result_{len(self.calls) - 1}", ast.Load())

    def generic_visit(self, node: ast.AST) -> ast.AST:
        plain_name = isinstance(node, ast.Name) and node.id in _TYPES
        plain_sum = isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Div))
        if not (isinstance(node, _NODES) or plain_name or plain_sum):
            raise BadTests(f"tests: not plain, needs the local sandbox: {ast.unparse(node)[:100]}")
        return super().generic_visit(node)


#: Runs beside the candidate: reads program and calls from stdin, writes one line per call that returned plain data.
DRIVER = (
    inspect.getsource(jail_data)
    + """

def main():
    import os, sys

    prelude, source, calls = json.loads(sys.stdin.read())
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    scope = {"__name__": "solution"}
    for text in (prelude, source):
        exec(compile(text, "<program>", "exec", dont_inherit=True), scope)

    def find(name):
        if name in scope:
            return scope[name]
        owner, _, method = name.rpartition(".")
        return getattr(scope[owner.removesuffix("()") or "Solution"](), method)

    for at, name, args, kwargs in calls:
        try:
            value = find(name)(*from_tree(args), **from_tree(kwargs))
            os.write(out, dumps([at, to_tree(value)]) + b"\\n")
        except BaseException:
            continue

main()
"""
)
