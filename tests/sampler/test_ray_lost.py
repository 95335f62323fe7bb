"""What Ray takes away: a worker for its memory, and places that a run could not have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from rlreason.cluster.processes import ProcessId
from rlreason.errors import UsageError
from rlreason.sampler.handles import RayCluster, RayOptions, WorkerDied

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")


class Greedy:
    """In place of a rollout worker: it holds memory until it is ended."""

    def process_id(self) -> ProcessId:
        return ProcessId("host", 0, "")

    def work(self) -> int:
        held = bytearray(50 << 20)
        time.sleep(600)
        return len(held)


@pytest.fixture(scope="module")
def small_ray() -> Iterator[Any]:
    """Two CPUs, and a memory monitor that ends workers as soon as the host holds a hundredth of its memory."""
    monitor = {"memory_usage_threshold": 0.01, "memory_monitor_refresh_ms": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=80 << 20,
            _metrics_export_port=None,
            _system_config=monitor,
        )
        yield ray
        ray.shutdown()


def test_a_worker_that_is_ended_for_its_memory_has_died(small_ray: Any) -> None:
    """review/systems.md 13: Ray's OutOfMemoryError was none of the errors by which a lost worker is known."""
    cluster = RayCluster(RayOptions(workers=1, cpus=0.5), Greedy)  # type: ignore[arg-type]
    try:
        call = cluster.start(0).call("work")
        assert cluster.wait([call], 120) == [call]
        with pytest.raises(WorkerDied, match="memory"):
            call.result()
    finally:
        cluster.close()


def test_a_cluster_that_is_refused_gives_its_places_back(small_ray: Any) -> None:
    """review/systems.md 17: the placement group stayed, and took the places of the next one for ever."""
    with pytest.raises(UsageError, match=r"cluster\.rollout_workers = 5 needs 5 CPU, and Ray has 2 CPU"):
        RayCluster(RayOptions(workers=5, cpus=1.0))
    groups = [group["state"] for group in small_ray.util.placement_group_table().values()]
    assert groups
    assert set(groups) == {"REMOVED"}
