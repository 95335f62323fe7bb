"""Routing replay has its effect: the trainer goes where the sampler went, tokens are not mixed up, gates learn."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies import make_policy
from vllm_replay import completions, report, samples_of

from rlreason.config import OptimizerConfig
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import make_batches
from rlreason.policy.logprobs import takes_packed
from rlreason.routing import FREE
from rlreason.sampler.open import installed
from rlreason.trainer.experts import routed_pass
from rlreason.trainer.forward import PolicyGradientLoss, loss_logprobs
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.types import TrainingSample

CPU = torch.device("cpu")


def check_float32(found: dict[str, Any]) -> None:
    """Equal weights choose equal experts; routers that moved are brought back to the sampler's."""
    for one in found.values():
        assert one["compared"] == [one["tokens"]] * 2
    assert found["off"]["agreement"] == [1.0, 1.0]
    assert found["on"]["max"] == pytest.approx(found["off"]["max"], abs=1e-5)
    assert found["on"]["max"] < 5e-5
    assert max(found["moved_off"]["agreement"]) < 0.9
    assert found["moved_on"]["mean"] < 0.8 * found["moved_off"]["mean"]
    # Canary: the experts of the token before are no replay, and both numbers say so.
    assert max(found["shifted"]["agreement"]) < 0.7
    assert found["shifted"]["mean"] > 0.1


@pytest.fixture(scope="module")
def drawn() -> list[TrainingSample]:
    return samples_of(completions(make_policy("qwen3_moe"), "transformers"))


def test_the_embedded_engine_says_where_its_tokens_went() -> None:
    check_float32(report("transformers", torch.float32))


@pytest.mark.skipif(not installed("vllm"), reason="vLLM is not installed")
def test_vllm_says_where_its_tokens_went() -> None:
    """Prompts come from the prefix cache for three of four samples, and their experts with them. In bfloat16 the two
    send a few tokens to different experts, and replay takes those outliers away."""
    command = [sys.executable, str(Path(__file__).parent / "vllm_replay.py"), "float32", "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    check_float32(found["float32"])
    # Under weights that change on the way, a token keeps the experts of those that drew it.
    assert found["in_flight"]["mixed"] >= 2
    assert found["in_flight"]["wrong"] == 0
    rounded = found["bfloat16"]
    assert 0.9 < min(rounded["off"]["agreement"]) < 1.0
    assert rounded["on"]["max"] < 0.5 * rounded["off"]["max"]
    assert rounded["on"]["k3"] < 0.2 * rounded["off"]["k3"]
    assert rounded["on"]["mean"] < rounded["off"]["mean"]
    assert rounded["shifted"]["mean"] > 5 * rounded["off"]["mean"]


def gradients(samples: list[TrainingSample], dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Any]:
    """Of a trainer whose routers are others than the sampler's."""
    policy = make_policy("qwen3_moe", seed=1)
    policy.model.to(dtype)
    settings = {"micro_batch_tokens": 128, **options}
    trainer = LocalTrainer(
        policy, TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, compute_dtype=dtype, **settings)
    )
    sums = trainer.forward_backward(samples, PolicyGradientLoss(spec=ObjectiveSpec(), replay=True))
    assert sums.experts is not None
    names = zip(trainer._masters.names, trainer._masters.parameters, strict=True)
    return {name: one.grad.clone() for name, one in names if one.grad is not None}


def apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() == expected.keys()
    difference = sum(float((found[name] - one).double().square().sum()) for name, one in expected.items())
    return float((difference / sum(float(one.double().square().sum()) for one in expected.values())) ** 0.5)


def test_recomputation_threads_and_cuts_change_nothing_under_replay(drawn: list[TrainingSample]) -> None:
    plain = gradients(drawn)
    gates = [one for name, one in plain.items() if name.endswith("mlp.gate.weight")]
    assert all(float(one.norm()) > 1e-4 for one in gates), "gates learn"
    again = gradients(drawn, activation_checkpointing=True)
    assert all(torch.equal(one, again[name]) for name, one in plain.items())
    aside = gradients(drawn, threads=3)
    assert all(torch.equal(one, aside[name]) for name, one in plain.items())
    assert apart(gradients(drawn, micro_batch_tokens=4096), plain) < 1e-5
    # Canary: other experts are other gradients.
    assert apart(gradients(samples_of_other(drawn)), plain) > 0.1


