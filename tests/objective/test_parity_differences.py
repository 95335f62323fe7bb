"""Where we mean to differ from verl, TRL and Liger: each difference shown and explained, numbered as in
docs/objectives.md.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from parity_tools import (
    CASES,
    EXACT,
    FIXTURES,
    SINGLE,
    VERL_ADVANTAGES,
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


@pytest.mark.parametrize("name", ["grpo", "grpo_no_std", "grpo_vectorized", "rloo", "opo"])
def test_difference_1_one_of_a_kind_has_no_advantage(name: str) -> None:
    """verl gives the only sample of a group its raw reward (its own vectorised RLOO gives 0, as we do): nothing to
    compare with is no information, and a reward above 0 would be pushed up whatever it is worth."""
    ours = credit_of("edges", spec_of(**VERL_ADVANTAGES.get(name, {}))).advantages_N
    theirs = CASES[f"verl/advantage/{name}/edges"]["advantages"]
    assert float(ours[0]) == 0.0
    assert theirs[0] == pytest.approx(0.7, abs=1e-6)
    assert gap(ours[4:], theirs[4:]) <= (SINGLE if name == "grpo_vectorized" else EXACT)
    assert gap(ours, CASES["verl/advantage/rloo_vectorized/edges"]["advantages"]) <= EXACT or name != "rloo"


def test_difference_2_equal_rewards_are_exactly_zero() -> None:
    """Rewards (0.3, 0.3, 0.3): in float32 their mean is not 0.3, the residue over a deviation of nothing but 1e-6 is
    −0.0119 for each of them in verl's vectorised GRPO. Ours asks whether max == min."""
    ours = credit_of("edges", spec_of()).advantages_N
    assert ours[1:4].tolist() == [0.0, 0.0, 0.0]
    assert CASES["verl/advantage/grpo_vectorized/edges"]["advantages"][1:4] == pytest.approx([-0.0119209] * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("reinforce_plus_plus", {"baseline": "none"}), ("reinforce_plus_plus_baseline", {"baseline": "mean"})],
)
def test_difference_3_whitening_divides_by_the_deviation(name: str, fields: dict[str, Any]) -> None:
    """verl divides by √(variance + 1e-8) and adds 1e-8 to token counts; we by the deviation + std_epsilon."""
    theirs = CASES[f"verl/advantage/{name}/mixed"]["advantages"]
    ours = credit_of("mixed", spec_of(scale="batch_whiten", std_epsilon=0.0, **fields)).advantages_N
    assert EXACT < gap(ours, theirs) <= SINGLE
    lengths_N = float64(FIXTURES["rewards"]["mixed"]["lengths"])
    plain_N = credit_of("mixed", spec_of(scale="none", **fields)).advantages_N
    tokens = lengths_N.sum()
    mean = (plain_N * lengths_N).sum() / (tokens + 1e-8)
    variance = ((plain_N - mean).square() * lengths_N).sum() / (tokens + 1e-8) * tokens / (tokens - 1)
    assert gap((plain_N - mean) / (variance + 1e-8).sqrt(), theirs) <= EXACT


def test_difference_4_trl_takes_the_unscored_into_the_denominator() -> None:
    """A completion without a score has advantage 0 in TRL and here; its tokens still count in TRL's denominator, so
    a verifier that fails makes every other token's step smaller. 42 tokens with it, 38 without."""
    credit, ours = trl_step(tokens_of("even"), "unscorable")
    assert gap(credit.advantages_N, CASES["trl/unscorable"]["advantages"]) <= EXACT
    lengths = tokens_of("even")["mask"].sum(dim=1)
    share = float((lengths.sum() - lengths[1]) / lengths.sum())
    assert share < 1.0
    ours.loss, ours.grad_logprobs_BT = ours.loss * share, ours.grad_logprobs_BT * share
    assert loss_gap(ours, "trl/unscorable") <= EXACT


def test_difference_5_trl_counts_masked_sequences_in_a_mean_over_sequences() -> None:
    """mask_truncated_completions with loss_type grpo: the masked sequence adds 0 to the sum and 1 to the count in TRL
    (so a batch of truncated samples weakens the rest), and nothing to either here and in verl's agg_loss. Under a
    token mean both agree."""
    values = tokens_of("even")
    credit, ours = trl_step(values, overlong="mask", aggregation="sequence")
    ours.loss, ours.grad_logprobs_BT = ours.loss * 7 / 8, ours.grad_logprobs_BT * 7 / 8
    assert loss_gap(ours, "trl/mask_truncated") <= EXACT
    # TRL's own advantage of the masked sequence stays in its batch and meets a mask of zeros.
    theirs = float64(CASES["trl/mask_truncated"]["advantages"])
    assert float(credit.advantages_N[3]) == 0.0
    assert float(theirs[3]) != 0.0
    assert loss_gap(trl_step(values, overlong="mask")[1], "trl/mask_truncated_dapo") <= EXACT


