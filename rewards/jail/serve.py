"""The program's side of a judged run: answers calls into the program until the channel closes.

Question: ``[keep, operation, target, arguments, keywords, more]``; answer: ``["value", tree, more]``, ``["raised",
class, arguments, more]`` or ``["opaque", reason]``, see ``Server.answer``. Nothing here is a secret or a verdict.
Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import builtins
import copy
import enum
import inspect
import io
import itertools
import operator
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail import usual
from rlreason.rewards.jail.data import NotPlain, Tree, base_of
from rlreason.rewards.jail.nodes import Table, crossing
from rlreason.rewards.jail.program import Program

_PLAIN_ARGUMENTS = (str, int, float, bool, type(None))
_MUTABLE = (list, dict, set, bytearray)
_POINT = re.compile(r"(\w+)(\(\))?\.(\w+)")
_LONGEST_TEXT = 1 << 20


class Server:
    """Calls into the program. Results that are no plain data stay here and are referred to by number, if asked for.

    ``channel``: sends and receives frames, for questions back (``input``).
    """

    def __init__(self, program: Program, channel: Any) -> None:
        self._program = program
        self._channel = channel
        self._names = program.names
        self._kept: list[object] = []
        self._classes = {
            **{name: self._names[name] for name in usual.NODES if isinstance(self._names.get(name), type)},
            **crossing(program.given, program.module.__name__),
        }
        for name, kind in usual.NODES.items():
            self._classes.setdefault(name, kind)
        for name in self._classes:  # the program may write the header's class again
            if isinstance(self._names.get(name), type):
                self._classes[name] = self._names[name]

    def ready(self) -> Tree:
        """``[name, ...]`` of what the program defines."""
        return list(self._program.defined())

    def answer(self, request: list[Tree]) -> list[Tree]:
        """Do what is asked; ``more`` holds what the asker needs besides: changed arguments, objects, printed text."""
        keep, operation, target, arguments, keywords, asked = request
        assert isinstance(asked, dict)
        table = Table(self._classes, self._keep if keep else _refuse)
        more: dict[str, Tree] = {}
        hooks = _Hooks(asked, self._channel)
        try:
            read = table.unpack(asked["objects"], self._kept_value)
            positional, named = read(arguments), read(keywords)
            assert isinstance(positional, list)
            assert isinstance(named, dict)
            try:
                with hooks:
                    value = self._perform(str(operation), target, positional, named)
                answer: list[Tree] = ["value", table.to_tree(value), more]
                for place, one in enumerate(positional):
                    if one is value and type(one) in _MUTABLE:
                        more["same"] = place
            except Exception as error:
                if isinstance(error, NotPlain):
                    raise
                answer = self._raised(error, more)
            if keep or asked["changed"]:
                self._report_changes(table, [*enumerate(positional), *named.items()], arguments, keywords, more)
            if table.objects:
                more["objects"] = table.entries()
        except NotPlain as error:
            answer = ["opaque", str(error)]
        except MemoryError:
            answer = ["raised", ["MemoryError", "MemoryError", ""], [], {}]
        except BaseException as error:
            answer = self._raised(error, {})
        more.update(hooks.told())
        return answer

    def _report_changes(
        self, table: Table, values: list[tuple[int | str, object]], arguments: Any, keywords: Any, more: dict[str, Tree]
    ) -> None:
        before: dict[int | str, Tree] = dict(enumerate(arguments[1:]))
        before.update(zip(keywords[1::2], keywords[2::2], strict=True))
        changed: list[Tree] = []
        for place, value in values:
            if type(value) in _MUTABLE and (now := table.to_tree(value)) != before[place]:
                changed.append([place, now])
        if changed:
            more["changed"] = changed

    def _keep(self, value: object) -> Tree:
        self._kept.append(value)
        number = len(self._kept) - 1
        kind = type(value)
        if kind is type and vars(builtins).get(getattr(value, "__name__", "")) is value:
            return ["B", getattr(value, "__name__", "")]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["x", number, *_lineage(value)]
        base = base_of(value)
        if base is not None and not isinstance(base, _MUTABLE):
            return ["u", number, kind.__name__[:80], jail_data.to_tree(base, self._keep)]
        return ["h", number, _kind_of(value), isinstance(value, type)]

    def _kept_value(self, tree: list[object]) -> object:
        which = tree[1]
        if tree[0] == "B":
            return vars(builtins)[str(which)]
        if tree[0] != "h":
            raise NotPlain("unknown tag")
        if isinstance(which, str):
            return self.find(which)
        assert isinstance(which, int)
        return self._kept[which]

    def _perform(self, operation: str, target: Tree, positional: list[Any], named: dict[str, Any]) -> object:
        receiver = self._kept_value(["h", target])
        if operation == "call":
            assert callable(receiver)
            return receiver(*positional, **named)
        return _OPERATIONS[operation](receiver, *positional)

    def find(self, name: str) -> object:
        """A function or class of the program; a method of its class ``Solution``; ``Solution().method``."""
        point = _POINT.fullmatch(name)
        if point is not None:
            owner = self._names[point[1]]
            return getattr(owner() if isinstance(owner, type) else owner, point[3])
        own = name in self._names and self._is_own(self._names[name])
        solution = self._names.get("Solution")  # the form that LeetCode's problems ask for
        if not own and isinstance(solution, type) and name in dir(solution) and name not in dir(object):
            return getattr(solution(), name)
        if name in self._names:
            return self._names[name]
        raise NameError(f"name {name!r} is not defined")

    def _is_own(self, value: object) -> bool:
        """Whether the program made it: a star import brings functions that are called like the method asked for."""
        if callable(value):
            return getattr(value, "__module__", None) == self._program.module.__name__
        return not isinstance(value, types.ModuleType)

    def _raised(self, error: BaseException, more: dict[str, Tree]) -> list[Tree]:
        self._kept.append(error)
        more["error"] = len(self._kept) - 1
        return ["raised", list(_lineage(type(error))), _plain_arguments(error), more]


def _refuse(value: object) -> Tree:
    base = base_of(value)
    if base is not None:
        return jail_data.to_tree(base, _refuse)
    raise NotPlain(f"a {type(value).__name__} is not plain data"[:200])


def _kind_of(value: object) -> str:
    if isinstance(value, types.CoroutineType):
        return "coroutine"
    if isinstance(value, Iterator):
        return "iterator"
    return "async generator" if inspect.isasyncgen(value) else type(value).__name__[:80]


def _lineage(kind: type) -> tuple[str, str, str]:
    """Nearest built-in exception class, own name, module-like text of all classes between, for ``except`` to match."""
    own = [base.__name__ for base in kind.__mro__ if vars(builtins).get(base.__name__) is not base]
    for base in kind.__mro__:
        if vars(builtins).get(base.__name__) is base:
            return str(base.__name__), kind.__name__[:80], ",".join(own)[:500]
    return "Exception", kind.__name__[:80], ",".join(own)[:500]


def _plain_arguments(error: BaseException) -> Tree:
    """The exception's arguments where all are plain scalars. Never its ``str``, which may be anything."""
    arguments = error.args
    if type(arguments) is tuple and all(type(one) in _PLAIN_ARGUMENTS for one in arguments):
        return [one if not isinstance(one, str) else one[:2000] for one in arguments]
    return []


