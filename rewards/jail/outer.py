"""An outer wall around a whole jail: bubblewrap, where it is installed. The jail's own layers stand inside it.

Another implementation of the same walls; and where a host lets bubblewrap make user namespaces but nobody else (Ubuntu
24.04's AppArmor rules), the only one that has them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from rlreason.rewards.jail.view import SYSTEM, interpreter_folders

Outer = Literal["", "bwrap"]


class OuterMissing(Exception):
    """The outer wall that was asked for is not there."""


def command(outer: Outer, visible: tuple[str, ...] = ()) -> list[str]:
    """What to put before the command of a zygote. Raises OuterMissing where it is not installed."""
    if not outer:
        return []
    program = shutil.which("bwrap")
    if program is None:
        raise OuterMissing("bubblewrap is not installed (apt install bubblewrap, dnf install bubblewrap)")
    shown = [*SYSTEM, *interpreter_folders(of_path=False), *visible, str(Path(__file__).resolve().parent)]
    arguments = ["--tmpfs", "/tmp", "--dev", "/dev"]  # first: what is shown may lie below them
    arguments += [part for path in shown if os.path.lexists(path) for part in ("--ro-bind", path, path)]
    arguments += ["--chdir", "/"]
    arguments += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    # As root, it keeps the rights that the zygote needs to become another user, and to build its own view.
    if os.geteuid() == 0:
        return [program, *arguments, "--bind", "/proc", "/proc", "--cap-add", "ALL", "--"]
    return [program, *arguments, "--unshare-user", "--proc", "/proc", "--"]
