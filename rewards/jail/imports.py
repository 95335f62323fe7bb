"""What a test's imports mean: the library's modules, packages of the tests' own, or the program.

A module that nothing provides may be the program under some name, or a library that is missing here. The program must
never be taken for a library: its functions would do the comparing. Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable
from typing import NoReturn

from rlreason.rewards.jail.standin import StandIn

#: Names under which tests import the program, whole or in part of a dotted name.
_PROGRAM = frozenset(
    str.split(
        "solution main your_module your_solution my_module my_solution module program submission answer candidate "
        "implementation student user_code source src app solutions mymodule yourmodule your_code my_code your_script "
        "your_file script task solve function functions generated generated_code the_module target"
    )
)
#: Libraries that tests are written with: never the program.
_LIBRARIES = frozenset(
    str.split(
        "numpy pandas pytest hypothesis scipy torch tensorflow sklearn matplotlib sympy networkx "
        "sortedcontainers requests bs4 flask django nltk PIL cv2 mock parameterized freezegun faker Faker attr "
        "attrs pydantic yaml lxml psutil seaborn statsmodels jax numba dateutil pytz tqdm more_itertools toolz "
        "nose expecttest polars gmpy2 mpmath regex simplejson ujson orjson chardet cryptography Crypto rsa xlrd "
        "openpyxl docx texttable wordcloud folium geopandas shapely librosa soundfile skimage keras gensim "
        "textblob wordninja prettytable Levenshtein pyquery sendgrid werkzeug xmltodict mechanize blake3 "
        "holidays geopy tests unittest2 ddt testfixtures assertpy sure hamcrest expects approvaltests deepdiff "
        "responses httpx aiohttp sqlalchemy IPython zope six future nose2"
    )
)
#: What a test may replace for a while and the program's process still sees.
_REPLACING = ("patch", "object", "dict", "multiple", "setattr")
_REPLACED = ("builtins.input", "builtins.print", "sys.stdout", "sys.stdin", "sys.stderr")


def make_plain(nodes: Iterable[ast.AST]) -> None:
    """``from .solution import f`` as ``from solution import f``: tests have no package."""
    for node in nodes:
        if type(node) is ast.ImportFrom and node.level:
            node.level, node.module = 0, node.module or "solution"


def last_name(node: ast.expr) -> str:
    """``Stack`` of ``Stack`` and of ``solution.Stack``; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _imported(nodes: Iterable[ast.AST]) -> dict[str, bool]:
    """Modules that tests import, dotted: whether only by ``from module import names``."""
    found: dict[str, bool] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.setdefault(node.module, True)
        elif isinstance(node, ast.Import):
            found.update((alias.name, False) for alias in node.names)
    return found


def _provided(name: str) -> bool:
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    try:
        return importlib.util.find_spec(top) is not None
    except (ValueError, ImportError):
        return False


def _is_program(name: str, by_names: bool) -> bool:
    parts = name.split(".")
    if parts[0] in _LIBRARIES:
        return False
    return by_names or not _PROGRAM.isdisjoint(parts)


def of_program(nodes: list[ast.AST]) -> set[str]:
    """Modules that mean the program: nothing provides them, and they are no library."""
    return {name for name, by_names in _imported(nodes).items() if not _provided(name) and _is_program(name, by_names)}


def lacking(nodes: list[ast.AST]) -> str:
    """A module that tests import, that is no program's and not here; "" where there is none."""
    for name, by_names in _imported(nodes).items():
        if not _provided(name) and not _is_program(name, by_names):
            return name.partition(".")[0]
    return ""


def replaces(nodes: list[ast.AST]) -> str:
    """What in the tests replaces a part of the program or of what it uses, by a mock: the program must be here then."""
    for node in nodes:
        if not isinstance(node, ast.Call) or last_name(node.func) not in _REPLACING:
            continue
        called = ast.unparse(node.func)
        if called.endswith(("patch", "patch.object", "patch.dict", "patch.multiple", "monkeypatch.setattr")):
            target = node.args[0] if node.args else None
            known = isinstance(target, ast.Constant) and target.value in _REPLACED
            if not known and not (called.endswith("patch.object") and target and ast.unparse(target) == "sys"):
                return f"the tests replace {ast.unparse(target) if target else 'something'}"[:200]
    return ""


class _Solution(types.ModuleType):
    """The program as a module of the tests: its names are stand-ins, made when they are asked for."""

    def __init__(
        self, names: set[str], visible: set[str], value_of: Callable[[str], object], give_up: Callable[[str], NoReturn]
    ) -> None:
        super().__init__("solution")
        self.__dict__.update(__all__=sorted(visible), _names=names, _value_of=value_of, _give_up=give_up)

    def __getattr__(self, name: str) -> object:
        if name not in self.__dict__["_names"]:
            raise AttributeError(f"the program has no {name!r}")
        value = self.__dict__["_value_of"](name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("__") or isinstance(value, types.ModuleType):  # the import system's
            super().__setattr__(name, value)
        elif type(value) is not StandIn:
            self.__dict__["_give_up"]("the tests replace a part of the program")


def install(
    wanted: set[str],
    names: set[str],
    visible: set[str],
    value_of: Callable[[str], object],
    give_up: Callable[[str], NoReturn],
) -> None:
    """Let tests import the program under the names ``wanted``; a star gives them what is ``visible``."""
    if wanted:
        solution = _Solution(names, visible, value_of, give_up)
        for name in wanted:
            register(name, solution)


def register(name: str, module: types.ModuleType) -> None:
    """Make ``module`` importable as ``name``, dots included."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:count]))
        package.__path__ = []
        sys.modules.setdefault(".".join(parts[:count]), package)
    sys.modules[name] = module
    for count in range(1, len(parts)):
        setattr(sys.modules[".".join(parts[:count])], parts[count], sys.modules[".".join(parts[: count + 1])])
