"""Greedy completions through vLLM, every delivery proved: ``python vllm_greedy.py FOLDER...`` prints ids as JSON.

A program of its own, as vLLM sets threads and takes memory for the whole process.
"""

from __future__ import annotations

import json
import sys

import torch
from policies import open_pool, sample, tokens

from rlreason.policy.policies import Policy, load_policy
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.jobs import VllmOptions
from rlreason.sampler.vllm_engine import VllmEngine
from rlreason.sampler.worker import RolloutWorker
from rlreason.types import Problem, SamplingParams

QUESTIONS = (
    "What is 17 + 25?",
    "Tom has 3 apples and buys 4 more. How many apples has he now?",
    "Name the capital of France.",
)
PROBLEMS = [Problem(id=str(at), prompt=text, reference="", verifier="math") for at, text in enumerate(QUESTIONS)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, stream="greedy")


def greedy(policy: Policy) -> list[tuple[int, ...]]:
    cluster = InlineCluster(lambda: RolloutWorker(VllmEngine))
    options = VllmOptions(kv_cache_bytes=64 << 20)
    sampler = open_pool(policy, cluster, "vllm", 1, max_rows=8, max_length=256, vllm=options)
    found = tokens(sample(sampler, PROBLEMS, GREEDY))
    sampler.pool.close()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = [load_policy(folder, torch.float32, torch.device("cpu")) for folder in sys.argv[1:]]
    print(json.dumps([greedy(policy) for policy in loaded]))
