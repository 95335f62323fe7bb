"""Every preset, and every choice on every axis, against the float64 oracle and against itself cut up differently."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import oracle
import pytest
import torch
from torch import Tensor

from rlreason.objective.advantage import Advantages, group_advantage
from rlreason.objective.batch import Batch
from rlreason.objective.loss import LossAndGrad, LossInputs, evaluate, policy_loss
from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec

EXACT = {torch.float64: 1e-12, torch.float32: 1e-6}
LENGTHS = [3, 5, 1, 4, 6, 2, 7, 3, 0, 4, 8, 2]
MAX_TOKENS = 8
VARIANTS = {
    "opo": ObjectiveSpec(baseline="length_weighted", scale="none"),
    "batch baseline": ObjectiveSpec(baseline="batch", scale="batch_std", std_ddof=0),
    "given baseline": ObjectiveSpec(baseline="given", scale="none"),
    "no baseline": ObjectiveSpec(baseline="none", scale="none", correction="none"),
    "no baseline, over the group's deviation": ObjectiveSpec(baseline="none"),
    "batch baseline, over the group's deviation": ObjectiveSpec(baseline="batch"),
    "old = sampler": ObjectiveSpec(old="sampler", correction="none"),
    "old = sampler, sequences": ObjectiveSpec(
        old="sampler", correction="none", ratio="sequence_mean", kl_coef=0.2, kl_estimator="k3_unbiased"
    ),
    "old = sampler, cispo": ObjectiveSpec(old="sampler", correction="none", clip="cispo"),
    "gmpo": ObjectiveSpec(ratio="clipped_mean", clip_low=0.2, clip_high=0.3, aggregation="sequence", correction="none"),
    "sequence, token mean": ObjectiveSpec(ratio="sequence_mean", correction="none"),
    "sequence cispo": ObjectiveSpec(ratio="sequence_mean", clip="cispo", correction_level="sequence_product"),
    "sequence sapo": ObjectiveSpec(ratio="sequence_mean", clip="sapo", correction_level="sequence_mean"),
    "dppo": ObjectiveSpec(clip="dppo_tv", clip_low=0.05, clip_high=0.05),
    "dppo, binary": ObjectiveSpec(clip="dppo_kl", clip_low=0.002, clip_high=0.003),
    "sequence gate": ObjectiveSpec(sequence_kl_max=0.04),
    "dual clip": ObjectiveSpec(dual_clip=1.3),
    "two-sided": ObjectiveSpec(delta=1.4),
    "unclipped": ObjectiveSpec(clip="none"),
    "on policy": ObjectiveSpec(ratio="on_policy", clip="none"),
    "unbiased k3": ObjectiveSpec(kl_coef=0.3, kl_estimator="k3_unbiased"),
    "k2": ObjectiveSpec(kl_coef=0.3, kl_estimator="k2"),
    "tis of sequences": ObjectiveSpec(correction_level="sequence_product", correction_high=1.2),
    "mis": ObjectiveSpec(correction="mis", correction_high=1.3),
    "mis of sequences": ObjectiveSpec(correction="mis", correction_level="sequence_product", correction_high=1.2),
    "mis geometric": ObjectiveSpec(
        correction="mis", correction_level="sequence_mean", correction_low=0.9, correction_high=1.1
    ),
    "icepop": ObjectiveSpec(correction="icepop", correction_low=0.8, correction_high=1.2),
    "V3.2 mask": ObjectiveSpec(off_policy_delta=0.02),
    "group tokens": ObjectiveSpec(aggregation="group_token", kl_coef=0.1),
    "overlong masked": ObjectiveSpec(overlong="mask", scale="batch_whiten"),
    "overlong out": ObjectiveSpec(overlong="mask_from_baseline"),
}
#: The draws of these tests are far from the policy: a bound that some sequences keep.
GATED = {"flash_reinforce": replace(PRESETS["flash_reinforce"], sequence_kl_max=0.04)}
SPECS = {**PRESETS, **GATED, **VARIANTS}
LOGPROBS = ("sampler_logprobs_BT", "old_logprobs_BT", "reference_logprobs_BT")
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def make(seed: int) -> oracle.Problem:
    """Ragged groups, one of equal rewards, one of a single completion, one without any verdict."""
    rng = random.Random(seed)

    def rows(around: list[list[float]] | None, spread: float) -> list[list[float]]:
        base = around or [[-1.2 * rng.random() for _ in range(n)] for n in LENGTHS]
        return [[x + rng.gauss(0, spread) for x in row] for row in base]

    now = rows(None, 0.0)
    old = rows(now, 0.25)
    return oracle.Problem(
        rewards=[1.0, 0.0, None, 0.4, 1.0, 0.5, 0.5, 0.5, 1.0, 0.0, 0.9, None],
        groups=[7, 7, 7, 3, 7, 5, 5, 5, 3, 3, 9, 11],
        truncated=[False, True, False, False, False, False, True, False, False, False, True, False],
        baselines=[rng.random() for _ in LENGTHS],
        now=now,
        old=old,
        sampler=rows(old, 0.15),
        reference=rows(now, 0.3),
        max_tokens=MAX_TOKENS,
    )


def credit(
    problem: oracle.Problem, spec: ObjectiveSpec, dtype: torch.dtype, order: list[int] | None = None
) -> Advantages:
    order = order or list(range(len(LENGTHS)))

    def tensor(values: list, kind: torch.dtype) -> Tensor:
        return torch.tensor([values[at] for at in order], dtype=kind)

    return group_advantage(
        tensor([math.nan if reward is None else reward for reward in problem.rewards], dtype),
        tensor(problem.groups, torch.long),
        tensor(problem.lengths, torch.long),
        spec,
        max_tokens=MAX_TOKENS,
        truncated_N=tensor(problem.truncated, torch.bool),
        baseline_N=tensor(problem.baselines, dtype),
    )


def padded(rows: list[list[float]], dtype: torch.dtype, fill: float = math.nan, width: int = 9) -> Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype)


def spread(values_N: Tensor, width: int) -> Tensor:
    """A completion's number at each of its tokens."""
    rows = [[value] * n for value, n in zip(values_N.tolist(), LENGTHS, strict=True)]
    return padded(rows, values_N.dtype, 0.0, width)


