"""The judge: test code in a jailed process of its own, where the program's functions are stand-ins, see ``standin``.

Standard library only: loaded in the zygote.

Job: ``[test kind, source or None, test, names of the program, prelude, packages]``. With a source the program runs in
this very process ("together"): weaker, for tests that do what can't cross.
"""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rlreason.rewards.jail import imports, suites, usual
from rlreason.rewards.jail.asking import Remote
from rlreason.rewards.jail.data import Tree
from rlreason.rewards.jail.nodes import crossing
from rlreason.rewards.jail.program import BUILT_IN, Program, header_problem, offer
from rlreason.rewards.jail.serve import Server
from rlreason.rewards.jail.standin import StandIn

if TYPE_CHECKING:
    from rlreason.rewards.jail.driver import Channel

# --- which names of the program a test sees ------------------------------------------------------------------------


def _used_names(nodes: list[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _called_names(nodes: list[ast.AST]) -> set[str]:
    calls = (node.func for node in nodes if isinstance(node, ast.Call))
    return {call.id for call in calls if isinstance(call, ast.Name)}


def _innermost_call(tree: ast.Module) -> str | None:
    """``sum`` of ``assert abs(sum(10, 6) - 20) == 0``: what has no calls in its arguments, the first such."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            parts = [*node.args, *node.keywords]
            if not any(isinstance(inner, ast.Call) for part in parts for inner in ast.walk(part)):
                return node.func.id
    return None


def classes_used(nodes: list[ast.AST]) -> set[str]:
    """Names that tests use as classes: with a capital, and objects made by calling them are more than compared.

    An attribute is asked for (``Stack().push``, ``s = Stack()`` and ``s.push``), two of them meet in an operator, or
    ``isinstance`` names it. ``Split(x) == [1]`` alone may be a function's result.
    """
    made: dict[str, set[str]] = {}
    used: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and (name := _class_called(node.value)):
            made.setdefault(name, set()).update(ast.unparse(target) for target in node.targets)
        elif isinstance(node, ast.withitem) and (name := _class_called(node.context_expr)):
            used.add(name)
        elif isinstance(node, (ast.BinOp, ast.Compare)):
            parts = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.left, *node.comparators)
            names = [name for name in map(_class_called, parts) if name]
            used |= {name for name in names if names.count(name) > 1}
        elif isinstance(node, ast.Call) and imports.last_name(node.func) in ("isinstance", "assertIsInstance"):
            used |= {part.id for part in node.args[1:] if isinstance(part, ast.Name) and part.id[0].isupper()}
    if made:
        asked = {ast.unparse(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        used |= {name for name, targets in made.items() if targets & asked}
    calls = (node.value for node in nodes if isinstance(node, ast.Attribute))
    return used | {name for name in map(_class_called, calls) if name}


def _class_called(node: ast.expr) -> str | None:
    """``Stack`` of ``Stack(3)``, of ``solution.Stack(3)`` and of ``2 * Stack(3)``."""
    if isinstance(node, ast.BinOp):
        return _class_called(node.left) or _class_called(node.right)
    if isinstance(node, ast.UnaryOp):
        return _class_called(node.operand)
    if isinstance(node, ast.Call):
        name = imports.last_name(node.func)
        return name if name[:1].isupper() else None
    return None


class _Names:
    """The names that a test uses, and whose they are: decided by the tests alone, whatever the program defines."""

    def __init__(
        self, trees: list[ast.Module], nodes: list[ast.AST], entry_point: str | None, prelude: str | None
    ) -> None:
        self.used = _used_names(nodes)
        called = _called_names(nodes)
        asked = entry_point is not None or any(name not in BUILT_IN and name not in usual.NAMES for name in called)
        self.header = usual.for_tests(self.used, called) if prelude is None else {}
        if entry_point is not None and prelude is None:  # what else is called helps the test
            self.header.update((name, usual.NAMES[name]) for name in self.used & usual.NAMES.keys() - {entry_point})
        if not asked:  # the one thing that is called may be what the program was asked for
            self.header = {name: value for name, value in self.header.items() if name not in called or name in _OWN}
        self.tested = entry_point
        if entry_point is None and all(name in BUILT_IN for name in called):
            self.tested = next(filter(None, map(_innermost_call, trees)), None)
        self._called = called
        self.made_by = classes_used(nodes)

    def visible(self, names: set[str]) -> set[str]:
        """Names of the program that tests may reach: those they use, but built-in ones only if they are what is tested.

        A program that defines its own ``set``, ``len`` or ``math`` must not get between a test and its comparison.
        """
        own = {
            name
            for name in self.used & names
            if name not in BUILT_IN and (name in self._called or name not in sys.stdlib_module_names)
        }
        return own | ({self.tested} & names if self.tested else set())


_OWN = frozenset(usual.HELPERS)


class _Space:
    """The module that tests run in: the problem's header, then what the program may supply."""

    def __init__(self, names: _Names, prelude: str | None) -> None:
        self._module = types.ModuleType("tests")
        sys.modules["tests"] = sys.modules["__main__"] = self._module
        self.names = self._module.__dict__
        self.names["__file__"] = "tests.py"
        self._header = Program("", "tests", prelude)
        self._header.module, self._header.names = self._module, self.names
        try:
            self._header.prepare(names.header)
        except BaseException as error:
            raise suites.CannotRun(header_problem(error)) from error
        self.given = dict(self._header.given)
        self._tests = names

    def classes(self) -> dict[str, type]:
        """Classes whose instances cross by what they hold."""
        return {**usual.NODES, **crossing(self.given, "tests")}

    def made_by(self) -> set[str]:
        """Names that tests call to make an object of."""
        return self._tests.made_by

    def add(self, names: set[str], value_of: Callable[[str], object]) -> set[str]:
        """Let tests see those ``names`` of the program that they may. Returns which."""
        for name in (self._tests.used & names) - set(self.given):
            if name in sys.stdlib_module_names and name not in self._tests.visible(names):
                self.names[name] = __import__(name)
        visible = {name for name in self._tests.visible(names) if name not in self.given or name == self._tests.tested}
        for name in sorted(visible):
            self.names[name] = value_of(name)
        return visible


# --- running tests --------------------------------------------------------------------------------------------------


def judge(channel: Channel, kind: str, job: list[Tree]) -> None:
    """Run tests of ``kind``; send ``["passed", step]`` each, at the end ``["done", nonce]`` or ``["failed", ...]``.

    Where ``partial``, a failed step is ``["missed", step, reason]`` and the next follows.
    """
    source, test, names, prelude, packages = job
    assert isinstance(test, dict)
    assert isinstance(packages, dict)
    offer(packages)
    header = None if prelude is None else str(prelude)
    pieces = [str(text) for text in test["pieces"]]
    try:
        trees = [ast.parse(text) for text in pieces]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        imports.make_plain(nodes)
        codes = [compile(tree, f"<tests {i}>", "exec", dont_inherit=True) for i, tree in enumerate(trees)]
    except (SyntaxError, ValueError) as error:
        channel.send(["broken", f"the tests do not compile: {error}"[:300]])
        return
    wanted = imports.of_program(nodes)
    if source is None and (lacking := imports.lacking(nodes)):
        channel.send(["broken", f"the tests need {lacking}, which is not among the packages here"])
        return
    if source is None and (reason := imports.replaces(nodes)):
        channel.send(["together", reason])
        return
    entry_point = test["entry_point"]
    step = -1
    try:
        tests = _Names(trees, nodes, entry_point, header)
        space = _Space(tests, header)
        if source is None:
            assert isinstance(names, list)
            candidate = _apart(channel, space, {str(name) for name in names}, wanted, test)
        else:
            candidate = _together(space, str(source), header, wanted, test)
        for step, work in enumerate(_steps(kind, codes, space.names, candidate)):
            try:
                work()
            except Exception as error:
                if isinstance(error, suites.CannotRun) or step == 0 or not test["partial"]:
                    raise
                channel.send(["missed", step, _reason(error, pieces)])
            else:
                channel.send(["passed", step])
    except BaseException as error:
        fault = isinstance(error, suites.CannotRun) and source is None  # the tests', with nothing of the program's here
        channel.send(["broken", str(error)[:300]] if fault else ["failed", step, _reason(error, pieces)])
        return
    channel.send(["finished"])  # answered by the nonce, which was nowhere in this process before
    channel.send(["done", *channel.receive()])


def _apart(channel: Channel, space: _Space, names: set[str], wanted: set[str], test: dict[str, Tree]) -> object:
    """Stand-ins for the program's names. Returns that of the entry point."""
    largest = test["largest"]
    assert isinstance(largest, int)
    remote = Remote(channel, space.classes(), made_by=space.made_by(), largest=largest)

    def value_of(name: str) -> object:
        value = remote.ask("get", name, (), {})
        return StandIn(remote, name, "function") if type(value) is StandIn else value

    visible = space.add(names, value_of)
    entry_point = test["entry_point"]
    imports.install(wanted, names, visible, value_of, remote.give_up)
    if entry_point is None:
        return None
    candidate = StandIn(remote, str(entry_point), "function")
    space.names[str(entry_point)] = candidate
    return candidate


def _together(space: _Space, source: str, prelude: str | None, wanted: set[str], test: dict[str, Tree]) -> object:
    """The program in this process; its names in the tests' module. Returns the entry point."""
    program = Program(source, "solution", prelude)
    program.run()
    sys.modules["__main__"] = sys.modules["tests"]
    server = Server(program, None)
    names = set(program.defined())
    visible = space.add(names, server.find)
    program.names["__all__"] = sorted(visible)
    for name in wanted:
        imports.register(name, program.module)
    entry_point = test["entry_point"]
    if entry_point is None:
        return None
    candidate = server.find(str(entry_point))
    space.names[str(entry_point)] = candidate
    return candidate


def _steps(
    kind: str, codes: list[types.CodeType], space: dict[str, object], candidate: object
) -> Iterator[Callable[[], object]]:
    """The pieces of a test, each to be called in turn. The first is the set-up."""
    yield lambda: exec(codes[0], space)
    if kind == "asserts":
        for code in codes[1:]:
            yield lambda code=code: exec(code, space)  # type: ignore[misc]
    elif kind == "check":
        check = space["check"]
        assert callable(check)
        yield lambda: check(candidate)
    else:
        yield lambda: suites.run(space)


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
