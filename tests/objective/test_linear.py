"""The head with the loss in it (K3 on the CPU), against whole logits, log_softmax and autograd in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlreason.objective.batch import Batch
from rlreason.objective.linear import HeadOptions, linear_logprobs, linear_policy_loss, linear_supervised_loss
from rlreason.objective.loss import policy_loss, supervised_loss
from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec

B, T, H, V = 4, 6, 5, 11
SPECS = {
    **PRESETS,
    "a sequence's correction": ObjectiveSpec(correction="mis", correction_level="sequence_mean", correction_low=0.9),
    "off-policy mask": ObjectiveSpec(off_policy_delta=0.05),
    "a kl": ObjectiveSpec(kl_coef=0.1, kl_estimator="k3_unbiased"),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def make(dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Batch, Tensor, Tensor]:
    """hidden, weight, batch, log π_old, log π_ref; the third sequence has no loss token."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden, weight = normal(B, T, H), normal(V, H)
    mask = (torch.rand((B, T), generator=generator) < 0.7).float()
    mask[2] = 0.0
    targets = torch.randint(V, (B, T), generator=generator)
    now_BT = torch.log_softmax(hidden @ weight.t() / 0.8, -1).gather(-1, targets[..., None])[..., 0]
    old_BT = now_BT + 0.2 * normal(B, T)
    batch = Batch(
        token_ids_BT=targets,
        targets_BT=targets,
        loss_mask_BT=mask,
        sampler_logprobs_BT=(old_BT + 0.1 * normal(B, T)).to(dtype),
        advantages_BT=(normal(B, T) * mask).to(dtype),
        weights_BT=(torch.rand((B, T), generator=generator).double() * mask / 10).to(dtype),
    )
    return hidden.to(dtype), weight.to(dtype), batch, old_BT.to(dtype), (now_BT + 0.3 * normal(B, T)).to(dtype)


