"""K1 against the torch path. Runs from ``tests/objective/test_kernels.py``, or alone on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, GROUP_SPECS, TOLERANCE, difference
from torch import Tensor

from rlreason.objective import advantage as torch_path
from rlreason.objective.advantage import Advantages
from rlreason.objective.kernels import advantage as kernels
from rlreason.objective.kernels.advantage import METRICS, DeviceAdvantages
from rlreason.objective.kernels.groups import Groups
from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec

MAX_TOKENS = 50
EQUAL, SINGLE, UNSCORED = 4, 90, 91  # numbers of groups


class Step:
    """Ragged groups whose members lie among each other: one of equal rewards, one of a single completion, one without
    a score, single missing scores (nan), completions without a loss token, and truncated ones."""

    def __init__(self, dtype: torch.dtype, completions: int = 60, groups: int = 11, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int) -> Tensor:
            return torch.rand(size, generator=generator, dtype=torch.float64)

        group_N = torch.randint(0, groups, (completions,), generator=generator) * 7 - 3
        rewards_N = (2.0 * random(completions)).round(decimals=1) - 0.5
        rewards_N[group_N == EQUAL] = 0.3
        rewards_N[5::17] = torch.nan
        group_N[1], rewards_N[1] = SINGLE, 1.0
        group_N[2:4], rewards_N[2:4] = UNSCORED, torch.nan
        lengths_N = torch.randint(0, MAX_TOKENS + 1, (completions,), generator=generator)
        lengths_N[7:9] = torch.tensor([0, MAX_TOKENS])
        self.rewards_N = rewards_N.to(DEVICE, dtype)
        self.group_N = group_N.to(DEVICE)
        self.lengths_N = lengths_N.to(DEVICE)
        self.truncated_N = (random(completions) < 0.3).to(DEVICE)
        self.baseline_N = random(completions).to(DEVICE, dtype)

    def torch_path(self, spec: ObjectiveSpec) -> Advantages:
        return torch_path.group_advantage(
            self.rewards_N,
            self.group_N,
            self.lengths_N,
            spec,
            max_tokens=MAX_TOKENS,
            truncated_N=self.truncated_N,
            baseline_N=self.baseline_N,
        )

    def kernels(self, spec: ObjectiveSpec, groups: Groups | None = None) -> DeviceAdvantages:
        return kernels.group_advantage(
            self.rewards_N,
            self.group_N if groups is None else groups,
            self.lengths_N,
            spec,
            max_tokens=MAX_TOKENS,
            truncated_N=self.truncated_N,
            baseline_N=self.baseline_N,
        )


def differences(actual: Advantages, expected: Advantages) -> dict[str, float]:
    """Weights are compared relative to the largest, as they are far below 1."""
    assert torch.equal(actual.kept_N, expected.kept_N)
    assert torch.equal(actual.informative_G, expected.informative_G)
    largest = expected.weights_N.max().double().clamp(min=1e-30)
    return {
        "advantages": difference(actual.advantages_N, expected.advantages_N),
        "weights": difference(actual.weights_N / largest, expected.weights_N / largest),
        "statistics": difference(actual.statistics_G6, expected.statistics_G6),
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in GROUP_SPECS), *((name, torch.float32) for name in PRESETS)],
    ids=str,
)
def test_as_the_torch_path(name: str, dtype: torch.dtype) -> None:
    step = Step(dtype)
    expected = step.torch_path(GROUP_SPECS[name])
    actual = step.kernels(GROUP_SPECS[name])
    assert actual.advantages_N.dtype == actual.weights_N.dtype == dtype
    apart = differences(actual, expected)
    assert max(apart.values()) < TOLERANCE[dtype], apart
    assert not actual.advantages_N[~expected.kept_N].any()
    assert not actual.weights_N[~expected.kept_N].any()
    if GROUP_SPECS[name].has_group_baseline and GROUP_SPECS[name].scale != "batch_whiten":
        assert not actual.advantages_N[step.group_N == SINGLE].any()


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "batch_whiten"])
@pytest.mark.parametrize("baseline", ["mean", "none", "batch"])
def test_a_common_offset_leaves_no_residue(baseline: str, scale: str) -> None:
    step = Step(torch.float32)
    step.rewards_N += 7428.0
    step.rewards_N[step.group_N == EQUAL] = 7428.3
    spec = ObjectiveSpec(baseline=baseline, scale=scale)  # type: ignore[arg-type]
    actual = step.kernels(spec)
    assert max(differences(actual, step.torch_path(spec)).values()) < TOLERANCE[torch.float32]
    if baseline == "mean" and scale != "batch_whiten":
        assert not actual.advantages_N[step.group_N == EQUAL].any()


#: A change of one number: it must be seen.
CANARIES = {
    "ddof": (ObjectiveSpec(), ObjectiveSpec(std_ddof=0)),
    "epsilon": (ObjectiveSpec(), ObjectiveSpec(std_epsilon=3e-6)),
    "baseline": (ObjectiveSpec(baseline="batch", scale="none"), ObjectiveSpec(baseline="none", scale="none")),
    "overlong share": (
        ObjectiveSpec(overlong="soft_penalty", overlong_share=0.6),
        ObjectiveSpec(overlong="soft_penalty", overlong_share=0.600003),
    ),
    "whitening": (ObjectiveSpec(scale="batch_whiten"), ObjectiveSpec(scale="batch_whiten", std_ddof=0)),
    "weights": (ObjectiveSpec(aggregation="sequence"), ObjectiveSpec(aggregation="group_token")),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CANARIES)
def test_the_tolerance_sees_a_small_change(name: str, dtype: torch.dtype) -> None:
    here, there = CANARIES[name]
    step = Step(dtype)
    apart = differences(step.kernels(here), step.torch_path(there))
    assert max(apart["advantages"], apart["weights"]) > TOLERANCE[dtype], apart


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tolerance_sees_one_reward(dtype: torch.dtype) -> None:
    step = Step(dtype)
    expected = step.torch_path(ObjectiveSpec())
    step.rewards_N[0] += 1e-4
    apart = differences(step.kernels(ObjectiveSpec()), expected)
    assert min(apart["advantages"], apart["statistics"]) > TOLERANCE[dtype], apart


def test_values_by_hand() -> None:
    # mean 0.25; variance (0.75² + 3·0.25²)/3 = 0.25; then two equal ones; 8 loss tokens in all
    credit = kernels.group_advantage(
        torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=DEVICE),
        Groups.of_sizes([4, 2], DEVICE),
        torch.tensor([1, 2, 1, 0, 1, 3], device=DEVICE),
        ObjectiveSpec(std_epsilon=0.0),
        max_tokens=9,
    )
    assert credit.advantages_N.tolist() == pytest.approx([1.5, -0.5, -0.5, 0.0, 0.0, 0.0], abs=1e-15)
    assert credit.weights_N.tolist() == [0.125, 0.125, 0.125, 0.0, 0.125, 0.125]
    assert credit.statistics_G6.tolist() == [[0.25, 0.5, 0.0, 1.0, 4.0, 0.25], [1.0, 0.0, 1.0, 1.0, 2.0, 1.0]]


def test_flags_packing_index_and_metrics() -> None:
    step = Step(torch.float64)
    rewards_N, group_N = step.rewards_N, step.group_N
    first_N = group_N == group_N[0]
    rewards_N[first_N] = torch.arange(1, int(first_N.sum()) + 1, device=DEVICE, dtype=rewards_N.dtype)
    actual = step.kernels(ObjectiveSpec())
    expected_flags = []
    scores_of = [rewards_N[group_N == number].tolist() for number in sorted(set(group_N.tolist()))]
    for scores in scores_of:
        scored = [score for score in scores if score == score]  # noqa: PLR0124 (not nan)
        expected_flags.append(
            kernels.EQUAL_SCORES * (len(set(scored)) < 2)
            + kernels.ALL_POSITIVE * (bool(scored) and all(score > 0 for score in scored))
            + kernels.NONE_POSITIVE * (bool(scored) and not any(score > 0 for score in scored))
            + kernels.HAS_UNSCORED * (len(scored) < len(scores))
        )
    assert actual.flags_G.tolist() == expected_flags
    assert len(set(expected_flags)) >= 4
    kept = [place for place, keeps in enumerate(actual.kept_N.tolist()) if keeps]
    assert actual.keep_index_N.tolist() == kept + [-1] * (len(rewards_N) - len(kept))
    assert int(actual.keep_count) == len(kept)
    scored_N = rewards_N[~rewards_N.isnan()]
    expected = {
        "reward/mean": float(scored_N.mean()),
        "reward/std": float(scored_N.std()),
        "scored": len(scored_N),
        "unscored": len(rewards_N) - len(scored_N),
        "kept": len(kept),
        "kept_tokens": int(step.lengths_N[kept].sum()),
        "groups/informative": sum(not flag & kernels.EQUAL_SCORES for flag in expected_flags),
        "groups/all_positive": sum(bool(flag & kernels.ALL_POSITIVE) for flag in expected_flags),
        "groups/none_positive": sum(bool(flag & kernels.NONE_POSITIVE) for flag in expected_flags),
    }
    assert dict(zip(METRICS, actual.metrics.tolist(), strict=True)) == pytest.approx(expected, rel=1e-12)


def same_bits(one: DeviceAdvantages, two: DeviceAdvantages) -> bool:
    names = (*(name for name in Advantages.__slots__), *(name for name in DeviceAdvantages.__slots__))
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def test_two_launches_are_one_launch_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PRESETS["reinforce_pp_baseline"]
    step = Step(torch.float32, completions=kernels.ONE_LAUNCH + 300, groups=600, seed=1)
    beyond = step.kernels(spec)
    assert max(differences(beyond, step.torch_path(spec)).values()) < TOLERANCE[torch.float32]
    monkeypatch.setattr(kernels, "ONE_LAUNCH", 1 << 20)
    assert same_bits(beyond, step.kernels(spec))


@pytest.mark.parametrize("name", ["dapo", "lite_ppo", "rloo", "aggregation group_token"])
def test_two_launches_of_a_smaller_step_are_one_launch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(torch.float32, completions=2500, groups=90, seed=1)  # two tiles
    once = step.kernels(GROUP_SPECS[name])
    monkeypatch.setattr(kernels, "ONE_LAUNCH", 0)
    assert same_bits(once, step.kernels(GROUP_SPECS[name]))
    step.rewards_N[0] += 0.25
    assert not same_bits(once, step.kernels(GROUP_SPECS[name]))


@pytest.mark.parametrize("name", ["dapo", "reinforce_pp"])
def test_a_group_longer_than_a_tile(name: str) -> None:
    step = Step(torch.float64, completions=5000, seed=2)
    step.group_N[:] = 3
    apart = differences(step.kernels(GROUP_SPECS[name]), step.torch_path(GROUP_SPECS[name]))
    assert max(apart.values()) < TOLERANCE[torch.float64], apart


@pytest.mark.parametrize("name", PRESETS)
def test_no_completion_at_all(name: str) -> None:
    step = Step(torch.float32)
    for field in ("rewards_N", "group_N", "lengths_N", "truncated_N", "baseline_N"):
        setattr(step, field, getattr(step, field)[:0])
    actual = step.kernels(PRESETS[name])
    assert actual.advantages_N.shape == actual.weights_N.shape == (0,)
    assert actual.statistics_G6.shape == (0, 6)
    assert not actual.metrics.any()
    assert int(actual.keep_count) == 0


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("what", ["no score", "no loss token", "all equal"])
def test_a_step_without_information(name: str, what: str) -> None:
    step = Step(torch.float32)
    if what == "no score":
        step.rewards_N.fill_(torch.nan)
    elif what == "no loss token":
        step.lengths_N.zero_()
    else:
        step.rewards_N.fill_(1.0)
    spec = replace(PRESETS[name], overlong="keep")
    actual = step.kernels(spec)
    assert max(differences(actual, step.torch_path(spec)).values()) < TOLERANCE[torch.float32]
    assert bool(actual.advantages_N.isfinite().all())
    if what != "all equal" or spec.scale != "none" or spec.has_group_baseline:
        assert not actual.advantages_N.any()


def test_an_empty_group_is_zero_and_changes_nothing() -> None:
    step = Step(torch.float64)
    dense_N = torch.unique(step.group_N, return_inverse=True)[1]
    groups = int(dense_N.max()) + 1
    whole = step.kernels(ObjectiveSpec(), Groups.of_ids(dense_N, groups))
    spaced = step.kernels(ObjectiveSpec(), Groups.of_ids(dense_N * 2, 2 * groups))
    assert difference(spaced.advantages_N, whole.advantages_N) < 1e-14
    assert difference(spaced.statistics_G6[::2], whole.statistics_G6) < 1e-14
    assert not spaced.statistics_G6[1::2].any()
    assert spaced.flags_G[1::2].tolist() == [kernels.EQUAL_SCORES] * groups


def test_contiguous_groups_are_known_by_their_sizes() -> None:
    step = Step(torch.float64)
    order_N = torch.argsort(step.group_N, stable=True)
    for field in ("rewards_N", "group_N", "lengths_N", "truncated_N", "baseline_N"):
        setattr(step, field, getattr(step, field)[order_N].contiguous())
    sizes = torch.unique(step.group_N, return_counts=True)[1].tolist()
    assert same_bits(step.kernels(PRESETS["grpo"], Groups.of_sizes(sizes, DEVICE)), step.kernels(PRESETS["grpo"]))
    even = Groups.even(12, 5, DEVICE)
    assert torch.equal(even.starts_G1, Groups.of_sizes([5] * 12, DEVICE).starts_G1)


def test_a_baseline_that_is_asked_for_and_not_given() -> None:
    step = Step(torch.float64)
    with pytest.raises(ValueError, match="pass baseline_N"):
        kernels.group_advantage(
            step.rewards_N, step.group_N, step.lengths_N, ObjectiveSpec(baseline="given"), max_tokens=MAX_TOKENS
        )