def test_difference_6_trl_means_of_micro_batches() -> None:
    """bnpo averages the token means of micro-batches, so the loss depends on the cut (here 3 and 5 rows); dapo's is
    the mean over the step, as ours always is; grpo's mean of means weighs the rows of the smaller part more."""
    values = tokens_of("even")
    _, token = trl_step(values)
    _, sequence = trl_step(values, aggregation="sequence")
    assert loss_gap(token, "trl/split/dapo") <= EXACT
    for name, ours in (("bnpo", token), ("grpo", sequence)):
        assert loss_gap(ours, f"trl/{name}") <= EXACT
        assert loss_gap(ours, f"trl/split/{name}") > 1e-3
    lengths = values["mask"].sum(dim=1)
    row_weights = torch.cat([torch.full((n,), 4.0 / n, dtype=torch.float64) for n in (3, 5)])
    assert gap(sequence.grad_logprobs_BT * row_weights.unsqueeze(1), CASES["trl/split/grpo"]["slope"]) <= EXACT
    parts = torch.cat(
        [torch.full((n,), float(lengths[s].sum()), dtype=torch.float64) for n, s in ((3, slice(3)), (5, slice(3, 8)))]
    )
    scale = (lengths.sum() / (2 * parts)).unsqueeze(1)
    assert gap(token.grad_logprobs_BT * scale, CASES["trl/split/bnpo"]["slope"]) <= EXACT


@pytest.mark.parametrize("where", ["tokens", "empty"])
@pytest.mark.parametrize("name", VERL_SEQUENCE_MEANS)
def test_difference_7_verl_adds_1e8_to_a_length(name: str, where: str) -> None:
    values, spec = tokens_of(where), spec_of(**VERL_SEQUENCE_MEANS[name])
    assert EXACT < loss_gap(evaluated(values, spec), f"verl/loss/{name}/{where}") < 1e-7
    lengths_N = values["mask"].sum(dim=1)
    weights_N = (lengths_N > 0) / ((lengths_N + 1e-8) * (lengths_N > 0).sum())
    assert loss_gap(evaluated(values, spec, weights_N=weights_N), f"verl/loss/{name}/{where}") <= EXACT


def test_difference_7_verl_gmpo_counts_empty_sequences() -> None:
    """verl's geo_mean adds 1e-8 to lengths and averages over all rows, with or without a token."""
    spec = spec_of(ratio="clipped_mean", clip_low=0.4, clip_high=0.4, aggregation="sequence")
    assert EXACT < loss_gap(evaluated(tokens_of("tokens"), spec), "verl/loss/geo_mean/tokens") <= 1e-8
    ours = evaluated(tokens_of("empty"), spec)
    assert loss_gap(ours, "verl/loss/geo_mean/empty") > 1e-2
    ours.loss, ours.grad_logprobs_BT = ours.loss * 3 / 4, ours.grad_logprobs_BT * 3 / 4
    assert loss_gap(ours, "verl/loss/geo_mean/empty") <= 1e-8


def test_difference_8_verl_rejection_leaves_the_denominator() -> None:
    """A token that our correction masks stays in the mean's denominator (so w·loss is an estimate of the same sum);
    verl's rejection takes it out of the mask. Its bounds are on π_sampler/π_old: 1/high to 1/low of ours."""
    values = tokens_of("tokens")
    for name, level, low, high in (
        ("reject_token", "token", 0.8, 1.25),
        ("reject_sequence", "sequence_product", 0.5, 2.0),
    ):
        kept = float64(CASES[f"verl/correction/{name}"]["kept"])
        share = float(values["mask"].sum() / kept.sum())
        assert share > 1.0
        ours = evaluated(
            values, spec_of(correction="mis", correction_level=level, correction_low=low, correction_high=high)
        )
        assert loss_gap(ours, f"verl/correction/{name}") > 1e-3
        ours.loss, ours.grad_logprobs_BT = ours.loss * share, ours.grad_logprobs_BT * share
        assert loss_gap(ours, f"verl/correction/{name}") <= EXACT


def test_difference_9_dual_clip_is_a_choice() -> None:
    """verl's vanilla loss always bounds ρ at 3 where A < 0; here dual_clip = 0 is off, as in every paper but one."""
    values = tokens_of("tokens")
    assert loss_gap(evaluated(values, spec_of()), "verl/loss/vanilla/tokens") > 1e-3
    assert loss_gap(evaluated(values, spec_of(dual_clip=3.0)), "verl/loss/vanilla/tokens") <= EXACT


def test_difference_10_dppo_value_and_truncation() -> None:
    """DPPO-TV: the gradient is the same; verl's value is ρ·A·log π, ours ρ·A, of which it is the gradient too. verl
    also caps ρ at clip_ratio_c, 3 unless set (its own default of 20 is never reached): we have no cap there."""
    values = tokens_of("tokens")
    values["sampler"] = values["old"]  # verl measures the change from the old policy, we from the sampler's
    ours = evaluated(values, spec_of(clip="dppo_tv", clip_low=0.05, clip_high=0.08))
    case = CASES["verl/loss/dppo_tv/tokens"]
    assert gap(ours.grad_logprobs_BT, case["slope"]) <= EXACT
    assert gap(ours.loss, case["loss"]) > 1e-3
    capped = float64(CASES["verl/loss/dppo_tv_default/tokens"]["slope"])
    differs = (ours.grad_logprobs_BT - capped).abs() > EXACT
    ratio = (values["logprobs"] - values["old"]).exp()
    assert bool(differs.any())
    assert bool((ratio[differs] > 3.0).all())
    assert gap((ours.grad_logprobs_BT / ratio * 3.0)[differs], capped[differs]) <= EXACT


