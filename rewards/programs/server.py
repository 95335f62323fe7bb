"""A jailed process with a program loaded, that answers calls of its functions with plain data."""

from __future__ import annotations

from dataclasses import dataclass

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain, Tree
from rlreason.rewards.jail.run import Run, pump
from rlreason.rewards.programs.session import Problem, Session, ending, quote
from rlreason.rewards.programs.tests import BadTests
from rlreason.types import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A call's result as a tree, or what went wrong."""

    tree: Tree = None
    problem: Problem | None = None


class FunctionServer:
    """A jailed process with the program loaded, that answers calls. Started at the first, and again after a death."""

    def __init__(self, session: Session, source: str, *, cases: int, prelude: str | None = None) -> None:
        self._session = session
        self._has_header = bool(prelude)
        self._job: list[Tree] = ["serve", source, prelude, dict(session.packages.program)]
        self._cpu = min(session.limits.total_seconds, session.limits.cpu_seconds * cases)
        self.run: Run | None = None
        #: What the program defines; known once it is loaded.
        self.names: list[str] = []

    def close(self) -> None:
        """End the process."""
        run, self.run = self.run, None
        if run is not None:
            run.close()

    def start(self) -> Problem | None:
        """Load the program, unless it is loaded. What went wrong, if anything did. Raises BadTests for a header."""
        if self.run is not None:
            return None
        self.run = self._session.jail.spawn(self._session.limits, cpu_seconds=self._cpu)
        self.run.feed(b"")
        self.run.send(self._job)
        if self._has_header:
            first = self.receive_bytes()
            if isinstance(first, tuple):
                return first
            header_of(first)
        answer = self._receive()
        if isinstance(answer, tuple):
            return answer
        if len(answer) == 2 and answer[0] == "ready" and isinstance(answer[1], list):
            self.names = [name for name in answer[1] if isinstance(name, str)]
            return None
        return self._give_up(Verdict.WRONG, "spoke out of turn")

    def call(
        self, name: str, arguments: list[object], named: dict[str, object], *, answer_in: int | None = None
    ) -> Answer:
        """Call ``name``; arguments are copied anew for each call. ``answer_in``: the argument that is the answer."""
        problem = self.start()
        if problem is not None:
            return Answer(problem=problem)
        assert self.run is not None
        asked = {"objects": [], "hooks": False, "stdin": None, "changed": answer_in is not None}
        try:
            given = jail_data.to_tree(arguments)
            self.run.send([False, "call", name, given, jail_data.to_tree(named), asked])
        except NotPlain as error:
            raise BadTests(f"tests: an argument is no plain data: {error}") from None
        answer = self._receive()
        if isinstance(answer, tuple):
            return Answer(problem=answer)
        match answer:
            case ["value", tree, {**more}]:
                assert isinstance(given, list)
                return Answer(tree=tree if answer_in is None else _changed(given, more, answer_in))
            case ["raised", [_, kind, *_], arguments_of, *_]:
                words = ", ".join(map(quote, arguments_of)) if isinstance(arguments_of, list) else ""
                return Answer(problem=(Verdict.WRONG, f"raised {quote(kind)[1:-1]}({words})"))
            case ["opaque", reason]:
                return Answer(problem=(Verdict.WRONG, f"its result does not cross: {quote(reason, 200)}"))
        return Answer(problem=(Verdict.WRONG, "its result does not cross: spoke out of turn"))

    def _receive(self) -> list[Tree] | Problem:
        answer = self.receive_bytes()
        if isinstance(answer, tuple):
            return answer
        try:
            tree = jail_data.loads(answer)
        except NotPlain:
            tree = None
        return tree if isinstance(tree, list) else self._give_up(Verdict.WRONG, "spoke out of turn")

    def receive_bytes(self) -> bytes | Problem:
        """The next frame, not decoded; or what ended the program instead."""
        run = self.run
        assert run is not None
        in_time = pump([run], self._session.case_deadline(), lambda: bool(run.frames) or run.report is not None)
        if not in_time:
            return self._give_up(Verdict.TIMED_OUT, "ran past its limit")
        if run.frames and not run.flooded:
            return run.frames.popleft()
        self.close()
        problem = ending(run, self._session.limits, cpu_seconds=self._cpu)
        return problem or (Verdict.WRONG, "ended before it answered")

    def _give_up(self, verdict: Verdict, reason: str) -> Problem:
        self.close()
        return verdict, reason


def header_of(frame: bytes) -> None:
    """Raises BadTests where a problem's header failed by itself, which is told before anything of a program's runs."""
    match jail_data.loads(frame):
        case ["header", str() as reason] if reason:
            raise BadTests(reason)


def _changed(given: list[Tree], more: dict[object, Tree], place: int) -> Tree:
    """The argument at ``place`` after the call."""
    changes = more.get("changed", [])
    for change in changes if isinstance(changes, list) else []:
        match change:
            case [int() as where, tree] if where == place:
                return tree
    return given[1 + place]
