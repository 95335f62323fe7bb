"""The layers of the jail: what the zygote does to itself once, and to each child it forks.

Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from rlreason.rewards.jail import linux
from rlreason.rewards.jail import seccomp as jail_seccomp
from rlreason.rewards.jail import view as jail_view
from rlreason.rewards.jail.record import Order

NAMESPACES = ("user_namespace", "mount_namespace", "pid_namespace", "net_namespace", "ipc_namespace", "uts_namespace")
#: What a run gets besides; ``memory_watch`` is the zygote's count over all processes of a run.
OTHERS = ("landlock", "seccomp", "no_new_privs", "rlimits", "other_uid", "memory_watch")
LAYERS = (*NAMESPACES, *OTHERS)
_FLAGS = {
    "mount_namespace": linux.CLONE_NEWNS,
    "net_namespace": linux.CLONE_NEWNET,
    "ipc_namespace": linux.CLONE_NEWIPC,
    "uts_namespace": linux.CLONE_NEWUTS,
}
_OFF = "switched off"
_INNER_ID = 65534
_PER_RUN = (
    resource.RLIMIT_AS,
    resource.RLIMIT_CPU,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_NPROC,
)
_NO_LIMIT = (1 << 63) - 1
#: User ids from here on are made up, one per zygote.
_OWN_USERS = 0x70000000


@dataclass(slots=True, kw_only=True)
class Confinement:
    """Which layers this zygote applies, and what it needs at each fork."""

    layers: dict[str, str]  # layer -> "" where it holds, else why not
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    #: User and group as the host sees them.
    host_user: tuple[int, int] = (0, 0)
    home_pid_namespace: int = -1
    #: For children in a pid namespace with a file system of their own; the others each build theirs.
    seccomp_filter: linux.Filter | None = None
    #: Paths and the rights that runs have to what lies there.
    landlock_rules: tuple[tuple[bytes, int], ...] = ()
    #: Folders of the view below /tmp, which every run has its own of.
    below_tmp: tuple[str, ...] = ()
    #: Limits that no process may raise above what this one was started with.
    hard_limits: dict[int, int] = field(default_factory=dict)

    @property
    def asks(self) -> bool:
        """Whether runs may ask for shared memory without a file: it is the watch that answers."""
        return self.holds("seccomp") and self.holds("memory_watch")

    def holds(self, layer: str) -> bool:
        """Whether ``layer`` is in force."""
        return self.layers[layer] == ""


def confine(off: Collection[str], *, namespaces: bool, visible: Sequence[str] = ()) -> Confinement:
    """Put this process into its namespaces and under its user. ``off``: layers left out (why: "switched off").

    ``visible``: paths of the host that programs may read besides the interpreter and the system.
    Raises OSError where ``namespaces`` are wanted and the host refuses them; this process is of no use then.
    """
    state = Confinement(layers=dict.fromkeys(LAYERS, ""))
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"1000")  # its children's too: where memory runs out, they go before the training run
    for layer in off:
        state.layers[layer] = _OFF
    root = os.getuid() == 0
    state.below_tmp = jail_view.below_tmp(visible)
    use_view = namespaces and state.holds("mount_namespace")
    if use_view and root:
        linux.unshare(linux.CLONE_NEWNS)
        jail_view.enter_view(visible)
    if root and state.holds("other_uid"):
        _leave_root(state)
    state.host_user = (os.getuid(), os.getgid())
    if namespaces:
        _unshare(state)
        if use_view and not root:
            jail_view.enter_view(visible)
        if state.holds("pid_namespace"):
            _become_init(state)
    else:
        for layer in NAMESPACES:
            state.layers[layer] = state.layers[layer] or "no namespaces"
    _prepare_filters(state, visible)
    _prepare_limits(state)
    return state


def _leave_root(state: Confinement) -> None:
    """RLIMIT_NPROC does not bind root; a user of its own also keeps parallel zygotes apart.

    Where there is no other user to become (``unshare -r``, ``apptainer --fakeroot``, a container without the
    capability), the layer is reported as missing; and the limits with it, if this root is the machine's own.
    """
    try:
        os.setgroups([])
        _become_one_of(_OWN_USERS + os.getpid(), 65534)
    except OSError as error:
        state.layers["other_uid"] = f"can't leave root: {error}"
        if _is_real_root():
            state.layers["rlimits"] = state.layers["rlimits"] or "the limit on processes does not bind root"
    state.uid, state.gid = os.getuid(), os.getgid()
    if sys.platform.startswith("linux"):
        linux.set_dumpable(on=True)  # else /proc/self belongs to root and the id maps can't be written


def _become_one_of(*users: int) -> None:
    """Become the first of ``users`` that the host allows. Raises the last refusal."""
    for user in users:
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            return
        except OSError:
            if user == users[-1]:
                raise


def _is_real_root() -> bool:
    """Whether user 0 here is user 0 of the user namespace above, which the kernel's count of processes spares."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return any(line.split()[:2] == ["0", "0"] for line in file)
    except OSError:
        return True


