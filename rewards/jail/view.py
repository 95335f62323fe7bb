"""The file system that a jailed program sees: the interpreter and the system's libraries, read-only, and no more.

Built once per zygote, in its own mount namespace; ``private_mounts`` adds what each run gets for itself.
Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from rlreason.rewards.jail import linux

#: Shared by all runs, read-only.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
#: Not ``zero``: mapped shared, it is memory that no limit of a process counts.
_DEVICES = ("null", "full", "random", "urandom")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "shm": "/tmp",
}
_STAGE = "/tmp"  # any directory that every host has


def interpreter_folders(*, of_path: bool = True) -> tuple[str, ...]:
    """Folders of the running interpreter that lie outside the system's own; ``of_path``: those of ``sys.path`` too."""
    candidates = [sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    candidates += [path for path in sys.path if of_path and os.path.isdir(path)]
    folders: list[str] = []
    for path in sorted({os.path.realpath(path) for path in candidates}):
        if path != "/" and not any(path == top or path.startswith(top + "/") for top in ("/usr", *folders)):
            folders.append(path)
    return tuple(folders)


def enter_view(visible: Sequence[str] = ()) -> None:
    """Replace this mount namespace's root by the minimal view, with the paths ``visible`` in it.

    Needs CAP_SYS_ADMIN over the namespace.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    folders = interpreter_folders()
    linux.mount("tmpfs", _STAGE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
    os.mkdir(f"{_STAGE}/old")
    os.mkdir(f"{_STAGE}/new")
    linux.pivot_root(_STAGE, f"{_STAGE}/old")
    os.chdir("/")
    linux.mount("tmpfs", "/new", "tmpfs", linux.MS_NOSUID, "size=1m,mode=755")
    for path in (*SYSTEM, *folders):
        _show(path)
    for path in visible:
        with contextlib.suppress(OSError):  # what this user may not look at, its programs may not either
            _show(path)
    _make_devices()
    os.makedirs("/new/tmp", 0o755, exist_ok=True)  # it is there where an environment lies below it
    os.mkdir("/new/proc", 0o555)
    # The host's, for this zygote; every run puts its own over it. Its new id maps are written through it.
    linux.mount("/old/proc", "/new/proc", None, linux.MS_BIND | linux.MS_REC)
    os.mkdir("/new/.old")
    linux.pivot_root("/new", "/new/.old")
    os.chdir("/")
    linux.detach("/.old")
    os.rmdir("/.old")
    linux.mount("none", "/", None, linux.MS_BIND | 32 | linux.MS_RDONLY | linux.MS_NOSUID)  # 32: MS_REMOUNT


def _show(path: str) -> None:
    """Bind ``path`` of the host into the view, read-only; a link is copied, a missing path left out."""
    old, new = f"/old{path}", f"/new{path}"
    if os.path.lexists(new):
        return
    os.makedirs(os.path.dirname(new), mode=0o755, exist_ok=True)
    if os.path.islink(old):
        os.symlink(os.readlink(old), new)
        return
    if os.path.isdir(old):
        os.mkdir(new, 0o755)
    elif os.path.isfile(old):
        os.close(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
    else:
        return
    linux.mount(old, new, None, linux.MS_BIND | linux.MS_REC)
    linux.set_mount_attributes(new, linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)


def _make_devices() -> None:
    os.mkdir("/new/dev", 0o755)
    for name in _DEVICES:
        if os.path.exists(f"/old/dev/{name}"):
            os.close(os.open(f"/new/dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o666))
            linux.mount(f"/old/dev/{name}", f"/new/dev/{name}", None, linux.MS_BIND)
            # Read-only does not stop writing to the device; it keeps the times and the mode of the host's node.
            linux.set_mount_attributes(f"/new/dev/{name}", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NOEXEC)
    for name, target in _LINKS.items():
        os.symlink(target, f"/new/dev/{name}")


def below_tmp(visible: Sequence[str] = ()) -> tuple[str, ...]:
    """Of the folders in the view, those that a run's own /tmp would hide: of an environment that was made there."""
    shown = (os.path.realpath(path) for path in (*interpreter_folders(), *visible))
    return tuple(sorted(path for path in set(shown) if path.startswith("/tmp/")))


def private_mounts(uid: int, gid: int, megabytes: int, kept: Sequence[str] = ()) -> None:
    """This run's own /tmp (``megabytes`` and 4096 files at most) and /proc, in a mount namespace of its own.

    ``kept``: paths below /tmp that are to be seen in the new one, too.
    Where the kernel refuses a fresh /proc (a container that masks part of it), /proc is empty.
    """
    quiet = linux.MS_NOSUID | linux.MS_NODEV
    options = f"size={megabytes}m,nr_inodes=4096,mode=700,uid={uid},gid={gid}"
    held = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in kept if os.path.exists(path)]
    linux.mount("tmpfs", "/tmp", "tmpfs", quiet, options)
    for path, descriptor in held:
        _show_again(path, descriptor)
    quiet |= linux.MS_NOEXEC
    try:
        linux.mount("proc", "/proc", "proc", quiet | linux.MS_RDONLY)
    except OSError:
        linux.mount("tmpfs", "/proc", "tmpfs", quiet | linux.MS_RDONLY, "size=4k,mode=555")
    os.chdir("/tmp")


def _show_again(path: str, descriptor: int) -> None:
    """Bind what ``descriptor`` holds to ``path``, whose name a new mount has hidden, read-only."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    if not os.path.lexists(path):
        source = f"/proc/self/fd/{descriptor}"
        if os.path.isdir(source):
            os.mkdir(path, 0o755)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
        linux.mount(source, path, None, linux.MS_BIND | linux.MS_REC)
        linux.set_mount_attributes(path, linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)
    os.close(descriptor)


def landlock_rules(*, private: bool, visible: Sequence[str] = ()) -> dict[str, int]:
    """What Landlock leaves open. ``private``: inside the view, where /tmp is this run's own."""
    if private:  # nothing lies in its /dev but the devices that it may have
        return {"/": linux.READ, "/dev": linux.DEVICE, "/tmp": linux.WRITE}
    rules = {f"/dev/{name}": linux.DEVICE for name in _DEVICES}
    return {**rules, **dict.fromkeys((*SYSTEM, *interpreter_folders(), *visible), linux.READ)}