def inputs_of(
    problem: oracle.Problem, earned: Advantages, spec: ObjectiveSpec, dtype: torch.dtype, width: int = 9
) -> LossInputs:
    """Padding holds nan: whatever reads it shows."""
    with_kl = spec.kl_coef > 0 and spec.kl_in == "loss"
    return LossInputs(
        mask_BT=padded([[1.0] * n for n in LENGTHS], dtype, 0.0, width),
        sampler_logprobs_BT=padded(problem.sampler, dtype, width=width),
        advantages_BT=spread(earned.advantages_N, width),
        weights_BT=spread(earned.weights_N, width),
        old_logprobs_BT=padded(problem.sampler if spec.old == "sampler" else problem.old, dtype, width=width),
        reference_logprobs_BT=padded(problem.reference, dtype, width=width) if with_kl else None,
    )


def run(problem: oracle.Problem, spec: ObjectiveSpec, dtype: torch.dtype, width: int = 9) -> LossAndGrad:
    tokens = inputs_of(problem, credit(problem, spec, dtype), spec, dtype, width)
    return evaluate(padded(problem.now, dtype, width=width), tokens, spec)


@each_spec
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("seed", range(3))
def test_advantages_and_loss_are_the_formula(spec: ObjectiveSpec, dtype: torch.dtype, seed: int) -> None:
    problem, tolerance = make(seed), EXACT[dtype]
    wanted, kept = oracle.advantages(problem, spec)
    earned = credit(problem, spec, dtype)
    scale = max(1.0, *map(abs, wanted))
    assert earned.advantages_N.tolist() == pytest.approx(wanted, abs=tolerance * scale)
    assert earned.kept_N.tolist() == kept
    weights = [oracle.weight(problem, spec, kept, at) for at in range(len(LENGTHS))]
    assert earned.weights_N.tolist() == pytest.approx(weights, abs=tolerance)
    expected = oracle.loss(problem, spec)
    assert float(run(problem, spec, dtype).loss) == pytest.approx(expected, abs=tolerance * scale)


