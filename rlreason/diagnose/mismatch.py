"""The mismatch doctor: why the sampler's log-probabilities differ from the trainer's, and what to do about it.

``mismatch_chain.py`` splits the difference by cause, ``mismatch_advice.py`` has the rules; ``docs/mismatch.md`` says
how to read the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.config import GrpoStage
from rlreason.diagnose.mismatch_advice import Advice, Findings, advise
from rlreason.diagnose.mismatch_chain import CAUSES, Experts, Split, split
from rlreason.objective.kl import kl_estimate
from rlreason.policy.batch import trained_tokens
from rlreason.run.directory import RunDirectory
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.rescoring import Precision, Rescorer, WeightHistory
from rlreason.types import Completion, Group

#: One line for each diagnosis.
FILE = "mismatch.jsonl"
MAX_COMPLETIONS, MAX_TOKENS = 64, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One link of the chain over all tokens, in nats. ``share``: of the sum of all links' ``mean``."""

    mean: float
    max: float
    #: k3 estimate of the KL divergence, as in the metrics.
    k3: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchReport:
    """One diagnosis: a line of mismatch.jsonl."""

    #: Also the version of the trainer's weights.
    step: int
    tokens: int
    completions: int
    #: Completions that could not be examined, as weights that drew them are gone.
    left_out: int
    #: Oldest and newest version that drew these tokens.
    versions: tuple[int, int]
    trainer_dtype: str
    sampler_dtype: str
    #: The recipe's, and the one that the sampler's log-probabilities fit.
    temperature: float
    sampler_temperature: float
    experts: Experts
    rerouted: float | None
    total: Part
    #: By cause, in the order of ``CAUSES``.
    parts: dict[str, Part]
    advice: Advice


class MismatchDoctor:
    """Keeps the weights that a diagnosis will need, and makes one where it is due."""

    def __init__(self, stage: GrpoStage, run: RunDirectory, trainer: LocalTrainer) -> None:
        self._stage, self._run, self._trainer = stage, run, trainer
        # Version s − staleness may have drawn what step s learns from; one more shows a delivery that went missing.
        self._history = WeightHistory(stage.staleness + 1)

    def look(self, step: int, groups: Sequence[Group]) -> None:
        """To be called with the groups of ``step`` before the policy, which has that version, learns from them."""
        if self._is_due(step):
            model, wide = self._trainer.model, self._trainer.router_dtype != self._trainer.dtype
            sampler = Precision(model.dtype, wide)
            report = diagnose(groups, step, model, self._history, self._stage, sampler)
            if report is not None:
                self._run.append(self._stage.name, FILE, asdict(report))
        if any(self._is_due(later) for later in range(step + 1, step + self._stage.staleness + 2)):
            self._history.add(step, dict(self._trainer.weights()))

    def _is_due(self, step: int) -> bool:
        every, steps = self._stage.diagnose_every, self._stage.steps
        return every > 0 and step < steps and ((step + 1) % every == 0 or step + 1 == steps)


def diagnose(
    groups: Sequence[Group],
    step: int,
    model: PreTrainedModel,
    history: WeightHistory,
    stage: GrpoStage,
    sampler: Precision | None = None,
) -> MismatchReport | None:
    """Explain the difference on up to 64 completions and 4,096 tokens of ``groups``; None where there are none.

    ``model`` holds version ``step``. ``sampler`` None: the model's, as engines are built.
    """
    ours = Precision.of(model)
    theirs = sampler or ours
    drawn = [completion for group in groups for completion in group.completions_G if _can_be_examined(completion)]
    at_hand = [one for one in drawn if all(v == step or v in history for v in set(one.policy_versions.tolist()))]
    taken = _taken(at_hand)
    if not taken:
        return None
    rescorer = Rescorer(model, step, history, taken, stage.micro_batch)
    found = split(rescorer, taken, step, stage.temperature, (ours, theirs))
    total, parts = _measure(found)
    versions = [version for completion in taken for version in completion.policy_versions.tolist()]
    findings = Findings(
        largest=total.max,
        causes={cause: part.mean for cause, part in parts.items()},
        staleness_k3=parts["staleness"].k3,
        staleness=stage.staleness,
        temperatures=(stage.temperature, found.sampler_temperature),
        low_precision=theirs.dtype != torch.float32,
        experts_unseen=found.experts in ("own", "unknown"),
        looks_undelivered=found.looks_undelivered,
    )
    return MismatchReport(
        step=step,
        tokens=rescorer.count,
        completions=len(taken),
        left_out=len(drawn) - len(at_hand),
        versions=(min(versions), max(versions)),
        trainer_dtype=str(model.dtype).removeprefix("torch."),
        sampler_dtype=str(theirs.dtype).removeprefix("torch."),
        temperature=stage.temperature,
        sampler_temperature=found.sampler_temperature,
        experts=found.experts,
        rerouted=found.rerouted,
        total=total,
        parts=parts,
        advice=advise(findings, stage.objective),
    )


def _taken(completions: Sequence[Completion]) -> list[Completion]:
    """Completions from all over ``completions`` within the limits, the last cut where it would go beyond."""
    count = min(len(completions), MAX_COMPLETIONS)
    taken, left = [], MAX_TOKENS
    for place in range(count):
        one = completions[place * len(completions) // count]
        if left:
            taken.append(_cut(one, left))
        left -= len(taken[-1].token_ids) if left else 0
    return taken


def _cut(completion: Completion, length: int) -> Completion:
    if len(completion.token_ids) <= length:
        return completion
    logprobs_T, experts = completion.sampler_logprobs, completion.routed_experts
    sets = completion.sampled_from
    return replace(
        completion,
        token_ids=completion.token_ids[:length],
        loss_mask=completion.loss_mask[:length],
        sampler_logprobs=None if logprobs_T is None else logprobs_T[:length],
        policy_versions=completion.policy_versions[:length],
        teacher_logprobs=None,
        routed_experts=None if experts is None else experts[:length],
        sampled_from=None if sets is None else sets.head(length),
    )


def _can_be_examined(completion: Completion) -> bool:
    """Whether every token of it is the policy's own, with a finite log-probability."""
    return len(completion.token_ids) > 0 and bool(trained_tokens(completion).all())


def _measure(found: Split) -> tuple[Part, dict[str, Part]]:
    """The whole difference, and each cause's part of it."""
    links = dict(zip(CAUSES, pairwise(found.points), strict=True))
    whole = sum(float((before_N - after_N).abs().mean()) for before_N, after_N in links.values())
    parts = {cause: _part(*link, whole) for cause, link in links.items()}
    return _part(found.points[0], found.points[-1], 0.0), parts


def _part(before_N: Tensor, after_N: Tensor, whole: float) -> Part:
    size_N = (before_N - after_N).abs()
    mean = float(size_N.mean())
    return Part(
        mean=mean,
        max=float(size_N.max()),
        # The sampler drew the tokens: r − 1 − log r of r = trainer's/sampler's has the mean KL(sampler || trainer).
        k3=float(kl_estimate(after_N, before_N, "k3")[0].mean()),
        share=mean / whole if whole else 0.0,
    )
