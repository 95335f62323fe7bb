"""Rollout workers against what they are made of, by turns, in one run:

    python bench/rollout/compare.py

- tokens a second: raw vLLM (``LLM.generate``), our Ray worker with one vLLM engine, our transformers engine;
- a delivery's seconds: packing, one worker's load with its proof, beside one copy of the same bytes in memory;
- a step's seconds at staleness 0 and 1 with one worker and one training thread, beside rolling out and training alone.

First all engines must say the same: greedy tokens are equal, and log-probabilities within 5e-5 of the trainer's.
Writes bench/rollout/results/compare.json and the marked block of docs/rollouts.md. Each engine has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from models import MODELS, PROBLEMS, SEQUENCES, make_policy

from rlreason.data.prompts import PromptFormat
from rlreason.delivery.packing import Packer, as_bytes, unique_tensors
from rlreason.policy.batch import collate, rollout_sample
from rlreason.policy.policies import Policy
from rlreason.policy.process import prepare_process
from rlreason.run.manifest import describe_hardware, installed_packages
from rlreason.sampler.canary import Canary
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.handles import RayCluster, RayOptions
from rlreason.sampler.open import engine_spec, inline_sampler
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT
from rlreason.trainer.forward import loss_logprobs
from rlreason.types import Group, SamplingParams

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from documents import replace_block  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "compare.json"
TOLERANCE = 5e-5
FORMAT = PromptFormat()


def params(round_: int, *, greedy: bool = False) -> SamplingParams:
    """How a round draws: groups of 8 of at most 64 tokens."""
    if greedy:
        return SamplingParams(temperature=0.0, max_tokens=64, stream="greedy")
    return SamplingParams(samples_per_problem=8, max_tokens=64, seed=round_, stream=f"round/{round_}")


def raw_vllm(name: str, pipe: Connection) -> None:
    """``LLM.generate`` in a process of its own, as its users call it, with the settings that our worker uses."""
    import tempfile

    from vllm import LLM
    from vllm import SamplingParams as VllmParams

    policy = make_policy(name)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        llm = LLM(
            folder, dtype="float32", enforce_eager=True, max_num_seqs=SEQUENCES, kv_cache_memory_bytes=256 << 20,
            max_model_len=256, logprobs_mode="processed_logprobs", disable_log_stats=True, seed=0,
        )  # fmt: skip
    prompts = [{"prompt_token_ids": list(FORMAT.render(p, policy.tokenizer).ids)} for p in PROBLEMS]
    pipe.send("up")
    while (order := pipe.recv()) != "end":
        how = params(order if isinstance(order, int) else 0, greedy=order == "greedy")
        each = [
            VllmParams(
                n=how.samples_per_problem, temperature=how.temperature, max_tokens=how.max_tokens, logprobs=0,
                seed=how.seed * 1000 + at, stop_token_ids=[policy.tokenizer.eos_token_id], detokenize=False,
            )
            for at in range(len(prompts))
        ]  # fmt: skip
        began = time.perf_counter()
        outputs = llm.generate(prompts, each, use_tqdm=False)
        seconds = time.perf_counter() - began
        ids = [[tuple(one.token_ids) for one in output.outputs] for output in outputs]
        pipe.send((seconds, sum(len(one) for group in ids for one in group), ids))


@dataclass(slots=True)
class Side:
    """An engine under test: ``draw`` gives (seconds, tokens, token ids of each group)."""

    sampler: PoolSampler | None = None
    pipe: Connection | None = None

    def draw(self, order: int | str) -> tuple[float, int, list[list[tuple[int, ...]]]]:
        """One round, or the greedy gate."""
        if self.pipe is not None:
            self.pipe.send(order)
            return self.pipe.recv()  # type: ignore[no-any-return]
        groups, seconds = self.groups(order)
        ids = [[tuple(one.token_ids.tolist()) for one in group.completions_G] for group in groups]
        return seconds, sum(len(one) for group in ids for one in group), ids

    def groups(self, order: int | str) -> tuple[list[Group], float]:
        """The groups of a round and its seconds."""
        assert self.sampler is not None
        how = params(order if isinstance(order, int) else 0, greedy=order == "greedy")
        began = time.perf_counter()
        groups = list(draw_groups(self.sampler, PROBLEMS, how))
        return groups, time.perf_counter() - began


def gate(sides: dict[str, Side], policy: Policy) -> float:
    """Exits where greedy tokens differ; returns the largest difference of our worker's log-probabilities."""
    greedy = {name: side.draw("greedy")[2] for name, side in sides.items()}
    if any(ids != greedy["transformers"] for ids in greedy.values()):
        raise SystemExit("the engines draw different tokens at temperature 0")
    groups, _ = sides["worker"].groups(0)
    rows = [rollout_sample(c) for g in groups for c in g.completions_G]
    batch = collate(rows, policy.tokenizer.pad_token_id, torch.device("cpu"))
    with torch.no_grad():
        apart = (loss_logprobs(policy.model, batch, 1.0) - batch.sampler_logprobs_BT)[batch.loss_mask_BT.bool()]
    difference = float(apart.abs().max())
    if not difference < TOLERANCE:
        raise SystemExit(f"the worker's log-probabilities are {difference:.1e} off the trainer's")
    return difference