def test_difference_11_k3_unbiased_is_per_token() -> None:
    """TRL weighs k3 by the sequence's ratio where importance sampling is at sequence level (its documentation says
    that it is unbiased for tokens only); here it is always the token's."""
    values = tokens_of("even")
    _, ours = trl_step(values, ratio="sequence_mean", kl_coef=0.04, kl_estimator="k3_unbiased")
    _, without = trl_step(values, ratio="sequence_mean")
    theirs = CASES["trl/kl_unbiased_sequence"]
    assert gap(ours.loss, theirs["loss"]) > 1e-4
    length = values["mask"].sum(dim=1, keepdim=True)
    ratio = (((values["logprobs"] - values["old"]) * values["mask"]).sum(dim=1, keepdim=True) / length).exp()
    k3, slope = kl_estimate(values["logprobs"], values["reference"], "k3")
    weight = 0.04 / values["mask"].sum()
    assert gap(without.loss + weight * (ratio * k3 * values["mask"]).sum(), theirs["loss"]) <= EXACT
    # d(s·k3)/d log π of a token: s·slope, and the sequence's Σ k3 through s
    through = ratio * (k3 * values["mask"]).sum(dim=1, keepdim=True) / length
    expected = without.grad_logprobs_BT + weight * (ratio * slope + through) * values["mask"]
    assert gap(expected, theirs["slope"]) <= EXACT


def test_difference_12_bounds_on_wild_ratios() -> None:
    """log ρ = 12, 12, 25, −25 for A = 0.5, −0.5, −1, −1. We bound |log ρ| by 20 at every level, as verl does for
    tokens; verl's GSPO bounds it by 10 from above, Liger (and TRL) not at all: e^25 in the loss of one token."""
    wild = tokens_of("wild")
    ours = evaluated(wild, spec_of())
    assert gap(ours.grad_logprobs_BT, CASES["verl/wild/vanilla"]["slope"]) <= EXACT * math.exp(12)
    assert float(ours.loss) == pytest.approx(CASES["verl/wild/vanilla"]["loss"], rel=1e-14)
    assert float(ours.loss) < math.exp(20)
    assert CASES["liger/wild"]["loss"] > math.exp(25) / 4
    gspo = evaluated(wild, spec_of(ratio="sequence_mean"))
    assert gspo.grad_logprobs_BT[:, 0].tolist() == pytest.approx([0.0, 0.5 * math.exp(12) / 4, 0.0, 0.0], rel=1e-12)
    assert CASES["verl/wild/gspo"]["slope"] == [[0.0], [0.0], [0.0], [0.0]]


def test_difference_13_kl_of_wild_tokens() -> None:
    """d = 28, −25, 3. Every estimate here is of d bounded by 20, with slope 0 beyond. verl bounds d so for k3 only, and
    then the value by 10, which takes the gradient of every token with d > 2.6 away: a policy that has lost a
    token of its reference entirely is not pulled back."""
    logprobs, reference = float64([[-30.0, -1.0, -4.0]]), float64([[-2.0, -26.0, -1.0]])
    value, slope = kl_estimate(logprobs, reference, "k3")
    assert value[0].tolist() == pytest.approx([math.exp(20) - 21, math.exp(-20) + 19, math.exp(3) - 4], rel=1e-12)
    assert slope[0].tolist() == pytest.approx([0.0, 0.0, 1 - math.exp(3)], rel=1e-12)
    assert CASES["verl/kl/low_var_kl/wild"]["value"][0] == pytest.approx([10.0, 10.0, 10.0])
    assert CASES["verl/kl/low_var_kl/wild"]["slope"][0] == [0.0, 0.0, 0.0]
    value, slope = kl_estimate(logprobs, reference, "k2")
    assert value[0].tolist() == [200.0, 200.0, 4.5]
    assert CASES["verl/kl/k2/wild"]["value"][0] == [392.0, 312.5, 4.5]
    assert CASES["verl/kl/k2/wild"]["slope"][0] == [-28.0, 25.0, -3.0]
    assert kl_estimate(logprobs, reference, "k1")[0][0].tolist() == [-20.0, 20.0, -3.0]
    assert CASES["verl/kl/k1/wild"]["value"][0] == [-28.0, 25.0, -3.0]


def test_difference_14_no_straight_through_estimator() -> None:
    """verl's "k3+" is k3 in value and k2 in gradient. Here value and gradient belong together: say k2."""
    values, case = tokens_of("tokens"), CASES["verl/kl/k3+/tokens"]
    assert gap(kl_estimate(values["logprobs"], values["reference"], "k2")[1], case["slope"]) <= EXACT
    assert gap(kl_estimate(values["logprobs"], values["reference"], "k3")[0], case["value"]) <= EXACT
