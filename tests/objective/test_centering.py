"""Score centering and truncated draws in the head: against the oracle, by enumeration, and cut up differently."""

from __future__ import annotations

from dataclasses import replace

import centering_oracle as oracle
import pytest
import torch
from torch import Tensor

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.centering import centred_output
from rlreason.objective.linear import HeadOptions, linear_logprobs, linear_policy_loss
from rlreason.objective.loss import policy_loss
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.token_rows import TokenRows

R, V, H = 6, 9, 4
PLAIN = ObjectiveSpec(correction="none", clip="none")
SPECS = {
    "no correction": PLAIN,
    "tis": replace(PLAIN, correction="tis", correction_high=1.2),
    "mis": replace(PLAIN, correction="mis", correction_low=0.6, correction_high=1.5),
    "icepop": replace(PLAIN, correction="icepop", correction_low=0.8, correction_high=1.3),
    "sampler, ppo": replace(PLAIN, old="sampler", clip="ppo", clip_low=0.1, clip_high=0.15),
    "sampler, cispo": replace(PLAIN, old="sampler", clip="cispo", clip_low=0.1, clip_high=0.2),
    "sampler, dppo": replace(PLAIN, old="sampler", clip="dppo_tv", clip_low=0.01, clip_high=0.01),
}
KINDS = ("exact", "truncated", "top_k")
EXACT = {torch.float64: 1e-12, torch.float32: 1e-6}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
each_kind = pytest.mark.parametrize("kind", KINDS)


