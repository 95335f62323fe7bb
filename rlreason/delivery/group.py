"""A process group of one delivery: its sender and the rollout workers that receive, for as long as the bytes take.

Nothing of it is global: vLLM's groups and the trainer's are not touched, and the next delivery meets on another port.
Whoever dies or hangs ends this group for all of its members (``BrokenGroup``) and nothing else. gloo between CPUs; NCCL
between GPUs by the same calls.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from rlreason.delivery.packing import Bytes

#: torch exports neither stores nor groups to type checkers.
_c10d: Any = dist
Backend = Literal["gloo", "nccl"]
#: Seconds between two looks at who has come.
_LOOK = 0.005
#: Seconds for one try to reach the sender, which listened before anybody heard of it. A store that is not reached has
#: ended, and torch would wait for it as long as for a member.
_REACH = 10.0


class BrokenGroup(RuntimeError):
    """The group ended before all bytes were through. Its members hold no version; another group can be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOptions:
    """How members meet. ``host``: of a sender in this process, as others reach it. ``seconds``: a member that moves
    nothing for so long has left."""

    host: str = "127.0.0.1"
    backend: Backend = "gloo"
    #: Where the process of the run sends by itself: NCCL wants a GPU that no member has.
    here: Backend = "gloo"
    seconds: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where a group meets: the sender is member 0 of ``size``."""

    host: str
    port: int
    size: int
    backend: Backend
    seconds: float


class Group:
    """One member's side of a group that has met."""

    def __init__(self, store: Any, meeting: Meeting, member: int) -> None:
        """Connects to the others; raises what torch raises where that fails."""
        timeout = timedelta(seconds=meeting.seconds)
        named = _c10d.PrefixStore("rlreason/weights", store)
        self._seconds = meeting.seconds
        self._group: Any
        if meeting.backend == "nccl":
            self._device = torch.device("cuda", torch.cuda.current_device())
            nccl = _c10d.ProcessGroupNCCL.Options()
            nccl._timeout = 4 * timeout  # ``broadcast`` is the first to see it
            with _left_alone():
                self._group = _c10d.ProcessGroupNCCL(named, member, meeting.size, nccl)
            return
        self._device = torch.device("cpu")
        gloo = _c10d.ProcessGroupGloo
        options = gloo._Options()
        # By the interface that reaches the sender: a host's name may lead to another one, or to loopback.
        options._devices = [gloo.create_device(hostname=_own_address(meeting))]
        options._timeout = timeout
        self._group = gloo(named, member, meeting.size, options)

    def broadcast(self, data: Tensor, ended: threading.Event | None = None) -> None:
        """Member 0's bytes to all, flat uint8; returns when ``data`` may be read or written to. Raises RuntimeError
        where a member left; ``ended``: somebody else knows of it."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        work = self._group.broadcast([data], options)
        if self._device.type == "cpu":
            work.wait()
            return
        deadline = time.monotonic() + self._seconds
        while not work.is_completed():
            if time.monotonic() > deadline or (ended is not None and ended.is_set()):
                self._group.abort()
                raise RuntimeError(f"nothing moved for {self._seconds:g} s, or it was ended")
            time.sleep(_LOOK / 10)
        if work.exception() is not None:  # NCCL counts what failed as completed
            self._group.abort()
            raise RuntimeError(str(work.exception()))

    def close(self) -> None:
        """Leave: who still waits for this member fails."""
        self._group = None

    def send(self, buckets: Iterable[Bytes], ended: threading.Event) -> None:
        """Member 0's part, one bucket after the other, each asked for when the one before is through."""
        for bucket in buckets:
            if bucket.nbytes:
                self.broadcast(torch.from_numpy(bucket).to(self._device), ended)

    def buckets(self, sizes: Sequence[int]) -> Iterator[Bytes]:
        """The other members' part: each bucket in memory of its own. Raises BrokenGroup."""
        for size in sizes:
            data = torch.empty(size, dtype=torch.uint8, device=self._device)
            if size:
                with _broken_where_it_fails():
                    self.broadcast(data)
            yield data.cpu().numpy()


