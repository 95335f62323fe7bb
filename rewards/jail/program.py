"""Runs a program as the interpreter would: its name and file, what stands before it, and all that comes at its end.

Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib.machinery
import importlib.util
import os
import site
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence

from rlreason.rewards.jail import usual

#: Before ``exit``, ``help`` and the like join them: those may be functions that a problem asks for.
BUILT_IN = frozenset(vars(builtins))
site.setquit()
site.sethelper()
_FILE = "program.py"
_DEPTH = 1000  # the interpreter's own limit, counted from the program's first frame


class PackageFinder:
    """Imports the named packages from their folders, and nothing else that lies beside them."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a top-level module among the named ones."""
        place = self._places.get(fullname, None)
        if place is None:
            return None
        if place.endswith((".py", ".so")):
            return importlib.util.spec_from_file_location(fullname, place)
        start = os.path.join(place, "__init__.py")
        return importlib.util.spec_from_file_location(fullname, start, submodule_search_locations=[place])


def offer(packages: Mapping[str, str]) -> None:
    """Make packages (top-level name to place) importable."""
    if packages:
        sys.meta_path.append(PackageFinder(packages))


class Program:
    """A program and the module that it runs as. ``prelude``: None for the usual header, else what to run before it.

    ``heard``: told once the prelude has run, before anything of the program's has: "", or why it failed by itself.
    """

    def __init__(
        self, source: str, name: str, prelude: str | None, heard: Callable[[str], object] = lambda _: None
    ) -> None:
        self._source = source
        self._prelude = prelude
        self._heard = heard
        self.module = types.ModuleType(name)
        self.names = self.module.__dict__
        #: What stood there before the program ran: names that it did not define itself.
        self.given: dict[str, object] = {}

    def run(self) -> None:
        """Execute it. What it raises is the caller's."""
        module = self.module
        sys.modules[module.__name__] = sys.modules["__main__"] = module
        sys.argv = [_FILE]
        self.names["__builtins__"] = builtins
        self.names["__file__"] = os.path.join(os.getcwd(), _FILE)
        module.__spec__ = (
            None if module.__name__ == "__main__" else importlib.machinery.ModuleSpec(module.__name__, None)
        )
        sys.setrecursionlimit(_DEPTH + _frames())
        sys.set_int_max_str_digits(0)
        if self._prelude is not None:
            self.prepare({})
        code = compile(self._source, "<program>", "exec", dont_inherit=True)
        if self._prelude is None:
            self.prepare(usual.used_by(code))
        exec(code, self.names)

    def prepare(self, header: Mapping[str, object]) -> None:
        """Run the prelude, or bind what of the usual header is used."""
        if self._prelude is None:
            sys.setrecursionlimit(usual.RECURSION_LIMIT)
            self.names.update(header)
        elif self._prelude:
            try:
                exec(compile(self._prelude, "<prelude>", "exec", dont_inherit=True), self.names)
            except BaseException as error:
                self._heard(header_problem(error))
                raise
            self._heard("")
        self.given = dict(self.names)

    def defined(self) -> list[str]:
        """Names that the program has, defined or imported."""
        return [name for name in list(self.names) if type(name) is str and not name.startswith("__")]


def header_problem(error: BaseException) -> str:
    """Why a problem's prelude failed, with nothing of a program's run yet."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing and missing not in sys.stdlib_module_names:
        return f"the problem's header needs {missing}: name it in [reward.code] packages"[:300]
    return f"the problem's header fails by itself: {type(error).__name__}: {error}"[:300]


def _frames() -> int:
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


def end(work: Callable[[], object], module: types.ModuleType | None = None) -> None:
    """Run ``work`` and leave as an interpreter does: report an exception, join threads, run exit handlers, take the
    program's ``module`` down so that its open files are written, flush."""
    code = 0
    try:
        work()
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    sys.settrace(None)
    sys.setprofile(None)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        code = _flush() or code
        if module is not None:
            sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
            _take_down(module.__dict__)
            code = _flush() or code
    except BaseException:
        code = code or 120
    os._exit(code)


def _take_down(names: dict[str, object]) -> None:
    """Drop the program's names as the interpreter does: those with one underscore first."""
    for private in (True, False):
        for name in list(names):
            if name != "__builtins__" and (private is (type(name) is str and name[:1] == "_" and name[1:2] != "_")):
                names[name] = None
    gc.collect()


def _flush() -> int:
    """Flush what is still open; 120 where standard output can't be, as the interpreter has it."""
    code = 0
    for stream in {id(one): one for one in (sys.stdout, sys.__stdout__, sys.stderr)}.values():
        if stream is None or getattr(stream, "closed", False):
            continue
        try:
            stream.flush()
        except BaseException:
            code = 0 if stream is sys.stderr else 120
    return code


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1
