"""Where workers and ranks go on GPUs: Ray's logical GPUs, which are counted like real ones and asked for nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from rlreason.cluster.actors import ActorGroup, ActorOptions
from rlreason.cluster.session import start_ray
from rlreason.errors import UsageError
from rlreason.sampler.handles import RayCluster, RayOptions

ray = pytest.importorskip("ray")


@pytest.fixture
def eight() -> Iterator[None]:
    """One host of eight GPUs."""
    ray.init(address="local", num_cpus=2, num_gpus=8, include_dashboard=False, log_to_driver=False, logging_level=50)
    yield
    ray.shutdown()


class Place:
    """Says which GPUs Ray gave it."""

    def __init__(self, number: int, count: int) -> None:
        self.number = number

    def gpus(self) -> list[int]:
        """Their numbers."""
        return [int(one) for one in ray.get_gpu_ids()]


def test_ranks_and_workers_share_eight_gpus(eight: None) -> None:
    ranks = ActorGroup(Place, 4, ActorOptions(name="trainer rank", setting="trainer.ranks", gpus=1.0))
    held = [number for one in ranks.ask("gpus") for number in one]
    assert len(set(held)) == 4
    workers = RayCluster(RayOptions(workers=0, cpus=0.1, gpus=2.0))
    assert workers.workers == 2  # of the four that are left, two each
    with pytest.raises(UsageError, match=r"cluster\.rollout_workers = 5 needs 0\.5 CPU, 10 GPU, and Ray has"):
        RayCluster(RayOptions(workers=5, cpus=0.1, gpus=2.0))
    with pytest.raises(UsageError, match=r"trainer\.ranks = 9 needs 9 GPU, and Ray has 0 GPU beside what"):
        ActorGroup(Place, 9, ActorOptions(name="trainer rank", setting="trainer.ranks", gpus=1.0))
    workers.close()
    ranks.close()
    whole = RayCluster(RayOptions(workers=0, cpus=0.1, gpus=2.0))
    assert whole.workers == 4
    whole.close()


@pytest.mark.parametrize(("visible", "expected"), [(None, {1, 2, 3}), ("4,5,6,7", {5, 6, 7}), ("3", {3})])
def test_a_trainer_in_this_process_keeps_its_gpu(
    visible: str | None, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4 if visible is None else len(visible.split(",")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given: dict[str, str | None] = {}

    def init(**_: object) -> None:
        given["seen"] = os.environ.get("CUDA_VISIBLE_DEVICES")

    monkeypatch.setattr(ray, "init", init)
    assert start_ray(ray, "local", own_gpu=True)
    assert {int(one) for one in str(given["seen"]).split(",")} == expected
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
