"""Is a whole program's output right? By the contest's rule, or by the problem's own checker in a jailed process."""

from __future__ import annotations

import ast

from rlreason.rewards.jail.data import Tree
from rlreason.rewards.programs.compare import same_output
from rlreason.rewards.programs.server import FunctionServer
from rlreason.rewards.programs.session import Problem, Session, quote
from rlreason.rewards.programs.tests import BadTests, StdinCase, StdinTests
from rlreason.types import Verdict

#: Calls a checker that is a whole program, with files in place of arguments, as one function ``check``.
_AS_FUNCTION = """
def check(input, output, expected):
    import contextlib, io, os, sys
    places = []
    for name, text in (("input", input), ("expected", expected), ("output", output)):
        places.append(os.path.join(os.getcwd(), name + ".txt"))
        with open(places[-1], "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    sys.argv = ["checker.py", *places]
    printed, code = io.StringIO(), "none"
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile({source!r}, "<checker>", "exec", dont_inherit=True), {{"__name__": "__main__"}})
        except SystemExit as error:
            code = error.code or 0
    words = printed.getvalue().split()
    if not words:  # it must say something, or end by a status of its own
        return None if code == "none" else code == 0
    last = words[-1].lower()
    if last in ("true", "yes", "ok", "accepted", "correct"):
        return True
    try:
        return float(last) > 0
    except ValueError:
        return False
"""


class Checker:
    """Compares outputs: by the contest's rule, or by the problem's own ``check`` in a jailed process."""

    def __init__(self, session: Session, tests: StdinTests) -> None:
        self._session = session
        self._lines = tests.lines
        self._server = None
        if tests.checker is not None:
            self._server = FunctionServer(session, _with_check(tests.checker), cases=1000, prelude="")

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    def problem(self, case: StdinCase, output: bytes) -> Problem | None:
        """What is wrong with ``output`` as an answer to ``case``.

        A checker that fails on an output says no to it: a program must not choose to be left without a score. Raises
        BadTests where the checker fails by itself: it does not load, or rejects its own expected output in that way.
        """
        got = output.decode("utf-8", "replace")
        if self._server is None:
            accepted, why = same_output(case.output, output, lines=self._lines), ""
        else:
            accepted, why = self._ask(self._server, case, got)
            if why and case.output.strip():
                self._server.close()  # nothing that a program printed has a say in this
                _, fault = self._ask(self._server, case, case.output)
                if fault:
                    raise BadTests(f"the checker failed on the expected output: {fault}")
        if accepted:
            return None
        reason = f"expected {quote(case.output)}, got {quote(got)}"
        return Verdict.WRONG, f"{reason}; the checker {why}" if why else reason

    def _ask(self, server: FunctionServer, case: StdinCase, output: str) -> tuple[bool, str]:
        """Whether the checker accepts ``output``, and how it failed if it did. Raises BadTests if it doesn't load."""
        problem = server.start()
        if problem is not None:
            raise BadTests(f"the checker does not load: {problem[1]}")
        answer = server.call("check", [case.input, output, case.output], {})
        if answer.problem is not None:
            return False, answer.problem[1]
        accepted: Tree = answer.tree
        if accepted is True or accepted is False or (type(accepted) is int and accepted in (0, 1)):
            return bool(accepted), ""
        return False, "returned neither True nor False"


def _with_check(source: str) -> str:
    """The source of ``check``; a checker that is a whole program is called with files."""
    try:
        defines = any(
            (isinstance(node, ast.FunctionDef) and node.name == "check")
            or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "check")
            or (isinstance(node, ast.alias) and (node.asname or node.name) == "check")
            for node in ast.walk(ast.parse(source))
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source  # does not load, which is said when it is tried
    return source if defines else _AS_FUNCTION.format(source=source)
