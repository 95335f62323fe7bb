"""Scored groups -> training samples: scores of a step, loss weights of its updates, and what need not be computed.

Scores, batch statistics and the denominators of the loss are those of all scored completions of a step. Advantages are
made from the scores where the loss is (``objective.scores``): samples say which score is theirs. A completion whose
advantage is exactly 0 adds nothing to the loss or its gradient where no KL term is in the loss, so
``filter_zero_variance`` leaves out its forward pass where the scores alone say so, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlreason.config import GrpoStage, RewardTerm
from rlreason.errors import UsageError
from rlreason.objective.advantage import dense_groups, rollout_weights
from rlreason.objective.scores import Rollouts, StepScores, step_advantages
from rlreason.policy.batch import rollout_sample, trained_tokens
from rlreason.types import Completion, Group, TrainingSample, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCredit:
    """What the completions of a step are credited with, [N] in the order of ``completions_of``.

    Example: ``StepCredit(scores=StepScores(...), at_N=tensor([0, 1]), lengths_N=tensor([3, 5]))``.
    """

    scores: StepScores
    #: Which score is that of each completion's rollout, int64 [N].
    at_N: Tensor
    #: Its own loss tokens, int64 [N].
    lengths_N: Tensor
    #: What a KL in the reward took off each score; empty where the objective has none.
    penalties: tuple[float, ...] = ()

    @property
    def kept_N(self) -> Tensor:
        """Which carry loss, bool [N]."""
        return self.scores.kept_N[self.at_N] & (self.lengths_N > 0)

    @property
    def advantages_N(self) -> Tensor:
        """Their advantages, float64 [N], made here: what people read of a step, and not what it is trained with."""
        advantages_R = step_advantages(self.scores, torch.device("cpu"), torch.float64)
        return advantages_R[self.at_N].masked_fill(~self.kept_N, 0.0)

    def weights(self, places: Tensor) -> Tensor:
        """w of the completions at ``places``, float64 [places], as one update."""
        group_N = self.scores.group_N[self.at_N]
        step = (self.lengths_N[places], self.kept_N[places], group_N[places], self.at_N[places])
        return rollout_weights(step, self.scores.spec, self.scores.max_tokens, torch.float64)

    def by_group(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The advantage of each completion of ``groups``, the first of the step; None where it carries no loss."""
        earned = zip(self.advantages_N.tolist(), self.kept_N.tolist(), strict=True)
        values = (a if kept else None for a, kept in earned)
        return [[next(values) for _ in group.completions_G] for group in groups]


def completions_of(groups: Sequence[Group]) -> list[Completion]:
    """All completions of ``groups``, in order: the N of ``credit_of``."""
    return [completion for group in groups for completion in group.completions_G]


def credit_of(
    groups: Sequence[Group],
    stage: GrpoStage,
    penalties_N: Sequence[float] | None = None,
    weights: Mapping[str, float] | None = None,
) -> StepCredit:
    """The scores of one step. ``penalties_N`` are taken off them (KL in the reward); ``weights``: of the reward's
    parts, for ``rewards = "apart"``. Raises UsageError where MaxRL meets a reward below 0, or there are no parts."""
    spec, completions = stage.objective, completions_of(groups)
    lengths_N = torch.tensor([int(trained_tokens(one).sum()) for one in completions], dtype=torch.long)
    truncated_N = torch.tensor([one.finish_reason == "length" for one in completions], dtype=torch.bool)
    rollouts = _rollouts(groups)
    truncated_R = rollouts.total(truncated_N) > 0
    if spec.rewards == "apart" and groups:
        scores_R = _parts_apart(groups, stage, weights or {}, (rollouts, truncated_R))
        # Each part's mean is 0 in each group, so the batch's is: taking off what rounding leaves would only give a
        # completion that no part tells from its group an advantage of 1e-17.
        spec = replace(spec, rewards="sum", baseline="none", scale="batch_std")
    else:
        scores = [float("nan") if score is None else score for group in groups for score in group.scores_G]
        scores_N = torch.tensor(scores, dtype=torch.float64)
        if penalties_N is not None:
            scores_N = scores_N - torch.tensor(penalties_N, dtype=torch.float64)
        if spec.scale == "group_mean":
            _refuse_negative(groups, stage)
        scores_R = rollouts.mean(scores_N)
    found = StepScores(
        spec=spec,
        max_tokens=stage.max_tokens,
        scores_N=scores_R,
        sizes_G=rollouts.sizes_G,
        lengths_N=rollouts.total(lengths_N).long(),
        truncated_N=truncated_R,
    )
    return StepCredit(scores=found, at_N=rollouts.at_N, lengths_N=lengths_N, penalties=tuple(penalties_N or ()))


