"""How many CPU cores and how much memory this process may use: what its affinity and its control group leave of the
machine's."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

#: Where Linux mounts control groups.
CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use, at least 1.

    A container with ``--cpus 4`` on a host of 64 cores, or ``taskset``, leaves 4: with 64 threads each would hold
    gradients of its own and wait for its turn. A quota of 2.5 cores counts as 3.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = _quota(cgroups, membership)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _quota(cgroups: Path, membership: Path) -> float | None:
    """The smallest CPU quota of this process's control groups, in cores; None: there is none."""
    found = [quota for folder in _groups(cgroups, membership) if (quota := _quota_of(folder)) is not None]
    return min(found, default=None)


def _groups(cgroups: Path, membership: Path) -> list[Path]:
    """Folders that may hold a quota: of the process's own group and of all above it, in version 2 and version 1."""
    folders = [cgroups, cgroups / "cpu"]
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, group = line.split(":", 2)
        root = cgroups if not controllers else cgroups / "cpu"
        if not controllers or "cpu" in controllers.split(","):
            place = root / group.lstrip("/")
            folders += [one for one in (place, *place.parents) if one.is_relative_to(root)]
    return folders


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():  # version 2: "400000 100000", or "max 100000"
            quota, period = (folder / "cpu.max").read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        quota = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
        return None if int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def usable_memory(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process may use, of the machine or of its control group: used or free, so that two runs
    are given the same."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    folders = [*_groups(cgroups, membership), *_groups(cgroups / "memory", membership), cgroups / "memory"]
    return min([total, *(limit for folder in folders if (limit := _memory_of(folder)) is not None)])


def _memory_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):  # version 2 and version 1; "max": no limit
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):
            continue
    return None