def samples_of_other(samples: list[TrainingSample]) -> list[TrainingSample]:
    return [replace(one, routed_experts=np.roll(one.routed_experts, 1, axis=0)) for one in samples]


def test_bfloat16_replays_in_recomputation_too(drawn: list[TrainingSample]) -> None:
    plain = gradients(drawn, torch.bfloat16)
    again = gradients(drawn, torch.bfloat16, activation_checkpointing=True)
    assert all(torch.equal(one, again[name]) for name, one in plain.items())
    assert apart(plain, gradients(drawn)) < 0.2 < apart(gradients(samples_of_other(drawn), torch.bfloat16), plain)


def test_packed_and_whole_rows_go_to_the_same_experts(drawn: list[TrainingSample]) -> None:
    """Every token of every row, prompts included, is sent where its sample says, however rows are laid out."""
    model = make_policy("qwen3_moe", seed=1).model
    assert takes_packed(model)
    rows: dict[bool, dict[int, Any]] = {True: {}, False: {}}
    for packed in (True, False):
        for batch in make_batches(drawn, 256, 0, CPU, packed=packed):
            routed = routed_pass(model, batch, replay=True)
            assert routed is not None
            loss_logprobs(model, batch, routed=routed)
            used_NLK = routed.used_NLK().numpy()
            for place, at in zip(batch.places, batch.predicted_by, strict=True):
                rows[packed][place] = used_NLK[at[1:]]
    for place, sample in enumerate(drawn):
        assert sample.routed_experts is not None
        assert (sample.routed_experts[1:] != FREE).all()
        for packed in (True, False):
            assert np.array_equal(rows[packed][place], sample.routed_experts[1:])


def test_prompts_that_went_elsewhere_are_not_shared(drawn: list[TrainingSample]) -> None:
    """Two samples of one prompt, which two engines sent to different experts: each keeps its own."""
    first = drawn[0]
    assert first.routed_experts is not None
    experts = first.routed_experts.copy()
    experts[1] = (experts[1] + 1) % 4
    (batch,) = make_batches([first, replace(first, routed_experts=experts)], 10_000, 0, CPU, packed=True)
    (shared,) = make_batches([first, first], 10_000, 0, CPU, packed=True)
    assert batch.token_ids_BT.numel() - shared.token_ids_BT.numel() == first.prompt_length


def test_r2_replays_the_pass_before_the_updates(drawn: list[TrainingSample]) -> None:
    policy = make_policy("qwen3_moe", seed=1)
    options = TrainerOptions(optimizer=OptimizerConfig(lr=0.05), total_steps=2, micro_batch_tokens=128)
    trainer = LocalTrainer(policy, options)
    before = trainer.routed_logprobs(drawn)
    assert all(np.array_equal(a.logprobs, b) for a, b in zip(before, trainer.logprobs(drawn), strict=True))
    samples = [
        replace(sample, routed_experts=one.experts, old_logprobs=one.logprobs)
        for sample, one in zip(drawn, before, strict=True)
    ]
    loss = PolicyGradientLoss(spec=ObjectiveSpec(), replay=True)
    first = trainer.forward_backward(samples, loss)
    assert first.experts is not None
    assert torch.equal(first.experts.agreed_L, first.experts.compared_L)
    trainer.step(0)
    second = trainer.forward_backward(samples, loss)
    assert second.experts is not None
    assert bool((second.experts.agreed_L < second.experts.compared_L).all()), "the routers moved"
    again = trainer.logprobs(samples, replay=True)
    free = trainer.logprobs(samples)
    assert not all(np.array_equal(one, other) for one, other in zip(again, free, strict=True))


def test_a_replay_without_experts_is_no_replay(drawn: list[TrainingSample]) -> None:
    trainer = LocalTrainer(
        make_policy("qwen3_moe"), TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, micro_batch_tokens=128)
    )
    bare = [replace(drawn[0], routed_experts=None), *drawn[1:]]
    with pytest.raises(ValueError, match="routing is to be replayed, and the samples have none"):
        trainer.forward_backward(bare, PolicyGradientLoss(spec=ObjectiveSpec(), replay=True))