def throughput(name: str, rounds: int) -> dict[str, Any]:
    """Tokens a second of each engine, and ours over raw vLLM's, round by round."""
    policy = make_policy(name)
    # Read when torch is imported: the same one thread for raw vLLM as for the worker.
    os.environ.update(ENVIRONMENT | CPU_ENVIRONMENT)
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=raw_vllm, args=(name, theirs))
    process.start()
    pool = open_pool(policy)
    worker = PoolSampler(pool, policy.tokenizer, FORMAT)
    publish(worker, policy, 0)
    pool.settle_deliveries()
    inline = inline_sampler(policy, FORMAT, max_rows=256)
    assert ours.recv() == "up"
    sides = {"raw vLLM": Side(pipe=ours), "worker": Side(sampler=worker), "transformers": Side(sampler=inline)}
    difference = gate(sides, policy)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(rounds + 1):
        for side, engine in sides.items():
            seconds, tokens, _ = engine.draw(round_)
            if round_:  # the first warms up
                rates[side].append(tokens / seconds)
    delivery = deliver(policy, worker, rounds)
    ours.send("end")
    process.join()
    pool.close()
    ratios = [a / b for a, b in zip(rates["worker"], rates["raw vLLM"], strict=True)]
    over = [a / b for a, b in zip(rates["worker"], rates["transformers"], strict=True)]
    return {
        "largest_difference": difference,
        "tokens_per_second": {side: statistics.median(values) for side, values in rates.items()},
        "worker_over_raw": spread(ratios),
        "worker_over_transformers": spread(over),
        "delivery": delivery,
    }


def open_pool(policy: Policy) -> RolloutPool:
    """One Ray worker with vLLM, every delivery proved."""
    spec = engine_spec("vllm", policy, max_rows=SEQUENCES, max_length=256)
    canary = Canary(policy.vocabulary, 256, policy.dtype)
    return RolloutPool(RayCluster(RayOptions(workers=1)), spec, 1, canary=canary)


def publish(sampler: PoolSampler, policy: Policy, version: int) -> None:
    """Make the policy's weights the newest, with what they are proved with."""
    sampler.publish(policy.weights(), version, policy.expectations(sampler.probes))


def deliver(policy: Policy, sampler: PoolSampler, rounds: int) -> dict[str, Any]:
    """Seconds of one copy in memory, of packing, and of a whole delivery until it is proved."""
    arrays = [as_bytes(tensor) for _, tensor in unique_tensors(policy.weights())]
    copies, packs, wholes = [], [], []
    for version in range(1, rounds + 1):
        began = time.perf_counter()
        for array in arrays:
            array.copy()
        copied = time.perf_counter()
        Packer().pack(policy.weights(), version)
        packed = time.perf_counter()
        publish(sampler, policy, version)
        sampler.pool.settle_deliveries()
        wholes.append(time.perf_counter() - packed)
        copies.append(copied - began)
        packs.append(packed - copied)
    return {
        "megabytes": sum(array.nbytes for array in arrays) / 1e6,
        "copy_seconds": statistics.median(copies),
        "pack_seconds": statistics.median(packs),
        "delivery_seconds": statistics.median(wholes),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def table(results: dict[str, Any]) -> str:
    """The block of docs/rollouts.md."""
    lines = [
        "| model | raw vLLM | our worker | transformers | worker / raw vLLM | worker / transformers |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in results["models"].items():
        rates = one["tokens_per_second"]
        ratio, over = one["worker_over_raw"], one["worker_over_transformers"]
        lines.append(
            f"| {name} | {rates['raw vLLM']:,.0f} | {rates['worker']:,.0f} | {rates['transformers']:,.0f} | "
            f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f}) | "
            f"{over['median']:.2f} ({over['low']:.2f}-{over['high']:.2f}) |"
        )
    lines += ["", "| model | weights | one copy | packing | delivery, proved |", "|---|---|---|---|---|"]
    for name, one in results["models"].items():
        d = one["delivery"]
        lines.append(
            f"| {name} | {d['megabytes']:.1f} MB | {d['copy_seconds'] * 1e3:.1f} ms | {d['pack_seconds'] * 1e3:.1f} ms "
            f"| {d['delivery_seconds'] * 1e3:.0f} ms |"
        )
    hardware = results["hardware"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores"
    lines += ["", f"Tokens a second, one thread an engine, medians of {results['rounds']} rounds by turns; {machine}."]
    return "\n".join(lines)


def main() -> None:
    """Run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    prepare_process()
    results: dict[str, Any] = {
        "hardware": describe_hardware([]).model_dump(),
        "packages": installed_packages(),
        "rounds": options.rounds,
        "models": {name: throughput(name, options.rounds) for name in options.models},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    replace_block(ROOT / "docs" / "rollouts.md", "rollout", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