def dense_logprobs(hidden: Tensor, weight: Tensor, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    logs = torch.log_softmax(hidden @ weight.t() / temperature, dim=-1)
    entropy = -(logs.exp() * logs).sum(-1)
    return logs.gather(-1, batch.targets_BT.unsqueeze(-1)).squeeze(-1), entropy


def results(loss: Tensor, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]


def with_grad(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def wide(batch: Batch) -> Batch:
    return replace(
        batch,
        sampler_logprobs_BT=batch.sampler_logprobs_BT.double(),
        advantages_BT=batch.advantages_BT.double(),
        weights_BT=batch.weights_BT.double(),
    )


def apart(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference, relative to the largest expected value or 1."""
    return max(
        float((one.double() - other).abs().max() / other.abs().max().clamp(min=1.0))
        for one, other in zip(actual, expected, strict=True)
    )


def both(
    spec: ObjectiveSpec, dtype: torch.dtype, options: HeadOptions, *, old: bool = True, off: float = 0.0
) -> tuple[list[Tensor], list[Tensor]]:
    """(ours, from whole float64 logits of the same numbers): loss, gradients, log π, entropy, metrics."""
    hidden, weight, batch, old_BT, reference_BT = make(dtype)
    reference = reference_BT if spec.kl_coef and spec.kl_in == "loss" else None
    ours = with_grad(hidden, weight)
    output = linear_policy_loss(*ours, batch, spec, old_BT if old else None, reference, options)
    exact = with_grad(hidden.double(), weight.double() * (1.0 + off))
    now_BT, entropy_BT = dense_logprobs(*exact, batch, options.temperature)
    plain = policy_loss(
        now_BT,
        old_BT.double() if old else None,
        wide(batch),
        spec,
        None if reference is None else reference.double(),
    )
    assert output.sums.keys() == plain.sums.keys()
    assert output.maxima.keys() == plain.maxima.keys()
    mask = batch.loss_mask_BT
    return (
        [*results(output.loss, *ours), output.logprobs_BT, output.entropy_BT,
         *output.sums.values(), *output.maxima.values()],
        [*results(plain.loss, *exact), (now_BT * mask).detach(), (entropy_BT * mask).detach(),
         *(plain.sums[name] for name in output.sums), *(plain.maxima[name] for name in output.maxima)],
    )  # fmt: skip


@pytest.mark.parametrize("tile_rows", [1, 3, None])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_as_whole_logits(name: str, old: bool, tile_rows: int | None) -> None:
    options = HeadOptions(temperature=0.8, tile_rows=tile_rows)
    for dtype, tolerance in TOLERANCE.items():
        assert apart(*both(SPECS[name], dtype, options, old=old)) <= tolerance, dtype


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_tolerance_sees_a_small_change(dtype: torch.dtype) -> None:
    spec = PRESETS["dapo"]
    assert apart(*both(spec, dtype, HeadOptions(), off=30 * TOLERANCE[dtype])) > TOLERANCE[dtype]
    warm, plain = (HeadOptions(temperature=1.0 + warmer) for warmer in (30 * TOLERANCE[dtype], 0.0))
    assert apart(both(spec, dtype, warm)[0], both(spec, torch.float64, plain)[1]) > TOLERANCE[dtype]


def test_gradient_in_the_forward_pass_is_the_recomputed_one() -> None:
    for name in ("grpo", "dapo", "cispo", "sapo", "a kl"):
        one, _ = both(SPECS[name], torch.float64, HeadOptions(tile_rows=3, gradient="forward"))
        two, _ = both(SPECS[name], torch.float64, HeadOptions(tile_rows=3, gradient="recompute"))
        assert apart(one, two) < 1e-13


def test_forward_gradient_is_refused_where_a_sequence_decides() -> None:
    hidden, weight, batch, old_BT, _ = make(torch.float64)
    with pytest.raises(ValueError, match="depends on its sequence"):
        linear_policy_loss(hidden, weight, batch, PRESETS["gspo"], old_BT, options=HeadOptions(gradient="forward"))
    ratio_alone = replace(PRESETS["gspo"], correction="none")  # on-policy it is 1 at every level
    on_policy = linear_policy_loss(hidden, weight, batch, ratio_alone, options=HeadOptions(gradient="forward"))
    assert bool(on_policy.loss.isfinite())


def test_masked_positions_have_no_effect_at_all() -> None:
    hidden, weight, batch, old_BT, _ = make(torch.float32)
    spoilt = torch.where(batch.loss_mask_BT[..., None] > 0, hidden, torch.nan)
    found = []
    for states in (hidden, spoilt):
        leaf, head = with_grad(states, weight)
        output = linear_policy_loss(leaf, head, batch, PRESETS["dapo"], old_BT)
        found.append([*results(output.loss, leaf, head), output.logprobs_BT, output.entropy_BT])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not found[0][1][batch.loss_mask_BT == 0].any()


@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf, 1e38], ids=str)
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_what_the_sampler_says_of_a_masked_token_has_no_effect(name: str, old: bool, wild: float) -> None:
    hidden, weight, batch, old_BT, reference_BT = make(torch.float32)
    spoilt = replace(batch, sampler_logprobs_BT=batch.sampler_logprobs_BT.masked_fill(batch.loss_mask_BT == 0, wild))
    found = []
    for given in (batch, spoilt):
        leaves = with_grad(hidden, weight)
        output = linear_policy_loss(*leaves, given, SPECS[name], old_BT if old else None, reference_BT)
        found.append([*results(output.loss, *leaves), *output.sums.values(), *output.maxima.values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert bool(found[1][0].isfinite())


@pytest.mark.parametrize("field", ["advantages_BT", "weights_BT"])
def test_one_number_for_a_whole_sequence_is_refused(field: str) -> None:
    hidden, weight, batch, old_BT, _ = make(torch.float32)
    narrow = replace(batch, **{field: torch.ones((B, 1))})
    with pytest.raises(ValueError, match=rf"{field} holds one number for each target: its shape is \[4, 1\]"):
        linear_policy_loss(hidden, weight, narrow, PRESETS["dapo"], old_BT)


def test_given_rows_are_the_rows_of_the_mask() -> None:
    hidden, weight, batch, old_BT, _ = make(torch.float64)
    places = batch.loss_mask_BT.reshape(-1).nonzero()[:, 0]
    one = linear_policy_loss(hidden, weight, batch, PRESETS["dapo"], old_BT)
    two = linear_policy_loss(hidden, weight, batch, PRESETS["dapo"], old_BT, options=HeadOptions(rows_R=places))
    assert torch.equal(one.loss, two.loss)


def test_only_what_is_wanted_has_a_gradient() -> None:
    hidden, weight, batch, old_BT, _ = make(torch.float64)
    both_of, frozen = with_grad(hidden, weight), with_grad(hidden)[0]
    full = torch.autograd.grad(linear_policy_loss(*both_of, batch, PRESETS["gspo"], old_BT).loss, both_of)
    output = linear_policy_loss(frozen, weight, batch, PRESETS["gspo"], old_BT)
    assert torch.equal(torch.autograd.grad(output.loss, frozen)[0], full[0])
    with torch.no_grad():
        assert not linear_policy_loss(*both_of, batch, PRESETS["gspo"], old_BT).loss.requires_grad
    tied = with_grad(weight)[0]  # the embedding is the head too: hidden states depend on it
    embedded = tied[batch.token_ids_BT]
    (grad,) = torch.autograd.grad(linear_policy_loss(embedded, tied, batch, PRESETS["dapo"], old_BT).loss, tied)
    now_BT, _ = dense_logprobs(tied[batch.token_ids_BT], tied, batch, 1.0)
    (expected,) = torch.autograd.grad(policy_loss(now_BT, old_BT, batch, PRESETS["dapo"]).loss, tied)
    assert torch.allclose(grad, expected, atol=1e-13)


def test_no_loss_token_is_a_zero_with_a_gradient() -> None:
    hidden, weight, batch, old_BT, _ = make(torch.float32)
    empty = replace(batch, loss_mask_BT=torch.zeros_like(batch.loss_mask_BT))
    for spec in (PRESETS["dapo"], PRESETS["gspo"]):
        leaves = with_grad(hidden, weight)
        loss, *grads = results(linear_policy_loss(*leaves, empty, spec, old_BT).loss, *leaves)
        assert float(loss) == 0.0
        assert not any(grad.any() for grad in grads)


def test_the_gradient_of_a_certain_token_keeps_its_digits() -> None:
    """π = 1 − e⁻³⁰ in float64; in float32 1 − π is 0, but −expm1(log π) is not: log π itself must carry it."""
    weight = torch.tensor([[0.0], [9.0]], dtype=torch.float32)
    batch = replace(
        make(torch.float32)[2],
        targets_BT=torch.ones((1, 1), dtype=torch.long),
        loss_mask_BT=torch.ones((1, 1)),
    )
    hidden = torch.ones((1, 1, 1), requires_grad=True)
    output = linear_supervised_loss(hidden, weight, batch, 1.0)
    (grad,) = torch.autograd.grad(output.loss, hidden)
    expected = -9.0 * torch.tensor(-9.0).double().exp() / (1 + torch.tensor(-9.0).double().exp())
    assert float(grad) == pytest.approx(float(expected), rel=1e-3)


def test_gradcheck() -> None:
    hidden, weight, batch, old_BT, reference_BT = make(torch.float64, seed=3)
    leaves = with_grad(hidden, weight)
    for name in ("dapo", "gspo", "a kl"):
        spec = SPECS[name]
        # A sequence's ratio has each token's own gradient: the loss's, where all tokens have one advantage and weight.
        given = one_number_per_sequence(batch) if spec.ratio == "sequence_mean" else batch

        def loss(*inputs: Tensor, spec: ObjectiveSpec = spec, batch: Batch = given) -> Tensor:
            reference = reference_BT if spec.kl_coef else None
            return linear_policy_loss(*inputs, batch, spec, old_BT, reference, HeadOptions(tile_rows=4)).loss

        assert torch.autograd.gradcheck(loss, leaves)


def one_number_per_sequence(batch: Batch) -> Batch:
    rows_B1, mask_BT = torch.arange(1.0, B + 1, dtype=torch.float64)[:, None], batch.loss_mask_BT
    return replace(batch, advantages_BT=(rows_B1 - 2.5) * mask_BT, weights_BT=rows_B1 / 20 * mask_BT)


def test_supervised_and_plain_log_probabilities() -> None:
    for dtype, tolerance in TOLERANCE.items():
        hidden, weight, batch, _, _ = make(dtype)
        ours, exact = with_grad(hidden, weight), with_grad(hidden.double(), weight.double())
        output = linear_supervised_loss(*ours, batch, 7.0, HeadOptions(tile_rows=4))
        now_BT, entropy_BT = dense_logprobs(*exact, batch, 1.0)
        plain = supervised_loss(now_BT, batch.loss_mask_BT.double(), 7.0)
        assert apart(results(output.loss, *ours), results(plain.loss, *exact)) <= tolerance
        assert float(output.sums["loss"]) == pytest.approx(float(plain.sums["loss"]), abs=tolerance * 10)
        logprobs_BT, entropies_BT = linear_logprobs(hidden, weight, batch)
        mask = batch.loss_mask_BT
        assert apart([logprobs_BT, entropies_BT], [(now_BT * mask).detach(), (entropy_BT * mask).detach()]) <= tolerance


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 3 * 2**-9), (torch.float16, 2**-11)])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, most: float) -> None:
    """Log π and loss are. Gradients: float16 is rounded once, in the end; bfloat16 as an operand, as a product and as
    what it is scaled to, 2⁻⁹ each."""
    hidden, weight, batch, old_BT, _ = make(torch.float32)
    half = with_grad(hidden.to(dtype), weight.to(dtype))
    exact = with_grad(*(tensor.detach().double() for tensor in half))
    output = linear_policy_loss(*half, batch, PRESETS["dapo"], old_BT)
    now_BT, _ = dense_logprobs(*exact, batch, 1.0)
    plain = policy_loss(now_BT, old_BT.double(), wide(batch), PRESETS["dapo"])
    (loss, *grads), (expected, *exact_grads) = results(output.loss, *half), results(plain.loss, *exact)
    assert apart([loss, output.logprobs_BT], [expected, (now_BT * batch.loss_mask_BT).detach()]) <= 1e-6
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == dtype
        assert float((grad.double() - exact_grad).abs().max() / exact_grad.abs().max()) <= most
    mask_BT = batch.loss_mask_BT
    rounded_BTV = torch.log_softmax((half[0] @ half[1].t()).detach(), -1)
    rounded_BT = rounded_BTV.gather(2, batch.targets_BT.unsqueeze(2))[..., 0]
    assert apart([rounded_BT * mask_BT], [(now_BT * mask_BT).detach()]) > 1e-4  # canary
