"""What stands in a judge's process for things of the program's: its functions, its objects, its exceptions.

A stand-in sends its arguments over, by way of the trusted process, and gets plain data back, so the test compares
values that the program can't have tampered with. The program's own operators decide only between objects of its own,
or for an object that the test itself made by calling a class of the program (``Vector(1, 2) == (1, 2)``): anything
else that a call returned equals no plain data. Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from rlreason.rewards.jail.data import Tree

if TYPE_CHECKING:
    from rlreason.rewards.jail.asking import Remote


async def awaited(value: StandIn) -> object:
    return value._ask("await")


async def drained(value: StandIn) -> AsyncIterator[object]:
    for one in cast("list[object]", value._ask("drain")):
        yield one


class Carrier:
    """A plain value of a subclass; ``_behind`` is the program's."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "_behind":
            raise AttributeError(name)
        return getattr(self.__dict__["_behind"], name)

    def __repr__(self) -> str:
        return str(self.__dict__["_behind"]._ask("repr"))


class Mirror:
    """An exception of a class of the program's; ``_behind`` is the program's own."""

    _behind: StandIn

    def __getattr__(self, name: str) -> object:
        if name.startswith("_") or "_behind" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["_behind"], name)

    def __str__(self) -> str:
        if "_behind" not in self.__dict__:
            return super().__str__()
        return str(self.__dict__["_behind"]._ask("text"))


