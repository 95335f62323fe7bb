"""A host goes away while rollouts stream: its workers alone are lost, another host takes them over where there is one,
and every completion is drawn that would have been."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

from logical import SMALL, hosts  # noqa: E402
from policies import PROBLEMS, make_policy, nudge, open_pool, tokens  # noqa: E402

from rlreason.rewards.mix import RewardMix  # noqa: E402
from rlreason.sampler.handles import InlineCluster, RayCluster, RayOptions  # noqa: E402
from rlreason.sampler.jobs import Job, Progress  # noqa: E402
from rlreason.sampler.pool_sampler import PoolSampler  # noqa: E402
from rlreason.sampler.schedule import Draw, LiveSchedule  # noqa: E402
from rlreason.sampler.stream import RolloutStream  # noqa: E402
from rlreason.sampler.worker import RolloutWorker  # noqa: E402
from rlreason.scorer import PoolScorer  # noqa: E402
from rlreason.types import Group, Problem, SamplingParams  # noqa: E402

STEPS = 4


def ask(step: int) -> tuple[list[Problem], SamplingParams]:
    problems = [PROBLEMS[(step * 4 + at) % len(PROBLEMS)] for at in range(4)]
    return problems, SamplingParams(samples_per_problem=2, max_tokens=12, seed=1, stream=f"grpo/{step}")


def draws_while_there_is(hold: Path) -> type[RolloutWorker]:
    """A worker that is in the middle of drawing for as long as that file is there."""

    class Held(RolloutWorker):
        def advance(self, jobs: Sequence[Job], seconds: float, steps: int | None = None) -> Progress:
            progress = super().advance(jobs, seconds, steps)
            while hold.exists():
                time.sleep(0.02)
            return progress

    return Held  # of a function: it travels with its code


def streamed(sampler: PoolSampler, policy: Any, disturb: Callable[[int], None]) -> list[list[Group]]:
    """All steps; ``disturb(step)`` runs while step's groups are drawn, in this thread: Ray starts hosts in no other."""
    sampler.pool.settle_deliveries()
    sampler.pool.reschedule(LiveSchedule(2))
    steps = []
    with (
        PoolScorer(RewardMix.from_table({"accuracy": 1.0}), workers=1) as scorer,
        RolloutStream(sampler, scorer, ask, range(STEPS), 0) as stream,
        ThreadPoolExecutor(1) as beside,
    ):
        for step in range(STEPS):
            groups = beside.submit(stream.take, step)
            disturb(step)
            steps.append(groups.result())
            nudge(policy, 0.01, step)
            stream.publish(policy.weights(), step + 1, policy.expectations(sampler.probes))
    return steps


def test_a_host_that_is_lost_costs_its_workers_only(tmp_path: Path) -> None:
    """In step 1 another host comes for the lost one, as an autoscaler would have it; in step 2 that one goes, too."""
    expected = streamed(
        open_pool(make_policy("qwen3"), InlineCluster(RolloutWorker)), make_policy("qwen3"), lambda _: None
    )
    policy, hold = make_policy("qwen3"), tmp_path / "hold"
    with hosts(2, 0) as cluster:
        options = RayOptions(workers=2, cpus=float(SMALL["num_cpus"]), spread=True)  # a worker fills its host
        ray_cluster = RayCluster(options, draws_while_there_is(hold))
        sampler = open_pool(policy, ray_cluster)
        pool, places = sampler.pool, ray_cluster._places
        head = places.ray.get_runtime_context().get_node_id()
        (far,) = [place for place in range(2) if places.host(place) != head]
        stays = pool._workers[1 - far].handle

        def disturb(step: int) -> None:
            if step not in (1, 2):
                return
            hold.touch()
            try:
                while not (pool._workers[far].call and isinstance(pool._workers[far].op, Draw)):
                    time.sleep(0.05)
                (gone,) = [one for one in cluster.list_all_nodes() if one is not cluster.head_node]
                if step == 2:
                    pool._patience = replace(pool._patience, homeless=1.0)
                cluster.remove_node(gone, allow_graceful=False)
                if step == 1:
                    cluster.add_node(wait=False, num_gpus=0, **SMALL)
            finally:
                hold.unlink()

        try:
            found = streamed(sampler, policy, disturb)
            assert [tokens(groups) for groups in found] == [tokens(groups) for groups in expected]
            scores = [[[r.score for r in one.rewards_G] for one in groups] for groups in found]
            assert scores == [[[r.score for r in one.rewards_G] for one in groups] for groups in expected]
            assert pool._workers[1 - far].handle is stays
            stats = pool.stats.read()
            assert stats["workers/lost"] == 1.0
            # Once for each of the two, and once more where Ray had not noticed yet that the host is gone.
            assert 2.0 <= stats["workers/replaced"] <= 4.0
            assert stats["delivery/canary"] < 5e-5
        finally:
            sampler.close()
