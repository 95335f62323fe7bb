"""Our objectives against what verl, TRL and Liger compute from the same inputs (parity.json, see make_parity.py).

What is the same, each case with the spec that says it. The differences that we mean: test_parity_differences.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity_tools import (
    CASES,
    EXACT,
    FIXTURES,
    LIGER,
    SINGLE,
    TRL_STEPS,
    TRL_TOKENS,
    VERL_ADVANTAGES,
    VERL_CORRECTIONS,
    VERL_LOSSES,
    VERL_SEQUENCE_MEANS,
    credit_of,
    evaluated,
    float64,
    gap,
    loss_gap,
    spec_of,
    tokens_of,
    trl_step,
)

from rlreason.objective.kl import kl_estimate

# --- verl ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERL_ADVANTAGES)
def test_verl_advantages(name: str) -> None:
    ours = credit_of("mixed", spec_of(**VERL_ADVANTAGES[name])).advantages_N
    assert gap(ours, CASES[f"verl/advantage/{name}/mixed"]["advantages"]) <= EXACT
    # Canary: another epsilon, another baseline.
    other = {"scale": "group_std", "std_epsilon": 2e-6} if name == "grpo" else {"scale": "none", "baseline": "none"}
    changed = credit_of("mixed", spec_of(**other)).advantages_N
    assert not gap(changed, CASES[f"verl/advantage/{name}/mixed"]["advantages"]) <= EXACT


def test_verl_grpo_vectorized_in_float32() -> None:
    ours = credit_of("mixed", spec_of()).advantages_N
    assert gap(ours, CASES["verl/advantage/grpo_vectorized/mixed"]["advantages"]) <= SINGLE
    canary = credit_of("mixed", spec_of(std_epsilon=1e-5)).advantages_N
    assert not gap(canary, CASES["verl/advantage/grpo_vectorized/mixed"]["advantages"]) <= SINGLE


@pytest.mark.parametrize("where", ["tokens", "empty"])
@pytest.mark.parametrize("name", VERL_LOSSES)
def test_verl_losses(name: str, where: str) -> None:
    values, spec = tokens_of(where), spec_of(**VERL_LOSSES[name])
    assert loss_gap(evaluated(values, spec), f"verl/loss/{name}/{where}") <= EXACT
    values["logprobs"] += 1e-10  # canary
    assert not loss_gap(evaluated(values, spec), f"verl/loss/{name}/{where}") <= EXACT


def test_verl_sum_over_tokens_is_sequence_sum_with_a_constant_of_one() -> None:
    spec = spec_of(dual_clip=3.0, aggregation="sequence_sum")
    assert loss_gap(evaluated(tokens_of("tokens"), spec, max_tokens=1), "verl/loss/vanilla_sum/tokens") <= EXACT


@pytest.mark.parametrize("name", VERL_CORRECTIONS)
def test_verl_corrections(name: str) -> None:
    values, settings = tokens_of("tokens"), VERL_CORRECTIONS[name]
    assert loss_gap(evaluated(values, spec_of(**settings)), f"verl/correction/{name}") <= EXACT
    values["sampler"] += 1e-10  # canary
    assert not loss_gap(evaluated(values, spec_of(**settings)), f"verl/correction/{name}") <= EXACT


@pytest.mark.parametrize(("verl", "ours"), [("k1", "k1"), ("k2", "k2"), ("low_var_kl", "k3")])
def test_verl_kl(verl: str, ours: Any) -> None:
    values, case = tokens_of("tokens"), CASES[f"verl/kl/{verl}/tokens"]
    value, slope = kl_estimate(values["logprobs"], values["reference"], ours)
    assert max(gap(value, case["value"]), gap(slope, case["slope"])) <= EXACT
    value, slope = kl_estimate(values["logprobs"] + 1e-10, values["reference"], ours)  # canary
    assert not max(gap(value, case["value"]), gap(slope, case["slope"])) <= EXACT


# --- TRL: one whole step, advantages, sampler correction and loss --------------------------------------------------


@pytest.mark.parametrize("name", TRL_STEPS)
def test_trl_steps(name: str) -> None:
    values = tokens_of("even")
    rewards = "equal" if name == "equal_rewards" else "even"
    credit, ours = trl_step(values, rewards, **TRL_STEPS[name])
    assert gap(credit.advantages_N, CASES[f"trl/{name}"]["advantages"]) <= EXACT
    assert loss_gap(ours, f"trl/{name}") <= EXACT
    credit, ours = trl_step(values, rewards, **{**TRL_STEPS[name], "std_epsilon": 1.001e-4})  # canary
    if name != "dr_grpo":  # divides by no deviation
        assert not gap(credit.advantages_N, CASES[f"trl/{name}"]["advantages"]) <= EXACT
        assert not loss_gap(ours, f"trl/{name}") <= EXACT


def test_trl_luspo_is_gspo_summed_over_tokens() -> None:
    """1/N Σ_i |o_i| s_i A_i: ``sequence_sum`` with a constant of one token."""
    values = tokens_of("even")
    spec = spec_of(ratio="sequence_mean", clip_low=0.05, clip_high=0.08, aggregation="sequence_sum")
    values["advantages"] = float64(CASES["trl/luspo"]["advantages"])
    assert loss_gap(evaluated(values, spec, max_tokens=1), "trl/luspo") <= EXACT


# --- Liger ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIGER)
def test_liger_losses(name: str) -> None:
    values, spec = tokens_of("tokens"), spec_of(**{"clip_high": 0.2, **LIGER[name]})
    assert loss_gap(evaluated(values, spec, TRL_TOKENS), f"liger/loss/{name}") <= EXACT
    values["logprobs"] += 1e-10  # canary
    assert not loss_gap(evaluated(values, spec, TRL_TOKENS), f"liger/loss/{name}") <= EXACT


@pytest.mark.parametrize("name", LIGER)
def test_liger_from_hidden_states_in_float32(name: str) -> None:
    """Liger's loss from hidden states and head, whose gradients are the chain rule through our slope."""
    values, case, head = tokens_of("tokens"), CASES[f"liger/head/{name}"], FIXTURES["head"]
    spec = spec_of(**{"clip_high": 0.2, **LIGER[name]})

    def worst(shift: float) -> float:
        hidden = (float64(head["hidden"]) + shift).requires_grad_()
        weight = float64(head["head"]).requires_grad_()
        logprobs = torch.log_softmax(hidden @ weight.T, dim=-1).gather(2, torch.tensor(head["ids"]).unsqueeze(2))
        ours = evaluated({**values, "logprobs": logprobs.squeeze(2).detach()}, spec, TRL_TOKENS)
        logprobs.squeeze(2).backward(ours.grad_logprobs_BT)
        assert hidden.grad is not None
        assert weight.grad is not None
        pairs = ((ours.loss, "loss"), (hidden.grad, "d_hidden"), (weight.grad, "d_head"))
        # In units of the largest entry: random hidden states are far from the old policy, ratios are large.
        return max(gap(own, case[key]) / max(1.0, float(float64(case[key]).abs().max())) for own, key in pairs)

    assert worst(0.0) <= SINGLE
    assert not worst(1e-4) <= SINGLE