class Case:
    """R positions, each a sequence of one token: logits are hidden · weightᵀ, the sampler's others."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        self.hidden = normal(R, 1, H).to(dtype)
        self.weight = normal(V, H).to(dtype)
        self.kind = kind
        self.logits = self.hidden.double()[:, 0] @ self.weight.double().t()
        sampler = self.logits + 0.4 * normal(R, V)
        order = sampler.argsort(dim=1, descending=True)
        self.heads = [order[r, : (V if kind == "exact" else 4)].tolist() for r in range(R)]
        if kind == "truncated":  # p and q are both over the set that could be drawn from
            outside = torch.ones(R, V, dtype=torch.bool)
            for r, head in enumerate(self.heads):
                outside[r, head] = False
            sampler = sampler.masked_fill(outside, -torch.inf)
            self.logits = self.logits.masked_fill(outside, -torch.inf)
        self.sampler = torch.log_softmax(sampler, dim=1)
        self.advantages, self.weights = normal(R), torch.rand(R, generator=generator, dtype=torch.float64)
        self.targets = torch.tensor([head[r % len(head)] for r, head in enumerate(self.heads)])
        entries = [(r, v) for r, head in enumerate(self.heads) for v in head]
        self.sets = TokenRows(
            row_E=torch.tensor([r for r, _ in entries]),
            ids_E=torch.tensor([v for _, v in entries]),
            ends=tuple((r + 1) * len(self.heads[0]) for r in range(R)),
            whole=kind != "top_k",
            truncated=kind == "truncated",
            logprobs_E=torch.stack([self.sampler[r, v] for r, v in entries]).to(dtype),
        )

    def batch(self, targets: Tensor | None = None) -> Batch:
        targets = self.targets if targets is None else targets
        dtype = self.hidden.dtype
        return Batch(
            token_ids_BT=targets[:, None],
            targets_BT=targets[:, None],
            loss_mask_BT=torch.ones(R, 1),
            sampler_logprobs_BT=self.sampler.gather(1, targets[:, None]).to(dtype),
            advantages_BT=self.advantages[:, None].to(dtype),
            weights_BT=self.weights[:, None].to(dtype),
            sampled_from=self.sets,
        )

    def run(
        self, spec: ObjectiveSpec, targets: Tensor | None = None, options: HeadOptions | None = None
    ) -> tuple[LossOutput, Tensor, Tensor]:
        hidden, weight = self.hidden.clone().requires_grad_(), self.weight.clone().requires_grad_()
        output = linear_policy_loss(hidden, weight, self.batch(targets), spec, options=options or HeadOptions())
        output.loss.backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        return output, hidden.grad, weight.grad


def expected(case: Case, spec: ObjectiveSpec) -> tuple[float, Tensor]:
    """(Σ w A C, dL/dz [R, V]) by the oracle."""
    total, slopes = 0.0, []
    for r in range(R):
        p, q, head = case.logits[r].softmax(0).tolist(), case.sampler[r].exp().tolist(), case.heads[r]
        gain = float(case.weights[r] * case.advantages[r])

        def of(p: list[float] = p, q: list[float] = q, head: list[int] = head, gain: float = gain) -> dict[int, float]:
            return oracle.coefficients(p, q, head, case.kind != "top_k", gain > 0, spec)

        size, slope = oracle.row_gradient(p, q, int(case.targets[r]), gain, of, spec)
        total += size
        slopes.append(slope)
    return total, torch.tensor(slopes, dtype=torch.float64)


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))


def on(spec: ObjectiveSpec, kind: str) -> ObjectiveSpec:
    return replace(spec, centering="top_k" if kind == "top_k" else "exact")


@each_kind
@each_spec
@pytest.mark.parametrize("dtype", EXACT)
def test_gradient_and_loss_are_the_oracles(spec: ObjectiveSpec, kind: str, dtype: torch.dtype) -> None:
    case = Case(kind, dtype)
    output, of_hidden, of_weight = case.run(on(spec, kind))
    size, slope = expected(case, spec)
    hidden, weight = case.hidden.double()[:, 0], case.weight.double()
    assert apart(of_hidden[:, 0], slope @ weight) < EXACT[dtype]
    assert apart(of_weight, slope.t() @ hidden) < EXACT[dtype]
    base, *_ = case.run(spec)
    assert apart(output.loss.detach() - base.loss.detach(), torch.tensor(size, dtype=torch.float64)) < EXACT[dtype]


@each_kind
def test_the_comparison_sees_a_small_error(kind: str) -> None:
    case = Case(kind)
    _, of_hidden, _ = case.run(on(PLAIN, kind))
    assert case.sets.logprobs_E is not None
    case.sets = replace(case.sets, logprobs_E=case.sets.logprobs_E + 1e-10)  # of log q
    _, moved, _ = case.run(on(PLAIN, kind))
    assert 1e-12 < apart(moved, of_hidden) < 1e-8


@pytest.mark.parametrize("kind", ["exact", "truncated"])
@each_spec
def test_nothing_is_left_of_the_drift(spec: ObjectiveSpec, kind: str) -> None:
    """Σ_y q(y) gradient(y), over every token that could have been drawn: 0; without centering it is not."""

    def drift(objective: ObjectiveSpec) -> float:
        case = Case(kind)
        total = torch.zeros(R, V, dtype=torch.float64)
        for y in range(V):
            targets = torch.tensor([y if y in head else head[0] for head in case.heads])
            share = case.sampler[:, y].exp()
            _, of_hidden, _ = case.run(objective, targets)
            total[:, :H] += share[:, None] * of_hidden[:, 0]
        return float(total.abs().max())

    assert drift(on(spec, kind)) < 1e-14
    assert drift(spec) > 1e-3


def test_with_exact_q_the_gradient_by_the_logits_is_a_q_minus_the_token() -> None:
    case = Case("exact")
    _, of_hidden, _ = case.run(on(PLAIN, "exact"))
    gain = (case.weights * case.advantages)[:, None]
    slope = gain * (case.sampler.exp() - torch.nn.functional.one_hot(case.targets, V))
    assert apart(of_hidden[:, 0], slope @ case.weight) < 1e-13


@each_kind
def test_importance_sampling_without_a_bound_leaves_nothing_to_centre(kind: str) -> None:
    spec = replace(PLAIN, correction="tis", correction_high=1e6)
    case = Case(kind)
    centred, plain = case.run(on(spec, kind)), case.run(spec)
    assert apart(centred[1], plain[1]) < 1e-13
    assert apart(centred[0].loss.detach(), plain[0].loss.detach()) < 1e-13


@each_kind
@each_spec
def test_tiles_and_passes_change_nothing(spec: ObjectiveSpec, kind: str) -> None:
    case, spec = Case(kind), on(spec, kind)
    whole = case.run(spec)
    for options in (HeadOptions(tile_rows=1), HeadOptions(tile_rows=4), HeadOptions(tile_rows=4, gradient="recompute")):
        parts = case.run(spec, options=options)
        assert apart(parts[1], whole[1]) < 1e-14
        assert apart(parts[2], whole[2]) < 1e-13
        assert apart(parts[0].loss.detach(), whole[0].loss.detach()) < 1e-14


@each_kind
@each_spec
def test_whole_logits_give_the_same(spec: ObjectiveSpec, kind: str) -> None:
    """The way of heads that are no plain product."""
    case, spec = Case(kind), on(spec, kind)
    headed, of_hidden, _ = case.run(spec)
    hidden, batch = case.hidden.clone().requires_grad_(), case.batch()
    logits = hidden @ case.weight.t()
    if kind == "truncated":
        logits = torch.where(torch.isinf(case.logits)[:, None], -1e30, logits)
    now = torch.log_softmax(logits, -1).gather(-1, batch.targets_BT[..., None])[..., 0]
    output = centred_output(policy_loss(now, None, batch, spec), logits, batch, spec, None)
    output.loss.backward()
    assert hidden.grad is not None
    assert apart(hidden.grad, of_hidden) < 1e-13
    assert apart(output.loss.detach(), headed.loss.detach()) < 1e-13


def test_weights_of_sequences_weigh_the_centering_too() -> None:
    """A sequence that a mask leaves out has no centering either (SkyRL: geometric masks)."""
    case = Case("exact")
    spec = on(replace(PLAIN, correction="mis", correction_level="sequence_mean", correction_low=0.99), "exact")
    ratio = (case.logits.log_softmax(1) - case.sampler).gather(1, case.targets[:, None]).exp()[:, 0]
    dropped = (ratio < 0.99) | (ratio > 2.0)
    assert bool(dropped.any())
    assert not bool(dropped.all())
    _, of_hidden, _ = case.run(spec)
    assert torch.equal(of_hidden[dropped], torch.zeros_like(of_hidden[dropped]))
    slope = (ratio * case.weights * case.advantages)[:, None] * (
        case.sampler.exp() - torch.nn.functional.one_hot(case.targets, V)
    )
    assert apart(of_hidden[~dropped][:, 0], (slope @ case.weight)[~dropped]) < 1e-12


def test_truncated_draws_are_of_their_own_set() -> None:
    """log π and entropy are those of softmax over what could be drawn."""
    case = Case("truncated")
    logprobs, entropy = linear_logprobs(case.hidden, case.weight, case.batch())
    now = case.logits.log_softmax(1)
    assert apart(logprobs, now.gather(1, case.targets[:, None])) < 1e-14
    wanted = -torch.where(now.isinf(), 0.0, now.exp() * now).sum(1, keepdim=True)
    assert apart(entropy, wanted) < 1e-14


def test_centering_without_what_it_reads_is_refused() -> None:
    case = Case("exact")
    blind = replace(case.batch(), sampled_from=None)
    with pytest.raises(ValueError, match="needs to know what the tokens were drawn from"):
        linear_policy_loss(case.hidden, case.weight, blind, on(PLAIN, "exact"))
    case.sets = replace(case.sets, logprobs_E=None)
    with pytest.raises(ValueError, match="ids alone"):
        linear_policy_loss(case.hidden, case.weight, case.batch(), on(PLAIN, "exact"))
