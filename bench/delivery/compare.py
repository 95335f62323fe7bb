"""Weights of 538 MB to two rollout workers, by turns, in one run:

    python bench/delivery/compare.py

- one plain copy of all of them in memory, and packing (checksums and one copy), beside which the rest is to be read;
- the bytes alone, to two Ray actors that look at each page: through Ray's object store, and by a broadcast;
- a whole delivery to two vLLM workers until both have proved it (log-probabilities within 5e-5 of the model's), either
  way: ``sampler.transport = "host"`` and ``"collective"``; all weights, and the changes of a step that moved few.

The model has the shape of SmolLM2-135M and random numbers, in float32. Seconds are medians of the rounds and ranges.
Writes bench/delivery/results/compare.json and the marked block of docs/rollouts.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlreason.data.prompts import PromptFormat
from rlreason.delivery.group import GroupOptions, Meeting, Sending, joined
from rlreason.delivery.packing import Packer, as_bytes, unique_tensors
from rlreason.policy.policies import Policy
from rlreason.policy.process import prepare_process
from rlreason.run.manifest import describe_hardware, installed_packages
from rlreason.sampler.canary import Canary
from rlreason.sampler.handles import RayCluster, RayOptions
from rlreason.sampler.jobs import VllmOptions
from rlreason.sampler.open import engine_spec
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench" / "rollout")]
from documents import replace_block  # noqa: E402
from models import make_policy  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "compare.json"
WORKERS = 2
PAGE = 4096
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "tie_word_embeddings": True, "max_position_embeddings": 256,
}  # fmt: skip


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


def nudge(policy: Policy, share: float, seed: int) -> None:
    """Move about ``share`` of the weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in policy.model.parameters():
            one.add_((torch.rand(one.shape, generator=generator) < share) * 1e-3)


def deliveries(policy: Policy, rounds: int) -> dict[str, list[float]]:
    """Seconds from ``publish`` until two vLLM workers have proved the weights, by transport."""
    spec = engine_spec("vllm", policy, max_rows=8, max_length=None, vllm=VllmOptions(kv_cache_bytes=64 << 20))
    cluster = Switched(RayOptions(workers=WORKERS))
    canary = Canary(policy.vocabulary, 256, policy.dtype)
    pool = RolloutPool(cluster, spec, WORKERS, canary=canary)
    found: dict[str, list[float]] = {}
    try:
        for kind in ("full", "delta"):
            pool.follow(spec, canary, Packer(delta=kind == "delta"))
            sampler = PoolSampler(pool, policy.tokenizer, PromptFormat())
            for at in range(2 * (rounds + 1)):
                nudge(policy, 0.02, at)
                expected = policy.expectations(sampler.probes)
                cluster.broadcasts = bool(at % 2)
                began = time.perf_counter()
                sampler.publish(policy.weights(), at, expected)
                pool.settle_deliveries()
                seconds = time.perf_counter() - began
                if at > 1:  # the first of each warms up
                    found.setdefault(f"{('host', 'collective')[at % 2]}, {kind}", []).append(seconds)
    finally:
        pool.close()
    return found


def table(results: dict[str, Any]) -> str:
    """The block of docs/rollouts.md."""

    def row(name: str, seconds: list[float]) -> str:
        return f"| {name} | {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}) |"

    alone, whole = results["bytes"], results["deliveries"]
    lines = [f"| {results['megabytes']:.0f} MB, SmolLM2-135M's shape, float32 | seconds |", "|---|---|"]
    lines += [row("one plain copy in memory", alone["copy"]), row("packing, with checksums", alone["packing"])]
    lines += [row("bytes alone to two actors, object store", alone["host"])]
    lines += [row("bytes alone to two actors, broadcast (gloo)", alone["collective"])]
    lines += [row(f"publish until two vLLM workers have proved it: {name}", one) for name, one in whole.items()]
    hardware = results["hardware"]
    lines += ["", f"{hardware['cpu']}, {hardware['cores']} cores; medians and ranges of {results['rounds']} rounds."]
    return "\n".join(lines)


def main() -> None:
    """Run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    prepare_process()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2)).eval()
    policy = Policy(model=model, tokenizer=make_policy("quickstart's student").tokenizer)
    ray.init(num_cpus=2 * WORKERS, object_store_memory=3 << 30, include_dashboard=False, log_to_driver=False)
    results: dict[str, Any] = {
        "hardware": describe_hardware([]).model_dump(),
        "packages": installed_packages(),
        "rounds": options.rounds,
        "megabytes": sum(as_bytes(one).nbytes for _, one in unique_tensors(policy.weights())) / 1e6,
        "bytes": bytes_alone(policy, options.rounds),
        "deliveries": deliveries(policy, options.rounds),
    }
    ray.shutdown()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    replace_block(ROOT / "docs" / "rollouts.md", "delivery", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