@each_spec
def test_the_tolerance_has_a_canary(spec: ObjectiveSpec) -> None:
    # One log-probability moved by 1e-5 (the unmoving ones by what they read), one weight by 1e-6 of itself.
    problem = make(0)
    before = float(run(problem, spec, torch.float64).loss)
    moved = replace(problem, now=[[x + 1e-5 for x in row] for row in problem.now])
    if spec.ratio != "on_policy":
        assert abs(oracle.loss(moved, spec) - before) > 1e-11
    rewards = [None if r is None else r + (2e-6 if at == 0 else 0.0) for at, r in enumerate(problem.rewards)]
    assert abs(oracle.loss(replace(problem, rewards=rewards), spec) - before) > 1e-11


@each_spec
def test_the_gradient_is_the_finite_difference_of_the_oracle(spec: ObjectiveSpec) -> None:
    problem = make(4)
    grad_logprobs_BT = run(problem, spec, torch.float64).grad_logprobs_BT
    step = 1e-6
    worst = 0.0
    for at, length in enumerate(LENGTHS):
        for t in range(length):

            def at_distance(by: float, at: int = at, t: int = t) -> float:
                now = [list(row) for row in problem.now]
                now[at][t] += by
                return oracle.loss(replace(problem, now=now), spec)

            slope = (at_distance(step) - at_distance(-step)) / (2 * step)
            if spec.clip == "cispo" or spec.ratio == "on_policy":
                slope = _score_slope(problem, spec, at, t)
            worst = max(worst, abs(float(grad_logprobs_BT[at, t]) - slope))
    assert worst < 2e-8
    # Canary: a gradient off by a thousandth of its largest entry is seen.
    assert float(grad_logprobs_BT.abs().max()) * 1e-3 > 2e-8


def _score_slope(problem: oracle.Problem, spec: ObjectiveSpec, at: int, t: int) -> float:
    """Where ρ is behind a stop_gradient the loss is linear in log π: its slope is the factor, by the definition."""
    a, kept = oracle.advantages(problem, spec)
    if not kept[at]:
        return 0.0
    now, sampler = problem.now[at], problem.sampler[at]
    old = sampler if spec.old == "sampler" else problem.old[at]
    c = oracle.correction(spec, old, sampler, t)
    factor = 1.0
    if spec.clip == "cispo":
        gain = oracle.gain(spec, [a[at]] * len(now), now, old, sampler, t)
        factor = gain / (a[at] * now[t]) if a[at] else 0.0
    return -oracle.weight(problem, spec, kept, at) * c * factor * a[at]


@each_spec
def test_gradcheck_of_the_autograd_function(spec: ObjectiveSpec) -> None:
    if spec.clip == "cispo" or spec.ratio == "on_policy":
        pytest.skip("the value has a stop_gradient: not the integral of its gradient (checked above by definition)")
    problem = make(6)
    tokens = inputs_of(problem, credit(problem, spec, torch.float64), spec, torch.float64)
    clean = {name: torch.nan_to_num(getattr(tokens, name)) for name in ("sampler_logprobs_BT", "old_logprobs_BT")}
    ids = torch.zeros_like(tokens.mask_BT, dtype=torch.long)
    batch = Batch(
        token_ids_BT=ids,
        targets_BT=ids,
        loss_mask_BT=tokens.mask_BT,
        sampler_logprobs_BT=clean["sampler_logprobs_BT"],
        advantages_BT=tokens.advantages_BT,
        weights_BT=tokens.weights_BT,
    )
    reference = tokens.reference_logprobs_BT
    reference = None if reference is None else torch.nan_to_num(reference)
    now_BT = torch.nan_to_num(padded(problem.now, torch.float64)).requires_grad_(requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, clean["old_logprobs_BT"], batch, spec, reference).loss, now_BT, atol=1e-7
    )


