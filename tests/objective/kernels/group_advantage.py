"""K1 against the torch path. Runs from ``tests/objective/test_kernels.py``, or alone on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, GROUP_SPECS, TOLERANCE, difference
from torch import Tensor

from rlreason.objective import scores as torch_path
from rlreason.objective.kernels import advantage as kernels
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import StepScores
from rlreason.objective.spec import ObjectiveSpec

MAX_TOKENS = 50


def step(spec: ObjectiveSpec, rollouts: int = 60, groups: int = 11, seed: int = 0) -> StepScores:
    """Ragged groups: the first of equal scores, then one of a single rollout, one without a score, single missing
    scores (nan), rollouts without a loss token, and truncated ones."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    sizes = [3, 1, 2, *(1 + torch.randint(0, 2 * rollouts // groups, (rollouts,), generator=generator)).tolist()]
    while sum(sizes[:-1]) >= rollouts:
        sizes.pop()
    sizes[-1] -= sum(sizes) - rollouts
    scores_N = (2.0 * random(rollouts)).round(decimals=1) - 0.5
    scores_N[11::17] = torch.nan
    scores_N[:3], scores_N[3], scores_N[4:6] = 0.3, 1.0, torch.nan
    lengths_N = torch.randint(0, MAX_TOKENS + 1, (rollouts,), generator=generator)
    lengths_N[7:9] = torch.tensor([0, MAX_TOKENS])
    truncated_N = random(rollouts) < 0.3
    return StepScores(
        spec=spec,
        max_tokens=MAX_TOKENS,
        scores_N=scores_N,
        sizes_G=tuple(sizes),
        lengths_N=lengths_N,
        truncated_N=truncated_N,
    )


def nudge(scores: StepScores, by: float) -> None:
    """One score of the longest group."""
    inside_N = scores.group_N == scores.sizes_G.index(max(scores.sizes_G))
    scores.scores_N[int((inside_N & scores.kept_N).nonzero()[0])] += by


def on_kernels(scores: StepScores, dtype: torch.dtype = torch.float64) -> Tensor:
    return kernels.step_advantages(scores, DEVICE, dtype)


def on_torch(scores: StepScores, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch_path.step_advantages(scores, DEVICE, dtype)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in GROUP_SPECS), *((name, torch.float32) for name in PRESETS)],
    ids=str,
)
def test_as_the_torch_path(name: str, dtype: torch.dtype) -> None:
    scores = step(GROUP_SPECS[name])
    expected, actual = on_torch(scores, dtype), on_kernels(scores, dtype)
    assert actual.dtype == dtype
    # In float32 both are float64's, rounded once.
    assert difference(actual, expected) < (TOLERANCE[dtype] if dtype == torch.float64 else 2e-7)
    assert not actual[~scores.kept_N.to(DEVICE)].any()
    assert not actual[scores.silent_N.to(DEVICE)].any()


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "batch_whiten"])
@pytest.mark.parametrize("baseline", ["mean", "none", "batch"])
def test_a_common_offset_leaves_no_residue(baseline: str, scale: str) -> None:
    scores = step(ObjectiveSpec(baseline=baseline, scale=scale))  # type: ignore[arg-type]
    scores.scores_N.add_(7428.0)
    actual = on_kernels(scores)
    assert difference(actual, on_torch(scores)) < 1e-9
    if baseline == "mean" and scale != "batch_whiten":
        assert not actual[:4].any()


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
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CANARIES)
def test_the_tolerance_sees_a_small_change(name: str, dtype: torch.dtype) -> None:
    here, there = CANARIES[name]
    assert difference(on_kernels(step(here), dtype), on_torch(step(there), dtype)) > TOLERANCE[dtype]


def test_the_tolerance_sees_one_score() -> None:
    scores = step(ObjectiveSpec())
    expected = on_torch(scores)
    nudge(scores, 1e-4)
    assert difference(on_kernels(scores), expected) > TOLERANCE[torch.float64]


def test_values_by_hand() -> None:
    # mean 0.25; variance (0.75² + 3·0.25²)/3 = 0.25; then two equal ones
    scores = StepScores(
        spec=ObjectiveSpec(std_epsilon=0.0),
        max_tokens=9,
        scores_N=torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64),
        sizes_G=(4, 2),
        lengths_N=torch.tensor([1, 2, 1, 0, 1, 3]),
        truncated_N=torch.zeros(6, dtype=torch.bool),
    )
    assert on_kernels(scores).tolist() == pytest.approx([1.5, -0.5, -0.5, 0.0, 0.0, 0.0], abs=1e-15)


def test_two_launches_are_one_launch_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = step(PRESETS["reinforce_pp_baseline"], rollouts=kernels.ONE_LAUNCH + 300, groups=600, seed=1)
    beyond = on_kernels(scores)
    assert difference(beyond, on_torch(scores)) < TOLERANCE[torch.float64]
    monkeypatch.setattr(kernels, "ONE_LAUNCH", 1 << 20)
    assert torch.equal(beyond, on_kernels(scores))


@pytest.mark.parametrize("name", ["dapo", "lite_ppo", "rloo", "opo"])
def test_two_launches_of_a_smaller_step_are_one_launch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = step(GROUP_SPECS[name], rollouts=2500, groups=90, seed=1)  # several tiles
    once = on_kernels(scores)
    monkeypatch.setattr(kernels, "ONE_LAUNCH", 0)
    assert torch.equal(once, on_kernels(scores))
    nudge(scores, 0.25)
    assert not torch.equal(once, on_kernels(scores))


@pytest.mark.parametrize("name", ["dapo", "reinforce_pp"])
def test_a_group_longer_than_a_tile(name: str) -> None:
    scores = replace(step(GROUP_SPECS[name], rollouts=5000, seed=2), sizes_G=(5000,))
    assert difference(on_kernels(scores), on_torch(scores)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("what", ["nothing at all", "no score", "no loss token", "all equal"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_step_without_information(name: str, what: str) -> None:
    scores = step(replace(PRESETS[name], overlong="keep"))
    if what == "nothing at all":
        none = {name: getattr(scores, name)[:0] for name in ("scores_N", "lengths_N", "truncated_N")}
        scores = replace(scores, sizes_G=(), **none)
        assert not scores.silent_N.any()
    elif what == "no score":
        scores.scores_N.fill_(torch.nan)
    elif what == "no loss token":
        scores.lengths_N.zero_()
    else:
        scores.scores_N.fill_(1.0)
    actual = on_kernels(scores)
    assert actual.shape == scores.scores_N.shape
    assert difference(actual, on_torch(scores)) < 1e-12
    assert bool(actual.isfinite().all())
    if what != "all equal" or scores.spec.scale != "none" or scores.spec.baseline != "none":
        assert not actual.any()
