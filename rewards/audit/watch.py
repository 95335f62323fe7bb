"""What a call does beside computing, seen from inside its process: audit events, sleeps, changed globals and inputs.

CPython raises audit events (PEP 578) for sockets, files, processes and compiled text, whichever library asks. Code in C
that makes its own system calls raises none: ``docs/rewards.md`` says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any, SupportsIndex

from rlreason.rewards.audit.attacks import CANARIES
from rlreason.rewards.audit.subject import Call, Event

#: Longer sleeps are noted and cut short, and so are all once many were slept: an audit need not wait.
_BLINK, _BLINKS, _INSTANT = 0.02, 10, 0.0005
#: Entries of a container that are looked at.
_LOOKED_AT = 64
_LENGTH = "number of entries"
_MAX_EVENTS = 20
_NETWORK = (
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "socket.getnameinfo", "urllib.Request", "http.client.connect", "ftplib.connect",
    "smtplib.connect", "imaplib.open", "poplib.connect", "telnetlib.Telnet.open", "nntplib.connect",
)  # fmt: skip
_PROCESSES = (
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn",
)  # fmt: skip
_FILES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.link", "os.symlink",
    "os.utime", "os.setxattr", "os.removexattr", "shutil.rmtree", "shutil.move", "shutil.copyfile", "tempfile.mkstemp",
    "tempfile.mkdtemp", "sqlite3.connect",
)  # fmt: skip
_PROCESS_STATE = ("os.putenv", "os.unsetenv", "os.chdir", "os.fchdir", "sys.setprofile", "sys.settrace")
_OURS = tuple(f"rlreason.rewards.{name}" for name in ("math", "programs", "jail", "pool"))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(OSError):
    """The audit does not let a reward reach the network."""


class Watch:
    """``watch.start()`` before a call, ``watch.stop()`` after it. One for a process: hooks can't be taken back."""

    def __init__(self, allowed: Set[str]) -> None:
        self._allowed = allowed
        self._active = False
        self._events: list[Event] = []
        self.slept = 0.0
        self._naps = 0
        sys.addaudithook(self._hook)
        self._take_sleeps()

    def start(self) -> None:
        """Begin a call."""
        self._events, self.slept, self._active = [], 0.0, True

    def stop(self) -> tuple[Event, ...]:
        """End it: what was seen."""
        self._active = False
        return tuple(dict.fromkeys(self._events))[:_MAX_EVENTS]

    def _hook(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        event = _event(name, arguments)
        if event is None or (event.kind in {"files", "processes"} and _by_ours()):
            return
        if len(self._events) < 10 * _MAX_EVENTS:
            self._events.append(event)
        if event.kind == "network" and "network" not in self._allowed:
            raise Refused(f"the audit refuses the network: {event.detail}")

    def _take_sleeps(self) -> None:
        """Note sleeps of the calling thread; long ones return at once."""
        caller, sleep, sleep_async = threading.get_ident(), time.sleep, asyncio.sleep

        def note(seconds: float) -> float:
            if not self._active or seconds <= 0:
                return seconds
            self.slept += seconds
            self._naps += 1
            return min(seconds, _BLINK if self._naps < _BLINKS else _INSTANT)

        def sleeping(seconds: float | SupportsIndex, /) -> None:
            name = str(sys._getframe(1).f_globals.get("__name__", ""))
            # subprocess.Popen.wait and the like look again after a moment: that is no sleep of the reward's.
            waits = name.partition(".")[0] in sys.stdlib_module_names or name.startswith("rlreason.")
            sleep(seconds if waits or threading.get_ident() != caller else note(float(seconds)))

        async def sleeping_async(delay: float, result: Any = None) -> Any:
            return await sleep_async(note(delay), result)

        time.sleep = sleeping
        asyncio.sleep = sleeping_async
        asyncio.tasks.sleep = sleeping_async


def _by_ours() -> bool:
    """Whether a verifier that ships with rlreason is at it: programs run in a jail, and algebra in a process that can
    be killed, also where a plug-in asks them."""
    frame = sys._getframe(2)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_OURS):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _event(name: str, arguments: tuple[Any, ...]) -> Event | None:
    if name in _NETWORK:
        # A socket of this machine's own kind has a path, not a host.
        if name.startswith("socket.") and arguments and not _is_internet(arguments[0]):
            return None
        return Event(kind="network", detail=f"{name} {_shown(arguments[1:] or arguments)}")
    if name in _PROCESSES:
        return Event(kind="processes", detail=f"{name} {_shown(arguments[:2])}")
    if name in _PROCESS_STATE:
        return Event(kind="state", detail=f"{name} {_shown(arguments)}")
    if name in _FILES or (name == "open" and _writes(arguments)):
        path = str(arguments[0]) if arguments else ""
        ours = "__pycache__" in path or path == os.devnull or path.startswith("/dev/fd/")
        return None if ours else Event(kind="files", detail=f"{name} {path[:200]}")
    if name == "time.sleep":
        return None
    return _canary(name, arguments)


