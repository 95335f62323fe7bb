"""How a judge's stand-ins reach the program: questions over the channel, by way of the trusted process.

Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, cast

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain, TooDeep, Tree
from rlreason.rewards.jail.nodes import Table
from rlreason.rewards.jail.standin import Carrier, Mirror, StandIn, awaited, drained

#: Arguments of these types cross as lists.
_ITERATORS = (
    map,
    filter,
    zip,
    enumerate,
    reversed,
    types.GeneratorType,
    *map(type, map(iter, ([], (), {}, set(), ""))),
)
#: An answer that can't have made a later argument large: short, without long numbers, ranges, objects.
_SMALL = 200
_LARGE_PARTS = re.compile(rb'\d{5}|\["[hur]"')


class Remote:
    """How stand-ins reach the program. ``classes``: instances of these cross by what they hold, see ``nodes``."""

    def __init__(self, channel: Any, classes: dict[str, type], *, made_by: set[str], largest: int) -> None:
        self._channel = channel
        self._classes = classes
        self._largest = largest
        self.made_by = made_by
        #: Local coroutines and the like, with what they stand for.
        self._lent: list[tuple[object, StandIn]] = []
        self._mirrors: dict[str, type] = {}
        self._carriers: dict[tuple[str, type], type] = {}
        self._originals = (sys.stdout, sys.stderr, sys.stdin, builtins.input, builtins.print)
        #: Whether some answer so far may have made an argument large.
        self._bulky = False

    def ask(self, operation: str, target: Tree, arguments: tuple[object, ...], named: Mapping[str, object]) -> object:
        """Have the program's process do it; its value, or its exception raised here."""
        table = Table(self._classes, self._reference)
        hooks = self._hooks()
        try:
            for value in (*arguments, *named.values()):
                self._adopt(value)
            sent: list[Tree] = [table.to_tree(list(arguments)), table.to_tree(dict(named))]
            question = [True, operation, target, *sent, {"objects": table.entries(), "changed": True, **hooks}]
        except TooDeep as error:  # may be the program's doing: no reason for weaker tests
            raise TypeError(str(error)) from None
        except NotPlain as error:
            self.give_up(f"an argument in the tests can't cross: {error}")
        data = jail_data.dumps(question)
        if len(data) > self._largest:
            self._too_large()
        self._channel.send_bytes(b'["ask",' + data + b"]")
        kind, *answer = self._receive(operation)
        more = answer[-1] if type(answer[-1]) is dict else {}
        read = table.unpack(more.get("objects", []), self._stand_in)
        self._apply(more, arguments, named, read)
        if kind == "value":
            return arguments[more["same"]] if "same" in more else read(answer[0])
        if kind == "raised":
            raise self._exception(answer[0], answer[1], more, operation)
        raise TypeError(str(answer[0])[:200])

    def _receive(self, operation: str) -> list[Any]:
        while True:
            frame: list[Any] = self._channel.receive()
            asked_for_name = (
                operation == "get" and frame[0] == "value" and type(frame[1]) is list and frame[1][0] == "h"
            )
            self._bulky = self._bulky or (not asked_for_name and self._is_bulky(frame))
            if frame[0] in ("input", "print"):
                self._reply(str(frame[0]), frame[1])
            else:
                return frame

    def _reply(self, what: str, value: Tree) -> None:
        """The program asks for a line or prints one, where the tests have put a mock in place of that."""
        if (builtins.input, builtins.print) == self._originals[3:]:
            self._channel.send(["reply", ["end", "nobody asked"]])
            return
        try:
            if what == "input":
                line = str(builtins.input(value))
            else:
                words: Any = jail_data.from_tree(value)
                line = str(builtins.print(*words))
            self._channel.send(["reply", ["line", line]])
        except Exception as error:  # a mock that has run out of lines
            self._channel.send(["reply", ["end", type(error).__name__]])

    @staticmethod
    def _is_bulky(frame: list[Any]) -> bool:
        text = jail_data.dumps(frame)
        return len(text) > _SMALL or _LARGE_PARTS.search(text) is not None

    def _hooks(self) -> dict[str, Tree]:
        """What the tests have put in place of standard input and output, ``input`` and ``print``."""
        now = (sys.stdout, sys.stderr, sys.stdin, builtins.input, builtins.print)
        replaced = [a is not b for a, b in zip(now, self._originals, strict=True)]
        text: Tree = None
        if replaced[2] and isinstance(sys.stdin, io.StringIO):
            text = sys.stdin.getvalue()[sys.stdin.tell() :]
        return {"hooks": any(replaced), "stdin": text, "input": replaced[3], "print": replaced[4]}

    def _apply(
        self, more: dict[str, Any], arguments: tuple[object, ...], named: Mapping[str, object], read: Any
    ) -> None:
        """What a call does besides returning: changed arguments, printed text, input that was read."""
        for place, tree in more.get("changed", ()):
            update(arguments[place] if type(place) is int else named[place], read(tree))
        if "printed" in more:
            for stream, text in zip((sys.stdout, sys.stderr), more["printed"], strict=True):
                stream.write(str(text))
        if "left" in more and isinstance(sys.stdin, io.StringIO):
            sys.stdin.seek(max(0, len(sys.stdin.getvalue()) - int(more["left"])))

    def _too_large(self) -> NoReturn:
        if self._bulky:
            raise MemoryError("an argument of the tests is too large to cross")
        self._channel.send(["broken", f"an argument is larger than {self._largest} bytes"])
        self._channel.receive()
        os._exit(1)

    def give_up(self, reason: str) -> NoReturn:
        """Let the tests run in the program's process. Only for what the tests alone decide."""
        self._channel.send(["together", reason])
        self._channel.receive()  # the trusted process ends us
        os._exit(1)

    def _adopt(self, value: object) -> None:
        """A node class of the tests' own counts as the header's, if it does no more than hold values."""
        kind = type(value)
        known = kind.__name__ in self._classes and self._classes[kind.__name__] is not kind
        if known and all(name.startswith("__") for name in vars(kind)):
            self._classes[kind.__name__] = kind

    def _reference(self, value: object) -> Tree:
        # What comes of the program must never lead to weaker tests: all of it goes back as what it stands for.
        behind = value if type(value) is StandIn else self._behind(value)
        if behind is not None:
            return ["h", behind._target, ""]
        if type(value) in _ITERATORS:
            return jail_data.to_tree(list(cast("Iterator[object]", value)), self._reference)
        name = getattr(value, "__name__", None)
        if type(value) in (type, types.BuiltinFunctionType) and vars(builtins).get(str(name)) is value:
            return ["B", name]
        raise NotPlain(f"{type(value).__name__} is not plain data")

    def _behind(self, value: object) -> StandIn | None:
        if isinstance(value, (Carrier, BaseException)) and type(value.__dict__.get("_behind")) is StandIn:
            return cast("StandIn", value.__dict__["_behind"])
        if isinstance(value, type) and issubclass(value, (Mirror, Carrier, StandIn)):
            if type(vars(value).get("_behind")) is not StandIn:
                raise TooDeep("a class of the program's is known by its instances only")
            return cast("StandIn", vars(value)["_behind"])
        return next((behind for lent, behind in self._lent if lent is value), None)

    def _stand_in(self, tree: list[object]) -> object:
        if tree[0] == "x":
            mirror = self._mirror(str(tree[2]), str(tree[4]))
            if issubclass(mirror, Mirror):
                mirror._behind = StandIn(self, tree[1], str(tree[3]))
            return mirror
        if tree[0] == "u":
            return self._carrier(tree)
        if tree[0] == "B" and isinstance(vars(builtins).get(str(tree[1])), type):
            return vars(builtins)[str(tree[1])]
        if tree[0] != "h" or type(tree[1]) is not int:
            raise NotPlain("unknown tag")
        value = StandIn(self, tree[1], str(tree[2]))
        if tree[2] in ("coroutine", "async generator"):
            local = awaited(value) if tree[2] == "coroutine" else drained(value)
            self._lent.append((local, value))
            return local
        return value

    def _carrier(self, tree: list[object]) -> object:
        """A named tuple, an IntEnum's member and the like: the plain value, with attributes asked for."""
        base = jail_data.from_tree(tree[3], self._stand_in)
        key = (str(tree[2]), type(base))
        if key not in self._carriers:
            self._carriers[key] = type(key[0], (Carrier, key[1]), {})
        value: Any = self._carriers[key](base)
        value._behind = StandIn(self, tree[1], key[0])
        return value

    def _mirror(self, builtin: str, own: str) -> type:
        """The local class for an exception class of the program; ``own``: its classes down to the built-in one."""
        base = vars(builtins).get(builtin)
        if not (isinstance(base, type) and issubclass(base, (Exception, SystemExit))):
            base = Exception
        key = ""
        for name in reversed(own.split(",") if own else []):
            key = f"{name},{key or builtin}"
            if key not in self._mirrors:
                bases = (base,) if issubclass(base, Mirror) else (Mirror, base)
                self._mirrors[key] = type(name, bases, {})
            base = self._mirrors[key]
        return base

    def _exception(self, lineage: Any, arguments: Any, more: dict[str, Any], operation: str) -> BaseException:
        builtin, _, own = lineage
        kind = self._mirror(str(builtin), str(own))
        if issubclass(kind, (StopIteration, StopAsyncIteration)) and operation != "next":
            # As PEP 479 has it: else it would end a loop of the tests.
            return RuntimeError(f"the program raised {kind.__name__}")
        try:
            error: Any = kind(*arguments)
        except TypeError:
            error = kind()
        if "error" in more:
            error._behind = StandIn(self, int(more["error"]), kind.__name__)
        return cast("BaseException", error)


def update(old: object, new: object) -> None:
    """Make ``old`` hold what ``new`` holds, and what is in it too, as far as it is the same kind of container."""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new):
            for place, (a, b) in enumerate(zip(old, new, strict=True)):
                if type(a) is type(b) and isinstance(a, (list, dict, set)):
                    update(a, b)
                else:
                    old[place] = b
        else:
            old[:] = new
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new
    elif isinstance(old, (dict, set)) and isinstance(new, type(old)):
        old.clear()
        old.update(new)
