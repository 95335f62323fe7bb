"""What the tests against verl, TRL and Liger share: the fixtures, our side of each, and the specs that say the same.

N = sequences, T = positions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlreason.objective.advantage import Advantages, group_advantage, loss_weights
from rlreason.objective.loss import LossAndGrad, LossInputs, evaluate
from rlreason.objective.spec import ObjectiveSpec

FIXTURES: dict[str, Any] = json.loads(Path(__file__).with_name("parity.json").read_text(encoding="utf-8"))
CASES: dict[str, Any] = FIXTURES["cases"]
#: Of float64 fixtures, and of those that a peer computes in float32.
EXACT, SINGLE = 1e-12, 1e-6
#: dr_grpo's and sequence_sum's constant in the TRL and Liger fixtures; verl divides by the width.
TRL_TOKENS, WIDTH = 11, 6


def float64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens_of(name: str) -> dict[str, Tensor]:
    return {key: float64(value) for key, value in FIXTURES["tokens"][name].items()}


def spec_of(**fields: Any) -> ObjectiveSpec:
    return ObjectiveSpec(**{"correction": "none", **fields})


def gap(ours: Tensor, theirs: Any) -> float:
    """Largest absolute difference."""
    return float((ours - torch.as_tensor(theirs, dtype=ours.dtype)).abs().max())


def evaluated(
    values: dict[str, Tensor], spec: ObjectiveSpec, max_tokens: int = WIDTH, weights_N: Tensor | None = None
) -> LossAndGrad:
    """Our loss and slope of sequences whose advantages are given."""
    lengths_N = values["mask"].sum(dim=1).long()
    if weights_N is None:
        group_N = torch.arange(len(lengths_N))
        weights_N = loss_weights(lengths_N, lengths_N > 0, group_N, len(group_N), spec, max_tokens, torch.float64)
    tokens = LossInputs(
        mask_BT=values["mask"],
        sampler_logprobs_BT=values.get("sampler", values["old"]),
        advantages_BT=values["advantages"].unsqueeze(1) * values["mask"],
        weights_BT=weights_N.unsqueeze(1) * values["mask"],
        old_logprobs_BT=values["old"],
        reference_logprobs_BT=values["reference"] if spec.kl_coef else None,
    )
    return evaluate(values["logprobs"], tokens, spec)


def loss_gap(ours: LossAndGrad, case: str) -> float:
    return max(gap(ours.loss, CASES[case]["loss"]), gap(ours.grad_logprobs_BT, CASES[case]["slope"]))


def credit_of(rewards: str, spec: ObjectiveSpec) -> Advantages:
    one = FIXTURES["rewards"][rewards]
    return group_advantage(
        float64(one["rewards"]), torch.tensor(one["group"]), torch.tensor(one["lengths"]), spec, max_tokens=WIDTH
    )


def trl_step(values: dict[str, Tensor], rewards: str = "even", **fields: Any) -> tuple[Advantages, LossAndGrad]:
    """Our step with TRL's epsilons: 1e-4 on the deviation, 0.2 on both sides of the ratio."""
    spec = spec_of(**{"std_epsilon": 1e-4, "clip_high": 0.2, **fields})
    scores = [math.nan if one is None else one for one in FIXTURES["rewards"][rewards]["rewards"]]
    credit = group_advantage(
        float64(scores),
        torch.arange(8) // 4,
        values["mask"].sum(dim=1).long(),
        spec,
        max_tokens=TRL_TOKENS,
        truncated_N=torch.arange(8) == 3,
    )
    values = {**values, "advantages": credit.advantages_N}
    return credit, evaluated(values, spec, weights_N=credit.weights_N)


VERL_ADVANTAGES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo_no_std": {"scale": "none"},
    "rloo": {"baseline": "leave_one_out", "scale": "none"},
    "rloo_vectorized": {"baseline": "leave_one_out", "scale": "none"},
    "opo": {"baseline": "length_weighted", "scale": "none"},
}

