"""Losses against a float64 oracle written from the formula, token by token, without torch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rlreason.objective.loss import distillation_loss, k3, policy_loss, supervised_loss, token_weights
from rlreason.objective.spec import ObjectiveSpec
from rlreason.types import Batch

TOLERANCE = 1e-6
B, T, MAX_TOKENS = 5, 7, 11


def make(seed: int = 0) -> tuple[Batch, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(batch, current log-probs, old log-probs, reference log-probs)"""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return torch.randn((B, T), generator=generator) * scale

    mask = (torch.rand((B, T), generator=generator) < 0.7).float()
    mask[:, 0] = 1.0
    current = -normal(1.0).abs()
    old = current + normal(0.3)
    ids = torch.zeros((B, T), dtype=torch.long)
    batch = Batch(
        token_ids_BT=ids,
        attention_mask_BT=ids + 1,
        targets_BT=ids,
        loss_mask_BT=mask,
        sampler_logprobs_BT=old + normal(0.5),
        advantages_BT=normal(1.0),
    )
    return batch, current, old, current + normal(0.4)


def oracle(
    batch: Batch, current: torch.Tensor, old: torch.Tensor, reference: torch.Tensor, spec: ObjectiveSpec
) -> float:
    """−J from the formula, in Python floats."""
    mask, advantage = batch.loss_mask_BT.tolist(), batch.advantages_BT.tolist()
    now, before, ref, sampler = (x.double().tolist() for x in (current, old, reference, batch.sampler_logprobs_BT))
    total_tokens = sum(sum(row) for row in mask)
    loss = 0.0
    for b in range(B):
        weight = {
            "token": 1 / total_tokens,
            "sequence": 1 / (sum(mask[b]) * B),
            "sequence_sum": 1 / (MAX_TOKENS * B),
        }[spec.aggregation]
        for t in range(T):
            if not mask[b][t]:
                continue
            ratio = math.exp(now[b][t] - before[b][t])
            clipped = min(max(ratio, 1 - spec.clip_low), 1 + spec.clip_high)
            gain = min(ratio * advantage[b][t], clipped * advantage[b][t])
            if spec.sampler_correction_cap:
                gain *= min(math.exp(before[b][t] - sampler[b][t]), spec.sampler_correction_cap)
            d = ref[b][t] - now[b][t]
            loss += weight * (-gain + spec.kl_coef * (math.exp(d) - d - 1))
    return loss


SPECS = [
    ObjectiveSpec(),
    ObjectiveSpec(aggregation="sequence", clip_high=0.2, kl_coef=0.04),
    ObjectiveSpec(aggregation="sequence_sum", sampler_correction_cap=0.0, kl_coef=0.5),
]


def compute(spec: ObjectiveSpec, batch: Batch, current: torch.Tensor, old: torch.Tensor, reference: torch.Tensor):
    denominator = float(batch.loss_mask_BT.sum()) if spec.aggregation == "token" else float(B)
    weights = token_weights(batch.loss_mask_BT, spec.aggregation, denominator, MAX_TOKENS)
    return policy_loss(current, old, batch, spec, weights, reference)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_policy_loss_is_the_formula(spec: ObjectiveSpec, seed: int) -> None:
    batch, current, old, reference = make(seed)
    expected = oracle(batch, current, old, reference, spec)
    assert float(compute(spec, batch, current, old, reference).loss) == pytest.approx(expected, abs=TOLERANCE)
    # Canary: another clip bound is another loss.
    other = replace(spec, clip_high=spec.clip_high + 0.02)
    assert oracle(batch, current, old, reference, other) != pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_is_the_finite_difference(spec: ObjectiveSpec) -> None:
    batch, current, old, reference = make(7)
    current = current.double().requires_grad_(requires_grad=True)
    compute(spec, batch, current, old.double(), reference.double()).loss.backward()
    assert current.grad is not None
    step = 1e-6
    for b, t in [(0, 0), (1, 0), (2, 3), (4, 6)]:
        up, down = current.detach().clone(), current.detach().clone()
        up[b, t] += step
        down[b, t] -= step
        slope = (oracle(batch, up, old, reference, spec) - oracle(batch, down, old, reference, spec)) / (2 * step)
        assert float(current.grad[b, t]) == pytest.approx(slope, abs=1e-6)


