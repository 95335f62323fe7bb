"""K2 against the torch path. Runs from ``tests/objective/test_kernels.py``, or alone on a GPU."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, SMALL_STEP, TOKEN_SPECS, TOLERANCE, difference
from torch import Tensor

from rlreason.objective import loss as torch_path
from rlreason.objective.batch import Batch
from rlreason.objective.kernels import loss as kernels
from rlreason.objective.loss import LossAndGrad, LossInputs
from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec


def make(
    dtype: torch.dtype, *, old: bool = True, reference: bool = True, shape: tuple[int, int] = (3, 37), seed: int = 0
) -> tuple[Tensor, LossInputs]:
    """(log π, the rest): the second row has no loss token, and masked places hold nan."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    mask_BT = (torch.rand(shape, generator=generator) < 0.7).float()
    mask_BT[1:2] = 0.0
    hidden_BT = torch.where(mask_BT > 0, 0.0, torch.nan)
    now_BT = -normal(*shape).abs() + hidden_BT
    before_BT = now_BT + 0.3 * normal(*shape)

    def put(values: Tensor) -> Tensor:
        return values.to(DEVICE, dtype)

    return put(now_BT), LossInputs(
        mask_BT=mask_BT.to(DEVICE),
        sampler_logprobs_BT=put(before_BT + 0.2 * normal(*shape)),
        advantages_BT=put(normal(*shape)),
        weights_BT=put(0.2 * torch.rand(shape, generator=generator)),
        old_logprobs_BT=put(before_BT) if old else None,
        reference_logprobs_BT=put(now_BT + 0.4 * normal(*shape)) if reference else None,
    )


def differences(actual: LossAndGrad, expected: LossAndGrad) -> dict[str, float]:
    assert actual.sums.keys() == expected.sums.keys()
    assert actual.maxima.keys() == expected.maxima.keys()
    return {
        "loss": difference(actual.loss, expected.loss),
        "gradient": difference(actual.grad_logprobs_BT, expected.grad_logprobs_BT),
        **{name: difference(actual.sums[name], value) for name, value in expected.sums.items()},
        **{name: difference(actual.maxima[name], value) for name, value in expected.maxima.items()},
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in TOKEN_SPECS), *((name, torch.float32) for name in PRESETS)],
    ids=str,
)
def test_as_the_torch_path(name: str, dtype: torch.dtype) -> None:
    spec = TOKEN_SPECS[name]
    now_BT, tokens = make(dtype)
    actual = kernels.evaluate(now_BT, tokens, spec)
    apart = differences(actual, torch_path.evaluate(now_BT, tokens, spec))
    assert max(apart.values()) < TOLERANCE[dtype], apart
    assert not actual.grad_logprobs_BT[tokens.mask_BT == 0].any()


@pytest.mark.parametrize("name", TOKEN_SPECS)
def test_as_the_torch_path_on_policy_without_a_reference(name: str) -> None:
    now_BT, tokens = make(torch.float32, old=False, reference=False, seed=1)
    apart = differences(
        kernels.evaluate(now_BT, tokens, TOKEN_SPECS[name]), torch_path.evaluate(now_BT, tokens, TOKEN_SPECS[name])
    )
    assert max(apart.values()) < TOLERANCE[torch.float32], apart


@pytest.mark.parametrize("name", ["dapo", "gspo", "gspo with a mask"])
def test_rows_longer_than_a_block(name: str) -> None:
    now_BT, tokens = make(torch.float32, shape=(2, 2 * 1024 + 3), seed=2)
    actual, expected = (module.evaluate(now_BT, tokens, TOKEN_SPECS[name]) for module in (kernels, torch_path))
    apart = differences(actual, expected)
    # 1,400 terms of either sign: the rounding of their sum is relative to their sizes.
    terms_BT = (tokens.weights_BT * tokens.advantages_BT).masked_fill(tokens.mask_BT == 0, 0.0).abs()
    apart["loss"] = float((actual.loss - expected.loss).abs() / terms_BT.sum())
    assert max(apart.values()) < TOLERANCE[torch.float32], apart