class _Hooks:
    """What the tests put in place of standard input and output, ``input`` and ``print``, in place here for one call."""

    def __init__(self, asked: dict[str, Any], channel: Any) -> None:
        self._asked = asked
        self._channel = channel
        if asked["hooks"]:
            self._out, self._error, self._in = io.StringIO(), io.StringIO(), io.StringIO(asked["stdin"] or "")

    def __enter__(self) -> None:
        self._kept = (sys.stdout, sys.stderr, sys.stdin, builtins.input, builtins.print)
        if not self._asked["hooks"]:
            return
        sys.stdout, sys.stderr = self._out, self._error
        if self._asked["stdin"] is not None:
            sys.stdin = self._in
        if self._asked["input"]:
            builtins.input = self._input
        if self._asked["print"]:
            builtins.print = self._print

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr, sys.stdin, builtins.input, builtins.print = self._kept

    def told(self) -> dict[str, Tree]:
        """What was printed, and how much of the input is left."""
        if not self._asked["hooks"]:
            return {}
        texts: list[Tree] = [one.getvalue()[:_LONGEST_TEXT] for one in (self._out, self._error)]
        left = len(self._in.read())
        return {"printed": texts, "left": left} if self._asked["stdin"] is not None else {"printed": texts}

    def _input(self, prompt: object = "", /) -> str:
        return self._ask_back("input", str(prompt)[:1000])

    def _print(self, *words: object, **_: object) -> None:
        self._ask_back("print", jail_data.to_tree(words, str))

    def _ask_back(self, what: str, value: Tree) -> str:
        self._channel.send([what, value])
        kind, text = self._channel.receive()
        if kind != "line":
            raise EOFError(str(text))
        return str(text)


def _materialise(value: object) -> list[object]:
    return list(value)  # type: ignore[call-overload,no-any-return]


def _base(value: object) -> object:
    """The plain data that an instance of a subclass is; as refusal the object itself, which does not cross."""
    base = base_of(value)
    if base is None and isinstance(value, enum.Enum):
        return value
    return value if base is None else base


def _leave(value: Any, name: str | None, arguments: Any) -> object:
    if name is None:
        return value.__exit__(None, None, None)
    kind = vars(builtins).get(name, Exception)
    error = kind(*arguments)
    return value.__exit__(kind, error, None)


def _await(value: Any) -> object:
    import asyncio

    async def run() -> object:
        return await value

    return asyncio.run(run())


def _drain(value: Any) -> object:
    import asyncio

    async def run() -> list[object]:
        return [one async for one in value]

    return asyncio.run(run())


def _set_item(value: Any, key: object, item: object) -> None:
    value[key] = item


def _delete_item(value: Any, key: object) -> None:
    del value[key]


_OPERATORS = (
    "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift iadd isub imul eq ne lt le gt ge neg pos "
    "invert contains index"
)
_OPERATIONS: dict[str, Callable[..., object]] = {
    "get": lambda value: value,
    "attribute": getattr,
    "set_attribute": setattr,
    "delete_attribute": delattr,
    "list": _materialise,
    "next": next,
    "take": lambda value, count: list(itertools.islice(value, count)),
    "length": len,
    "item": lambda value, key: value[key],
    "set_item": _set_item,
    "delete_item": _delete_item,
    "text": str,
    "repr": repr,
    "format": format,
    "truth": bool,
    "hash": hash,
    "int": int,
    "float": float,
    "abs": abs,
    "round": round,
    "reversed": lambda value: list(reversed(value)),
    "reflected": lambda value, name, other: getattr(operator, name)(other, value),
    "isinstance": lambda kind, value: isinstance(value, kind),
    "issubclass": lambda kind, value: issubclass(value, kind),
    "base": _base,
    "enter": lambda value: value.__enter__(),
    "leave": _leave,
    "await": _await,
    "drain": _drain,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "signature": lambda value: [
        (one.name, int(one.kind), one.default is not one.empty) for one in inspect.signature(value).parameters.values()
    ],
    "dir": dir,
    **{name: getattr(operator, name) for name in _OPERATORS.split()},
}