def test_masked_positions_have_exactly_no_effect() -> None:
    batch, current, old, reference = make(3)
    hidden = batch.loss_mask_BT == 0
    assert hidden.any()
    current.requires_grad_(requires_grad=True)
    before = compute(SPECS[1], batch, current, old, reference).loss
    before.backward()
    assert current.grad is not None
    assert torch.equal(current.grad[hidden], torch.zeros(int(hidden.sum())))
    wild = torch.where(hidden, torch.full_like(current, -300.0), current.detach())
    assert torch.equal(compute(SPECS[1], batch, wild, old, reference).loss, before.detach())


@pytest.mark.parametrize("spec", SPECS)
def test_micro_batch_split_and_row_order_do_not_matter(spec: ObjectiveSpec) -> None:
    batch, current, old, reference = make(5)
    whole = float(compute(spec, batch, current, old, reference).loss)
    denominator = float(batch.loss_mask_BT.sum()) if spec.aggregation == "token" else float(B)
    total = 0.0
    for rows in ([3, 0], [4], [2, 1]):
        part = Batch(**{name: getattr(batch, name)[rows] for name in Batch.__dataclass_fields__})
        weights = token_weights(part.loss_mask_BT, spec.aggregation, denominator, MAX_TOKENS)
        total += float(policy_loss(current[rows], old[rows], part, spec, weights, reference[rows]).loss)
    assert total == pytest.approx(whole, abs=TOLERANCE)


def test_on_policy_ratio_is_one_and_the_gradient_is_reinforce() -> None:
    batch, current, _, _ = make(2)
    current.requires_grad_(requires_grad=True)
    spec = ObjectiveSpec(sampler_correction_cap=0.0)
    tokens = float(batch.loss_mask_BT.sum())
    weights = token_weights(batch.loss_mask_BT, "token", tokens, MAX_TOKENS)
    output = policy_loss(current, current.detach(), batch, spec, weights)
    output.loss.backward()
    assert current.grad is not None
    assert torch.allclose(current.grad, -batch.advantages_BT * batch.loss_mask_BT / tokens, atol=1e-7)
    assert float(output.sums["clip_fraction"]) == 0.0


def test_a_wild_ratio_stays_finite() -> None:
    batch, current, _, _ = make(2)
    weights = token_weights(batch.loss_mask_BT, "token", 10.0, MAX_TOKENS)
    output = policy_loss(current, current - 500.0, batch, ObjectiveSpec(), weights, current - 500.0)
    assert math.isfinite(float(output.loss))


def test_k3_by_hand() -> None:
    # d = log 2: e^d − d − 1 = 2 − 0.6931 − 1 = 0.3069
    assert float(k3(torch.zeros(1), torch.full((1,), math.log(2.0)))) == pytest.approx(0.306853, abs=1e-6)
    assert float(k3(torch.ones(1), torch.ones(1))) == 0.0


def test_supervised_loss_by_hand() -> None:
    # (0.5 + 1.5) / 2 tokens = 1.0; the masked −9 does not count
    output = supervised_loss(torch.tensor([[-0.5, -1.5, -9.0]]), torch.tensor([[1.0, 1.0, 0.0]]), 2.0)
    assert float(output.loss) == pytest.approx(1.0, abs=1e-7)


def test_distillation_loss_is_kl() -> None:
    # teacher (0.5, 0.5), student (0.25, 0.75): 0.5·ln 2 + 0.5·ln(2/3) = 0.143841
    teacher = torch.log(torch.tensor([[[0.5, 0.5]]]))
    student = torch.log(torch.tensor([[[0.25, 0.75]]]))
    mask = torch.ones((1, 1))
    assert float(distillation_loss(student, teacher, mask, 1.0).loss) == pytest.approx(0.143841, abs=1e-6)
    assert float(distillation_loss(teacher, teacher, mask, 1.0).loss) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("change", "word"), [({"clip_low": 0.0}, "clip_low"), ({"clip_high": 0.1}, "clip_high"), ({"kl_coef": -1}, "kl")]
)
def test_contradictory_specs_are_refused(change: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ObjectiveSpec(**change)  # type: ignore[arg-type]