VERL_LOSSES: dict[str, dict[str, Any]] = {
    "vanilla": {"dual_clip": 3.0},
    "vanilla_sum_norm": {"dual_clip": 3.0, "aggregation": "sequence_sum"},
    "vanilla_no_dual": {},
    "gspo_token": {"ratio": "sequence_mean", "clip_low": 0.05, "clip_high": 0.08},
    "cispo": {"clip": "cispo", "clip_high": 0.4},
    "cispo_sum_norm": {"clip": "cispo", "clip_high": 0.4, "aggregation": "sequence_sum"},
}

#: Means of each sequence's mean, where verl adds 1e-8 to a length (difference 7).
VERL_SEQUENCE_MEANS: dict[str, dict[str, Any]] = {
    "vanilla_sequence": {"dual_clip": 3.0, "aggregation": "sequence"},
    "gspo": {"ratio": "sequence_mean", "clip_low": 0.05, "clip_high": 0.08, "aggregation": "sequence"},
    "sapo": {"clip": "sapo", "aggregation": "sequence"},
}

VERL_CORRECTIONS: dict[str, dict[str, Any]] = {
    "tis_token": {"correction": "tis", "correction_high": 1.2},
    "tis_sequence": {"correction": "tis", "correction_level": "sequence_product", "correction_high": 1.5},
    "icepop": {"correction": "icepop", "correction_low": 0.8, "correction_high": 1.25},
}

TRL_STEPS: dict[str, dict[str, Any]] = {
    "dapo": {},
    "grpo": {"aggregation": "sequence"},
    "bnpo": {},
    "dr_grpo": {"scale": "none", "aggregation": "sequence_sum"},
    "dapo_clip_higher": {"clip_high": 0.28},
    "cispo": {"clip": "cispo", "clip_low": 1.0, "clip_high": 0.5, "scale": "batch_std"},
    "cispo_sequence": {"clip": "cispo", "ratio": "sequence_mean", "clip_low": 1.0, "clip_high": 0.05},
    "sapo": {"clip": "sapo", "aggregation": "sequence"},
    "gspo": {"ratio": "sequence_mean", "clip_low": 0.05, "clip_high": 0.08, "aggregation": "sequence"},
    "delta": {"delta": 4.0},
    "kl": {"aggregation": "sequence", "kl_coef": 0.04},
    "kl_unbiased": {"kl_coef": 0.04, "kl_estimator": "k3_unbiased"},
    "off_policy_mask": {"off_policy_delta": 0.05, "kl_coef": 0.04},
    "scale_batch": {"scale": "batch_std"},
    "equal_rewards": {},
    "vllm_default": {"correction": "mis", "correction_level": "sequence_product", "correction_high": 3.0},
    "vllm_token_truncate": {"correction": "tis", "correction_high": 1.2},
    "vllm_token_mask": {"correction": "icepop", "correction_low": 0.8, "correction_high": 1.25},
    "vllm_sequence_truncate": {
        "correction": "tis", "correction_level": "sequence_product", "correction_high": 1.5, "kl_coef": 0.04,
    },
    "vllm_sequence_mask": {
        "correction": "mis", "correction_level": "sequence_product", "correction_low": 0.5, "correction_high": 1.5,
    },
}  # fmt: skip

LIGER: dict[str, dict[str, Any]] = {
    "dapo": {},
    "grpo": {"aggregation": "sequence"},
    "bnpo": {},
    "dr_grpo": {"aggregation": "sequence_sum"},
    "cispo": {"clip": "cispo", "clip_low": 1.0, "clip_high": 0.5},
    "sapo": {"clip": "sapo", "aggregation": "sequence"},
    "gspo": {"ratio": "sequence_mean", "clip_low": 0.05, "clip_high": 0.08, "aggregation": "sequence"},
    "delta": {"delta": 4.0},
    "kl": {"kl_coef": 0.04},
    "kl_unbiased": {"kl_coef": 0.04, "kl_estimator": "k3_unbiased"},
}
