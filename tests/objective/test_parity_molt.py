"""Our objectives against what Molt computes from the same inputs (parity_molt.json, see make_parity_molt.py).

What is the same, and where we mean to differ, numbered as in docs/objectives.md. Molt computes in float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_tools import FIXTURES, SINGLE, credit_of, evaluated, float64, gap, spec_of, tokens_of

from rlreason.objective.correction import at_level
from rlreason.objective.loss import LossAndGrad

CASES: dict[str, Any] = json.loads(Path(__file__).with_name("parity_molt.json").read_text(encoding="utf-8"))["cases"]
GSPO: dict[str, Any] = {"ratio": "sequence_mean", "clip_low": 0.05, "clip_high": 0.08}
SAME: dict[str, dict[str, Any]] = {
    "ppo": {},
    "ppo_sequence": {"aggregation": "sequence"},
    "ppo_sum_norm": {"aggregation": "sequence_sum"},
    "dual_clip": {"dual_clip": 3.0},
    "gspo": {**GSPO, "aggregation": "sequence"},
    "gspo_token": GSPO,
    "cispo": {"clip": "cispo", "clip_low": 1.0, "clip_high": 0.4},
    "token_trunc": {"correction": "tis", "correction_high": 1.25},
    "token_mask": {"correction": "icepop", "correction_low": 0.8, "correction_high": 1.25},
}
ADVANTAGES: dict[str, dict[str, Any]] = {
    "grpo": {"std_epsilon": 1e-9},
    "dr_grpo": {"scale": "none"},
    "rloo": {"baseline": "leave_one_out", "scale": "none"},
}


def off(ours: LossAndGrad, name: str) -> float:
    case = CASES[f"loss/{name}"]
    return max(gap(ours.loss, case["loss"]), gap(ours.grad_logprobs_BT, case["slope"]))


@pytest.mark.parametrize("name", SAME)
def test_losses(name: str) -> None:
    values, spec = tokens_of("tokens"), spec_of(**SAME[name])
    assert off(evaluated(values, spec), name) <= SINGLE
    values["sampler" if spec.correction != "none" else "logprobs"] += 1e-4  # canary
    assert not off(evaluated(values, spec), name) <= SINGLE


def test_a_sum_over_tokens_is_sequence_sum_with_a_constant_of_one() -> None:
    assert off(evaluated(tokens_of("tokens"), spec_of(aggregation="sequence_sum"), max_tokens=1), "ppo_sum") <= SINGLE


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages(name: str) -> None:
    theirs = CASES[f"advantage/{name}/mixed"]
    assert gap(credit_of("mixed", spec_of(**ADVANTAGES[name])).advantages_N, theirs) <= SINGLE
    other = {"std_epsilon": 1e-4} if name == "grpo" else {"baseline": "batch", "scale": "none"}
    assert not gap(credit_of("mixed", spec_of(**other)).advantages_N, theirs) <= SINGLE


@pytest.mark.parametrize(("name", "alone"), [("grpo", 0.0), ("dr_grpo", 0.0), ("rloo", 0.7)])
def test_difference_1_one_of_a_kind_has_no_advantage(name: str, alone: float) -> None:
    """Molt's RLOO gives the only sample of a group its raw reward, its others 0 as we do."""
    theirs = CASES[f"advantage/{name}/edges"]
    ours = credit_of("edges", spec_of(**ADVANTAGES[name])).advantages_N
    assert theirs[0] == pytest.approx(alone, abs=1e-6)
    assert float(ours[0]) == 0.0
    assert gap(ours[1:], theirs[1:]) <= SINGLE


def test_difference_3_whitening_divides_by_the_deviation() -> None:
    """Molt's is √(Σ(A − mean)²/n), at least 1e-4; ours has n − 1 below, and adds ``std_epsilon``."""
    theirs = CASES["advantage/reinforce_baseline/mixed"]
    ours = credit_of("mixed", spec_of(scale="batch_whiten", std_epsilon=0.0)).advantages_N
    tokens = float64(FIXTURES["rewards"]["mixed"]["lengths"]).sum()
    assert gap(ours, theirs) > 1e-3
    assert gap(ours * (tokens / (tokens - 1)).sqrt(), theirs) <= SINGLE


@pytest.mark.parametrize(
    ("name", "level", "low", "high"),
    [("seq_mask", "sequence_product", 0.5, 2.0), ("geo_mask", "sequence_mean", 0.85, 1.2)],
)
def test_difference_17_what_a_sequence_that_is_kept_weighs(name: str, level: Any, low: float, high: float) -> None:
    """Molt drops a sequence by the sequence's ratio and weighs the tokens of the others by each token's; ``mis`` weighs
    them by the ratio that it looked at."""
    values = tokens_of("tokens")
    ratio_B1 = at_level((values["old"] - values["sampler"]) * values["mask"], values["mask"], level).exp()
    kept_B = ((ratio_B1 >= low) & (ratio_B1 <= high)).squeeze(1)
    assert 0 < int(kept_B.sum()) < len(kept_B)
    mis = spec_of(correction="mis", correction_level=level, correction_low=low, correction_high=high)
    ours = evaluated(values, mis)
    assert off(ours, name) > 1e-3
    values["advantages"] = values["advantages"] * kept_B
    assert off(evaluated(values, spec_of(correction="tis", correction_high=1e9)), name) <= SINGLE
    assert torch.equal(ours.grad_logprobs_BT.abs().sum(dim=1) > 0, kept_B)


def test_every_case_is_read() -> None:
    read = {f"loss/{name}" for name in (*SAME, "ppo_sum", "seq_mask", "geo_mask")}
    read |= {
        f"advantage/{name}/{where}" for name in (*ADVANTAGES, "reinforce_baseline") for where in ("mixed", "edges")
    }
    assert set(CASES) == read