def test_every_fixture_is_read() -> None:
    """A case that a peer computed and no test reads would be parity in name only."""
    advantages = [*VERL_ADVANTAGES, "grpo_vectorized", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]
    losses = [*VERL_LOSSES, *VERL_SEQUENCE_MEANS, "geo_mean"]
    read = {
        *(f"verl/advantage/{name}/{where}" for name in advantages for where in ("mixed", "edges")),
        *(f"verl/loss/{name}/{where}" for name in losses for where in ("tokens", "empty")),
        *(f"verl/loss/{name}/tokens" for name in ("vanilla_sum", "dppo_tv", "dppo_tv_default")),
        *(f"verl/correction/{name}" for name in (*VERL_CORRECTIONS, "reject_token", "reject_sequence")),
        *(f"verl/kl/{name}/{where}" for name in ("k1", "k2", "low_var_kl") for where in ("tokens", "wild")),
        *(f"trl/{name}" for name in (*TRL_STEPS, "luspo", "unscorable", "mask_truncated", "mask_truncated_dapo")),
        *(f"trl/split/{name}" for name in ("grpo", "bnpo", "dapo")),
        *(f"liger/{kind}/{name}" for kind in ("loss", "head") for name in LIGER),
        *("verl/kl/k3+/tokens", "trl/kl_unbiased_sequence"),
        *("verl/wild/vanilla", "verl/wild/gspo", "liger/wild"),
    }
    assert set(CASES) == read
