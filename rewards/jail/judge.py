"""The judge: test code in a jailed process of its own, where the program's functions are stubs.

A stub sends its arguments over, by way of the trusted process, and gets plain data back, so the test compares values
that the program can't have tampered with. What is no plain data stays in the program's process, and the test gets a
stand-in that forwards calls, attributes and items, but not ``==``, ``in`` and truth.
Standard library only: loaded in the zygote.

Job: ``[test kind, source or None, test, names of the program]``. With a source the program runs in this very process
("together"): weaker, for tests whose arguments can't cross.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn, cast

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain, TooDeep, Tree
from rlreason.rewards.jail.driver import Channel, run_program

#: Arguments of these types cross as lists.
_ITERATORS = (
    map,
    filter,
    zip,
    enumerate,
    reversed,
    types.GeneratorType,
    *map(type, ({}.keys(), {}.values(), {}.items())),
)


class _Remote:
    """How stubs reach the program."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def ask(self, operation: str, target: Tree, arguments: tuple[object, ...], named: Mapping[str, object]) -> object:
        """Have the program's process do it; its value, or its exception raised here."""
        try:
            sent: list[Tree] = [
                jail_data.to_tree(list(arguments), _reference),
                jail_data.to_tree(dict(named), _reference),
            ]
        except TooDeep as error:  # may be the program's doing: no reason for weaker tests
            raise TypeError(str(error)) from None
        except NotPlain as error:
            self._give_up(f"an argument in the tests can't cross: {error}")
        self._channel.send(["ask", [True, operation, target, *sent]])
        kind, *answer = self._channel.receive()
        if kind == "value":
            return jail_data.from_tree(answer[0], self._stand_in)
        if kind == "raised":
            raise _exception(str(answer[0]), answer[1])
        raise TypeError(str(answer[0])[:200])

    def _give_up(self, reason: str) -> NoReturn:
        self._channel.send(["together", reason])
        self._channel.receive()  # the trusted process ends us
        os._exit(1)

    def _stand_in(self, tree: list[object]) -> object:
        if tree[0] != "h" or type(tree[1]) is not int:
            raise NotPlain("unknown tag")
        return _StandIn(self, tree[1], str(tree[2]))


class _StandIn:
    """Something of the program's that is no plain data: a function, an object, a generator."""

    __slots__ = ("_kind", "_remote", "_target")
    _kind: str
    _remote: _Remote
    _target: Tree

    def __init__(self, remote: _Remote, target: Tree, kind: str) -> None:
        object.__setattr__(self, "_remote", remote)
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_kind", kind)

    def _ask(self, operation: str, *arguments: object, **named: object) -> object:
        return self._remote.ask(operation, self._target, arguments, named)

    def __call__(self, *arguments: object, **named: object) -> object:
        return self._ask("call", *arguments, **named)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("attribute", name)

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("set_attribute", name, value)

    def __iter__(self) -> Iterator[object]:
        items = self._ask("list")
        if type(items) is not list:
            raise TypeError("not iterable")
        return iter(items)

    def __next__(self) -> object:
        return self._ask("next")

    def __len__(self) -> int:
        length = self._ask("length")
        if type(length) is not int:
            raise TypeError("no length")
        return length

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: object) -> object:
        return self._ask("item", key)

    def __str__(self) -> str:
        text = self._ask("text")
        return text if type(text) is str else ""

    def __repr__(self) -> str:
        return f"<{self._kind} of the program>"


def _reference(value: object) -> Tree:
    if type(value) is _StandIn:
        return ["h", value._target, ""]
    if type(value) in _ITERATORS:
        return jail_data.to_tree(list(cast("Iterator[object]", value)), _reference)
    raise NotPlain(f"{type(value).__name__} is not plain data")


def _exception(name: str, arguments: Tree) -> Exception:
    kind = vars(builtins).get(name)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return Exception(name)
    try:
        return kind(*arguments)  # type: ignore[misc]
    except TypeError:
        return kind()


# --- which names of the program a test sees ------------------------------------------------------------------------


