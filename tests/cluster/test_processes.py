"""Only the process that was meant is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from rlreason.cluster.processes import ProcessId, end_process, own_process

SAY = "from rlreason.cluster.processes import own_process as p; o = p(); print(o.host, o.number, o.began, flush=True)"


def test_a_stopped_process_is_ended_and_no_other() -> None:
    child = subprocess.Popen([sys.executable, "-c", SAY + "; input()"], stdin=-1, stdout=-1, text=True)
    assert child.stdout is not None
    host, number, began = child.stdout.readline().split()
    one = ProcessId(host, int(number), began)
    assert one.number == child.pid
    child.send_signal(signal.SIGSTOP)
    for other in (replace(one, began=own_process().began), replace(one, host="elsewhere"), replace(one, began="")):
        assert other != one
        end_process(other)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    end_process(one)
    assert child.wait(60) == -signal.SIGKILL
    end_process(one)  # gone


def test_this_process() -> None:
    assert own_process() == own_process()
    assert own_process().number == os.getpid()
