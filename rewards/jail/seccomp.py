"""The seccomp filter as a BPF program: which system calls a jailed program may not make.

A deny list, with everything newer than the list refused too. Known to x86-64 and AArch64; elsewhere ``build`` raises.
Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import errno
import os
import struct

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO, _ASK = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_EPERM, _ENOSYS = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: Calls from here on were not known when this list was made.
_FIRST_UNKNOWN = 463

#: Refused whole. Name: (number on x86-64, number on AArch64); None where the machine has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes' memory and state
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_getfd": (438, 438),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235), "set_mempolicy": (238, 237),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "quotactl": (179, 60), "quotactl_fd": (443, 443), "fanotify_init": (300, 262),
    "mknod": (133, None), "mknodat": (259, 33),
    # large kernel surfaces
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "io_setup": (206, 0), "io_submit": (209, 2), "vmsplice": (278, 75),
    "modify_ldt": (154, None), "remap_file_pages": (216, 234), "lookup_dcookie": (212, 18),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None), "personality": (135, 92), "vhangup": (153, 58),
    "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118), "nfsservctl": (180, 42), "uselib": (134, None),
    # memory that no limit of a process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "mlockall": (151, 230),
    # what others made of that
    "shmctl": (31, 195), "shmdt": (67, 197), "semctl": (66, 191), "semop": (65, 193), "semtimedop": (220, 192),
    "msgctl": (71, 187), "msgsnd": (69, 189), "msgrcv": (70, 188), "mq_unlink": (241, 181),
    # kernel memory that no limit of a process counts: larger socket buffers, filters of one's own
    "setsockopt": (54, 208), "seccomp": (317, 277), "lsm_set_self_attr": (460, 460),
    # the host's files: watching who reads them, holding locks on them, writing all of them out
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27), "flock": (73, 32),
    "sync": (162, 81), "syncfs": (306, 267),
    # a session of its own has a share of the processor of its own
    "setsid": (112, 157),
    # network
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
}  # fmt: skip
#: Refused where a program has no file system of its own: what Landlock has no rule for.
_REFUSED_OUTSIDE: dict[str, tuple[int | None, int | None]] = {
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}  # fmt: skip
#: The process ends with the call: no program has a use for it.
_FATAL: dict[str, tuple[int | None, int | None]] = {
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip
#: Calls whose flags lie in memory, out of the filter's sight: "not implemented" makes libc use the older call.
_MISSING: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435)}
_MISSING_OUTSIDE: dict[str, tuple[int | None, int | None]] = {"openat2": (437, 437)}
_CLONE, _IOCTL, _PRCTL, _SOCKETPAIR = (56, 220), (16, 29), (157, 167), (53, 199)
_KILL, _TGKILL, _TKILL, _PRLIMIT = (62, 129), (234, 131), (200, 130), (302, 261)
_FORK, _VFORK, _SETRLIMIT, _FCNTL, _MMAP = (57, None), (58, None), (160, 164), (72, 25), (9, 222)
_SETPRIORITY, _SCHED_SETAFFINITY, _OPEN, _OPENAT = (141, 140), (203, 122), (2, None), (257, 56)
_QUEUE_INFO, _TG_QUEUE_INFO, _PIDFD_SIGNAL, _PIDFD_OPEN = (129, 138), (297, 240), (424, 424), (434, 434)
_NEW_NAMESPACE_FLAGS = 0x7E020080
_CLONE_THREAD = 0x00010000
#: All others change files or terminals: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_HARMLESS_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
#: Signals to others (F_SETOWN, F_SETSIG, F_SETOWN_EX), leases and notes on files, larger pipes.
_REFUSED_FCNTLS = (8, 10, 15, 1024, 1026, 1031)
#: PR_SET_PDEATHSIG, PR_SET_DUMPABLE (the watch reads the program's /proc files), PR_SET_SECCOMP, PR_SET_MM,
#: PR_SCHED_CORE, PR_SET_MEMORY_MERGE.
_REFUSED_PRCTLS = (1, 4, 22, 35, 62, 67)
#: Locks on files: where all files that it can open are the host's.
_FCNTL_LOCKS = (6, 7, 37, 38)
_RLIMIT_CORE = 4
_O_TRUNC, _O_WRITING = 0x200, 3
_MAP_SHARED, _MAP_ANONYMOUS = 1, 0x20
_AF_UNIX = 1


#: By number of a system call: what decides on it. Every path through it ends in a return.
Rules = dict[int, list[bytes]]
#: So many are compared one by one.
_FEW = 4


def _entry(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    """Load the low 32 bits of an argument (both machines are little-endian)."""
    return _entry(_LOAD, 16 + 8 * index)


def _allow_if(index: int, values: tuple[int, ...]) -> list[bytes]:
    tests = [_entry(_JEQ, value, len(values) - at) for at, value in enumerate(values)]
    return [_argument(index), *tests, _entry(_RETURN, _EPERM), _entry(_RETURN, _ALLOW)]


def _refuse_if(index: int, values: tuple[int, ...]) -> list[bytes]:
    tests = [_entry(_JEQ, value, len(values) - at) for at, value in enumerate(values)]
    return [_argument(index), *tests, _entry(_RETURN, _ALLOW), _entry(_RETURN, _EPERM)]


_REFUSE = _entry(_RETURN, _EPERM)


def _limits(which: int, own_pid: int | None) -> Rules:
    """Rules for resource limits: not the one on core dumps, and not another process's."""
    others = [] if own_pid is None else [_argument(0), _entry(_JEQ, 0, 2), _entry(_JEQ, own_pid, 1), _REFUSE]
    core = [
        _argument(1),
        _entry(_JEQ, _RLIMIT_CORE, 0, 5),
        _argument(2),  # the new limit's address: nothing is set where it is null
        _entry(_JEQ, 0, 0, 2),
        _entry(_LOAD, 16 + 8 * 2 + 4),
        _entry(_JEQ, 0, 1, 0),
        _REFUSE,
        _entry(_RETURN, _ALLOW),
    ]
    return {_PRLIMIT[which]: others + core, _SETRLIMIT[which]: _refuse_if(0, (_RLIMIT_CORE,))}


