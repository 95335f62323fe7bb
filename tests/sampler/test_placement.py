"""Samplers of one run: what the recipe asks for, several roles at a time, one model after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from policies import PROBLEMS, make_policy, nudge, publish, sample, tokens

from rlreason.config import Recipe
from rlreason.data.prompts import PromptFormat
from rlreason.errors import UsageError
from rlreason.policy.policies import Policy
from rlreason.sampler.open import inline_sampler
from rlreason.sampler.placement import Samplers
from rlreason.types import Group, SamplingParams

PARAMS = SamplingParams(samples_per_problem=2, max_tokens=8, seed=1, stream="s")


def recipe(**tables: object) -> Recipe:
    """A recipe with these tables beside the least that one needs."""
    return Recipe.model_validate(
        {
            "name": "test",
            "policy": {"model_type": "qwen3"},
            "data": {"train": "arithmetic"},
            "stage": [{"kind": "sft", "name": "s", "model": "policy", "demonstrations": 1, "steps": 1}],
            **tables,
        }
    )


def expected(policy: Policy) -> list[Group]:
    return sample(inline_sampler(policy, PromptFormat()), PROBLEMS, PARAMS)


def test_two_roles_at_a_time_and_one_model_after_the_other() -> None:
    teacher, student = make_policy("qwen3_moe"), make_policy("qwen3")
    samplers = Samplers(recipe(), PromptFormat(), 1)
    assert samplers.describe() == ""
    ours, theirs = samplers.open(student, version=7), samplers.open(teacher, role="teacher")
    assert (ours.version, theirs.version) == (7, 0)
    for _ in range(2):
        groups = sample(ours, PROBLEMS, PARAMS)
        assert tokens(groups) == tokens(expected(student))
        assert {c.policy_version_min for g in groups for c in g.completions_G} == {ours.version}
        assert tokens(sample(theirs, PROBLEMS, PARAMS)) == tokens(expected(teacher))
        nudge(student, 0.05, 1)
        publish(ours, student, 8)
    assert samplers.describe() == samplers.describe("teacher") == "transformers x 1 in this process"
    follower = samplers.open(teacher)  # the same workers, another architecture
    assert follower.pool is ours.pool
    assert follower.version == 0
    assert tokens(sample(follower, PROBLEMS, PARAMS)) == tokens(expected(teacher))
    follower.close()
    assert samplers.open(student).pool is not ours.pool
    samplers.close()
    assert theirs.pool.closed


def test_two_roles_over_one_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    teacher, student = make_policy("qwen3_moe"), make_policy("qwen3")
    samplers = Samplers(recipe(cluster={"kind": "ray"}), PromptFormat(), 1)  # a worker a core, in both roles
    try:
        ours, theirs = samplers.open(student), samplers.open(teacher, role="teacher")
        assert tokens(sample(ours, PROBLEMS, PARAMS)) == tokens(expected(student))
        assert tokens(sample(theirs, PROBLEMS, PARAMS)) == tokens(expected(teacher))
        ours.close()
        assert tokens(sample(theirs, PROBLEMS, PARAMS)) == tokens(expected(teacher))  # Ray is still there
    finally:
        samplers.close()
    assert not ray.is_initialized()


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlreason.sampler.open.installed", lambda package: False)
    samplers = Samplers(recipe(sampler={"engine": "vllm"}), PromptFormat(), 1)
    with pytest.raises(UsageError, match=r'sampler\.engine = "vllm": vLLM is not installed'):
        samplers.open(make_policy("qwen3"))
    samplers.close()  # it had looked at what Ray has
