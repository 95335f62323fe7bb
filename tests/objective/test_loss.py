"""The losses by hand, and what contradicts itself. Against formulas in general: test_conformance.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlreason.objective.batch import Batch
from rlreason.objective.kl import kl_estimate
from rlreason.objective.loss import LossInputs, evaluate, policy_loss, supervised_loss
from rlreason.objective.presets import PRESETS, TABLE, expand
from rlreason.objective.spec import ObjectiveSpec

PLAIN = ObjectiveSpec(correction="none", clip_high=0.2)


def one_token(ratio: float, advantage: float, **changes: Any) -> tuple[float, float]:
    """(−loss, −slope) of a single token with log π = −1 and weight 1."""
    now_BT = torch.full((1, 1), -1.0, dtype=torch.float64)
    tokens = LossInputs(
        mask_BT=torch.ones_like(now_BT),
        sampler_logprobs_BT=now_BT - math.log(ratio),
        advantages_BT=torch.full_like(now_BT, advantage),
        weights_BT=torch.ones_like(now_BT),
        old_logprobs_BT=now_BT - math.log(ratio),
    )
    done = evaluate(now_BT, tokens, ObjectiveSpec(**{"correction": "none", "clip_high": 0.2, **changes}))
    return -float(done.loss), -float(done.grad_logprobs_BT)


@pytest.mark.parametrize(
    ("ratio", "advantage", "changes", "value", "slope"),
    [
        (1.1, 2.0, {}, 2.2, 2.2),  # inside: ρA
        (1.5, 2.0, {}, 2.4, 0.0),  # above, A > 0: 1.2 · 2
        (1.5, -2.0, {}, -3.0, -3.0),  # above, A < 0: nothing holds it back
        (0.5, -2.0, {}, -1.6, 0.0),  # below, A < 0: 0.8 · −2
        (0.5, 2.0, {}, 1.0, 1.0),
        (5.0, -2.0, {"dual_clip": 3.0}, -6.0, 0.0),  # not below 3 · −2
        (5.0, 2.0, {"dual_clip": 3.0}, 2.4, 0.0),
        (5.0, -2.0, {"delta": 4.0}, -8.0, 0.0),  # min(5, 4) · −2
        (5.0, 2.0, {"clip": "cispo", "clip_low": 1.0, "clip_high": 3.0}, -8.0, 8.0),  # 4 · 2 · log π = −1
        (1.0, 2.0, {"clip": "sapo"}, 4.0, 2.0),  # 4 · σ(0) · 2; slope 4 · ¼ · 1 · 2
        (3.0, 2.0, {"clip": "none"}, 6.0, 6.0),
        # π = e⁻¹ = 0.3679, π_sampler = 0.1226: risen by 0.2453
        (3.0, 2.0, {"clip": "dppo_tv"}, 0.0, 0.0),
        (3.0, -2.0, {"clip": "dppo_tv"}, -6.0, -6.0),
        (3.0, 2.0, {"clip": "dppo_tv", "clip_low": 0.25, "clip_high": 0.25}, 6.0, 6.0),
    ],
)
def test_surrogates_by_hand(
    ratio: float, advantage: float, changes: dict[str, Any], value: float, slope: float
) -> None:
    assert one_token(ratio, advantage, **changes) == pytest.approx((value, slope), abs=1e-12)


def make_batch(rows: int = 3, width: int = 4) -> tuple[Batch, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.zeros((rows, width), dtype=torch.long)
    now_BT = -torch.rand((rows, width), generator=generator)
    mask = torch.ones((rows, width))
    mask[0, 2:] = 0.0
    batch = Batch(
        token_ids_BT=ids,
        targets_BT=ids,
        loss_mask_BT=mask,
        sampler_logprobs_BT=now_BT.clone(),
        advantages_BT=torch.randn((rows, width), generator=generator) * mask,
        weights_BT=0.1 * mask,
    )
    return batch, now_BT


def test_on_policy_ratio_is_one_and_the_gradient_is_reinforce() -> None:
    batch, now_BT = make_batch()
    now_BT.requires_grad_(requires_grad=True)
    output = policy_loss(now_BT, None, batch, PLAIN)
    (2.0 * output.loss).backward()
    assert now_BT.grad is not None
    assert torch.allclose(now_BT.grad, -2.0 * 0.1 * batch.advantages_BT * batch.loss_mask_BT, atol=1e-7)
    assert float(output.sums["clip_fraction"]) == 0.0
    assert float(output.maxima["ratio/max"]) == 1.0


@pytest.mark.parametrize("name", PRESETS)
def test_a_wild_ratio_stays_finite(name: str) -> None:
    batch, now_BT = make_batch()
    now_BT.requires_grad_(requires_grad=True)
    output = policy_loss(now_BT, now_BT.detach() - 500.0, batch, PRESETS[name], now_BT.detach() - 500.0)
    output.loss.backward()
    assert math.isfinite(float(output.loss.detach()))
    assert now_BT.grad is not None
    assert bool(now_BT.grad.isfinite().all())


def test_an_empty_mask_is_a_zero_with_a_gradient() -> None:
    batch, now_BT = make_batch()
    now_BT.requires_grad_(requires_grad=True)
    batch.loss_mask_BT.zero_()
    output = policy_loss(now_BT, None, batch, PLAIN)
    output.loss.backward()
    assert float(output.loss.detach()) == 0.0
    assert now_BT.grad is not None
    assert not now_BT.grad.any()


def test_k3_by_hand() -> None:
    # d = log 2: e^d − d − 1 = 2 − 0.6931 − 1 = 0.3069
    value, _ = kl_estimate(torch.zeros(1), torch.full((1,), math.log(2.0)), "k3")
    assert float(value) == pytest.approx(0.306853, abs=1e-6)
    assert float(kl_estimate(torch.ones(1), torch.ones(1), "k3")[0]) == 0.0


def test_supervised_loss_by_hand() -> None:
    # (0.5 + 1.5) / 2 tokens = 1.0; the masked −9 does not count
    output = supervised_loss(torch.tensor([[-0.5, -1.5, -9.0]]), torch.tensor([[1.0, 1.0, 0.0]]), 2.0)
    assert float(output.loss) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"clip_low": 0.0}, "clip_low must be positive"),
        ({"clip_high": 0.1}, "must not be below clip_low"),
        ({"kl_coef": -1}, "kl_coef must not be negative"),
        ({"std_ddof": 2}, "std_ddof"),
        ({"overlong_share": 1.0}, "overlong_share"),
        ({"baseline": "leave_one_out"}, "explodes"),
        ({"baseline": "none", "scale": "group_mean"}, "needs baseline"),
        ({"ratio": "on_policy"}, "can never act"),
        ({"ratio": "clipped_mean", "clip": "sapo"}, 'needs clip = "ppo"'),
        ({"ratio": "sequence_mean", "clip": "dppo_tv"}, "needs ratio"),
        ({"clip": "sapo", "dual_clip": 3.0}, "dual_clip needs"),
        ({"dual_clip": 1.0}, "must exceed 1"),
        ({"delta": 1.2}, "must exceed 1 \\+ clip_high"),
        ({"delta": 4.0, "dual_clip": 3.0}, "use one"),
        ({"kl_coef": 0.1, "kl_estimator": "k1"}, "0 on average"),
        ({"kl_coef": 0.1, "kl_estimator": "k3_unbiased", "kl_in": "reward"}, "no gradient"),
        ({"correction": "icepop", "correction_level": "sequence_product"}, "single tokens"),
        ({"correction": "icepop"}, "correction_low > 0"),
        ({"correction_low": 0.5}, "no lower bound"),
        ({"correction": "mis", "correction_low": 2.0}, "must be below"),
        ({"ratio": "sequence_mean"}, "correction_level"),
        ({"ratio": "sequence"}, 'write ratio = "sequence_mean"'),
        ({"ratio": "geometric"}, 'write ratio = "clipped_mean"'),
        ({"correction_level": "sequence"}, 'write correction_level = "sequence_product"'),
        ({"correction_level": "geometric"}, 'write correction_level = "sequence_mean"'),
        ({"aggregation": "tokens"}, "aggregation must be one of token, sequence"),
        ({"rewards": "apart", "scale": "none"}, "as GRPO does"),
        ({"rewards": "apart", "overlong": "soft_penalty"}, "no one reward"),
        ({"centering": "exact", "old": "sampler", "correction": "none", "ratio": "sequence_mean"}, "with every token"),
        ({"centering_top_k": 0}, "at least 1"),
        ({"old": "sampler"}, 'Use correction = "none"'),
        ({"old": "sampler", "ratio": "on_policy", "clip": "none"}, "always 1"),
        ({"scale": "group_mean", "overlong": "soft_penalty"}, "takes up to 1 off"),
        ({"scale": "group_mean", "kl_coef": 0.1, "kl_in": "reward"}, "makes them negative"),
    ],
)
def test_contradictory_specs_are_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ObjectiveSpec(**change)


def test_presets_expand_by_name_and_with_changes() -> None:
    assert expand("dapo") == PRESETS["dapo"]
    changed = expand({"preset": "dapo", "clip_high": 0.3})
    assert isinstance(changed, dict)
    assert ObjectiveSpec(**changed) == ObjectiveSpec(clip_high=0.3, overlong="soft_penalty")
    with pytest.raises(ValueError, match="did you mean 'gspo'"):
        expand("gpso")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_its_formula(name: str) -> None:
    assert TABLE[name].formula.startswith("J = ")
    assert any(source in TABLE[name].paper for source in ("arXiv ", "github.com/"))
    assert PRESETS[name].formula().startswith("J = ")


def test_the_document_has_the_formula_of_every_preset() -> None:
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8").replace("\\|", "|")
    for name, spec in PRESETS.items():
        assert f"| `{name}` | {TABLE[name].paper} |" in text
        assert f"`{spec.formula()}`" in text, name


@pytest.mark.parametrize(
    ("changes", "local", "local_on_policy"),
    [
        ({}, True, True),
        ({"ratio": "on_policy", "clip": "none"}, True, True),
        ({"correction": "tis", "kl_coef": 0.1}, True, True),
        ({"correction": "icepop", "correction_low": 0.5}, True, True),
        ({"correction_level": "sequence_product"}, True, True),  # of a correction that is off
        ({"ratio": "sequence_mean"}, False, True),  # the ratio is 1 at every level
        ({"ratio": "clipped_mean"}, False, True),
        ({"correction": "tis", "correction_level": "sequence_product"}, False, False),
        ({"correction": "mis", "correction_level": "sequence_mean"}, False, False),
        ({"off_policy_delta": 0.1}, False, False),
        ({"sequence_kl_max": 0.02}, False, False),
    ],
)
def test_whether_other_tokens_of_the_sequence_matter(
    changes: dict[str, Any], local: bool, local_on_policy: bool
) -> None:
    spec = ObjectiveSpec(**{"correction": "none", "clip_high": 0.2, **changes})

    def first_slope(second: float, second_old: float | None) -> float:
        now_BT = torch.tensor([[-1.0, second]], dtype=torch.float64)
        old_BT = None if second_old is None else torch.tensor([[-1.05, second_old]], dtype=torch.float64)
        tokens = LossInputs(
            mask_BT=torch.ones_like(now_BT),
            sampler_logprobs_BT=torch.tensor([[-1.1, -1.3]], dtype=torch.float64),
            advantages_BT=torch.tensor([[-1.0, -0.5]], dtype=torch.float64),
            weights_BT=torch.tensor([[1.0, 0.5]], dtype=torch.float64),
            old_logprobs_BT=old_BT,
            reference_logprobs_BT=torch.tensor([[-1.2, -1.2]], dtype=torch.float64) if spec.kl_coef else None,
        )
        return float(evaluate(now_BT, tokens, spec).grad_logprobs_BT[0, 0])

    assert spec.is_row_local(has_old=True) is local
    assert (first_slope(-1.2, -1.21) == first_slope(-2.2, -2.4)) is local
    assert spec.is_row_local(has_old=False) is local_on_policy
    assert (first_slope(-1.2, None) == first_slope(-2.2, None)) is local_on_policy


def measured(trainer: list[float], sampler: list[float], dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """Metrics of tokens with these log-probabilities of the trainer (π = π_old) and of the sampler."""
    now_BT = torch.tensor([trainer], dtype=dtype)
    inputs = LossInputs(
        mask_BT=torch.ones_like(now_BT),
        sampler_logprobs_BT=torch.tensor([sampler], dtype=dtype),
        advantages_BT=torch.ones_like(now_BT),
        weights_BT=torch.ones_like(now_BT),
    )
    done = evaluate(now_BT, inputs, ObjectiveSpec())
    return {name: float(value) for name, value in {**done.sums, **done.maxima}.items()}


def test_mismatch_k3_estimates_the_divergence_of_the_sampler_that_drew_the_tokens() -> None:
    """Two policies over three tokens; the mean of k3 over what the sampler draws is KL(sampler || trainer) exactly.

    r was inverted: then its mean is Σ p²/q − 1 − KL, 96 in the second case, whose KL is 0.69.
    """
    for sampler, trainer in (([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]), ([0.98, 0.01, 0.01], [0.01, 0.98, 0.01])):
        divergence = math.fsum(p * math.log(p / q) for p, q in zip(sampler, trainer, strict=True))
        each = [measured([math.log(q)], [math.log(p)])["mismatch/k3"] for p, q in zip(sampler, trainer, strict=True)]
        mean = math.fsum(p * k3 for p, k3 in zip(sampler, each, strict=True))
        assert mean == pytest.approx(divergence, rel=1e-12)
        inverted = [
            measured([math.log(p)], [math.log(q)])["mismatch/k3"] for p, q in zip(sampler, trainer, strict=True)
        ]
        assert abs(math.fsum(p * k3 for p, k3 in zip(sampler, inverted, strict=True)) - divergence) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mismatch_k3_is_finite_whatever_a_token_does(dtype: torch.dtype) -> None:
    """One token 99 nats low was infinite, and 10 nats low 22,015."""
    assert measured([-10.5], [-0.5], dtype)["mismatch/k3"] == pytest.approx(math.exp(-10) + 9.0, rel=1e-5)
    for trainer, sampler in ((-99.0, -0.01), (-0.01, -99.0), (-3e4, -0.01), (-0.01, -3e4)):
        found = measured([trainer, -1.0], [sampler, -1.0], dtype)
        assert all(math.isfinite(value) for value in found.values()), found
    # Log-ratios are clamped to ±20: e^20 − 1 − 20, and e^−20 − 1 + 20
    assert measured([-0.01], [-99.0], dtype)["mismatch/k3"] == pytest.approx(math.exp(20) - 21, rel=1e-6)
    assert measured([-99.0], [-0.01], dtype)["mismatch/k3"] == pytest.approx(math.exp(-20) + 19, rel=1e-6)
