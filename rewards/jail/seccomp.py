"""The seccomp filter as a BPF program: which system calls a jailed program may not make.

A deny list, with everything newer than the list refused too. Known to x86-64 and AArch64; elsewhere ``build`` raises.
Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import errno
import os
import struct

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
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
    # network
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
}  # fmt: skip
#: Calls whose flags lie in memory, out of the filter's sight: "not implemented" makes libc use the older call.
_MISSING: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435)}
_CLONE, _IOCTL, _PRCTL, _SOCKETPAIR = (56, 220), (16, 29), (157, 167), (53, 199)
_KILL, _TGKILL, _TKILL, _PRLIMIT = (62, 129), (234, 131), (200, 130), (302, 261)
_FORK, _VFORK = (57, None), (58, None)
_QUEUE_INFO, _TG_QUEUE_INFO, _PIDFD_SIGNAL, _PIDFD_OPEN = (129, 138), (297, 240), (424, 424), (434, 434)
_NEW_NAMESPACE_FLAGS = 0x7E020080
_CLONE_THREAD = 0x00010000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PR_SET_PDEATHSIG, _PR_SET_MM = 1, 35
_AF_UNIX = 1


def _entry(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    """Load the low 32 bits of an argument (both machines are little-endian)."""
    return _entry(_LOAD, 16 + 8 * index)


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """``body`` for one system call; it must not fall through to the next, as the accumulator then holds an argument."""
    return [_entry(_JEQ, number, 0, len(body)), *body]


def _allow_if(index: int, values: tuple[int, ...]) -> list[bytes]:
    tests = [_entry(_JEQ, value, len(values) - at) for at, value in enumerate(values)]
    return [_argument(index), *tests, _entry(_RETURN, _EPERM), _entry(_RETURN, _ALLOW)]


def _refuse_if(index: int, values: tuple[int, ...]) -> list[bytes]:
    tests = [_entry(_JEQ, value, len(values) - at) for at, value in enumerate(values)]
    return [_argument(index), *tests, _entry(_RETURN, _ALLOW), _entry(_RETURN, _EPERM)]


def _single_process(which: int, own_pid: int) -> list[bytes]:
    """Rules for a process without a pid namespace: no children, and signals and limits to itself only."""
    rules: list[bytes] = []
    for call in (_FORK, _VFORK, _QUEUE_INFO, _TG_QUEUE_INFO, _PIDFD_SIGNAL, _PIDFD_OPEN, _TKILL):
        number = call[which]
        if number is not None:
            rules += _when(number, [_entry(_RETURN, _EPERM)])
    for call in (_KILL, _TGKILL):
        rules += _when(call[which], _allow_if(0, (own_pid,)))
    rules += _when(_PRLIMIT[which], _allow_if(0, (0, own_pid)))
    only_threads = [
        _argument(0),
        _entry(_JSET, _CLONE_THREAD, 1, 0),
        _entry(_RETURN, _EPERM),
        _entry(_RETURN, _ALLOW),
    ]
    return rules + _when(_CLONE[which], only_threads)


def build(*, own_pid: int | None = None, machine: str | None = None) -> bytes:
    """The packed filter. ``own_pid``: the caller has no pid namespace, so it may not fork or signal others.

    Raises NotImplementedError on other machines than x86-64 and AArch64.
    """
    machine = machine or os.uname().machine
    if machine not in _ARCHITECTURES:
        raise NotImplementedError(f"no seccomp filter for {machine}")
    which = list(_ARCHITECTURES).index(machine)
    program = [
        _entry(_LOAD, 4),
        _entry(_JEQ, _ARCHITECTURES[machine], 1, 0),
        _entry(_RETURN, _KILL_PROCESS),
        _entry(_LOAD, 0),
        _entry(_JGE, _FIRST_UNKNOWN, 0, 1),  # also the x32 calls, from 0x40000000 on
        _entry(_RETURN, _ENOSYS),
    ]
    for answer, calls in ((_EPERM, _REFUSED), (_ENOSYS, _MISSING)):
        for numbers in calls.values():
            number = numbers[which]
            if number is not None:
                program += _when(number, [_entry(_RETURN, answer)])
    if own_pid is not None:
        program += _single_process(which, own_pid)
    new_namespace = [
        _argument(0),
        _entry(_JSET, _NEW_NAMESPACE_FLAGS, 0, 1),
        _entry(_RETURN, _EPERM),
        _entry(_RETURN, _ALLOW),
    ]
    program += _when(_CLONE[which], new_namespace)
    program += _when(_IOCTL[which], _refuse_if(1, (_TIOCSTI, _TIOCLINUX)))
    program += _when(_PRCTL[which], _refuse_if(0, (_PR_SET_PDEATHSIG, _PR_SET_MM)))
    program += _when(_SOCKETPAIR[which], _allow_if(0, (_AF_UNIX,)))
    program.append(_entry(_RETURN, _ALLOW))
    return b"".join(program)
