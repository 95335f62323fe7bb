"""K3 against whole float64 logits. Runs from ``tests/objective/test_kernels.py``, or alone on a GPU.

The row kernel is proved alone, on given float32 logits, and the whole head beside it, where float32 matrix products
round before and behind the kernel.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import DEVICE, INTERPRETED, TOKEN_SPECS, TOLERANCE, difference
from torch import Tensor

from rlreason.objective import linear as torch_path
from rlreason.objective.batch import Batch
from rlreason.objective.kernels import linear as kernels
from rlreason.objective.kernels.plan import Plan
from rlreason.objective.kernels.rows import RowInputs, RowOutputs, RowPlan, row_kernel
from rlreason.objective.linear import HeadLoss, HeadOptions
from rlreason.objective.loss import policy_loss, supervised_loss
from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.token_rows import TokenRows

#: Largest distance, relative to the length, of a half-precision gradient from the exact one of the same numbers. The
#: last rounding alone makes up to 2.2e-3 of bfloat16's, that of the logits' gradient as much again; the interpreter
#: cuts bfloat16 off where a GPU rounds to the nearest.
HALF = {torch.bfloat16: 6e-3 if INTERPRETED else 4e-3, torch.float16: 1e-3}
WARM = HeadOptions(temperature=0.75, tile_rows=3)  # 0.75: a float32 number too


class Case:
    """A head and a batch. The third sequence has no loss token; masked places hold nan."""

    def __init__(self, dtype: torch.dtype, vocabulary: int = 100, width: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        shape = (3, 3)
        mask_BT = (torch.rand(shape, generator=generator) < 0.7).float()
        mask_BT[2] = mask_BT[0, 0] = 0.0
        hidden = normal(*shape, width).to(dtype)
        self.weight = (1.5 * normal(vocabulary, width) / width**0.5).to(DEVICE, dtype)
        targets_BT = torch.randint(0, vocabulary, shape, generator=generator)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        logs = torch.log_softmax(hidden.double() @ self.weight.cpu().double().t() / 0.75, -1)
        before_BT = logs.gather(-1, targets_BT[..., None])[..., 0] + 0.2 * normal(*shape)
        self.hidden = torch.where(mask_BT[..., None] > 0, hidden, torch.nan).to(DEVICE)
        self.old = before_BT.to(DEVICE, wide)
        self.reference = (before_BT + 0.3 * normal(*shape)).to(DEVICE, wide)
        self.batch = Batch(
            token_ids_BT=targets_BT.to(DEVICE),
            targets_BT=targets_BT.to(DEVICE),
            loss_mask_BT=mask_BT.to(DEVICE),
            sampler_logprobs_BT=(before_BT + 0.3 * normal(*shape)).to(DEVICE, wide),
            advantages_BT=normal(*shape).to(DEVICE, wide),
            weights_BT=torch.rand(shape, generator=generator).to(DEVICE, wide),
        )

    def kernels(
        self, spec: ObjectiveSpec, options: HeadOptions = WARM, *, old: bool = True
    ) -> tuple[HeadLoss, dict[str, Tensor]]:
        hidden, weight = (tensor.clone().requires_grad_() for tensor in (self.hidden, self.weight))
        earlier = self.old if old else None
        output = kernels.linear_policy_loss(hidden, weight, self.batch, spec, earlier, self.reference, options)
        return output, seen(output, torch.autograd.grad(output.loss, (hidden, weight)))

    def dense(
        self, spec: ObjectiveSpec, options: HeadOptions = WARM, *, old: bool = True, off: float = 0.0
    ) -> dict[str, Tensor]:
        """Whole logits, log_softmax and autograd in float64 on the CPU, from the same numbers."""
        mask_BT = self.batch.loss_mask_BT.cpu().double()
        hidden = self.hidden.cpu().double().nan_to_num().requires_grad_()
        weight = (self.weight.cpu().double() * (1.0 + off)).requires_grad_()
        logs = torch.log_softmax(hidden @ weight.t() / options.temperature, dim=-1)
        now_BT = logs.gather(-1, self.batch.targets_BT.cpu()[..., None])[..., 0]
        earlier = self.old.cpu().double() if old else None
        output = policy_loss(now_BT, earlier, wide_batch(self.batch), spec, self.reference.cpu().double())
        entropy_BT = -(logs.exp() * logs).sum(-1)
        bonus = (spec.entropy_coef * entropy_BT * wide_batch(self.batch).weights_BT * mask_BT).sum()
        output = replace(output, loss=output.loss - bonus)
        gradients = torch.autograd.grad(output.loss, (hidden, weight))
        return {
            "loss": output.loss.detach(),
            "hidden": gradients[0],
            "weight": gradients[1],
            "logprobs": (now_BT * mask_BT).detach(),
            "entropy": (entropy_BT * mask_BT).detach(),
            **{name: value.detach() for name, value in {**output.sums, **output.maxima}.items()},
        }


def seen(output: HeadLoss, gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {
        "loss": output.loss.detach(),
        "hidden": gradients[0],
        "weight": gradients[1],
        "logprobs": output.logprobs_BT,
        "entropy": output.entropy_BT,
        **output.sums,
        **output.maxima,
    }


def wide_batch(batch: Batch) -> Batch:
    return Batch(
        token_ids_BT=batch.token_ids_BT.cpu(),
        targets_BT=batch.targets_BT.cpu(),
        loss_mask_BT=batch.loss_mask_BT.cpu(),
        sampler_logprobs_BT=batch.sampler_logprobs_BT.cpu().double(),
        advantages_BT=batch.advantages_BT.cpu().double(),
        weights_BT=batch.weights_BT.cpu().double(),
    )


def differences(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert actual.keys() == expected.keys()
    return {name: difference(actual[name], expected[name]) for name in expected}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks to a row, the last one part empty, without a large vocabulary."""
    monkeypatch.setattr(kernels, "_BLOCK", 64)