#: Two that differ by little: it must be seen.
CANARIES: dict[str, tuple[ObjectiveSpec, ObjectiveSpec]] = {
    "upper bound": (SMALL_STEP, replace(SMALL_STEP, clip_high=0.2802)),
    "lower bound": (SMALL_STEP, replace(SMALL_STEP, clip_low=0.2002)),
    "correction": (ObjectiveSpec(correction_high=1.2), ObjectiveSpec(correction_high=1.20001)),
    "reference": (SMALL_STEP, replace(SMALL_STEP, kl_coef=1e-5)),
    "a sequence's bounds": (
        replace(SMALL_STEP, ratio="sequence_mean", clip_low=0.002, clip_high=0.002),
        replace(SMALL_STEP, ratio="sequence_mean", clip_low=0.00201, clip_high=0.00201),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CANARIES)
def test_the_tolerance_sees_a_small_change(name: str, dtype: torch.dtype) -> None:
    here, there = CANARIES[name]
    now_BT, tokens = make(dtype, shape=(6, 200), seed=3)
    apart = differences(kernels.evaluate(now_BT, tokens, here), torch_path.evaluate(now_BT, tokens, there))
    assert max(apart["loss"], apart["gradient"]) > TOLERANCE[dtype], apart


@pytest.mark.parametrize("name", ["dapo", "cispo", "gspo", "sapo", "ratio sequence, cispo", "kl k3_unbiased"])
def test_one_wild_token_stays_finite(name: str) -> None:
    now_BT, tokens = make(torch.float64, seed=4)
    wild = tuple(int(at) for at in tokens.mask_BT.nonzero()[0])
    now_BT[wild] -= 2000.0
    actual, expected = (module.evaluate(now_BT, tokens, TOKEN_SPECS[name]) for module in (kernels, torch_path))
    assert bool(actual.grad_logprobs_BT.isfinite().all())
    assert max(differences(actual, expected).values()) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("wild", [torch.nan, torch.inf, -torch.inf, 1e38], ids=str)
@pytest.mark.parametrize("name", TOKEN_SPECS)
def test_what_stands_at_masked_places_has_no_effect(name: str, wild: float) -> None:
    now_BT, inputs = make(torch.float32, seed=8)
    dropped_BT = inputs.mask_BT == 0
    named = {field.name: getattr(inputs, field.name) for field in fields(inputs) if field.name != "mask_BT"}

    def holding(value: float) -> LossAndGrad:
        filled = {name: values.masked_fill(dropped_BT, value) for name, values in named.items()}
        return kernels.evaluate(now_BT.masked_fill(dropped_BT, value), replace(inputs, **filled), TOKEN_SPECS[name])

    clean, spoilt = holding(0.0), holding(wild)
    assert set(differences(spoilt, clean).values()) == {0.0}
    assert bool(clean.grad_logprobs_BT.any())


@pytest.mark.parametrize("field", ["advantages_BT", "weights_BT"])
@pytest.mark.parametrize("name", TOKEN_SPECS)
def test_a_sequence_s_mean_in_place_of_its_tokens_is_seen(name: str, field: str) -> None:
    now_BT, inputs = make(torch.float32, seed=8)
    averaged = getattr(inputs, field).mean(dim=1, keepdim=True).expand_as(now_BT)
    apart = differences(
        kernels.evaluate(now_BT, replace(inputs, **{field: averaged}), TOKEN_SPECS[name]),
        torch_path.evaluate(now_BT, inputs, TOKEN_SPECS[name]),
    )
    assert min(apart["loss"], apart["gradient"]) > 1e3 * TOLERANCE[torch.float32], apart


def test_no_loss_token_is_a_differentiable_zero() -> None:
    now_BT, tokens = make(torch.float32)
    empty = replace(tokens, mask_BT=torch.zeros_like(tokens.mask_BT))
    for spec in (PRESETS["dapo"], PRESETS["gspo"]):
        done = kernels.evaluate(now_BT, empty, spec)
        assert float(done.loss) == 0.0
        assert not done.grad_logprobs_BT.any()


def test_backward_multiplies_the_gradient() -> None:
    now_BT, tokens = make(torch.float32)
    now_BT = now_BT.nan_to_num().requires_grad_()
    ids = torch.zeros(now_BT.shape, dtype=torch.int64, device=DEVICE)
    batch = Batch(
        token_ids_BT=ids,
        targets_BT=ids,
        loss_mask_BT=tokens.mask_BT,
        sampler_logprobs_BT=tokens.sampler_logprobs_BT,
        advantages_BT=tokens.advantages_BT,
        weights_BT=tokens.weights_BT,
    )
    output = kernels.policy_loss(now_BT, tokens.old_logprobs_BT, batch, SMALL_STEP, tokens.reference_logprobs_BT)
    (output.loss * 3.0).backward()
    expected = torch_path.evaluate(now_BT.detach(), tokens, SMALL_STEP).grad_logprobs_BT
    assert now_BT.grad is not None
    assert difference(now_BT.grad, 3.0 * expected) < TOLERANCE[torch.float32]
    assert bool(expected.any())


@pytest.mark.parametrize("name", ["dapo", "gspo with a mask"])
def test_sequences_apart_are_sequences_together(name: str) -> None:
    now_BT, tokens = make(torch.float32, seed=5)
    spec = TOKEN_SPECS[name]
    whole = kernels.evaluate(now_BT, tokens, spec)
    parts = [kernels.evaluate(now_BT[one], tokens.rows(one), spec) for one in (slice(0, 2), slice(2, 3))]
    assert torch.equal(torch.cat([part.grad_logprobs_BT for part in parts]), whole.grad_logprobs_BT)
    assert difference(sum((part.loss for part in parts), torch.zeros_like(whole.loss)), whole.loss) < 1e-12


def test_two_runs_agree_bit_for_bit() -> None:
    now_BT, tokens = make(torch.float32, seed=6)
    for name in ("dapo", "gspo"):
        one, two = (kernels.evaluate(now_BT, tokens, TOKEN_SPECS[name]) for _ in range(2))
        assert torch.equal(one.loss, two.loss)
        assert torch.equal(one.grad_logprobs_BT, two.grad_logprobs_BT)
        assert all(torch.equal(one.sums[key], two.sums[key]) for key in one.sums)