def _shared_memory(which: int) -> Rules:
    """Shared memory without a file: the zygote is asked, and keeps the sum."""
    flags = [_argument(3), _entry(_JSET, _MAP_ANONYMOUS, 0, 2), _entry(_JSET, _MAP_SHARED, 0, 1)]
    return {_MMAP[which]: [*flags, _entry(_RETURN, _ASK), _entry(_RETURN, _ALLOW)]}


def _single_process(which: int, own_pid: int) -> Rules:
    """Rules for a process without a pid namespace: no children, and signals and limits to itself only."""
    rules: Rules = {}
    for call in (_FORK, _VFORK, _QUEUE_INFO, _TG_QUEUE_INFO, _PIDFD_SIGNAL, _PIDFD_OPEN, _TKILL):
        number = call[which]
        if number is not None:
            rules[number] = [_REFUSE]
    for call in (_KILL, _TGKILL):
        rules[call[which]] = _allow_if(0, (own_pid,))
    rules[_SCHED_SETAFFINITY[which]] = _allow_if(0, (0, own_pid))
    rules[_SETPRIORITY[which]] = [_argument(0), _entry(_JEQ, 0, 1), _REFUSE, *_allow_if(1, (0, own_pid))]
    for call, flags in ((_OPEN, 1), (_OPENAT, 2)):
        number = call[which]
        if number is not None:
            # Opened for reading only, it truncates all the same, out of sight of Landlock before its version 3.
            truncating = [_entry(_JSET, _O_TRUNC, 0, 2), _entry(_JSET, _O_WRITING, 1, 0), _REFUSE]
            rules[number] = [_argument(flags), *truncating, _entry(_RETURN, _ALLOW)]
    rules[_CLONE[which]] = [_argument(0), _entry(_JSET, _CLONE_THREAD, 1, 0), _REFUSE, _entry(_RETURN, _ALLOW)]
    return rules


