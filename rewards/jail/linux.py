"""The Linux system calls that the jail needs and Python lacks, through ctypes. Each raises OSError on failure.

Loaded in the trusted process and in the zygote; imports the standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_PIDFD_OPEN = 434
_NEW_LISTENER, _NOTIF_RECV, _NOTIF_SEND, _ASKED_BYTES = 8, 0xC0502100, 0xC0182101, 80
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_CAPABILITY_HEADER, _NO_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0), bytes(24)

#: Numbers that are the same on x86-64 and AArch64 (all calls added since Linux 5.0 are).
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if sys.platform.startswith("linux"):
        wide, text, pointer = ctypes.c_ulong, ctypes.c_char_p, ctypes.c_void_p
        libc.prctl.argtypes = [ctypes.c_int, wide, pointer, wide, wide]
        libc.mount.argtypes = [text, text, text, wide, text]
        libc.capset.argtypes = [pointer, pointer]
    return libc


def _check(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _syscall(name: str, number: int, *arguments: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(name, int(_libc().syscall(ctypes.c_long(number), *wide)))


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``flags`` for new ones; ``CLONE_NEWPID`` concerns children only."""
    _check("unshare", _libc().unshare(flags))


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace that ``descriptor`` refers to."""
    _check("setns", _libc().setns(descriptor, kind))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _check(f"mount {target}", _libc().mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]))


def detach(target: str) -> None:
    """Unmount ``target`` with all that is mounted below it, as soon as nobody uses it."""
    _check(f"umount {target}", _libc().umount2(os.fsencode(target), _MNT_DETACH))


def pivot_root(new_root: str, put_old: str) -> None:
    """Make the mount ``new_root`` the root and hang the old one at ``put_old``."""
    number = _PIVOT_ROOT[os.uname().machine]
    _syscall("pivot_root", number, ctypes.c_char_p(os.fsencode(new_root)), ctypes.c_char_p(os.fsencode(put_old)))


def set_mount_attributes(target: str, attributes: int) -> None:
    """Add ``MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC`` bits to ``target`` and everything mounted below it."""
    packed = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    path = ctypes.c_char_p(os.fsencode(target))
    _syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, packed, 32)


def _prctl(name: str, option: int, value: int, pointer: object = None) -> None:
    _check(name, _libc().prctl(option, value, pointer, 0, 0))


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that forked it ends."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, 9)


def set_dumpable(*, on: bool) -> None:
    """Whether other processes of this user may look into this one (and it into its own /proc/self files)."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(on))


def no_new_privileges() -> None:
    """No later exec may gain privileges (set-uid programs, file capabilities)."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def pidfd(pid: int) -> int:
    """A descriptor that is readable when the child ``pid`` has ended. Raises OSError before Linux 5.3."""
    return _syscall("pidfd_open", _PIDFD_OPEN, pid, 0)


def drop_capabilities() -> None:
    """Give up every capability, for good once ``no_new_privileges`` holds."""
    _check("capset", _libc().capset(_CAPABILITY_HEADER, _NO_CAPABILITIES))


@lru_cache(maxsize=1)
def _seccomp_number() -> int:
    return _SECCOMP[os.uname().machine]


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter as the kernel takes it: ``program``'s bytes, and a description that points to them."""

    program: ctypes.Array[ctypes.c_char]
    description: bytes


def seccomp_filter(program: bytes) -> Filter:
    """The BPF ``program`` (packed ``sock_filter`` entries of 8 bytes), ready to be installed here or after a fork."""
    held = ctypes.create_string_buffer(program, len(program))
    return Filter(held, struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(held)))


def seccomp(wanted: Filter, *, listen: bool = False) -> int:
    """Install the filter.

    ``listen``: returns a descriptor on which calls that the program asks about arrive (``asked``); else -1.
    """
    if listen:
        operation = _SECCOMP_MODE_FILTER - 1
        return _syscall("seccomp", _seccomp_number(), operation, _NEW_LISTENER, wanted.description)
    _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, wanted.description)
    return -1


def asked(listener: int) -> tuple[int, int]:
    """The next call that waits for an answer: its number, and its second argument."""
    buffer = bytearray(_ASKED_BYTES)
    fcntl.ioctl(listener, _NOTIF_RECV, buffer)
    (number,) = struct.unpack_from("=Q", buffer)
    (second,) = struct.unpack_from("=Q", buffer, 32 + 8)
    return number, second


def let_pass(listener: int, number: int) -> None:
    """Let a call that ``asked`` gave go on."""
    fcntl.ioctl(listener, _NOTIF_SEND, struct.pack("=QqiI", number, 0, 0, 1))


# --- Landlock -------------------------------------------------------------------------------------------------------

_READ_FILE, _READ_DIR, _EXECUTE, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 0, 1 << 1
#: Rights that apply to files; the others are for directories only.
_FILE_RIGHTS = _READ_FILE | _EXECUTE | _WRITE_FILE | 1 << 14 | 1 << 15
READ = _READ_FILE | _READ_DIR | _EXECUTE
WRITE = (1 << 16) - 1
DEVICE = _READ_FILE | _WRITE_FILE | 1 << 15


def landlock_version() -> int:
    """ABI version of the running kernel. Raises OSError where Landlock is absent or off."""
    return _syscall("Landlock", _LANDLOCK_CREATE, None, 0, 1)


def _handled_rights(version: int) -> int:
    bits = 13  # ABI 1; then REFER, TRUNCATE, and IOCTL_DEV with ABI 5
    return (1 << (bits + (version >= 2) + (version >= 3) + (version >= 5))) - 1


def landlock_rights(allowed: Mapping[str, int]) -> tuple[tuple[bytes, int], ...]:
    """``allowed`` (path -> rights) as far as this kernel knows the rights and the paths exist now.

    Raises OSError where Landlock is absent.
    """
    handled = _handled_rights(landlock_version())
    return tuple(
        (os.fsencode(path), rights & handled & (-1 if os.path.isdir(path) else _FILE_RIGHTS))
        for path, rights in allowed.items()
        if os.path.exists(path)
    )


@lru_cache(maxsize=1)
def _ruleset_attributes() -> bytes:
    version = landlock_version()
    network = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    return struct.pack("=QQQ", _handled_rights(version), network, scoped)[:size]


def landlock_ruleset(allowed: Iterable[tuple[bytes, int]]) -> int:
    """A descriptor of a ruleset: files only as ``allowed``, no TCP, no signals or sockets outside.

    ``allowed``: of ``landlock_rights``. Paths that are gone are left out. Raises OSError where Landlock is absent.
    """
    attributes = _ruleset_attributes()
    ruleset = _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, attributes, len(attributes), 0)
    for path, rights in allowed:
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        _syscall("landlock_add_rule", _LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, beneath), 0)
        os.close(beneath)
    return ruleset


def landlock_restrict(ruleset: int) -> None:
    """Put this process and its future children under ``ruleset``. Needs ``no_new_privileges``."""
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ruleset, 0)