def _canary(name: str, arguments: tuple[Any, ...]) -> Event | None:
    """Text of a completion that is compiled, run or imported: it holds words that nothing else has."""
    if name in {"compile", "import"} and arguments:
        source = arguments[0]
        text = source.decode("utf-8", "replace") if isinstance(source, bytes) else source
        if isinstance(text, str) and any(canary in text for canary in CANARIES):
            return Event(kind="eval", detail=f"{name} {text[:120]!r}")
    return None


def _is_internet(first: object) -> bool:
    import socket

    return not isinstance(first, socket.socket) or first.family in {socket.AF_INET, socket.AF_INET6}


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, mode, flags = (*arguments, None, None, None)[:3]
    if isinstance(path, int):
        return False
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITING)


def _shown(value: object) -> str:
    return repr(value)[:200]


def plugin_modules(before: Set[str], own: str) -> list[ModuleType]:
    """Modules that came since ``before`` and are neither of the standard library, installed, nor ours; and those of the
    package ``own``, which may be installed."""
    shelves = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found = []
    for name, module in list(sys.modules.items()):
        file, package = getattr(module, "__file__", None), name.partition(".")[0]
        if not file or package == "rlreason":
            continue
        new = name not in before and not file.startswith(tuple(shelf + os.sep for shelf in shelves))
        if new or package == own:
            found.append(module)
    return found


#: Fingerprint of a global; of a mapping one for each key.
Print = str | dict[str, str]
_NOTHING = "None"


def state_of(modules: Sequence[ModuleType]) -> dict[str, Print]:
    """Name of each global -> a fingerprint; also the random generators, the environment and the folder."""
    prints: dict[str, Print] = {
        f"{_short(module.__name__)}.{name}": _global(value)
        for module in modules
        for name, value in list(vars(module).items())
        if not (name.startswith("__") and name.endswith("__")) and _own(value, module)
    }
    prints["random (the global generator)"] = str(hash(random.getstate()))
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        _, words, *rest = numpy.get_state()
        prints["numpy.random (the global generator)"] = f"{hash(words.tobytes())} {rest}"
    prints["os.environ"] = _digest(repr(sorted(os.environ.items())))
    prints["the working folder"] = os.getcwd()
    return prints


def _own(value: object, module: ModuleType) -> bool:
    """Whether a global is of the module, and not a function, a class or a module that it imports."""
    if isinstance(value, ModuleType):
        return False
    return not isinstance(value, (FunctionType, type)) or value.__module__ == module.__name__


def _short(module: str) -> str:
    return "plug-in" if module.startswith("rlreason_plugin_") else module.rpartition(".")[2]


def _global(value: object) -> Print:
    if value is None:
        return _NOTHING
    if isinstance(value, Mapping):
        # The oldest entries tell whether entries change; how many there are, whether some came.
        return {repr(key)[:200]: _fingerprint(one) for key, one in islice(value.items(), _LOOKED_AT)} | {
            _LENGTH: f"{len(value):09d}"
        }
    return ("cache " if callable(getattr(value, "cache_info", None)) else "") + _fingerprint(value)