@each_spec
def test_order_padding_and_split_do_not_matter(spec: ObjectiveSpec) -> None:
    problem = make(5)
    whole = run(problem, spec, torch.float64)
    order = random.Random(1).sample(range(len(LENGTHS)), len(LENGTHS))
    shuffled = credit(problem, spec, torch.float64, order)
    earned = credit(problem, spec, torch.float64)
    assert torch.allclose(shuffled.advantages_N, earned.advantages_N[order], rtol=0, atol=1e-14)
    assert torch.allclose(shuffled.weights_N, earned.weights_N[order], rtol=0, atol=1e-15)
    assert float(run(problem, spec, torch.float64, width=30).loss) == pytest.approx(float(whole.loss), abs=1e-14)
    # Micro-batches, or ranks: every part is summed with the weights of the whole.
    tokens = inputs_of(problem, earned, spec, torch.float64)
    now_BT = padded(problem.now, torch.float64)
    total, slopes = 0.0, torch.zeros_like(now_BT)
    for part in ([3, 0, 9], [4, 10, 11], [2, 1, 8, 5], [6, 7]):
        rows = torch.tensor(part)
        one = evaluate(now_BT[rows], tokens.rows(rows), spec)  # type: ignore[arg-type]
        total += float(one.loss)
        slopes[rows] = one.grad_logprobs_BT
    assert total == pytest.approx(float(whole.loss), abs=1e-14)
    assert torch.equal(slopes, whole.grad_logprobs_BT)


Rows = oracle.Rows


def token_credit(seed: int) -> tuple[Rows, Rows]:
    """An advantage, of either sign, and a weight for each token of each completion."""
    rng = random.Random(1000 + seed)
    return [[rng.gauss(0, 1) for _ in range(n)] for n in LENGTHS], [
        [rng.random() / 40 for _ in range(n)] for n in LENGTHS
    ]


def run_tokens(
    problem: oracle.Problem, spec: ObjectiveSpec, advantages: Rows, weights: Rows, dtype: torch.dtype, fill: float
) -> LossAndGrad:
    """The loss of completions whose tokens have advantages of their own; ``fill``: stands wherever the mask is 0."""
    inputs = replace(
        inputs_of(problem, credit(problem, spec, dtype), spec, dtype),
        advantages_BT=padded(advantages, dtype, fill),
        weights_BT=padded(weights, dtype, fill),
    )
    for name in LOGPROBS:
        values_BT = getattr(inputs, name)
        inputs = inputs if values_BT is None else replace(inputs, **{name: values_BT.nan_to_num(fill, fill, fill)})
    return evaluate(padded(problem.now, dtype, fill), inputs, spec)


@each_spec
@pytest.mark.parametrize("seed", range(3))
def test_advantages_of_tokens_are_the_formula(spec: ObjectiveSpec, seed: int) -> None:
    problem, (advantages, weights) = make(seed), token_credit(seed)
    expected = oracle.loss_of(problem, spec, advantages, weights)
    step = 1e-6
    for dtype, tolerance in EXACT.items():
        found = run_tokens(problem, spec, advantages, weights, dtype, -7.0)
        assert float(found.loss) == pytest.approx(expected, abs=tolerance)
        other = run_tokens(problem, spec, advantages, weights, dtype, math.nan)
        assert torch.equal(found.loss, other.loss)
        assert torch.equal(found.grad_logprobs_BT, other.grad_logprobs_BT)
        for at, t in ((at, t) for at, length in enumerate(LENGTHS) for t in range(length)):
            ahead, behind = (oracle.token_loss(problem, spec, advantages[at], at, t, by) for by in (step, -step))
            grad = weights[at][t] * (ahead - behind) / (2 * step)
            assert float(found.grad_logprobs_BT[at, t]) == pytest.approx(grad, abs=max(tolerance, 1e-9))


