"""Scored groups -> training samples: advantages of a step, loss weights of its updates, and what need not be computed.

Advantages, their batch statistics and the denominators of the loss are those of all scored completions of a step. A
completion whose advantage is exactly 0 adds nothing to the loss or its gradient where no KL term is in the loss, so
``filter_zero_variance`` leaves out its forward pass, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlreason.config import GrpoStage, RewardTerm
from rlreason.errors import UsageError
from rlreason.objective.advantage import (
    Advantages,
    dense_groups,
    group_advantage,
    rollout_advantage,
    rollout_weights,
)
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import rollout_sample, trained_tokens
from rlreason.types import Completion, Group, TrainingSample, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAdvantages:
    """What the completions of a step earn, [N] in the order of ``completions_of``.

    Example: ``StepAdvantages(advantages=Advantages(...), penalties=(0.01, 0.02))``.
    """

    advantages: Advantages
    #: What a KL in the reward took off each score; empty where the objective has none.
    penalties: tuple[float, ...] = ()

    def by_group(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The advantage of each completion of ``groups``, the first of the step; None where it carries no loss."""
        earned = zip(self.advantages.advantages_N.tolist(), self.advantages.kept_N.tolist(), strict=True)
        values = (a if kept else None for a, kept in earned)
        return [[next(values) for _ in group.completions_G] for group in groups]


def completions_of(groups: Sequence[Group]) -> list[Completion]:
    """All completions of ``groups``, in order: the N of ``advantages_of``."""
    return [completion for group in groups for completion in group.completions_G]


