"""One actor: where it goes, what it is called, and where it writes what it says."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rlreason.cluster.places import Reservation
from rlreason.cluster.processes import ProcessId, own_process
from rlreason.errors import UsageError

#: How often a name was given in this process: a successor has another one, as Ray remembers the dead.
_NAMED: Counter[str] = Counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Example: ``Where(node="1a63…", process=own_process(), gpus=("4", "5"), visible="4,5")``."""

    #: Ray's id of the host.
    node: str
    process: ProcessId
    #: By the numbers that Ray counts them with.
    gpus: tuple[str, ...]
    #: CUDA_VISIBLE_DEVICES: what torch sees.
    visible: str | None


def log_of(reserved: Reservation, number: int) -> Path | None:
    """What actor ``number`` and its successors write, in the run directory; None: only in Ray's own folder."""
    if reserved.logs is None:
        return None
    return reserved.logs / f"{_slug(reserved.need.kind)}-{number}.log"


def make_actor(
    reserved: Reservation,
    kind: type,
    number: int,
    *arguments: object,
    lane: str,
    environment: Mapping[str, str],
) -> Any:
    """Start actor ``number`` of a kind in its place: a Ray handle. ``lane``: a thread of its own for calls that are
    answered while the actor is at work (a concurrency group). Besides its own methods it has ``where``."""
    need = reserved.need
    name = f"{reserved.run}/{_slug(need.kind)}-{number}"
    _NAMED[name] += 1
    named = name if _NAMED[name] == 1 else f"{name}~{_NAMED[name]}"
    actor = reserved.ray.remote(concurrency_groups={lane: 1})(_speaking(kind, log_of(reserved, number), named)).options(
        name=named,
        num_cpus=need.cpus,
        num_gpus=need.gpus,
        max_restarts=0,  # whoever started it starts another, which needs weights first
        scheduling_strategy=reserved.strategy(number),
        runtime_env={"env_vars": {**environment}},
    )
    return actor.remote(*arguments)


def _slug(kind: str) -> str:
    return kind.replace(" ", "-")


def _speaking(kind: type, log: Path | None, name: str) -> type:
    """``kind``, whose processes say where they are, and write into ``log`` what they print."""

    class Speaking(kind):  # type: ignore[misc]
        def __init__(self, *arguments: object) -> None:
            write_into(log, name)
            super().__init__(*arguments)

        def where(self) -> Where:
            return where()

    Speaking.__name__ = Speaking.__qualname__ = kind.__name__
    return Speaking


def where() -> Where:
    """Of this actor."""
    import ray

    return Where(
        node=ray.get_runtime_context().get_node_id(),
        process=own_process(),
        gpus=tuple(str(one) for one in ray.get_gpu_ids()),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def write_into(log: Path | None, name: str) -> None:
    """From here on all that this process prints, of native code and of its children too, is added to ``log``. Where the
    folder is not on this host, or is full, it stays in Ray's own."""
    if log is None:
        return
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
        os.close(file)
        one = where()
        gpus = f", GPU {','.join(one.gpus)}" if one.gpus else ""
        print(
            f"{datetime.now():%Y-%m-%d %H:%M:%S} {name}: process {one.process.number} on {one.process.host}{gpus}",
            flush=True,
        )


def check_gpus() -> None:
    """Raise UsageError where Ray gave this actor GPUs and torch sees none: it would silently work on the CPU."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or not (given := ray.get_gpu_ids()):
        return
    import torch

    if not torch.cuda.is_available():
        numbers = ", ".join(str(one) for one in given)
        raise UsageError(
            f"Ray gave GPU {numbers} of {socket.gethostname()} to {ray.get_runtime_context().get_actor_name()}, and "
            "torch sees none there: a build of torch for CPUs, no driver, or a Ray that was started with more "
            "--num-gpus than the host has"
        )
