"""How far the trainer's log-probabilities are from those of truncated draws: ``python truncated_draws.py ENGINE MODEL
[KEY=VALUE]...`` prints numbers as JSON. A program of its own, as vLLM takes its process over.

Without replay the trainer's are over the whole vocabulary, as a toolkit has them that takes no notice of top-p.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import torch
from policies import open_pool, sample

from rlreason.policy.batch import make_batches, rollout_sample
from rlreason.policy.policies import load_policy
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.jobs import VllmOptions
from rlreason.sampler.transformers_engine import TransformersEngine
from rlreason.sampler.worker import RolloutWorker
from rlreason.trainer.forward import loss_logprobs
from rlreason.types import Completion, Problem, SamplingParams

QUESTIONS = ("What is 17 + 25?", "Tom has 3 apples and buys 4 more. How many has he?", "Why is the sky blue?",
             "Write a line about rain.")  # fmt: skip
PROBLEMS = [Problem(id=str(at), prompt=text, reference="", verifier="math") for at, text in enumerate(QUESTIONS)]


def compare(engine: str, path: str, params: SamplingParams) -> dict[str, float]:
    policy = load_policy(path, torch.float32, torch.device("cpu"))
    if engine == "vllm":
        from rlreason.sampler.vllm_engine import VllmEngine

        cluster = InlineCluster(lambda: RolloutWorker(VllmEngine))
    else:
        cluster = InlineCluster(lambda: RolloutWorker(TransformersEngine))
    options = {"vllm": VllmOptions(kv_cache_bytes=64 << 20)} if engine == "vllm" else {}
    sampler = open_pool(policy, cluster, engine, 1, max_rows=16, max_length=256, **options)  # type: ignore[arg-type]
    groups = sample(sampler, PROBLEMS, params)
    completions = [one for group in groups for one in group.completions_G]
    sampler.pool.close()

    def logs(completions: list[Completion]) -> np.ndarray:
        rows = [rollout_sample(one) for one in completions]
        found = []
        for batch in make_batches(rows, 2048, 0, torch.device("cpu")):
            logprobs_BT = loss_logprobs(policy.model, batch, params.temperature)
            found.append((logprobs_BT - batch.sampler_logprobs_BT)[batch.loss_mask_BT > 0].double().numpy())
        return np.concatenate(found)

    without = logs([replace(one, sampled_from=None) for one in completions])
    replayed = logs(completions)
    sets = [np.diff(one.sampled_from.ends, prepend=0) for one in completions if one.sampled_from is not None]
    return {
        "tokens": float(len(without)),
        "without/mean_ratio": float(np.exp(without).mean()),
        "without/off_by_10_percent": float((np.abs(np.exp(without) - 1) > 0.1).mean()),
        "replayed/mean_ratio": float(np.exp(replayed).mean()),
        "replayed/off_by_10_percent": float((np.abs(np.exp(replayed) - 1) > 0.1).mean()),
        "replayed/max": float(np.abs(replayed).max()),
        "set/mean": float(np.concatenate(sets).mean()),
        "set/max": float(np.concatenate(sets).max()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    changes = dict(one.split("=") for one in sys.argv[3:])
    params = SamplingParams(
        samples_per_problem=4,
        max_tokens=32,
        seed=3,
        stream="truncated",
        record="ids",
        temperature=float(changes.pop("temperature", 1.0)),
        top_p=float(changes.pop("top_p", 0.8)),
        top_k=int(changes.pop("top_k", 0)),
        min_p=float(changes.pop("min_p", 0.0)),
    )
    assert not changes, changes
    print(json.dumps(compare(sys.argv[1], sys.argv[2], params)))