def advantages_of(
    groups: Sequence[Group],
    stage: GrpoStage,
    penalties_N: Sequence[float] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Advantages:
    """Advantages of one step, and its weights as if it were one update. ``penalties_N`` are taken off the scores first
    (KL in the reward); ``weights``: of the reward's parts, for ``rewards = "apart"``. Raises UsageError where MaxRL
    meets a reward below 0, or there are no parts."""
    spec = stage.objective
    if spec.rewards == "apart" and groups:
        summed_N = _parts_apart(groups, stage, weights or {})
        # Each part's mean is 0 in each group, so the batch's is: taking off what rounding leaves would only give a
        # completion that no part tells from its group an advantage of 1e-17.
        return _advantages(summed_N, groups, stage, replace(spec, rewards="sum", baseline="none", scale="batch_std"))
    scores = [float("nan") if score is None else score for group in groups for score in group.scores_G]
    scores_N = torch.tensor(scores, dtype=torch.float64)
    if penalties_N is not None:
        scores_N = scores_N - torch.tensor(penalties_N, dtype=torch.float64)
    if stage.objective.scale == "group_mean":
        _refuse_negative(groups, stage)
    return _advantages(scores_N, groups, stage, spec)


def _advantages(
    scores_N: Tensor, groups: Sequence[Group], stage: GrpoStage, spec: ObjectiveSpec, lengths_N: Tensor | None = None
) -> Advantages:
    """``lengths_N``: loss tokens; None: those of the completions."""
    completions = completions_of(groups)
    lengths_N = _lengths(completions) if lengths_N is None else lengths_N
    truncated_N = torch.tensor([one.finish_reason == "length" for one in completions], dtype=torch.bool)
    group_N, rollout_N = _group_numbers(groups), _rollout_numbers(groups)
    if rollout_N is None:
        return group_advantage(scores_N, group_N, lengths_N, spec, max_tokens=stage.max_tokens, truncated_N=truncated_N)
    return rollout_advantage(
        scores_N, group_N, lengths_N, rollout_N, spec, max_tokens=stage.max_tokens, truncated_N=truncated_N
    )


def _parts_apart(groups: Sequence[Group], stage: GrpoStage, weights: Mapping[str, float]) -> Tensor:
    """Σ_k weight_k A_k, [N]: GRPO's advantage for each part of the reward, of the completions that have it; NaN where a
    completion has no score."""
    rewards = [one for group in groups for one in group.rewards_G]
    names = [name for name in weights if any(name in one.parts for one in rewards)]
    if not names and any(one.score is not None for one in rewards):
        raise UsageError(
            f'stage.{stage.name}.objective: rewards = "apart" (GDPO) normalises each part of [reward], and none of '
            f"{', '.join(weights) or 'its parts'} gave a score"
        )
    total_N = torch.zeros(len(rewards), dtype=torch.float64)
    for name in names:
        has = [one.score is not None and name in one.parts for one in rewards]
        column = [one.parts[name] if given else float("nan") for one, given in zip(rewards, has, strict=True)]
        total_N += weights[name] * _normalised(torch.tensor(column, dtype=torch.float64), groups, stage)
    unscored_N = torch.tensor([one.score is None for one in rewards], dtype=torch.bool)
    return total_N.masked_fill(unscored_N, torch.nan)


def _normalised(scores_N: Tensor, groups: Sequence[Group], stage: GrpoStage) -> Tensor:
    """(r − mean_g) / (std_g + ε) of every completion that has r and is in its group's statistics, whether or not it
    will carry loss: else the sum over a group, and with it over the batch, would not be 0."""
    spec = stage.objective
    everybody = replace(spec, overlong="keep") if spec.overlong == "mask" else spec
    ones_N = torch.ones(len(scores_N), dtype=torch.long)
    return _advantages(scores_N, groups, stage, everybody, ones_N).advantages_N


def weights_of(reward: Mapping[str, RewardTerm]) -> dict[str, float]:
    """The weight of each part of a recipe's [reward] table, by the part's name. Raises UsageError for a part that has
    several."""
    found = {}
    for name, term in reward.items():
        if isinstance(term, dict) and {"gate", "schedule"} & term.keys():
            raise UsageError(
                f'reward.{name}: rewards = "apart" (GDPO) gives each part one weight; gate and schedule need "sum"'
            )
        weight = term["weight"] if isinstance(term, dict) and "weight" in term else term
        found[name.rpartition("/")[2]] = float(weight) if isinstance(weight, (int, float)) else 1.0
    return found


def _refuse_negative(groups: Sequence[Group], stage: GrpoStage) -> None:
    """MaxRL's mean is a rate of success: with a mean below 0 its formula reinforces the worse completion."""
    for group in groups:
        for sample, score in enumerate(group.scores_G):
            if score is not None and score < 0.0:
                raise UsageError(
                    f"stage.{stage.name}.objective: MaxRL (scale = group_mean) divides by a group's mean reward and is "
                    f"defined for rewards of 0 and more, but sample {sample} of {group.group_id} has {score:g}. "
                    'Give [reward] no negative terms, or use scale = "none" or "group_std"'
                )


def _group_numbers(groups: Sequence[Group]) -> Tensor:
    ids = dense_groups([group.group_id for group in groups for _ in group.completions_G])
    return torch.tensor(ids, dtype=torch.long)


def _rollout_numbers(groups: Sequence[Group]) -> Tensor | None:
    """Which rollout each completion is of, over all groups; None where none was split."""
    if not any(group.rollouts_G for group in groups):
        return None
    names = [
        f"{at}/{rollout}"
        for at, group in enumerate(groups)
        for rollout in group.rollouts_G or range(len(group.completions_G))
    ]
    return torch.tensor(dense_groups(names), dtype=torch.long)


def _lengths(completions: Sequence[Completion]) -> Tensor:
    return torch.tensor([int(trained_tokens(one).sum()) for one in completions], dtype=torch.long)


def computed(earned: Advantages, stage: GrpoStage) -> list[bool]:
    """Which completions of a step are computed, [N]: those with loss, but not those whose share of the loss and of its
    gradient is exactly 0, where the stage filters them."""
    needed_N = earned.kept_N
    if stage.filter_zero_variance and not stage.objective.needs_every_token:
        needed_N = needed_N & (earned.advantages_N != 0.0)
    needed: list[bool] = needed_N.tolist()
    return needed


def computed_groups(groups: Sequence[Group], earned: Advantages, stage: GrpoStage) -> list[Group]:
    """The groups of which any completion is computed."""
    needed = iter(computed(earned, stage))
    return [group for group in groups if sum(next(needed) for _ in group.completions_G)]


def samples_of(groups: Sequence[Group], earned: Advantages, stage: GrpoStage) -> list[list[TrainingSample]]:
    """The samples of each of the step's updates that has any.

    Group i belongs to update i mod ``updates_per_step``, of all scored groups. Advantages are the whole step's (as in
    REINFORCE++ and verl: normalised over the batch of rollouts); the denominators of the loss are each update's own, as
    each is a mini-batch of PPO.
    """
    completions, needed = completions_of(groups), computed(earned, stage)
    ids = [group.group_id for group in groups for _ in group.completions_G]
    update_N = torch.tensor([i % stage.updates_per_step for i, group in enumerate(groups) for _ in group.completions_G])
    updates = []
    for update in range(stage.updates_per_step):
        places = (update_N == update).nonzero()[:, 0]
        advantages, weights = earned.advantages_N[places].tolist(), _weights(groups, places, earned, stage).tolist()
        samples = [
            rollout_sample(completions[at], advantage, weight, ids[at])
            for at, advantage, weight in zip(places.tolist(), advantages, weights, strict=True)
            if needed[at]
        ]
        if samples:
            updates.append(samples)
    return updates


def _weights(groups: Sequence[Group], places: Tensor, earned: Advantages, stage: GrpoStage) -> Tensor:
    """w of the completions of one update."""
    if stage.updates_per_step == 1:
        return earned.weights_N
    lengths_N, group_N, rollout_N = _lengths(completions_of(groups)), _group_numbers(groups), _rollout_numbers(groups)
    if rollout_N is None:
        rollout_N = torch.arange(len(group_N))
    return rollout_weights(
        (lengths_N[places], earned.kept_N[places], group_N[places], rollout_N[places]),
        stage.objective,
        stage.max_tokens,
        earned.weights_N.dtype,
    )


def is_mixed(group: Group) -> bool:
    """Whether some of the group's judged completions are correct and some are not: what DAPO's dynamic sampling keeps
    (arXiv 2503.14476, eq. 11: 0 < |correct| < G), whatever else is in the score."""
    judged = [
        one.verdict is Verdict.CORRECT
        for one in group.rewards_G
        if one.score is not None and one.verdict in (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED)
    ]
    return any(judged) and not all(judged)


def full_batch(groups: Sequence[Group], size: int) -> list[Group]:
    """``size`` of ``groups`` in their order: those that are mixed, filled up with others where they are too few."""
    mixed = [at for at, group in enumerate(groups) if is_mixed(group)]
    others = [at for at, group in enumerate(groups) if not is_mixed(group)]
    return [groups[at] for at in sorted((mixed + others)[:size])]
