"""`rlreason doctor numerics`: the numbers by hand, a real engine's, and one that is spoiled."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlreason.config import PolicyConfig
from rlreason.data.prompts import PromptFormat
from rlreason.diagnose.numerics import HEALTHY_DENSE, band, is_healthy, measure, same_experts
from rlreason.errors import UsageError
from rlreason.numerics import NumericsRequest, numerics
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.open import inline_sampler
from rlreason.tasks.procedural import make_task
from rlreason.types import Completion, SamplingParams

TASK = make_task("arithmetic", {"min_terms": 2, "max_terms": 4}, seed=0)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
         "intermediate_size": 64, "initializer_range": 0.3}  # fmt: skip


@pytest.fixture(scope="module")
def policy() -> Policy:
    return fresh_policy(PolicyConfig(model_type="qwen3", model=SHAPE), TASK.alphabet, (), 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def drawn(policy: Policy) -> list[Completion]:
    sampler = inline_sampler(policy, PromptFormat())
    params = SamplingParams(samples_per_problem=3, temperature=0.8, max_tokens=150)
    groups = list(draw_groups(sampler, [TASK.problem("train", at) for at in range(4)], params))
    sampler.close()
    return [one for group in groups for one in group.completions_G]


def test_the_numbers_by_hand() -> None:
    found = band(np.array([0.1, -0.2, 0.0, 0.3]), None, 0, 128)
    assert (found.tokens, found.first, found.end, found.agree) == (4, 0, 128, None)
    assert found.v1 == pytest.approx(0.05, abs=1e-15)
    assert found.v2 == pytest.approx(0.5 * (0.01 + 0.04 + 0.09) / 4, abs=1e-15)
    deviation = math.sqrt(((0.05) ** 2 + 0.25**2 + 0.05**2 + 0.25**2) / 3)
    assert found.error == pytest.approx(deviation / 2, abs=1e-15)
    assert found.largest == 0.3
    assert found.off == 0.5  # e^0.2 and e^-0.3; e^-0.1 is 0.905
    assert band(np.array([0.1]), None, 0, None).error == math.inf


def test_experts_agree_as_sets() -> None:
    one, other = np.array([[[0, 3], [1, 2]]], dtype=np.uint8), np.array([[[3, 0], [1, 4]]])
    assert same_experts(one, other).tolist() == [[True, False]]
    assert band(np.zeros(1), same_experts(one, other), 0, None).agree == 0.5


def test_our_engine_is_healthy_at_every_depth(policy: Policy, drawn: list[Completion]) -> None:
    whole, *depths = measure(policy.model, drawn, 0.8)
    assert whole.tokens == sum(one.tokens for one in depths) == sum(len(one.token_ids) for one in drawn)
    assert [one.first for one in depths] == [0, 128]
    assert all(is_healthy(one, experts=False) and one.largest < 1e-4 for one in (whole, *depths))


def test_what_differs_deep_in_the_context_is_seen_there(policy: Policy, drawn: list[Completion]) -> None:
    spoiled = []
    for one in drawn:
        assert one.sampler_logprobs is not None
        deep = len(one.prompt_ids) + np.arange(len(one.token_ids)) >= 128
        spoiled.append(replace(one, sampler_logprobs=one.sampler_logprobs + 0.05 * deep))
    _, shallow, deep = measure(policy.model, spoiled, 0.8)
    assert is_healthy(shallow, experts=False)
    assert not is_healthy(deep, experts=False)
    assert deep.v1 == pytest.approx(0.05, abs=1e-5)
    assert deep.v2 == pytest.approx(0.00125, abs=1e-5)
    sizes = [math.sqrt(2 * HEALTHY_DENSE) * factor for factor in (0.99, 1.01)]  # half of its square is v2
    assert [is_healthy(band(np.array([size, -size]), None, 0, None), experts=False) for size in sizes] == [True, False]


def test_completions_without_numbers_are_left_out(policy: Policy, drawn: list[Completion]) -> None:
    broken = replace(drawn[0], sampler_logprobs=np.full(len(drawn[0].token_ids), np.nan))
    assert measure(policy.model, [broken, drawn[1]], 0.8)[0].tokens == len(drawn[1].token_ids)
    with pytest.raises(ValueError, match="log-probability for each"):
        measure(policy.model, [broken], 0.8)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "rlreason", "doctor", "numerics", *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_the_command_and_what_is_refused(tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = PolicyConfig(model_type="qwen3_moe", model=SHAPE | experts)
    fresh_policy(config, TASK.alphabet, (), 0, torch.device("cpu")).save(tmp_path / "moe")
    done = command(str(tmp_path / "moe"), "--problems", "2", "--samples", "2", "--max-tokens", "16")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "transformers" in lines[0]
    assert lines[1].split()[-2:] == ["same", "experts"]
    assert lines[2].split()[0] == "all"
    assert lines[2].split()[-1] == "100.0%"
    assert lines[-1].startswith("healthy: v1 and v2 up to 0.002 nats")
    changed = numerics(
        NumericsRequest(model=str(tmp_path / "moe"), problems=2, max_tokens=16, top_p=0.8, updates=2, lr=1e-2)
    )
    assert changed[0].endswith("temperature 1, top_p 0.8, top_k 0")
    rows = {line[:17].strip(): line[17:].split() for line in changed[2:-1]}
    assert list(rows) == ["all", "0 to 127", "cut not replayed", "after 1 update", "after 2 updates"]
    v2 = {name: float(row[3]) for name, row in rows.items()}
    assert v2["all"] < 1e-9
    assert v2["cut not replayed"] > 1e-3  # the trainer's are over the whole vocabulary
    assert 1e-6 < v2["after 1 update"] < v2["after 2 updates"]
    assert changed[-1].startswith("healthy")  # of the weights that drew
    for wrong, said in (({"model": str(tmp_path / "nothing")}, "nothing"), ({"engine": "vlm"}, "sampler.engine")):
        with pytest.raises(UsageError, match=said):
            numerics(NumericsRequest(**{"model": str(tmp_path / "moe"), **wrong}))
