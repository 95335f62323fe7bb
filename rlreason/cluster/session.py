"""The Ray that a run is in: joined, or started here and ended with the last who uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from rlreason.cluster.ray_address import find_ray
from rlreason.cores import usable_cores
from rlreason.errors import UsageError

#: Shared memory of a Ray that is started here: room for two deliveries of a large small model.
OBJECT_STORE_BYTES = 512 << 20


class RaySession:
    """A use of Ray, by a pool of workers or by the ranks of a trainer. ``ray``: the module."""

    def __init__(self, address: str | None, *, own_gpu: bool = False) -> None:
        """``own_gpu``: this process computes on its first GPU itself, so a Ray that is started here has the others.

        Raises UsageError where Ray is absent or unreachable.
        """
        self.ray = import_ray()
        if start_ray(self.ray, address, own_gpu=own_gpu):
            _STARTED.append(True)
        _OPEN.append(self)

    def gpus(self) -> float:
        """GPUs of the cluster, whoever holds them."""
        return float(self.ray.cluster_resources().get("GPU", 0.0))

    def gpus_here(self) -> float:
        """GPUs that Ray has on the host of this process."""
        here = self.ray.get_runtime_context().get_node_id()
        return sum(float(one["Resources"].get("GPU", 0.0)) for one in self.ray.nodes() if one["NodeID"] == here)

    def close(self) -> None:
        """End Ray where it was started here and nobody else uses it; a second time does nothing."""
        if self in _OPEN:
            _OPEN.remove(self)
            if _STARTED and not _OPEN:
                _STARTED.clear()
                self.ray.shutdown()


#: The uses of this process, and whether the Ray that they are in was started by one of them.
_OPEN: list[RaySession] = []
_STARTED: list[bool] = []


def start_ray(ray: Any, address: str | None, *, own_gpu: bool = False) -> bool:
    """Connect to ``address``, or to the Ray that runs here already, or start one ("local": always). Returns whether it
    is to be left at the end; ``own_gpu`` as in ``RaySession``. Raises UsageError where the one to join does not answer
    or refuses."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone unless it is asked for
    found = find_ray(address)
    if found is not None:
        try:
            ray.init(address=found.argument, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise UsageError(f"{found.said}: {' '.join(str(error).split())[:200]}") from error
        return True
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors without GPUs keep the variables as set
    with _without_first_gpu(torch.cuda.device_count()) if own_gpu else nullcontext():
        ray.init(
            address="local",
            num_cpus=usable_cores(),
            object_store_memory=None if torch.cuda.is_available() else OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _metrics_export_port=None,
        )
    return True


@contextmanager
def _without_first_gpu(count: int) -> Iterator[None]:
    """While Ray starts, it sees all of this process's ``count`` GPUs but the first, unless that is the only one."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = _visible(count)
    if len(seen) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen[1:])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def own_gpus(count: int) -> str:
    """The first ``count`` GPUs of this process, as CUDA_VISIBLE_DEVICES has them."""
    return ",".join(_visible(torch.cuda.device_count() or count)[:count])


def _visible(count: int) -> list[str]:
    """This process's GPUs, of which torch sees ``count``."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if said is None else said.split(",")


def import_ray() -> Any:
    """The module. Raises UsageError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            'cluster.kind = "ray" and trainer.ranks need Ray: pip install \'rlreason[ray]\', or say "inline" and 0'
        ) from error
    return ray