def _unshare(state: Confinement) -> None:
    uid, gid = os.getuid(), os.getgid()
    flags = sum(flag for layer, flag in _FLAGS.items() if state.holds(layer))
    linux.unshare(flags | linux.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_INNER_ID} {uid} 1"),
        ("gid_map", f"{_INNER_ID} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    state.uid = state.gid = _INNER_ID
    if state.holds("uts_namespace"):
        socket.sethostname("jail")  # the host's name is the host's


def _become_init(state: Confinement) -> None:
    """Go on as the first process of a new pid namespace: when it ends, however it ends, everything in it does.

    The process that was started waits for it and ends with it.
    """
    linux.unshare(linux.CLONE_NEWPID)
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    linux.die_with_parent()
    try:
        if not state.holds("mount_namespace"):
            raise OSError("no /proc of its own without a mount namespace")
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    except OSError as error:  # a host that masks a part of its own /proc
        state.layers["memory_watch"] = state.layers["memory_watch"] or str(error)
    # Each fork goes from here into a new namespace below this one.
    state.home_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def _prepare_filters(state: Confinement, visible: Sequence[str]) -> None:
    if not sys.platform.startswith("linux"):
        for layer in ("landlock", "seccomp", "no_new_privs", "memory_watch"):
            state.layers[layer] = "only on Linux"
    if state.holds("landlock"):
        try:
            rules = jail_view.landlock_rules(private=state.holds("mount_namespace"), visible=visible)
            state.landlock_rules = linux.landlock_rights(rules)
        except OSError as error:
            state.layers["landlock"] = str(error)
    if state.holds("no_new_privs"):
        try:
            linux.no_new_privileges()  # every child's too
        except OSError as error:
            state.layers["no_new_privs"] = str(error)
    if state.holds("seccomp"):
        try:
            state.seccomp_filter = linux.seccomp_filter(jail_seccomp.build())
        except NotImplementedError as error:
            state.layers["seccomp"] = str(error)


def _prepare_limits(state: Confinement) -> None:
    """What is the same for every run, and how far the others may be set."""
    for which in _PER_RUN:
        _, hard = resource.getrlimit(which)
        state.hard_limits[which] = _NO_LIMIT if hard == resource.RLIM_INFINITY else hard
    if state.layers["rlimits"] == _OFF:
        return
    # Not 0, at which the kernel still starts the host's helper where core_pattern is a pipe; 1 it takes for "none".
    wanted = {resource.RLIMIT_CORE: 1}
    if sys.platform.startswith("linux"):
        wanted[resource.RLIMIT_MEMLOCK] = wanted[resource.RLIMIT_MSGQUEUE] = 0
        wanted[resource.RLIMIT_NICE] = wanted[resource.RLIMIT_RTPRIO] = 0
    try:
        for which, value in wanted.items():
            _, hard = resource.getrlimit(which)
            allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (allowed, allowed))
    except (OSError, ValueError) as error:
        state.layers["rlimits"] = state.layers["rlimits"] or str(error)


class LayerError(OSError):
    """The host denied ``layer`` at the moment it was to take effect."""

    def __init__(self, layer: str, error: Exception) -> None:
        super().__init__(f"{layer}: {error}")
        self.layer = layer


def enter(state: Confinement, order: Order) -> int:
    """Confine this freshly forked child for one run, per ``order``. Raises LayerError.

    Returns a descriptor on which it asks for shared memory, -1 where it need not.
    """
    layer = ""
    try:
        os.setsid()
        if sys.platform.startswith("linux"):
            linux.set_dumpable(on=True)  # the zygote's /proc files are closed to its user, the program's are its own
        private = state.holds("mount_namespace")
        if private:
            layer = "mount_namespace"
            linux.unshare(linux.CLONE_NEWNS)
            jail_view.private_mounts(state.uid, state.gid, order.tmp_mb, state.below_tmp)
        else:
            os.chdir("/")
        if state.layers["rlimits"] != _OFF:  # where one of them does not bind, the others still do
            layer = "rlimits"
            _limit(state, order)
        if sys.platform.startswith("linux"):
            linux.die_with_parent()
        if state.holds("user_namespace"):
            layer = "user_namespace"
            linux.drop_capabilities()
        if state.holds("landlock"):
            layer = "landlock"
            ruleset = linux.landlock_ruleset(state.landlock_rules)
            linux.landlock_restrict(ruleset)
            os.close(ruleset)
        if state.holds("seccomp"):
            layer = "seccomp"
            return _take_filter(state, private=private)
    except (OSError, ValueError) as error:
        raise LayerError(layer, error) from error
    return -1


def _take_filter(state: Confinement, *, private: bool) -> int:
    own_pid = None if state.holds("pid_namespace") else os.getpid()
    plain = private and own_pid is None
    if state.asks:
        with contextlib.suppress(OSError):  # before Linux 5.5, or under a filter that somebody listens to
            asking = state.seccomp_filter if plain else None
            if asking is None:
                asking = linux.seccomp_filter(jail_seccomp.build(own_pid=own_pid, private=private))
            return linux.seccomp(asking, listen=True)
    return linux.seccomp(linux.seccomp_filter(jail_seccomp.build(own_pid=own_pid, private=private, ask=False)))


def _limit(state: Confinement, order: Order) -> None:
    wanted = {
        resource.RLIMIT_AS: order.memory_mb << 20,
        resource.RLIMIT_CPU: order.cpu_seconds,
        resource.RLIMIT_FSIZE: order.file_mb << 20,
        resource.RLIMIT_NOFILE: order.open_files,
    }
    if state.holds("user_namespace") or os.getuid() >= _OWN_USERS:
        # The count is this zygote's alone: one for itself, one for a judge beside the program.
        wanted[resource.RLIMIT_NPROC] = order.processes + 2
    elif sys.platform.startswith("linux") and os.getuid() != 0:
        wanted[resource.RLIMIT_NPROC] = order.processes + _threads_of(os.getuid())
    for which, value in wanted.items():
        allowed = min(value, state.hard_limits[which])
        resource.setrlimit(which, (allowed, allowed))


def _threads_of(uid: int) -> int:
    """Threads that a user has now: without a user namespace, RLIMIT_NPROC counts them all."""
    total = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == uid:
                with open(f"{entry.path}/stat", "rb") as file:
                    total += int(file.read().rpartition(b")")[2].split()[17])
    return total
