"""The keys of a grpo stage, and what they forbid each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlreason.config.data import CurriculumConfig, DataChoice
from rlreason.config.reward_terms import RewardTable
from rlreason.config.training import TrainingStage
from rlreason.objective.presets import expand
from rlreason.objective.spec import ObjectiveSpec


class GrpoStage(TrainingStage):
    """Group-relative policy optimisation with verified rewards."""

    kind: Literal["grpo"]
    model: str | None = None
    #: Named set that is trained on, or a mix of several with their shares; default ``data.train``.
    data: DataChoice | None = None
    #: Pass over problems that are always solved, and ask them again later; needs ``staleness = 0``.
    curriculum: CurriculumConfig | None = None
    #: Training problems to pass over first, such as those that the cold start showed.
    first_problem: int = Field(0, ge=0)
    problems_per_step: int = Field(ge=1)
    #: Completions drawn of each problem, which are a group: at least 2, or 1 with a baseline that is not the group's.
    samples_per_problem: int = Field(8)
    max_tokens: int = Field(ge=1)
    #: Divides the logits that completions are drawn from, and those of the trainer's log-probabilities.
    temperature: float = Field(1.0, gt=0)
    #: Draw from the most probable tokens that together have this probability. With this, top_k or min_p each token
    #: brings those that it was drawn from, and the trainer's log-probabilities are over the same.
    top_p: float = Field(1.0, gt=0, le=1)
    #: Draw from the most probable tokens only, so many of them; 0: from all. vLLM needs one up to 512 beside top_p or
    #: min_p.
    top_k: int = Field(0, ge=0)
    #: Draw only tokens that have at least this share of the most probable one's probability.
    min_p: float = Field(0.0, ge=0, lt=1)
    #: Optimizer steps on each batch of rollouts; more than 1 is off-policy and relies on the clip.
    updates_per_step: int = Field(1, ge=1)
    #: Do not compute completions whose scores alone say that their advantage is 0, such as those of groups of equal
    #: rewards, and that carry no KL term. It saves time and changes nothing: statistics and denominators are of all
    #: completions.
    filter_zero_variance: bool = True
    #: Draw up to this many more batches of problems in a step, until ``problems_per_step`` groups have both correct and
    #: wrong completions, and learn from those (DAPO's dynamic sampling, arXiv 2503.14476). Needs staleness 0.
    resample: int = Field(0, ge=0)
    #: A preset's name, a table with ``preset`` and what differs from it, or a table of all that differs from DAPO.
    objective: Annotated[ObjectiveSpec, BeforeValidator(expand)] = ObjectiveSpec()
    #: Rewards of this stage alone, written as in [reward], which it replaces here: ``reward = { accuracy = 1.0 }``.
    reward: RewardTable | None = None
    #: Steps after which the reference of the KL term is replaced by the policy as it is then, as in DeepSeek-R1; 0: it
    #: stays what the stage began with.
    reference_every: int = Field(0, ge=0)
    #: Groups of each step kept in rollouts.jsonl; default: ``logging.rollouts.groups``.
    logged_groups: int | None = Field(None, ge=0)
    #: Versions that the weights may be ahead of those that began a group. 0: sampling and training take turns, exactly
    #: on-policy. 1: the next step's groups are drawn while this one is learnt from.
    staleness: int = Field(0, ge=0)
    #: With staleness: groups under way take new weights between two tokens, instead of ending with the old ones.
    in_flight_updates: bool = True
    #: Steps between splits of the sampler-trainer difference by cause (mismatch.jsonl); 0 never.
    diagnose_every: int = Field(0, ge=0)
    #: Of a mixture of experts, where the trainer sends the tokens it learns from. off: where its own routers say.
    #: rollout (R3): to the experts that the sampler sent them to. old (R2): where it would itself, before the step's
    #: first update.
    routing_replay: Literal["off", "old", "rollout"] = "off"
    #: Have the sampler say which experts its tokens went to, and record how often the trainer's routers agree; with
    #: ``routing_replay = "rollout"`` it does anyway.
    report_experts: bool = False
    #: Leave the routers of a mixture of experts as they are.
    freeze_router: bool = False

    @property
    def longest_evaluated(self) -> int:
        """See ``TrainingStage.longest_evaluated``."""
        return self.eval_max_tokens or self.max_tokens

    @property
    def asks_for_experts(self) -> bool:
        """Whether the sampler is to say which experts its tokens went to."""
        return self.report_experts or self.routing_replay == "rollout"

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: object) -> object:
        if isinstance(values, dict) and "drop_zero_variance" in values:
            raise ValueError(
                "drop_zero_variance is called filter_zero_variance now: it saves computing, and no longer changes "
                "denominators. DAPO's dynamic sampling is resample = N"
            )
        return values

    @property
    def leaves_out(self) -> bool:
        """Whether completions of advantage 0 are not computed: they add nothing to the loss."""
        return self.filter_zero_variance and not self.objective.needs_every_token

    @model_validator(mode="after")
    def _has_reference(self) -> GrpoStage:
        if self.reference_every and self.objective.kl_coef <= 0:
            raise ValueError(
                f"reference_every = {self.reference_every} replaces a reference that nothing reads: give the objective "
                "a kl_coef above 0, or leave it out"
            )
        if self.reward is not None and not self.reward:
            raise ValueError("reward is empty: leave it out for the recipe's [reward], or name one")
        return self

    @model_validator(mode="after")
    def _possible(self) -> GrpoStage:
        if self.resample and self.staleness:
            raise ValueError(
                f"resample = {self.resample} draws more in the middle of a step, and staleness = {self.staleness} has "
                "the step drawn before it: use one of them"
            )
        if self.samples_per_problem < (2 if self.objective.has_group_baseline else 1):
            raise ValueError(
                f"samples_per_problem = {self.samples_per_problem}: a group needs at least 2 completions, "
                "or its advantage is 0 by definition"
            )
        if self.objective.centering != "off" and self.updates_per_step > 1 and self.objective.old == "trainer":
            raise ValueError(
                f'objective centering = "{self.objective.centering}" with updates_per_step = {self.updates_per_step} '
                "would need the whole distribution of the policy before the updates, which nobody keeps: use one "
                'update, or old = "sampler"'
            )
        if self.updates_per_step > 1 and self.objective.ratio == "on_policy":
            raise ValueError(
                'objective ratio = "on_policy" takes one update per step: from the second on the batch is off-policy, '
                'and nothing would correct for it. Use ratio = "token" or updates_per_step = 1'
            )
        weighed = self.objective.correction != "none" or self.objective.old == "sampler"
        if self.staleness and not weighed and self.objective.clip not in ("dppo_tv", "dppo_kl"):
            raise ValueError(
                f"staleness = {self.staleness} trains on completions of older weights, and objective.correction = "
                '"none" would not weigh them: use correction = "tis" (the default), "mis" or "icepop", '
                'old = "sampler", or staleness = 0'
            )
        if self.staleness and self.curriculum is not None:
            raise ValueError(
                f"staleness = {self.staleness} asks for problems before it is known how the last ones went, so that a "
                "curriculum could not be resumed exactly: use staleness = 0 or no curriculum"
            )
        if self.objective.baseline == "given":
            raise ValueError('objective baseline = "given" needs baselines from a critic, which no stage trains yet')
        if self.routing_replay == "old" and self.updates_per_step == 1:
            raise ValueError(
                'routing_replay = "old" replays the routing of before the first update in all updates of a step, and '
                'updates_per_step = 1 has no later one: use "rollout", or more updates'
            )
        if self.updates_per_step > self.problems_per_step:
            raise ValueError(
                f"updates_per_step ({self.updates_per_step}) must not exceed problems_per_step "
                f"({self.problems_per_step})"
            )
        return self
