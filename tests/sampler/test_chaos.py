"""Rollout and reward workers are killed and stopped mid-work: no group is lost, none counts twice, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from faults import DyingWorker
from policies import PROBLEMS, make_policy, nudge, open_pool

from rlreason.policy.policies import Policy
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.pool import Pool
from rlreason.sampler.handles import RayCluster, RayHandle, RayOptions
from rlreason.sampler.jobs import EngineKind, VllmOptions
from rlreason.sampler.pool import Patience
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.schedule import LiveSchedule
from rlreason.sampler.stream import RolloutStream
from rlreason.sampler.worker import RolloutWorker
from rlreason.scorer import PoolScorer
from rlreason.types import Group, Problem, SamplingParams

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

STEPS = 4
PER_STEP = 12


def sampler_of(
    policy: Policy, kind: EngineKind, patience: Patience, worker: type[RolloutWorker] = RolloutWorker
) -> PoolSampler:
    cluster = RayCluster(RayOptions(workers=2), worker)
    return open_pool(policy, cluster, kind, max_rows=16, vllm=VllmOptions(kv_cache_bytes=64 << 20), patience=patience)


def ask(step: int) -> tuple[list[Problem], SamplingParams]:
    problems = [PROBLEMS[(step * PER_STEP + at) % len(PROBLEMS)] for at in range(PER_STEP)]
    return problems, SamplingParams(samples_per_problem=4, max_tokens=200, seed=1, stream=f"grpo/{step}")


#: In the environment of every process that a test starts, Ray's among them, which leave its process group.
MARK = "RLREASON_TEST_MARK"


class Traces:
    """What the processes of one test are, and the segments of shared memory that they were seen to use."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self.segments: set[str] = set()
        #: Names of processes.
        self.seen: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def processes(self) -> dict[int, str]:
        """Those that run now."""
        found = {}
        for process in psutil.process_iter(["pid", "name"]):
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    found[process.pid] = process.name()
        return found

    def end(self) -> None:
        """Look no more."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.3):
            for pid, process in self.processes().items():
                self.seen.add(process)
                with suppress(OSError):
                    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                        _, found, name = line.partition("/dev/shm/")
                        if found and not name.endswith(" (deleted)"):
                            self.segments.add(name)


@pytest.fixture
def leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test: none of its processes and shared-memory segments. Those of others on this machine don't count."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    traces = Traces(mark)
    yield
    deadline = time.monotonic() + 20
    while traces.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    traces.end()
    assert any("ray" in name for name in traces.seen), "nothing was seen of the workers"
    assert traces.processes() == {}
    assert traces.segments & set(os.listdir("/dev/shm")) == set()


def process_of(sampler: PoolSampler, place: int) -> int:
    handle = sampler.pool._workers[place].handle
    assert isinstance(handle, RayHandle)
    return int(ray.get(handle.process).number)


def after(seconds: float, act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=lambda: (time.sleep(seconds), act()), daemon=True)
    thread.start()
    return thread


def run(
    policy: Policy, sampler: PoolSampler, staleness: int, disturb: Callable[[int, PoolScorer], None]
) -> list[list[Group]]:
    """All steps of a stream; ``disturb(step, scorer)`` runs while step's groups are drawn."""
    sampler.pool.settle_deliveries()
    sampler.pool.reschedule(LiveSchedule(2, in_flight=staleness > 0))
    steps = []
    with (
        PoolScorer(RewardMix.from_table({"accuracy": 1.0}), workers=1) as scorer,
        RolloutStream(sampler, scorer, ask, range(STEPS), staleness) as stream,
    ):
        for step in range(STEPS):
            disturb(step, scorer)
            steps.append(stream.take(step))
            nudge(policy, 0.001, step)
            stream.publish(policy.weights(), step + 1, policy.expectations(sampler.probes))
    return steps


def check(steps: list[list[Group]]) -> None:
    for step, groups in enumerate(steps):
        problems, params = ask(step)
        assert [group.problem for group in groups] == problems
        assert len({group.group_id for group in groups}) == PER_STEP
        assert {len(group.completions_G) for group in groups} == {params.samples_per_problem}
        assert {len(group.rewards_G) for group in groups} == {params.samples_per_problem}


@pytest.mark.parametrize("staleness", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_workers_are_killed_and_stopped(staleness: int, leftovers: None) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    policy = make_policy("qwen3_moe")
    sampler = sampler_of(policy, "vllm", Patience(working=12.0))
    hit: list[int] = []

    def disturb(step: int, scorer: PoolScorer) -> None:
        if step == 1:
            hit.append(process_of(sampler, 0))
            after(0.5, lambda: os.kill(hit[0], signal.SIGKILL))
        if step == 2:
            hit.append(process_of(sampler, 1))
            after(0.3, lambda: os.kill(hit[1], signal.SIGSTOP))
            (pool,) = scorer._runner._pools.values()
            worker = cast(Pool, pool).pids[0]
            after(0.3, lambda: os.kill(worker, signal.SIGKILL))

    try:
        steps = run(policy, sampler, staleness, disturb)
        check(steps)
        stats = sampler.stats.read()
        assert stats["workers/replaced"] >= 2
        assert not any(psutil.pid_exists(pid) for pid in hit)
        versions = {c.policy_version_min for group in steps[-1] for c in group.completions_G}
        assert versions <= {STEPS - 1, STEPS - 1 - staleness}
    finally:
        sampler.close()


def test_workers_that_keep_dying_end_the_run(leftovers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    policy = make_policy("qwen3")
    sampler = sampler_of(policy, "transformers", Patience(working=30.0), DyingWorker)
    try:
        with pytest.raises(RuntimeError, match=r"4 rollout workers died and none finished a completion; the last, \d"):
            run(policy, sampler, 0, lambda step, scorer: None)
    finally:
        sampler.close()


def test_a_script_that_is_interrupted_leaves_nothing(tmp_path: Path, leftovers: None) -> None:
    # A process that was started in the background of a shell ignores SIGINT; the script must not depend on that.
    code = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_chaos import *
policy = make_policy("qwen3")
sampler = sampler_of(policy, "transformers", Patience())
try:
    run(policy, sampler, 1, lambda step, scorer: print("step", step, flush=True))
    time.sleep(60)
finally:
    sampler.close()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "step 0\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
