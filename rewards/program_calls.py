"""Tests whose calls can be read off their text, as runs of a program that only states results.

For places where no judge process can stand beside the candidate (``program_remote``): the calls go out, plain data
comes back, and each assert is evaluated here over that data. Anything else in a test is refused by name.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from rlreason.rewards.program_compare import same_output, same_value

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Example: ``Call(name="add", args=(1, 2), kwargs={})``."""

    name: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One program to run: its text and input, and how its output becomes one bool per case from ``first`` on."""

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
    runs: Callable[[str], Iterator[Run]]


def read_tests(tests: Mapping[str, object]) -> RemoteTests:
    """The runs that a tests mapping asks for. ValueError names what can't be read off."""
    kind = tests.get("type")
    if kind == "stdin":
        return _stdin(tests)
    if kind == "function" and "cases" in tests:
        return _cases(tests)
    if kind == "function" and "code" in tests:
        return _asserts(_check_asserts(str(tests["code"])), {"candidate": str(tests["entry_point"])})
    if kind == "asserts":
        statements = [node for text in _list(tests, "asserts") for node in _parse(str(text)).body]
        setup = _parse(str(tests["setup"])).body if "setup" in tests else []
        if not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in setup):
            raise ValueError("the setup of these asserts is code: they need the local sandbox")
        return _asserts(statements, {})
    raise ValueError(f"tests of type {kind!r} need the local sandbox")


def _list(tests: Mapping[str, object], key: str) -> list[object]:
    value = tests.get(key)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"tests: {key!r} must be a list with at least one entry, not {value!r:.100}")
    return list(value)


def _stdin(tests: Mapping[str, object]) -> RemoteTests:
    if "checker" in tests:
        raise ValueError("a custom checker needs the local sandbox")
    cases = []
    for case in _list(tests, "cases"):
        if not isinstance(case, Mapping) or not {"input", "output"} <= case.keys():
            raise ValueError(f"tests: a stdin case has an input and an output, not {case!r:.100}")
        cases.append((str(case["input"]), str(case["output"])))

    def runs(source: str) -> Iterator[Run]:
        for at, (given, expected) in enumerate(cases):
            yield Run(
                code=source,
                stdin=given,
                first=at,
                cases=1,
                judge=lambda printed, expected=expected: [same_output(printed, expected)],  # type: ignore[misc]
            )

    return RemoteTests(cases=len(cases), needs_success=True, runs=runs)


def _cases(tests: Mapping[str, object]) -> RemoteTests:
    calls, expected = [], []
    for case in _list(tests, "cases"):
        if not isinstance(case, Mapping) or not {"args", "expected"} <= case.keys():
            raise ValueError(f"tests: a function case has args and expected, not {case!r:.100}")
        kwargs = case.get("kwargs") or {}
        if not isinstance(case["args"], (list, tuple)) or not isinstance(kwargs, Mapping):
            raise ValueError(f"tests: args must be a list and kwargs a mapping, not {case!r:.100}")
        calls.append(Call(name=str(tests["entry_point"]), args=tuple(case["args"]), kwargs=kwargs))
        expected.append(case["expected"])

    def judge(results: Mapping[int, object]) -> list[bool]:
        return [at in results and same_value(results[at], value) for at, value in enumerate(expected)]

    return _called(calls, judge, len(calls))


def _called(calls: list[Call], judge: Callable[[Mapping[int, object]], list[bool]], cases: int) -> RemoteTests:
    """All calls in one start of the program, in an order that it can't foresee from the tests' text."""

    def runs(source: str) -> Iterator[Run]:
        order = list(range(len(calls)))
        random.Random(hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()).shuffle(order)
        payload = {
            "source": source,
            "calls": [[at, calls[at].name, encode(calls[at].args), encode(dict(calls[at].kwargs))] for at in order],
        }
        yield Run(
            code=DRIVER,
            stdin=json.dumps(payload),
            first=0,
            cases=cases,
            judge=lambda printed: judge(_results(printed)),
        )

    return RemoteTests(cases=cases, needs_success=False, runs=runs)


def _results(printed: str) -> dict[int, object]:
    """Number of each call and its result, as far as lines hold such; a program may write anything."""
    found: dict[int, object] = {}
    for line in printed.split("\n"):
        try:
            at, value = json.loads(line)
            if type(at) is int and at not in found:
                found[at] = decode(value)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, MemoryError):
            continue
    return found


def _parse(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"tests: {error}") from None