# ---- the row kernel alone


def rows_alone(logits_RV: Tensor, targets_R: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log π, entropy, d log π/d logits) of given logits: the gradient by each row's log π is 1."""
    rows, vocabulary = logits_RV.shape
    tile_RV, zeros_R = logits_RV.clone(), logits_RV.new_zeros(rows)
    outputs = RowOutputs(
        logprobs=zeros_R.double(),
        entropies=zeros_R.clone(),
        grad_logprobs=torch.ones_like(zeros_R),
        normalisers=logits_RV.new_empty(rows, 2),
        partials=logits_RV.new_empty(8, rows),
    )
    row_kernel[(rows,)](
        (tile_RV, tile_RV),
        RowInputs(torch.arange(rows, device=DEVICE), targets_R, None, zeros_R, None, zeros_R, zeros_R),
        outputs,
        (0, rows, vocabulary, vocabulary, vocabulary),
        (temperature, 0.0),
        RowPlan(Plan(ObjectiveSpec(), False, False), True, False, True, False, temperature != 1.0, False),
        4096,
        num_warps=8,
    )
    return outputs.logprobs, outputs.entropies, tile_RV


def rows_exactly(logits_RV: Tensor, targets_R: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    exact_RV = logits_RV.cpu().double().requires_grad_()
    logs_RV = torch.log_softmax(exact_RV / temperature, -1)
    chosen_R = logs_RV.gather(1, targets_R.cpu()[:, None])[:, 0]
    (gradient_RV,) = torch.autograd.grad(chosen_R.sum(), exact_RV)
    return chosen_R.detach(), -(logs_RV.exp() * logs_RV).sum(1).detach(), gradient_RV


def some_logits(kind: str) -> tuple[Tensor, Tensor]:
    """float32 logits over the vocabulary of Qwen3, not a multiple of the block, and targets likely and unlikely."""
    generator = torch.Generator().manual_seed(len(kind))
    logits_RV = torch.randn((2, 151_936), generator=generator)
    if kind == "wide":
        logits_RV *= 8.0
    elif kind == "certain":
        logits_RV[:, 4095:4097] += 30.0
    elif kind == "rising":  # each block has a larger logit than all before
        logits_RV += torch.linspace(-40.0, 40.0, logits_RV.shape[1])
    elif kind == "far from 0":
        logits_RV += 100.0
    likely_R = logits_RV.argmax(1)
    targets_R = torch.where(torch.arange(2) == 0, likely_R, torch.tensor([0, 151_935]))
    return logits_RV.to(DEVICE), targets_R.to(DEVICE)


@pytest.mark.parametrize(
    ("kind", "temperature"),
    [("plain", 1.0), ("wide", 1.0), ("certain", 0.75), ("rising", 1.0), ("rising", 0.75), ("far from 0", 0.75)],
)
def test_rows_of_given_logits(kind: str, temperature: float) -> None:
    logits_RV, targets_R = some_logits(kind)
    actual, expected = (which(logits_RV, targets_R, temperature) for which in (rows_alone, rows_exactly))
    apart = [difference(one, other) for one, other in zip(actual, expected, strict=True)]
    assert max(apart) <= TOLERANCE[torch.float32], apart
    assert bool((actual[0] <= 0.0).all())
    assert bool((actual[1] >= 0.0).all())


def test_the_tolerance_of_rows_sees_two_parts_in_a_hundred_thousand() -> None:
    logits_RV, targets_R = some_logits("plain")
    actual = rows_alone(logits_RV, targets_R, 1.0)
    apart = [
        difference(one, other) for one, other in zip(actual, rows_exactly(logits_RV, targets_R, 1.00002), strict=True)
    ]
    assert min(apart) > TOLERANCE[torch.float32], apart
    raised_RV = logits_RV.clone()
    raised_RV[:, 100] += 4.0  # one of 151,936
    apart = [difference(one, other) for one, other in zip(actual, rows_exactly(raised_RV, targets_R, 1.0), strict=True)]
    assert min(apart) > TOLERANCE[torch.float32], apart


# ---- the whole head


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in TOKEN_SPECS), *((name, torch.float32) for name in PRESETS)],
    ids=str,
)
def test_as_whole_logits(name: str, dtype: torch.dtype) -> None:
    case = Case(dtype)
    apart = differences(case.kernels(TOKEN_SPECS[name])[1], case.dense(TOKEN_SPECS[name]))
    assert max(apart.values()) <= TOLERANCE[dtype], apart


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["dapo", "gspo", "cispo", "gspo with a mask"])
def test_as_whole_logits_on_policy_and_without_temperature(name: str) -> None:
    case, options = Case(torch.float64, seed=1), HeadOptions(tile_rows=2)
    apart = differences(
        case.kernels(TOKEN_SPECS[name], options, old=False)[1], case.dense(TOKEN_SPECS[name], options, old=False)
    )
    assert max(apart.values()) <= TOLERANCE[torch.float64], apart


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_tolerance_sees_a_small_change(dtype: torch.dtype) -> None:
    case, spec = Case(dtype), PRESETS["dapo"]
    actual = case.kernels(spec)[1]
    off = differences(actual, case.dense(spec, off=30 * TOLERANCE[dtype]))
    assert min(off[name] for name in ("loss", "hidden", "weight", "logprobs", "entropy")) > TOLERANCE[dtype], off
    warmer = replace(WARM, temperature=0.75 * (1.0 + 30 * TOLERANCE[dtype]))
    assert max(differences(actual, case.dense(spec, warmer)).values()) > TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_vocabulary_of_more_than_one_block(dtype: torch.dtype) -> None:
    """float32: the gradient of the hidden states is a float32 product over 4,500 columns, and 2.6e-6 off at worst over
    three seeds and four objectives (the torch path: 2.2e-6); all else is within 1e-6."""
    case = Case(dtype, vocabulary=4500)
    apart = differences(case.kernels(PRESETS["dapo"])[1], case.dense(PRESETS["dapo"]))
    if dtype == torch.float32:
        assert apart.pop("hidden") < 4e-6
    else:
        assert max(apart.pop("hidden"), apart.pop("weight")) < HALF[dtype]
    assert max(apart.values()) <= TOLERANCE[torch.float32], apart