class StandIn:
    """Something of the program's that is no plain data: a function, an object, a generator."""

    __slots__ = ("_kind", "_made", "_remote", "_target")
    _kind: str
    _made: bool
    _remote: Remote
    _target: Tree

    def __init__(self, remote: Remote, target: Tree, kind: str, *, made: bool = False) -> None:
        object.__setattr__(self, "_remote", remote)
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_made", made)

    def _ask(self, operation: str, *arguments: object, **named: object) -> object:
        return self._remote.ask(operation, self._target, arguments, named)

    def _operate(self, operation: str, *arguments: object) -> object:
        """An operator's result, which is the test's own making as its operand is."""
        result = self._ask(operation, *arguments)
        if type(result) is StandIn and self._made:
            object.__setattr__(result, "_made", True)
        return result

    def _may_decide(self, other: object) -> bool:
        return self._made or type(other) is StandIn

    def __call__(self, *arguments: object, **named: object) -> object:
        result = self._ask("call", *arguments, **named)
        if type(result) is StandIn and self._target in self._remote.made_by:
            object.__setattr__(result, "_made", True)
        return result

    def __getattr__(self, name: str) -> object:
        if name == "__signature__":
            return _signature(self._ask("signature"))
        if name.startswith("__") and name not in _FORWARDED:
            raise AttributeError(name)
        return self._ask("attribute", name)

    @property
    def __doc__(self) -> object:  # type: ignore[override]
        return self._ask("attribute", "__doc__")

    @property
    def __module__(self) -> object:  # type: ignore[override]
        return "solution"

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("set_attribute", name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delete_attribute", name)

    def __iter__(self) -> Iterator[object]:
        return self._one_by_one() if self._kind == "iterator" else self._all()

    def _one_by_one(self) -> Iterator[object]:
        """The first hundred as they are asked for, for what has no end or is gone on with; then many at a time."""
        for _ in range(_ONE_BY_ONE):
            try:
                yield self._ask("next")
            except StopIteration:
                return
        while items := cast("list[object]", self._ask("take", _ONE_BY_ONE)):
            yield from items

    def _all(self) -> Iterator[object]:
        items = self._ask("list")
        if type(items) is not list:
            raise TypeError("not iterable")
        return iter(items)

    def __next__(self) -> object:
        return self._ask("next")

    def __len__(self) -> int:
        return _exact(self._ask("length"), int)

    def __bool__(self) -> bool:
        return _exact(self._ask("truth"), bool)

    def __hash__(self) -> int:
        return _exact(self._ask("hash"), int)

    def __int__(self) -> int:
        return _exact(self._ask("int"), int)

    def __index__(self) -> int:
        return _exact(self._ask("index"), int)

    def __float__(self) -> float:
        return _exact(self._ask("float"), float)

    def __str__(self) -> str:
        return _exact(self._ask("text"), str)

    def __repr__(self) -> str:
        return _exact(self._ask("repr"), str)

    def __format__(self, form: str) -> str:
        return _exact(self._ask("format", form), str)

    def __getitem__(self, key: object) -> object:
        return self._ask("item", key)

    def __setitem__(self, key: object, value: object) -> None:
        self._ask("set_item", key, value)

    def __delitem__(self, key: object) -> None:
        self._ask("delete_item", key)

    def __contains__(self, item: object) -> bool:
        if self._may_decide(item):
            return _exact(self._ask("contains", item), bool)
        return any(one is item or one == item for one in self)

    def __eq__(self, other: object) -> bool:
        if self._may_decide(other):
            return _exact(self._ask("eq", other), bool)
        base = self._ask("base")
        return type(base) is not StandIn and bool(base == other)

    def __ne__(self, other: object) -> bool:
        if self._may_decide(other):
            return _exact(self._ask("ne", other), bool)
        return not self == other

    def __reversed__(self) -> Iterator[object]:
        return iter(cast("list[object]", self._ask("reversed")))

    def __round__(self, *digits: object) -> object:
        return self._operate("round", *digits)

    def __enter__(self) -> object:
        return self._ask("enter")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return bool(self._ask("leave", None, []))
        return bool(self._ask("leave", type(error).__name__, [str(one) for one in error.args]))

    def __await__(self) -> Any:
        return awaited(self).__await__()

    def __instancecheck__(self, value: object) -> bool:
        return _exact(self._ask("isinstance", value), bool)

    def __subclasscheck__(self, kind: object) -> bool:
        return _exact(self._ask("issubclass", kind), bool)

    def __mro_entries__(self, bases: object) -> NoReturn:
        self._remote.give_up("a class of the tests inherits from the program's")

    def __copy__(self) -> object:
        return self._operate("copy")

    def __deepcopy__(self, memo: object) -> object:
        return self._operate("deepcopy")

    def __dir__(self) -> list[str]:
        return [str(name) for name in cast("list[object]", self._ask("dir"))]


_ONE_BY_ONE = 100
#: Attributes with two underscores that are asked for; others belong to protocols that a stand-in lacks.
_FORWARDED = frozenset(
    {"__name__", "__qualname__", "__annotations__", "__wrapped__", "__dict__", "__init__", "__call__"}
)


_T = TypeVar("_T")


def _exact(value: object, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise TypeError(f"the program gave a {type(value).__name__} where {kind.__name__} is due")
    return value


def _signature(parts: object) -> inspect.Signature:
    parameters = []
    for name, kind, optional in cast("list[tuple[str, int, bool]]", parts):
        default = None if optional else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, inspect._ParameterKind(kind), default=default))
    return inspect.Signature(parameters)


def _binary(name: str) -> Callable[[StandIn, object], object]:
    def operate(self: StandIn, other: object) -> object:
        return self._operate(name, other) if self._may_decide(other) else NotImplemented

    return operate


def _reflected(name: str) -> Callable[[StandIn, object], object]:
    def operate(self: StandIn, other: object) -> object:
        return self._operate("reflected", name, other) if self._may_decide(other) else NotImplemented

    return operate


def _unary(name: str) -> Callable[[StandIn], object]:
    def operate(self: StandIn) -> object:
        return self._operate(name)

    return operate


for _one in [
    "lt",
    "le",
    "gt",
    "ge",
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "lshift",
    "rshift",
    "iadd",
    "isub",
    "imul",
]:
    setattr(StandIn, f"__{_one}__", _binary(_one))
for _one in ["and", "or", "xor"]:
    setattr(StandIn, f"__{_one}__", _binary(_one if _one == "xor" else f"{_one}_"))
for _one in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"]:
    setattr(StandIn, f"__r{_one}__", _reflected(_one))
for _one in ["neg", "pos", "invert", "abs"]:
    setattr(StandIn, f"__{_one}__", _unary(_one))