def _rollouts(groups: Sequence[Group]) -> Rollouts:
    """Which completions of a step are one rollout: where none was split, each is one."""
    ids = dense_groups([group.group_id for group in groups for _ in group.completions_G])
    names = [
        f"{at}/{rollout}"
        for at, group in enumerate(groups)
        for rollout in group.rollouts_G or range(len(group.completions_G))
    ]
    return Rollouts.of(torch.tensor(ids, dtype=torch.long), torch.tensor(dense_groups(names), dtype=torch.long))


def _parts_apart(
    groups: Sequence[Group], stage: GrpoStage, weights: Mapping[str, float], step: tuple[Rollouts, Tensor]
) -> Tensor:
    """Σ_k weight_k A_k of each rollout, [R]: GRPO's advantage for each part of the reward, of the rollouts that have
    it; NaN where one has no score. ``step``: the rollouts, and which were truncated."""
    rollouts, truncated_R = step
    rewards = [one for group in groups for one in group.rewards_G]
    names = [name for name in weights if any(name in one.parts for one in rewards)]
    if not names and any(one.score is not None for one in rewards):
        raise UsageError(
            f'stage.{stage.name}.objective: rewards = "apart" (GDPO) normalises each part of [reward], and none of '
            f"{', '.join(weights) or 'its parts'} gave a score"
        )
    total_R = torch.zeros(len(truncated_R), dtype=torch.float64)
    for name in names:
        has = [one.score is not None and name in one.parts for one in rewards]
        column = [one.parts[name] if given else float("nan") for one, given in zip(rewards, has, strict=True)]
        column_R = rollouts.mean(torch.tensor(column, dtype=torch.float64))
        total_R += weights[name] * _normalised(column_R, rollouts.sizes_G, truncated_R, stage)
    scored_N = torch.tensor([one.score is not None for one in rewards], dtype=torch.bool)
    return total_R.masked_fill(rollouts.total(scored_N) == 0, torch.nan)


def _normalised(scores_R: Tensor, sizes_G: tuple[int, ...], truncated_R: Tensor, stage: GrpoStage) -> Tensor:
    """(r − mean_g) / (std_g + ε) of every rollout that has r and is in its group's statistics, whether or not it will
    carry loss: else the sum over a group, and with it over the batch, would not be 0."""
    spec = stage.objective
    part = StepScores(
        spec=replace(spec, overlong="keep") if spec.overlong == "mask" else spec,
        max_tokens=stage.max_tokens,
        scores_N=scores_R,
        sizes_G=sizes_G,
        lengths_N=torch.ones(len(scores_R), dtype=torch.long),
        truncated_N=truncated_R,
    )
    return step_advantages(part, torch.device("cpu"), torch.float64)


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


def computed(credit: StepCredit, stage: GrpoStage) -> list[bool]:
    """Which completions of a step are computed, [N]: those with loss, but not those whose share of the loss and of its
    gradient is exactly 0, as their scores say, where the stage filters them."""
    needed_N = credit.kept_N
    if stage.leaves_out:
        needed_N = needed_N & ~credit.scores.silent_N[credit.at_N]
    needed: list[bool] = needed_N.tolist()
    return needed


def computed_groups(groups: Sequence[Group], credit: StepCredit, stage: GrpoStage) -> list[Group]:
    """The groups of which any completion is computed."""
    needed = iter(computed(credit, stage))
    return [group for group in groups if sum(next(needed) for _ in group.completions_G)]


def samples_of(groups: Sequence[Group], credit: StepCredit, stage: GrpoStage) -> list[list[TrainingSample]]:
    """The samples of each of the step's updates that has any.

    Group i belongs to update i mod ``updates_per_step``, of all scored groups. Advantages are the whole step's (as in
    REINFORCE++ and verl: normalised over the batch of rollouts); the denominators of the loss are each update's own, as
    each is a mini-batch of PPO.
    """
    completions, needed, at = completions_of(groups), computed(credit, stage), credit.at_N.tolist()
    ids = [group.group_id for group in groups for _ in group.completions_G]
    update_N = torch.tensor([i % stage.updates_per_step for i, group in enumerate(groups) for _ in group.completions_G])
    updates = []
    for update in range(stage.updates_per_step):
        places = (update_N == update).nonzero()[:, 0]
        samples = [
            replace(rollout_sample(completions[place], weights=weight, group_id=ids[place]), score_at=at[place])
            for place, weight in zip(places.tolist(), credit.weights(places).tolist(), strict=True)
            if needed[place]
        ]
        if samples:
            updates.append(samples)
    return updates


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