def build(*, own_pid: int | None = None, private: bool = True, ask: bool = True, machine: str | None = None) -> bytes:
    """The packed filter. ``own_pid``: the caller has no pid namespace, so it may not fork or signal others.

    ``private``: it has a file system of its own. ``ask``: whoever listens to the filter decides on shared memory
    without a file, which is allowed otherwise.

    Raises NotImplementedError on other machines than x86-64 and AArch64.
    """
    machine = machine or os.uname().machine
    if machine not in _ARCHITECTURES:
        raise NotImplementedError(f"no seccomp filter for {machine}")
    which = list(_ARCHITECTURES).index(machine)
    refused = _REFUSED if private else _REFUSED | _REFUSED_OUTSIDE
    missing = _MISSING if private else _MISSING | _MISSING_OUTSIDE
    rules: Rules = {}
    for answer, calls in ((_ENOSYS, missing), (_EPERM, refused), (_KILL_PROCESS, _FATAL)):
        for numbers in calls.values():
            number = numbers[which]
            if number is not None:
                rules[number] = [_entry(_RETURN, answer)]
    new_namespace = [_argument(0), _entry(_JSET, _NEW_NAMESPACE_FLAGS, 0, 1), _REFUSE, _entry(_RETURN, _ALLOW)]
    rules[_CLONE[which]] = new_namespace
    rules |= _limits(which, own_pid)
    if ask:
        rules |= _shared_memory(which)
    rules[_IOCTL[which]] = _allow_if(1, _HARMLESS_IOCTLS)
    rules[_FCNTL[which]] = _refuse_if(1, _REFUSED_FCNTLS if private else _REFUSED_FCNTLS + _FCNTL_LOCKS)
    rules[_PRCTL[which]] = _refuse_if(0, _REFUSED_PRCTLS)
    rules[_SOCKETPAIR[which]] = _allow_if(0, (_AF_UNIX,))
    if own_pid is not None:
        rules |= _single_process(which, own_pid)
    start = [
        _entry(_LOAD, 4),
        _entry(_JEQ, _ARCHITECTURES[machine], 1, 0),
        _entry(_RETURN, _KILL_PROCESS),
        _entry(_LOAD, 0),
        _entry(_JGE, _FIRST_UNKNOWN, 0, 1),  # also the x32 calls, from 0x40000000 on
        _entry(_RETURN, _ENOSYS),
    ]
    return b"".join(start + _choose(rules))


def _choose(rules: Rules) -> list[bytes]:
    """The program that does what ``rules`` says for the call whose number is loaded, and allows all others.

    A search by halves: the kernel follows the filter for each call that there is when a process takes it.
    """
    bodies = {b"".join(body): body for body in [[_entry(_RETURN, _ALLOW)], *rules.values()]}
    runs: list[tuple[int, int, bytes]] = []  # first and last number, body
    for number in sorted(rules):
        key = b"".join(rules[number])
        if runs and runs[-1][1:] == (number - 1, key):
            runs[-1] = (runs[-1][0], number, key)
        else:
            runs.append((number, number, key))
    tests = _halves(runs)
    place, places = len(tests), {}
    for key, body in bodies.items():
        places[key] = place
        place += len(body)
    program = []
    for at, (code, value, if_true, if_false) in enumerate(tests):
        # A jump leads to a body, or that many tests further.
        jumps = [
            (places[target] if isinstance(target, bytes) else at + 1 + target) - at - 1
            for target in (if_true, if_false)
        ]
        program.append(_entry(code, value, *jumps))
    return program + [entry for body in bodies.values() for entry in body]


def _halves(runs: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes | int, bytes | int]]:
    """Comparisons, each with where to go on: at a body, or as many tests further."""
    allow = _entry(_RETURN, _ALLOW)
    if len(runs) > _FEW:
        middle = len(runs) // 2
        low, high = _halves(runs[:middle]), _halves(runs[middle:])
        return [(_JGE, runs[middle][0], len(low), 0), *low, *high]
    tests: list[tuple[int, int, bytes | int, bytes | int]] = []
    for first, last, key in runs:
        end = allow if last == runs[-1][1] else 0
        if first == last:
            tests.append((_JEQ, first, key, end))
        else:
            tests += [(_JGE, last + 1, end or 1, 0), (_JGE, first, key, allow)]
    return tests