def far(actual: Tensor, expected: Tensor) -> float:
    """Distance relative to the length."""
    return float((actual.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_half_precision_gradients_in_the_memory_of_the_logits(name: str, dtype: torch.dtype) -> None:
    case = Case(dtype, seed=2)
    actual, expected = case.kernels(PRESETS[name])[1], case.dense(PRESETS[name])
    assert actual["hidden"].dtype == actual["weight"].dtype == dtype
    for leaf in ("hidden", "weight"):
        assert far(actual[leaf], expected[leaf]) < HALF[dtype]
        assert far((1.0 + 2.5 * HALF[dtype]) * actual[leaf].double(), expected[leaf]) > HALF[dtype]  # canary
    apart = differences(actual, {**expected, "hidden": actual["hidden"], "weight": actual["weight"]})
    assert max(apart.values()) <= TOLERANCE[torch.float32], apart


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["grpo", "dapo", "cispo", "sapo", "kl k3_unbiased"])
def test_three_products_are_four(name: str) -> None:
    case = Case(torch.float64, seed=3)
    three, four = (
        case.kernels(TOKEN_SPECS[name], replace(WARM, gradient=gradient))[1] for gradient in ("forward", "recompute")
    )
    assert max(differences(three, four).values()) < 1e-13
    assert bool(three["weight"].any())


def test_forward_gradient_is_refused_where_a_sequence_decides() -> None:
    with pytest.raises(ValueError, match="depends on its sequence"):
        Case(torch.float64).kernels(PRESETS["gspo"], HeadOptions(gradient="forward"))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("wild", [torch.nan, torch.inf, -torch.inf, 1e38], ids=str)
@pytest.mark.parametrize("name", ["dapo", "grpo", "gspo", "mis geometric", "off-policy mask"])
def test_what_stands_at_masked_places_has_no_effect(name: str, wild: float) -> None:
    """The sampler's log-probabilities, old ones, the reference's, advantages and weights; nan among hidden states."""
    case = Case(torch.float32, seed=8)
    found = []
    for value in (0.0, wild):
        masked_BT = case.batch.loss_mask_BT == 0
        filled = {
            name: getattr(case.batch, name).masked_fill(masked_BT, value)
            for name in ("sampler_logprobs_BT", "advantages_BT", "weights_BT")
        }
        case.batch = replace(case.batch, **filled)
        case.old = case.old.masked_fill(masked_BT, value)
        case.reference = case.reference.masked_fill(masked_BT, value)
        found.append(case.kernels(TOKEN_SPECS[name])[1])
    assert set(differences(found[1], found[0]).values()) == {0.0}
    assert bool(found[0]["weight"].any())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("field", ["advantages_BT", "weights_BT"])
@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_a_sequence_s_mean_in_place_of_its_tokens_is_seen(name: str, field: str) -> None:
    case = Case(torch.float64, seed=9)
    expected, values_BT = case.dense(PRESETS[name]), getattr(case.batch, field)
    case.batch = replace(case.batch, **{field: values_BT.mean(dim=1, keepdim=True).expand_as(values_BT)})
    assert differences(case.kernels(PRESETS[name])[1], expected)["weight"] > 1e-3


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("gradient", ["auto", "recompute"])
@pytest.mark.parametrize("name", ["dapo", "gspo", "grpo", "flash_reinforce"])
def test_an_entropy_bonus(name: str, gradient: str) -> None:
    options = replace(WARM, gradient=gradient)  # type: ignore[arg-type]
    for dtype in (torch.float64, torch.float32):
        case, spec = Case(dtype, seed=5), replace(PRESETS[name], entropy_coef=0.3)
        found = case.kernels(spec, options)[1]
        apart = differences(found, case.dense(spec, options))
        assert max(apart.values()) < TOLERANCE[dtype], apart
        other = differences(found, case.dense(replace(spec, entropy_coef=0.3001), options))  # canary
        assert min(other[key] for key in ("loss", "hidden", "weight")) > TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_given_rows_are_the_rows_of_the_mask(name: str) -> None:
    case = Case(torch.float64, seed=4)
    places = case.batch.loss_mask_BT.reshape(-1).nonzero()[:, 0]
    plain = case.kernels(PRESETS[name])[1]
    apart = differences(case.kernels(PRESETS[name], replace(WARM, rows_R=places))[1], plain)
    assert max(apart.values()) < 1e-13
    short = case.kernels(PRESETS[name], replace(WARM, rows_R=places[1:]))[1]
    assert differences(short, plain)["weight"] > 1e-6  # canary


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_only_what_is_wanted_has_a_gradient(name: str) -> None:
    case = Case(torch.float64, seed=5)
    whole = case.kernels(PRESETS[name])[1]
    for leaf in ("hidden", "weight"):
        hidden, weight = case.hidden.clone(), case.weight.clone()
        wanted = (hidden if leaf == "hidden" else weight).requires_grad_()
        output = kernels.linear_policy_loss(hidden, weight, case.batch, PRESETS[name], case.old, None, WARM)
        (gradient,) = torch.autograd.grad(3.0 * output.loss, wanted)
        assert difference(gradient, 3.0 * whole[leaf]) < 1e-13
    with torch.no_grad():
        output = kernels.linear_policy_loss(wanted, weight, case.batch, PRESETS[name], case.old, None, WARM)
    assert not output.loss.requires_grad


@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_no_loss_token_is_a_zero_with_a_gradient(name: str) -> None:
    case = Case(torch.float32)
    case.batch = replace(case.batch, loss_mask_BT=torch.zeros_like(case.batch.loss_mask_BT))
    found = case.kernels(PRESETS[name])[1]
    assert float(found["loss"]) == 0.0
    assert not any(bool(found[leaf].any()) for leaf in ("hidden", "weight", "logprobs", "entropy"))


@pytest.mark.usefixtures("small_blocks")
def test_two_runs_agree_bit_for_bit() -> None:
    case = Case(torch.bfloat16, seed=6)
    one, two = (case.kernels(PRESETS["grpo"])[1] for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_supervised_and_plain_log_probabilities(dtype: torch.dtype) -> None:
    case = Case(dtype, seed=7)
    hidden, weight = (tensor.clone().requires_grad_() for tensor in (case.hidden, case.weight))
    output = kernels.linear_supervised_loss(hidden, weight, case.batch, 7.0, WARM)
    gradients_of_ours = torch.autograd.grad(output.loss, (hidden, weight))
    exact, head = (t.cpu().double().nan_to_num().requires_grad_() for t in (case.hidden, case.weight))
    logs = torch.log_softmax(exact @ head.t() / 0.75, dim=-1)
    now_BT = logs.gather(-1, case.batch.targets_BT.cpu()[..., None])[..., 0]
    plain = supervised_loss(now_BT, case.batch.loss_mask_BT.cpu().double(), 7.0)
    gradients = torch.autograd.grad(plain.loss, (exact, head))
    assert difference(output.loss.detach(), plain.loss.detach()) <= TOLERANCE[dtype]
    assert difference(output.sums["loss"], plain.sums["loss"]) <= TOLERANCE[dtype]
    for ours, expected_gradient in zip(gradients_of_ours, gradients, strict=True):
        assert difference(ours, expected_gradient) <= TOLERANCE[dtype]
        assert difference(ours * (1.0 + 30 * TOLERANCE[dtype]), expected_gradient) > TOLERANCE[dtype]
    logprobs_BT, entropy_BT = kernels.linear_logprobs(hidden, weight, case.batch, WARM)
    assert torch.equal(logprobs_BT, output.logprobs_BT)
    assert torch.equal(entropy_BT, output.entropy_BT)
    assert logprobs_BT.dtype == dtype
    if INTERPRETED:
        expected = torch_path.linear_logprobs(case.hidden, case.weight, case.batch, WARM)
        assert difference(logprobs_BT, expected[0]) <= TOLERANCE[dtype]
        assert difference(entropy_BT, expected[1]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("objective", ["tis", "off-policy mask", "old sampler"])
@pytest.mark.parametrize("kind", ["truncated", "exact", "top_k"])
def test_cut_rows_and_their_centering_are_those_of_the_torch_path(kind: str, objective: str) -> None:
    case = Case(torch.float64, vocabulary=20)
    generator = torch.Generator().manual_seed(5)
    places = case.batch.loss_mask_BT.reshape(-1).nonzero()[:, 0]
    size = 20 if kind == "exact" else 6
    ids = torch.stack([torch.randperm(20, generator=generator)[:size] for _ in range(len(places))])
    ids[:, 0] = case.batch.targets_BT.reshape(-1)[places].cpu()  # may come twice: then it counts twice, for both
    logprobs = torch.log_softmax(torch.randn(ids.shape, generator=generator, dtype=torch.float64), 1)
    sets = TokenRows(
        row_E=torch.arange(len(places)).repeat_interleave(size).to(DEVICE),
        ids_E=ids.flatten().to(DEVICE),
        ends=tuple((row + 1) * size for row in range(len(places))),
        whole=kind != "top_k",
        truncated=kind == "truncated",
        logprobs_E=(logprobs - (0.3 if kind == "top_k" else 0.0)).flatten().to(DEVICE),
    )
    batch = replace(case.batch, sampled_from=sets, loss_rows_R=places)
    options = HeadOptions(temperature=0.75, tile_rows=2, rows_R=places)
    for centering in ("off", kind if kind == "top_k" else "exact"):
        spec = replace(TOKEN_SPECS[objective], centering=centering)
        found = []
        for path in (kernels, torch_path):
            hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
            output = path.linear_policy_loss(hidden, weight, batch, spec, options=options)
            output.loss.backward()
            assert hidden.grad is not None
            assert weight.grad is not None
            found.append((output.loss.detach(), hidden.grad, weight.grad, output.logprobs_BT, output.entropy_BT))
        for mine, theirs in zip(*found, strict=True):
            assert difference(mine, theirs) < TOLERANCE[torch.float64]
