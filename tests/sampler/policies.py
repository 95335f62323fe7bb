"""Small models that vLLM's CPU kernels run, and problems, for the tests of engines and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlreason.config import PolicyConfig
from rlreason.data.prompts import PromptFormat
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.sampler.canary import Canary
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.handles import Cluster
from rlreason.sampler.jobs import EngineKind
from rlreason.sampler.open import engine_spec
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.tasks.procedural import make_task
from rlreason.types import Group, Problem, Sampler, SamplingParams

TASK = make_task("arithmetic", {"min_terms": 2, "max_terms": 6}, seed=0)
PROBLEMS = [TASK.problem("train", index) for index in range(24)]
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
SHAPES = {
    "qwen3": {**SHAPE, "tie_word_embeddings": True},
    "qwen3_moe": {
        **SHAPE,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
}


def make_policy(kind: str, seed: int = 0) -> Policy:
    """Dense with a tied head, or MoE with a head of its own, from random weights."""
    config = PolicyConfig(model_type=kind, model=SHAPES[kind])
    return fresh_policy(config, TASK.alphabet, (), seed, torch.device("cpu"))


def open_pool(
    policy: Policy,
    cluster: Cluster,
    kind: EngineKind = "transformers",
    workers: int = 2,
    **options: Any,
) -> PoolSampler:
    """A sampler that holds the policy's weights as version 0, every delivery proved. ``options``: of the engine's spec
    (``vllm``, ``max_rows``), of the pool (``packer``, ``patience``)."""
    pool_options = {name: options.pop(name) for name in ("packer", "patience") if name in options}
    spec = engine_spec(kind, policy, **{"max_rows": 64, "max_length": None, **options})
    canary = Canary(policy.vocabulary, 256, policy.dtype)
    sampler = PoolSampler(
        RolloutPool(cluster, spec, workers, canary=canary, **pool_options), policy.tokenizer, PromptFormat()
    )
    publish(sampler, policy, 0)
    return sampler


def publish(sampler: PoolSampler, policy: Policy, version: int) -> None:
    """Make the policy's weights the newest."""
    sampler.publish(policy.weights(), version, policy.expectations(sampler.probes))


def copy_of(policy: Policy) -> Policy:
    """The policy with weights of its own."""
    return Policy(model=policy.frozen_copy(), tokenizer=policy.tokenizer)


def sample(sampler: Sampler, problems: Sequence[Problem], params: SamplingParams) -> list[Group]:
    """The groups of ``problems``."""
    return list(draw_groups(sampler, problems, params))


def tokens(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """Token ids of every completion."""
    return [tuple(completion.token_ids.tolist()) for group in groups for completion in group.completions_G]


def nudge(policy: Policy, size: float, seed: int) -> None:
    """Add noise to every weight, as a training step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
