"""The zygote's watch over a run: memory and processor time of all its processes together, and a fair share of it.

Counts what no limit of a single process does: memory of the whole tree with shared pages once, kernel memory behind
sockets and mappings, processor time in sum. Many busy processes or threads weigh as much as one, so that the runs
beside them are not starved. Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
from dataclasses import dataclass, field

from rlreason.rewards.jail import linux

#: Looks between two at the processor time, and between two at sockets and mappings.
_CPU_EVERY, _KERNEL_EVERY = 4, 8
#: Ended by its own limit before this, a single process is not called killed by the watch.
_CPU_SLACK = 0.5
#: What the socket at the other end may leave unread in one (net.core.wmem_default), and sockets that nobody counts.
_SOCKET_BYTES, _FREE_SOCKETS, _FEW_DESCRIPTORS = 212_992, 64, 96
#: Each costs the kernel some 250 bytes; programs have a few hundred.
_MOST_MAPPINGS = 10_000
_TICKS = os.sysconf("SC_CLK_TCK")


def anonymous_pages(pid: int, *, with_shared: bool = False) -> int:
    """Resident pages of ``pid`` that belong to no file; ``with_shared`` also those that do. 0 where it has gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            fields = file.read().split()
    except OSError:
        return 0
    return max(0, int(fields[1]) - (0 if with_shared else int(fields[2])))


def waited_seconds(pid: int) -> float:
    """Seconds that ``pid`` (its first thread) was ready to run and no processor was free for it. 0 where unknown."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


@dataclass(slots=True, kw_only=True)
class Watch:
    """What is known of one run's processes. ``look`` now and then; "memory" or "cpu" where they are over it."""

    pid: int
    memory_mb: int
    cpu_seconds: float
    #: Resident pages that the zygote itself has: every run begins with them.
    base_pages: int
    #: Descriptor on which the run asks for shared memory without a file; -1 where nobody asks.
    listener: int = -1
    _shared: int = 0
    _kernel: int = 0
    _looks: int = 0
    _spent: dict[int, int] = field(default_factory=dict)  # process -> its own ticks when last seen
    _nice: int = 0

    def look(self) -> str:
        """Why the run must end, or ""."""
        tree = _tree(self.pid)
        self._looks += 1
        if self._looks % _KERNEL_EVERY == 0:
            if any(_many_mappings(pid) for pid in tree):
                return "memory"
            self._kernel = _socket_bytes(tree)
        if self._too_large(tree):
            return "memory"
        if self._looks % _CPU_EVERY == 0 and self._cpu(tree) > self.cpu_seconds + _CPU_SLACK:
            return "cpu"
        return ""

    def grant(self) -> str:
        """Answer the calls that wait on ``listener``; "memory" where they ask for too much."""
        try:
            while select.select([self.listener], [], [], 0)[0]:
                number, size = linux.asked(self.listener)
                self._shared += size
                if self._shared > self.memory_mb << 20:
                    return "memory"
                linux.let_pass(self.listener, number)
        except FileNotFoundError:  # who asked has gone
            pass
        except OSError:
            self.close()
        return ""

    def close(self) -> None:
        """Nobody asks any more."""
        if self.listener >= 0:
            os.close(self.listener)
            self.listener = -1

    def _too_large(self, tree: list[int]) -> bool:
        """Whether the run's processes hold more than its memory limit together."""
        page, limit = resource.getpagesize(), self.memory_mb << 20
        uncounted = self.listener < 0
        own = {pid: max(0, anonymous_pages(pid, with_shared=uncounted) - self.base_pages) * page for pid in tree}
        if sum(own.values()) + self._shared + self._kernel <= limit:
            return False
        shares = {pid: _share(pid) for pid in tree}
        return sum(own[pid] if share is None else share for pid, share in shares.items()) + self._kernel > limit

    def _cpu(self, tree: list[int]) -> float:
        """Processor seconds of all processes that were ever seen; on the way, those that are busy are made to share."""
        busy: list[int] = []
        reaped = 0
        for pid in tree:
            fields = _stat(pid)
            if fields is None:
                continue
            self._spent[pid] = int(fields[11]) + int(fields[12])
            reaped += self._spent[pid] + int(fields[13]) + int(fields[14])
            busy += [pid] if fields[17] == b"1" and fields[0] == b"R" else _busy_threads(pid, fields)
        self._share_out(busy)
        # Children's times reach their parent where it waits for them; where it does not, they were seen at times.
        return max(reaped, sum(self._spent.values())) / _TICKS

    def _share_out(self, busy: list[int]) -> None:
        """n busy threads at a weight of 1/n each: a step of niceness is a factor of 1.25."""
        wanted = min(19, math.ceil(math.log(len(busy), 1.25))) if len(busy) > 1 else 0
        self._nice = max(self._nice, wanted)
        if self._nice:
            for thread in busy:
                with contextlib.suppress(OSError):
                    if os.getpriority(os.PRIO_PROCESS, thread) < self._nice:
                        os.setpriority(os.PRIO_PROCESS, thread, self._nice)


def _tree(pid: int) -> list[int]:
    """``pid`` and all its descendants."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue
    return found


def _share(pid: int) -> int | None:
    """Bytes of ``pid`` that lie in no file of a disk, pages shared with others by their share; 0 where it has gone.

    None: it keeps them to itself, or the kernel does not know.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = [line.split() for line in file if line.startswith((b"Pss_Anon:", b"Pss_Shmem:"))]
    except PermissionError:
        return None
    except OSError:
        return 0 if os.path.exists("/proc/self/smaps_rollup") else None
    return sum(int(line[1]) << 10 for line in lines) if lines else None


def _stat(pid: int, task: str = "") -> list[bytes] | None:
    """Fields of a process's or a thread's stat, from its state on."""
    try:
        with open(f"/proc/{pid}/{task}stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def _busy_threads(pid: int, fields: list[bytes]) -> list[int]:
    if fields[17] == b"1":
        return []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    states = {task: _stat(pid, f"task/{task}/") for task in tasks}
    return [int(task) for task, found in states.items() if found is not None and found[0] == b"R"]


def _many_mappings(pid: int) -> bool:
    count = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        while count <= _MOST_MAPPINGS and (part := file.read(1 << 18)):
            count += part.count(b"\n")
    return count > _MOST_MAPPINGS


def _socket_bytes(tree: list[int]) -> int:
    """What may lie unread in the sockets of all processes."""
    found: dict[int, list[str]] = {}
    hidden = 0
    for pid in tree:
        try:
            found[pid] = os.listdir(f"/proc/{pid}/fd")
        except PermissionError:
            hidden += _FREE_SOCKETS
        except OSError:
            continue
    if hidden + sum(map(len, found.values())) <= _FEW_DESCRIPTORS:
        return 0
    sockets = set()
    for pid, names in found.items():
        for name in names:
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:"):
                    sockets.add(target)
    return max(0, hidden + len(sockets) - _FREE_SOCKETS) * _SOCKET_BYTES
