"""What runs in a jailed child: a program on standard input, a program whose functions are called, or a judge.

The channel carries frames: four bytes of length, then a JSON tree. The first frame is the job. Nothing here is a
secret or a verdict: a program may do with this process and its channel what it likes, and gains no more than by
returning another value. Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import atexit
import builtins
import os
import struct
import sys
import threading
import types
from collections.abc import Callable

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain, Tree

_PLAIN_ARGUMENTS = (str, int, float, bool, type(None))


class Channel:
    """Frames over a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def receive(self) -> list[Tree]:
        """The next frame. Ends the process when the other side has closed."""
        (size,) = struct.unpack(">I", self._read(4))
        tree = jail_data.loads(self._read(size))
        assert isinstance(tree, list)
        return tree

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = os.read(self._descriptor, min(count, 1 << 20))
            if not part:
                os._exit(1)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def send(self, tree: list[Tree]) -> None:
        """Write one frame."""
        data = jail_data.dumps(tree)
        data = struct.pack(">I", len(data)) + data
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Close it: the program that follows has no use for it."""
        os.close(self._descriptor)


def drive(descriptor: int) -> None:
    """Do the one job that comes over the channel, then end the process."""
    channel = Channel(descriptor)
    mode, *job = channel.receive()
    if mode == "stdin":
        channel.close()
        end(lambda: run_program(str(job[0]), "__main__"))
    elif mode == "serve":
        end(lambda: _serve(channel, str(job[0])))
    else:
        from rlreason.rewards.jail import judge as jail_judge

        end(lambda: jail_judge.judge(channel, str(mode), job))


def end(work: Callable[[], object]) -> None:
    """Run ``work`` and leave as an interpreter does: report an exception, join threads, run exit handlers, flush."""
    code = 0
    try:
        work()
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120
    os._exit(code)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def run_program(source: str, name: str) -> dict[str, object]:
    """Execute ``source`` as the module ``name`` and return its globals."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    if name != "__main__":
        sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    module.__dict__["__builtins__"] = builtins
    code = compile(source, "<program>", "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module.__dict__


def _serve(channel: Channel, source: str) -> None:
    """Run the program as a module, tell its names, then answer calls until the channel closes."""
    server = _Server(run_program(source, "solution"))
    channel.send(["ready", server.names()])
    while True:
        channel.send(server.answer(channel.receive()))


class _Server:
    """Calls into the program. Results that are no plain data stay here and are referred to by number, if asked for."""

    def __init__(self, names: dict[str, object]) -> None:
        self._names = names
        self._kept: list[object] = []

    def names(self) -> Tree:
        """``[name, ...]`` of what the program defines."""
        return [name for name in list(self._names) if type(name) is str and not name.startswith("__")]

    def answer(self, request: list[Tree]) -> list[Tree]:
        """``["value", tree]``, ``["raised", class, arguments]`` or ``["opaque", reason]``."""
        keep = bool(request[0])
        try:
            value = self._perform(request[1:])
            return ["value", jail_data.to_tree(value, self._keep if keep else None)]
        except NotPlain as error:
            return ["opaque", str(error)]
        except MemoryError:
            return ["raised", "MemoryError", []]
        except BaseException as error:
            return ["raised", _builtin_name(type(error)), _plain_arguments(error)]

    def _keep(self, value: object) -> Tree:
        self._kept.append(value)
        return ["h", len(self._kept) - 1, type(value).__name__[:80]]

    def _kept_value(self, tree: list[object]) -> object:
        if tree[0] != "h":
            raise NotPlain("unknown tag")
        which = tree[1]
        if isinstance(which, str):
            return self._find(which)
        assert isinstance(which, int)
        return self._kept[which]

    def _perform(self, request: list[Tree]) -> object:
        operation, target, arguments, keywords = request
        receiver = self._kept_value(["h", target])
        positional = jail_data.from_tree(arguments, self._kept_value)
        named = jail_data.from_tree(keywords, self._kept_value)
        assert isinstance(positional, list)
        assert isinstance(named, dict)
        if operation == "call":
            assert callable(receiver)
            return receiver(*positional, **named)
        return _OPERATIONS[str(operation)](receiver, *positional)

    def _find(self, name: str) -> object:
        if name in self._names:
            return self._names[name]
        solution = self._names.get("Solution")  # the form that LeetCode's problems ask for
        if isinstance(solution, type) and name in vars(solution):
            return getattr(solution(), name)
        raise NameError(f"name {name!r} is not defined")


def _materialise(value: object) -> list[object]:
    return list(value)  # type: ignore[call-overload,no-any-return]


_OPERATIONS: dict[str, Callable[..., object]] = {
    "get": lambda value: value,
    "attribute": getattr,
    "set_attribute": setattr,
    "list": _materialise,
    "next": next,
    "length": len,
    "item": lambda value, key: value[key],
    "text": str,
}


def _builtin_name(kind: type) -> str:
    """Name of the nearest built-in exception class: the only ones that cross."""
    for base in kind.__mro__:
        if vars(builtins).get(base.__name__) is base:
            return str(base.__name__)
    return "Exception"


def _plain_arguments(error: BaseException) -> Tree:
    """The exception's arguments where all are plain scalars. Never its ``str``, which may be anything."""
    arguments = error.args
    if type(arguments) is tuple and all(type(one) in _PLAIN_ARGUMENTS for one in arguments):
        return [one if not isinstance(one, str) else one[:2000] for one in arguments]
    return []
