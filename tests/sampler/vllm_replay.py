"""Experts that vLLM says it sent tokens to, against the trainer's: ``python vllm_replay.py DTYPE...`` prints JSON.

A program of its own, as vLLM sets threads and takes memory for the whole process. ``test_replay.py`` reads them, and
asks the same of the embedded engine.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from policies import PROBLEMS, make_policy, open_pool, sample

from rlreason.config import OptimizerConfig
from rlreason.data.prompts import PromptFormat
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import collate, rollout_sample
from rlreason.routing import RoutedPass, find_routers
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.jobs import EngineKind, Job, VllmOptions
from rlreason.sampler.open import engine_spec
from rlreason.sampler.transformers_engine import TransformersEngine
from rlreason.sampler.worker import RolloutWorker
from rlreason.trainer.forward import PolicyGradientLoss, loss_logprobs
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.types import Completion, SamplingParams, TrainingSample

PARAMS = SamplingParams(samples_per_problem=4, temperature=1.0, max_tokens=24, stream="replay")


def completions(policy: Any, kind: EngineKind = "vllm") -> list[Completion]:
    """Drawn with prompts that share blocks of the prefix cache: four samples of each."""
    engine: Any = TransformersEngine
    if kind == "vllm":
        from rlreason.sampler.vllm_engine import VllmEngine

        engine = VllmEngine
    sampler = open_pool(
        policy,
        InlineCluster(lambda: RolloutWorker(engine)),
        kind,
        1,
        max_rows=16,
        max_length=256,
        vllm=VllmOptions(kv_cache_bytes=64 << 20),
        experts=True,
    )
    groups = sample(sampler, PROBLEMS[:8], PARAMS)
    sampler.pool.close()
    return [one for group in groups for one in group.completions_G]


def samples_of(rows: list[Completion], shift: int = 0) -> list[TrainingSample]:
    """``shift``: the experts of each token given to the one so many places later."""
    found = [rollout_sample(one, 1.0, 1.0 / len(rows), str(one.prompt_ids)) for one in rows]
    if not shift:
        return found
    return [replace(one, routed_experts=np.roll(one.routed_experts, shift, axis=0)) for one in found]


def trainer_of(policy: Any, moved: float = 0.0) -> LocalTrainer:
    """``moved``: what is added to every router's weights, times a normal number."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, one in policy.model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                one.add_(moved * torch.randn(one.shape, generator=generator).to(one.dtype))
    options = TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, compute_dtype=policy.model.dtype)
    return LocalTrainer(policy, options)


def measured(trainer: LocalTrainer, samples: list[TrainingSample], *, replay: bool) -> dict[str, Any]:
    """Agreement of the routers' own choice with the sampler's by layer, and the difference of log-probabilities."""
    sums = trainer.forward_backward(samples, PolicyGradientLoss(spec=ObjectiveSpec(), replay=replay))
    assert sums.experts is not None
    counts = sums.experts
    tokens = sum(int(one.loss_mask.sum()) for one in samples)
    read = sums.read(tokens)
    return {
        "tokens": tokens,
        "compared": counts.compared_L.tolist(),
        "agreement": (counts.agreed_L / counts.compared_L).tolist(),
        "mean": read["mismatch/mean"],
        "max": read["mismatch/max"],
        "k3": read["mismatch/k3"],
    }


def report(kind: EngineKind, dtype: torch.dtype) -> dict[str, Any]:
    """Off and on, of the same weights and of routers that moved; ``shifted``: the experts one token too late."""

    def policy() -> Any:
        made = make_policy("qwen3_moe")
        made.model.to(dtype)
        return made

    rows = completions(policy(), kind)
    assert all(one.prompt_experts is not None and one.prompt_experts.max() < 4 for one in rows), (
        "every position is known"
    )
    samples = samples_of(rows)
    same, moved = trainer_of(policy()), trainer_of(policy(), 0.1)
    return {
        "off": measured(same, samples, replay=False),
        "on": measured(same, samples, replay=True),
        "shifted": measured(same, samples_of(rows, 1), replay=True),
        "moved_off": measured(moved, samples, replay=False),
        "moved_on": measured(moved, samples, replay=True),
    }


def in_flight() -> dict[str, int]:
    """New weights in the middle of completions: tokens whose experts are not those of the weights that drew them."""
    from rlreason.sampler.vllm_engine import VllmEngine

    models = [make_policy("qwen3_moe", seed) for seed in (0, 1)]
    options = VllmOptions(kv_cache_bytes=64 << 20)
    engine = VllmEngine(engine_spec("vllm", models[0], max_rows=8, max_length=None, vllm=options, experts=True))
    engine.load(models[0].weights(), 0)
    for problem in PROBLEMS[:2]:
        ids = np.asarray(PromptFormat().render(problem, models[0].tokenizer).ids, dtype=np.int32)
        name = problem.id
        engine.submit(
            [
                Job(key=f"{name}/{at}", group_id=name, problem_id=name, sample=at, prompt_ids=ids, params=PARAMS)
                for at in range(4)
            ]
        )
    drawn = [*engine.advance(1e9, 8).drawn]
    engine.load(models[1].weights(), 1)
    drawn += engine.advance(1e9).drawn
    engine.close()
    found = {"completions": len(drawn), "mixed": 0, "wrong": 0}
    for one in (each.completion for each in drawn):
        found["mixed"] += len(set(one.policy_versions.tolist())) > 1
        batch = collate([rollout_sample(one)], 0, torch.device("cpu"))
        for version, policy in enumerate(models):
            assert find_routers(policy.model) is not None
            routed = RoutedPass()
            loss_logprobs(policy.model, batch, routed=routed)
            own_TLK = routed.used_NLK().numpy()[len(one.prompt_ids) - 1 :]
            assert one.routed_experts is not None
            differs_T = (np.sort(own_TLK, -1) != np.sort(one.routed_experts, -1)).any((1, 2))
            found["wrong"] += int(differs_T[one.policy_versions == version].sum())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    reports = {name: report("vllm", getattr(torch, name)) for name in sys.argv[1:]}
    print(json.dumps({**reports, "in_flight": in_flight()}))