def _used_names(trees: list[ast.Module]) -> set[str]:
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _called_names(trees: list[ast.Module]) -> set[str]:
    calls = (node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {call.id for call in calls if isinstance(call, ast.Name)}


def _leftmost_call(tree: ast.Module) -> str | None:
    """``sum`` of ``assert sum(10, 15) == 6``."""
    for node in ast.walk(tree):  # breadth first: the outermost on the left comes first
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return node.func.id
    return None


def _visible(names: set[str], trees: list[ast.Module], entry_point: str | None) -> set[str]:
    """Names of the program that tests may reach: those they use, but built-in ones only if they are what is tested.

    A program that defines its own ``set``, ``len`` or ``math`` must not get between a test and its comparison.
    """
    used = _used_names(trees)
    own = {name for name in used & names if name not in vars(builtins) and name not in sys.stdlib_module_names}
    tested = entry_point
    # Decided by the tests alone: a program may leave names out.
    if tested is None and not any(name not in vars(builtins) for name in _called_names(trees)):
        tested = next(filter(None, map(_leftmost_call, trees)), None)
    return own | ({tested} & names if tested else set())


def _namespace(
    all_names: set[str], trees: list[ast.Module], entry_point: str | None, remote: _Remote
) -> dict[str, object]:
    visible = _visible(all_names, trees, entry_point)
    module = types.ModuleType("tests")
    sys.modules["tests"] = sys.modules["__main__"] = module
    space = module.__dict__
    for name in sorted(_used_names(trees) & all_names - visible):
        if name in sys.stdlib_module_names:
            space[name] = importlib.import_module(name)
    for name in sorted(visible):
        value = remote.ask("get", name, (), {})
        space[name] = _StandIn(remote, name, "function") if type(value) is _StandIn else value
    if entry_point is not None:  # may also be a method of a class Solution
        space[entry_point] = _StandIn(remote, entry_point, "function")
    solution = types.ModuleType("solution")
    for name in sorted(all_names):
        solution.__dict__[name] = _StandIn(remote, name, "function")
    for name in _foreign_modules(trees):
        sys.modules[name] = solution
    return space


def _foreign_modules(trees: list[ast.Module]) -> set[str]:
    """Modules that tests import and that do not exist here: they mean the program."""
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
    return {name for name in found if "." not in name and importlib.util.find_spec(name) is None}


# --- running tests --------------------------------------------------------------------------------------------------


def judge(channel: Channel, kind: str, job: list[Tree]) -> None:
    """Run tests of ``kind``; send ``["passed", step]`` each, at the end ``["done", nonce]`` or ``["failed", ...]``.

    Where ``partial``, a failed step is ``["missed", step, reason]`` and the next follows.
    """
    source, test, names = job
    assert isinstance(test, dict)
    pieces = [str(text) for text in test["pieces"]]
    try:
        trees = [ast.parse(text) for text in pieces]
        codes = [compile(tree, f"<tests {i}>", "exec", dont_inherit=True) for i, tree in enumerate(trees)]
    except (SyntaxError, ValueError) as error:
        channel.send(["broken", f"the tests do not compile: {error}"[:300]])
        return
    entry_point = test["entry_point"]
    step = -1
    try:
        if source is None:
            assert isinstance(names, list)
            space = _namespace({str(name) for name in names}, trees, entry_point, _Remote(channel))
        else:
            space = run_program(str(source), "solution")
            for name in _foreign_modules(trees):
                sys.modules[name] = sys.modules["solution"]
        for step, work in enumerate(_steps(kind, codes, space, entry_point)):
            try:
                work()
            except Exception as error:
                if step == 0 or not test["partial"]:
                    raise
                channel.send(["missed", step, _reason(error, pieces)])
            else:
                channel.send(["passed", step])
    except BaseException as error:
        channel.send(["failed", step, _reason(error, pieces)])
        return
    channel.send(["finished"])  # answered by the nonce, which was nowhere in this process before
    channel.send(["done", *channel.receive()])


def _steps(
    kind: str, codes: list[types.CodeType], space: dict[str, object], entry_point: str | None
) -> Iterator[Callable[[], object]]:
    """The pieces of a test, each to be called in turn. The first is the set-up."""
    yield lambda: exec(codes[0], space)
    if kind == "asserts":
        for code in codes[1:]:
            yield lambda code=code: exec(code, space)  # type: ignore[misc]
    elif kind == "check":
        assert entry_point is not None
        check, candidate = space["check"], space[entry_point]
        assert callable(check)
        yield lambda: check(candidate)
    else:
        yield lambda: _run_unittest(sys.modules[str(space["__name__"])])


def _run_unittest(module: types.ModuleType) -> None:
    import unittest  # large: only the tests that need it pay for it

    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    wanted = suite.countTestCases()
    result = unittest.TestResult()
    result.failfast = True
    suite.run(result)
    for test, trace in (*result.failures, *result.errors):
        raise AssertionError(f"{test}: {trace.strip().splitlines()[-1]}")
    if not wanted or result.testsRun != wanted or result.unexpectedSuccesses or len(result.skipped) == wanted:
        raise AssertionError(f"{result.testsRun} of {wanted} tests ran, {len(result.skipped)} skipped")


def _reason(error: BaseException, pieces: list[str]) -> str:
    """``assert add(2, 3) == 5: AssertionError``: the line of the tests, and what it raised."""
    line, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<tests "):
            line = pieces[int(file[7:-1])].splitlines()[trace.tb_lineno - 1].strip()[:200]
        trace = trace.tb_next
    try:
        text = f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        text = "an exception"
    return ": ".join(filter(None, (line, text.removesuffix(": "))))