def state_changes(before: Mapping[str, Print], after: Mapping[str, Print]) -> tuple[str, ...]:
    """Names of globals that changed; with ``CACHE`` where entries only came, ``SET_ONCE`` where nothing was before."""
    found = []
    for name, new in after.items():
        old = before.get(name)
        if old == new:
            continue
        grew = isinstance(old, dict) and isinstance(new, dict) and _grew(old, new)
        cache = isinstance(new, str) and new.startswith("cache ")
        fresh = old is None or old == _NOTHING
        drawn = "global generator" in name
        found.append(name + (CACHE if grew or cache else SET_ONCE if fresh else DRAWN if drawn else ""))
    return tuple(found)


def _grew(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether entries came and none was changed."""
    same = all(new.get(key) == one for key, one in old.items() if key != _LENGTH)
    return same and new[_LENGTH] > old[_LENGTH]


CACHE, SET_ONCE, DRAWN = " (grows)", " (set once)", " is drawn from"


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Names whose fingerprint is not the same."""
    return tuple(name for name in {**before, **after} if before.get(name) != after.get(name))


def _fingerprint(value: object) -> str:
    return _digest(repr(_plain(value, 0, set())))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _plain(value: object, depth: int, seen: set[int]) -> object:
    """What a value holds, as far as it can be looked at, without addresses."""
    if isinstance(value, (str, bytes, bytearray)) and len(value) > 200:
        return len(value), hash(bytes(value) if isinstance(value, bytearray) else value)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    if depth > 5 or id(value) in seen:
        return type(value).__name__
    seen = seen | {id(value)}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        values = list(value)  # type: ignore[call-overload]
        looked_at = [*values[:_LOOKED_AT], *values[-10:]]
        return [_plain(one, depth + 1, seen) for one in looked_at], len(values)
    if isinstance(value, Mapping):
        pairs = list(islice(value.items(), _LOOKED_AT))
        return [(repr(key)[:200], _plain(one, depth + 1, seen)) for key, one in pairs], len(value)
    if isinstance(value, Set):
        return sorted(repr(one)[:200] for one in value) if len(value) <= _LOOKED_AT else [], len(value)
    if isinstance(value, FunctionType):
        if not (value.__closure__ or value.__defaults__ or value.__kwdefaults__ or vars(value)):
            return value.__qualname__
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        held = [value.__defaults__, value.__kwdefaults__, vars(value), cells]
        return value.__qualname__, _plain(held, depth + 1, seen)
    cache: Callable[[], object] | None = getattr(value, "cache_info", None)
    if callable(cache):  # functools.lru_cache
        return "cache", repr(cache())
    if isinstance(value, type):
        held = [one for name, one in vars(value).items() if not name.startswith("__")]
        return value.__qualname__, _plain(held, depth + 1, seen)
    shape = getattr(value, "tobytes", None)
    if callable(shape):
        return _digest(repr(shape()))
    return type(value).__name__, _plain(getattr(value, "__dict__", None), depth + 1, seen)


def _cell(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def inputs_of(call: Call) -> dict[str, str]:
    """Field of each problem and of each completion -> a fingerprint."""
    found: dict[str, str] = {}
    for what, values in (("problem", call.problems), ("completion", call.completions)):
        for place, one in enumerate(values):
            number = f" {place}" if len(values) > 1 else ""
            found |= {f"{what}{number}.{name}": mark for name, mark in _fields(one).items()}
    return found


def _fields(value: Any) -> dict[str, str]:
    assert is_dataclass(value)
    out = {}
    for one in fields(value):
        content = getattr(value, one.name)
        dump = getattr(content, "tobytes", None)
        out[one.name] = _digest(repr(dump() if callable(dump) else _plain(content, 0, set())))
    return out