def _check_asserts(code: str) -> list[ast.stmt]:
    """The statements of ``def check(candidate)``."""
    for node in _parse(code).body:
        if isinstance(node, ast.FunctionDef) and node.name == "check" and len(node.args.args) == 1:
            if node.args.args[0].arg != "candidate":
                break
            return [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    raise ValueError("tests: no def check(candidate) in the code")


def _asserts(statements: list[ast.stmt], names: Mapping[str, str]) -> RemoteTests:
    """Each assert as an expression over the results of its calls. ``names``: what a called name stands for."""
    reader = _Reader(names)
    tests: list[CodeType] = []
    for statement in statements:
        if not isinstance(statement, ast.Assert):
            raise ValueError(f"tests: not a plain assert, needs the local sandbox: {ast.unparse(statement)[:100]}")
        expression = ast.fix_missing_locations(ast.Expression(reader.visit(statement.test)))
        tests.append(compile(expression, "<assert>", "eval"))
    if not reader.calls:
        raise ValueError("tests: no call of a function in them")

    def judge(results: Mapping[int, object]) -> list[bool]:
        scope = {"__builtins__": {}, **_FUNCTIONS, **{f"result_{at}": value for at, value in results.items()}}
        return [_holds(test, dict(scope)) for test in tests]

    return _called(reader.calls, judge, len(tests))


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
            raise ValueError(f"tests: not plain, needs the local sandbox: {ast.unparse(node)[:100]}")
        if node.func.id in _FUNCTIONS:
            node.args = [self.visit(child) for child in node.args]
            node.keywords = [self.visit(child) for child in node.keywords]
            return node
        try:
            args = tuple(ast.literal_eval(argument) for argument in node.args)
            kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
        except (ValueError, TypeError):
            raise ValueError(f"tests: arguments are not plain data: {ast.unparse(node)[:100]}") from None
        name = self.names.get(node.func.id, node.func.id)
        self.calls.append(Call(name=name, args=args, kwargs=kwargs))
        return ast.Name(f"result_{len(self.calls) - 1}", ast.Load())

    def generic_visit(self, node: ast.AST) -> ast.AST:
        plain_name = isinstance(node, ast.Name) and node.id in _TYPES
        plain_sum = isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Div))
        if not (isinstance(node, _NODES) or plain_name or plain_sum):
            raise ValueError(f"tests: not plain, needs the local sandbox: {ast.unparse(node)[:100]}")
        return super().generic_visit(node)


def encode(value: Any, budget: list[int] | None = None, depth: int = 0) -> object:
    """Plain data as tagged JSON values, by exact type; ValueError for anything else, too much or too deep.

    Also part of the text that runs beside the candidate, so it stands alone.
    """
    budget = [200_000] if budget is None else budget
    budget[0] -= 1
    if budget[0] < 0 or depth > 100:
        raise ValueError("too large a result")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return {"int": hex(value)}
    if kind is float:
        return {"float": value.hex()}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is dict:
        return {"dict": [[encode(k, budget, depth + 1), encode(v, budget, depth + 1)] for k, v in value.items()]}
    if kind in (list, tuple, set, frozenset):
        return {kind.__name__: [encode(one, budget, depth + 1) for one in value]}
    raise ValueError("not plain data")


def decode(value: Any) -> Any:
    """The plain data that ``encode`` wrote; ValueError or TypeError for any other JSON value."""
    if value is None or type(value) in (bool, str):
        return value
    ((kind, inner),) = value.items()
    if kind == "int":
        return int(inner, 16)
    if kind == "float":
        return float.fromhex(inner)
    if kind == "bytes":
        return bytes.fromhex(inner)
    # Numbers can be chosen to fall into one hash bucket: a set of n of them costs n * n.
    if kind in ("dict", "set", "frozenset") and len(inner) > 10_000:
        raise ValueError("too large a result")
    if kind == "dict":
        return {decode(k): decode(v) for k, v in inner}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(one) for one in inner)


#: Runs beside the candidate: reads program and calls from stdin, writes one line per call that returned plain data.
DRIVER = (
    "from __future__ import annotations\nimport json, os, sys\n\n"
    + inspect.getsource(encode)
    + "\n"
    + inspect.getsource(decode)
    + """
def main():
    job = json.loads(sys.stdin.read())
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    scope = {"__name__": "program"}
    exec(compile(job["source"], "program.py", "exec"), scope)
    for at, name, args, kwargs in job["calls"]:
        try:
            line = json.dumps([at, encode(scope[name](*decode(args), **decode(kwargs)))])
        except BaseException:
            continue
        os.write(out, line.encode() + b"\\n")

main()
"""
)