@contextlib.contextmanager
def joined(meeting: Meeting, member: int) -> Iterator[Group]:
    """The group of ``meeting``, for its member ``member`` (from 1). Raises BrokenGroup where it does not come about."""
    with _broken_where_it_fails():
        reach = timedelta(seconds=min(_REACH, meeting.seconds))
        with socket.create_connection((meeting.host, meeting.port), reach.total_seconds()):
            pass  # refused at once where it has left
        store = _c10d.TCPStore(meeting.host, meeting.port, None, False, reach, wait_for_workers=False)
        store.set_timeout(timedelta(seconds=meeting.seconds))
        store.set(f"here/{member}", "")
        _until(partial(store.check, ["met"]), meeting.seconds)
        group = Group(store, meeting, member)
    try:
        yield group
        with _broken_where_it_fails():
            store.set(f"done/{member}", "")
    finally:
        group.close()


class Sending:
    """A delivery under way, in a thread of its own: waits for its members, sends, waits until they have all of it.

    ``meeting`` is what they need to join; whether they got it they say themselves.
    """

    def __init__(self, buckets: Iterable[Bytes], members: int, options: GroupOptions) -> None:
        """``members``: how many receive."""
        store = _c10d.TCPStore(options.host, 0, None, True, timedelta(seconds=options.seconds), wait_for_workers=False)
        self.meeting = Meeting(
            host=options.host,
            port=store.port,
            size=members + 1,
            backend=options.backend,
            seconds=options.seconds,
        )
        #: Why the sender could not send; "" where it was a member that left.
        self.failure = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(store, buckets), name="rlreason-sending", daemon=True)
        self._thread.start()

    @property
    def under_way(self) -> bool:
        """Whether it still holds its port."""
        return self._thread.is_alive()

    def end(self) -> None:
        """A member is gone: have those that wait for it fail at once."""
        self._ended.set()

    def join(self) -> None:
        """Until it has sent all, or ended."""
        self._thread.join()

    def _run(self, store: Any, buckets: Iterable[Bytes]) -> None:
        members = range(1, self.meeting.size)
        try:
            self._wait(store, [f"here/{member}" for member in members], self.meeting.seconds)
            store.set("met", "")
            group = Group(store, self.meeting, 0)
            try:
                group.send(buckets, self._ended)
                # The last bucket may take long to load, and a group that is closed can't be told that it was.
                self._wait(store, [f"done/{member}" for member in members], math.inf)
            finally:
                group.close()
        except Exception as error:  # the members are told by their own ends of it that it ended, not why
            self.failure = "" if isinstance(error, BrokenGroup) else " ".join(str(error).split())[:300]
            if self.failure:
                print(f"sending weights: {self.failure}", file=sys.stderr, flush=True)

    def _wait(self, store: Any, keys: list[str], seconds: float) -> None:
        def ready() -> bool:
            if self._ended.is_set():
                raise BrokenGroup("it was ended")
            return bool(store.check(keys))

        _until(ready, seconds)


def _until(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise BrokenGroup(f"not all members came in {seconds:g} s")
        time.sleep(_LOOK)


@contextlib.contextmanager
def _broken_where_it_fails() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:  # RuntimeError: all that torch raises of stores and groups
        if isinstance(error, BrokenGroup):
            raise
        raise BrokenGroup(" ".join(str(error).split())[:300]) from error


@contextlib.contextmanager
def _left_alone() -> Iterator[None]:
    """torch's NCCL groups, as their default is, end their process where a member fails; this one ends alone."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _own_address(meeting: Meeting) -> str:
    """This host's address on the way to the sender's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((meeting.host, meeting.port))
        return str(probe.getsockname()[0])
