"""Test files: cases of ``unittest``, and functions that pytest would collect.

Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any


class CannotRun(Exception):
    """The tests need what is not here: their fault, not the program's."""


def run(space: dict[str, Any]) -> None:
    """Run what the tests' module ``space`` defines itself. Raises AssertionError for the first failure, CannotRun."""
    mine = {name: value for name, value in space.items() if getattr(value, "__module__", None) == "tests"}
    cases = [value for value in mine.values() if _is_case(value)]
    if cases:
        _run_cases(cases)
    functions = list(_functions({name: value for name, value in mine.items() if not _is_case(value)}, space))
    if not functions and not cases:
        raise CannotRun("the tests hold no test case and no function named test_…")
    ran = 0
    for name, function in functions:
        try:
            function()
            ran += 1
        except BaseException as error:
            if _is_skip(error):
                continue
            if isinstance(error, CannotRun):
                raise
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    if functions and not ran:
        raise AssertionError("every test was skipped")


def _is_case(value: object) -> bool:
    unittest = sys.modules.get("unittest")
    return unittest is not None and isinstance(value, type) and issubclass(value, unittest.TestCase)


def _run_cases(cases: list[Any]) -> None:
    import unittest  # large: only the tests that need it pay for it

    # Not loadTestsFromModule, which would ask the module for load_tests.
    suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, cases))
    wanted = suite.countTestCases()
    if not wanted:
        raise CannotRun("the test cases hold no tests")
    result = unittest.TestResult()
    result.failfast = True
    suite.run(result)
    for test, trace in (*result.failures, *result.errors):
        raise AssertionError(f"{test}: {trace.strip().splitlines()[-1]}")
    if result.testsRun != wanted or result.unexpectedSuccesses or len(result.skipped) == wanted:
        raise AssertionError(f"{result.testsRun} of {wanted} tests ran, {len(result.skipped)} skipped")


def _is_skip(error: BaseException) -> bool:
    return type(error).__name__ in ("Skipped", "SkipTest") and type(error).__module__.startswith(
        ("_pytest", "unittest")
    )


def _functions(mine: dict[str, Any], space: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Test functions and methods, each ready to be called; parametrised ones as often as they say."""
    fixtures = {name: value for name, value in space.items() if _is_fixture(value)}
    for name, value in mine.items():
        if name.startswith("test") and isinstance(value, types.FunctionType):
            yield from _calls(name, value, (), fixtures)
        elif name.startswith("Test") and isinstance(value, type):
            for attribute in dir(value):
                function = inspect.getattr_static(value, attribute)
                if attribute.startswith("test") and isinstance(function, types.FunctionType):
                    own = {one: held for one, held in vars(value).items() if _is_fixture(held)}
                    yield from _calls(f"{name}.{attribute}", function, (value,), {**fixtures, **own})


def _is_fixture(value: object) -> bool:
    return type(value).__name__ == "FixtureFunctionDefinition"


def _calls(
    name: str, function: types.FunctionType, owner: tuple[type, ...], fixtures: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], None]]]:
    lacking = _lacking(function, fixtures, owner)
    marks = [*getattr(owner[0] if owner else None, "pytestmark", ()), *getattr(function, "pytestmark", ())]
    if any(mark.name == "skip" for mark in marks):
        return
    keys = {key for mark in marks if mark.name == "parametrize" for row in _parameters(mark) for key in row}
    if lacking - keys:
        raise CannotRun(f"the tests need the fixture {min(lacking - keys)!r}")
    for given in itertools.product(*(list(_parameters(mark)) for mark in marks if mark.name == "parametrize")):
        values = {key: value for part in given for key, value in part.items()}
        yield name, lambda values=values: _call(function, owner, fixtures, values)  # type: ignore[misc]


def _lacking(function: Callable[..., Any], fixtures: dict[str, Any], owner: tuple[type, ...]) -> set[str]:
    """Parameters that no fixture gives."""
    names = set(list(inspect.signature(function).parameters)[len(owner) :]) & set(_wanted(function))
    return names - fixtures.keys() - {"capsys"}


def _parameters(mark: Any) -> Iterator[dict[str, Any]]:
    names, rows = mark.args[:2]
    keys = [key.strip() for key in names.split(",")] if isinstance(names, str) else list(names)
    for row in rows:
        values = row.values if type(row).__name__ == "ParameterSet" else row
        one = isinstance(names, str) and len(keys) == 1 and type(row).__name__ != "ParameterSet"
        yield dict(zip(keys, (values,) if one else values, strict=True))


def _call(
    function: types.FunctionType, owner: tuple[type, ...], fixtures: dict[str, Any], given: dict[str, Any]
) -> None:
    with contextlib.ExitStack() as stack:
        target: Callable[..., Any] = function
        instance = owner[0]() if owner else None
        if instance is not None:
            target = types.MethodType(function, instance)
            if "setup_method" in dir(instance):
                setup = instance.setup_method
                setup(*[target][: len(inspect.signature(setup).parameters)])
            if "teardown_method" in dir(instance):
                teardown = instance.teardown_method
                stack.callback(teardown, *[target][: len(inspect.signature(teardown).parameters)])
        made = dict(given)
        result = target(**{name: _fixture(name, made, fixtures, instance, stack) for name in _wanted(target)})
        if inspect.iscoroutine(result):
            import asyncio

            asyncio.run(result)


def _wanted(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.default is one.empty and one.kind in (1, 3)]


def _fixture(
    name: str, made: dict[str, Any], fixtures: dict[str, Any], instance: object, stack: contextlib.ExitStack
) -> Any:
    if name in made:
        return made[name]
    if name == "capsys":
        made[name] = stack.enter_context(_Captured())
        return made[name]
    if name not in fixtures:
        raise CannotRun(f"the tests need the fixture {name!r}")
    function: Any = fixtures[name]._get_wrapped_function()
    if instance is not None and inspect.signature(function).parameters.keys() & {"self"}:
        function = types.MethodType(function, instance)
    value = function(**{one: _fixture(one, made, fixtures, instance, stack) for one in _wanted(function)})
    if inspect.isgenerator(value):
        generator, value = value, next(value)
        stack.callback(lambda: next(generator, None))
    made[name] = value
    return value


class _Captured:
    """pytest's ``capsys``, as far as ``readouterr``."""

    def __enter__(self) -> _Captured:
        self._kept = (sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._kept

    def readouterr(self) -> Any:
        """What was printed since the last time."""
        texts = [stream.getvalue() for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.StringIO)]
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.StringIO):
                stream.seek(0)
                stream.truncate()
        return types.SimpleNamespace(out=texts[0], err=texts[1])