@each_spec
def test_a_mean_over_the_sequence_in_place_of_its_tokens_is_seen(spec: ObjectiveSpec) -> None:
    """Canary: advantages, then weights, averaged over each sequence."""
    problem, (advantages, weights) = make(0), token_credit(0)

    def averaged(rows: Rows) -> Rows:
        return [[oracle.mean(row)] * len(row) if row else [] for row in rows]

    exact = run_tokens(problem, spec, advantages, weights, torch.float64, 0.0)
    for wrong in ((averaged(advantages), weights), (advantages, averaged(weights))):
        found = run_tokens(problem, spec, *wrong, torch.float64, 0.0)
        assert abs(float(found.loss) - oracle.loss_of(problem, spec, advantages, weights)) > 1e3 * EXACT[torch.float32]
        assert float((found.grad_logprobs_BT - exact.grad_logprobs_BT).abs().max()) > 1e3 * EXACT[torch.float32]


@each_spec
def test_the_order_of_rows_and_their_split_do_not_matter_with_advantages_of_tokens(spec: ObjectiveSpec) -> None:
    problem, (advantages, weights) = make(5), token_credit(5)
    whole = run_tokens(problem, spec, advantages, weights, torch.float64, math.nan)
    inputs = replace(
        inputs_of(problem, credit(problem, spec, torch.float64), spec, torch.float64),
        advantages_BT=padded(advantages, torch.float64),
        weights_BT=padded(weights, torch.float64),
    )
    now_BT = padded(problem.now, torch.float64)
    total = 0.0
    for part in ([3, 0, 9], [4, 10, 11], [2, 1, 8, 5], [6, 7]):
        rows = torch.tensor(part)
        one = evaluate(now_BT[rows], inputs.rows(rows), spec)  # type: ignore[arg-type]
        total += float(one.loss)
        assert torch.equal(one.grad_logprobs_BT, whole.grad_logprobs_BT[rows])
    assert total == pytest.approx(float(whole.loss), abs=1e-14)


@each_spec
@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf, 1e38], ids=str)
def test_masked_tokens_have_exactly_no_effect(spec: ObjectiveSpec, wild: float) -> None:
    """Whatever stands there, in the sampler's log-probabilities alone or in everything."""
    problem = make(2)
    inputs = inputs_of(problem, credit(problem, spec, torch.float32), spec, torch.float32)
    masked_BT = inputs.mask_BT == 0

    def holding(value: float, *names: str) -> LossInputs:
        given = {name: getattr(inputs, name) for name in names}
        return replace(
            inputs, **{name: None if v is None else v.masked_fill(masked_BT, value) for name, v in given.items()}
        )

    now_BT = padded(problem.now, torch.float32, 0.0)
    clean = holding(0.0, *LOGPROBS)
    spoilt = replace(clean, sampler_logprobs_BT=clean.sampler_logprobs_BT.masked_fill(masked_BT, wild))
    first = evaluate(now_BT, clean, spec)
    for others in (
        evaluate(now_BT, spoilt, spec),
        evaluate(now_BT.masked_fill(masked_BT, wild), holding(wild, *LOGPROBS, "advantages_BT", "weights_BT"), spec),
    ):
        assert torch.equal(first.loss, others.loss)
        assert torch.equal(first.grad_logprobs_BT, others.grad_logprobs_BT)
        assert not others.grad_logprobs_BT[masked_BT].any()
        assert math.isfinite(float(first.loss))
        for name, value in {**others.sums, **others.maxima}.items():
            assert math.isfinite(float(value)), name
            assert torch.equal(value, {**first.sums, **first.maxima}[name]), name
