"""Routing replay of a GRPO step (``routing_replay``), and what is recorded of a policy's experts.

"rollout" (R3, arXiv 2510.11370): the trainer sends every token where the sampler sent it. "old" (R2): where the
trainer's own pass before the step's updates sends it. docs/mismatch.md says when which helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlreason.config import GrpoStage
from rlreason.diagnose.experts import EXPERTS, balance_shares, layers_of, scalars_of
from rlreason.errors import UsageError
from rlreason.objective.scores import StepScores
from rlreason.run.directory import RunDirectory
from rlreason.trainer.forward import PolicyGradientLoss
from rlreason.trainer.protocol import LossSums, Trainer
from rlreason.types import TrainingSample


def loss_of(stage: GrpoStage, scores: StepScores) -> PolicyGradientLoss:
    """The objective under the stage's temperature and routing, of a step with these scores."""
    replays = stage.routing_replay != "off"
    return PolicyGradientLoss(spec=stage.objective, temperature=stage.temperature, replay=replays, scores=scores)


def with_old(
    batches: Sequence[list[TrainingSample]], stage: GrpoStage, trainer: Trainer
) -> Sequence[list[TrainingSample]]:
    """The updates' samples with what must be known of the policy before the first of them: its log-probabilities where
    there is more than one, and its routing where that is replayed. Raises UsageError where the sampler's is missing."""
    old = len(batches) > 1 and stage.objective.old == "trainer"
    if stage.routing_replay == "old":
        return [_with_routing(samples, stage, trainer, old=old) for samples in batches]
    given = stage.routing_replay == "rollout"
    if given and any(sample.routed_experts is None for samples in batches for sample in samples):
        raise UsageError(
            f'stage.{stage.name}.routing_replay = "rollout": the engine did not say which experts its tokens went to'
        )
    return [_with_logprobs(samples, stage, trainer, replay=given) if old else samples for samples in batches]


def _with_logprobs(
    samples: Sequence[TrainingSample], stage: GrpoStage, trainer: Trainer, *, replay: bool
) -> list[TrainingSample]:
    found = trainer.logprobs(samples, stage.temperature, replay=replay)
    return [replace(sample, old_logprobs=one) for sample, one in zip(samples, found, strict=True)]


def _with_routing(
    samples: Sequence[TrainingSample], stage: GrpoStage, trainer: Trainer, *, old: bool
) -> list[TrainingSample]:
    return [
        replace(sample, routed_experts=one.experts, old_logprobs=one.logprobs if old else None)
        for sample, one in zip(samples, trainer.routed_logprobs(samples, stage.temperature), strict=True)
    ]


def record_experts(run: RunDirectory, stage: str, step: int, sums: LossSums) -> dict[str, float]:
    """Metrics of where the step's loss tokens went; layer by layer they are a line of experts.jsonl. Nothing of a model
    without experts."""
    layers = {} if sums.experts is None else layers_of(sums.experts)
    shares = [] if sums.balance_L2 is None else balance_shares(sums.balance_L2)
    if shares:
        layers["balance_share"] = shares
    if not layers:
        return {}
    run.append(stage, EXPERTS, {"step": step, **layers})
    return scalars_of(layers)
