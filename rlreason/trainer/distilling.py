"""The loss that has a teacher in it, as plain data (``trainer.protocol.Loss``): a model beside the policy, or what a
teacher elsewhere said of the samples (``TrainingSample.teacher``).

B = sequences, T = positions, R = loss tokens, H = hidden size, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from rlreason.objective.batch import Batch, LossOutput, TeacherTable
from rlreason.objective.distillation.head import (
    CHUNK,
    DistillationOptions,
    RowWeights,
    StudentRows,
    distillation_loss,
    quarters_of,
    rows_of,
)
from rlreason.objective.distillation.spec import DistillationSpec
from rlreason.objective.distillation.teacher import TeacherRows
from rlreason.policy.heads import output_head
from rlreason.policy.logprobs import hidden_states, plain_head, target_logits
from rlreason.routing import RoutedPass
from rlreason.trainer.balance import with_router_loss
from rlreason.trainer.experts import counts_of, routed_pass
from rlreason.trainer.protocol import Models
from rlreason.trainer.sharding import inside


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationLoss:
    """weight · Σ w D + (1 − weight) · Σ w CE over the loss tokens, D a divergence from a teacher.

    w is 1 / ``denominator``, or where that is None the sample's own ``weights``. With ``weight`` 1 no cross-entropy is
    computed. ``teacher``: its place among the trainer's teachers; of samples that carry a payload, among its heads.
    Example: ``DistillationLoss(spec=FORWARD, weight=0.5, denominator=4096.0, shared=151665)``.
    """

    spec: DistillationSpec
    weight: float = 1.0
    denominator: float | None = None
    #: Ids below it are one word to both models. None: all are.
    shared: int | None = None
    teacher: int = 0
    #: What the teacher says comes with the samples.
    elsewhere: bool = False
    chunk: int = CHUNK
    takes_packed: bool = True
    scores: None = None

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        """See ``Loss``. Needs the teacher that it names."""
        rows_R = rows_of(batch)
        # The balance of experts is of supervised losses: it is divided by a count of tokens, which weights don't give.
        routing: list[Tensor] | None = [] if models.router_aux_loss and self.denominator is not None else None
        routed = routed_pass(models.policy, batch)
        student = self._student(models.policy, batch, rows_R, routing, routed)
        teacher = self._teacher(models, batch, rows_R)
        scale_R = batch.weights_BT.reshape(-1)[rows_R]
        if self.denominator is not None:
            scale_R = torch.full_like(scale_R, 1.0 / self.denominator, dtype=torch.float64)
        weights = RowWeights(
            divergence_R=self.weight * scale_R,
            cross_entropy_R=None if self.weight == 1.0 else (1.0 - self.weight) * scale_R,
        )
        options = DistillationOptions(spec=self.spec, shared=self.shared, chunk=self.chunk)
        output = distillation_loss(student, teacher, weights, options)
        output = replace(output, experts=counts_of(models.policy, routed, batch))
        if routing is None:
            return output
        assert self.denominator is not None
        return with_router_loss(output, models.policy, routing, batch, models.router_aux_loss, self.denominator)

    def _student(
        self,
        model: PreTrainedModel,
        batch: Batch,
        rows_R: Tensor,
        routing: list[Tensor] | None,
        routed: RoutedPass | None,
    ) -> StudentRows:
        found = StudentRows(
            targets_R=batch.targets_BT.reshape(-1)[rows_R],
            sampler_logprobs_R=batch.sampler_logprobs_BT.reshape(-1)[rows_R],
            quarters_R=quarters_of(batch, rows_R),
        )
        weight_VH = plain_head(model)
        if weight_VH is None:  # soft caps and the like: whole logits, as all losses of such a model make them
            logits_BTV = target_logits(model, batch, routing, routed)
            return replace(found, logits_RV=logits_BTV.flatten(0, 1).index_select(0, rows_R))
        hidden_BTH = hidden_states(model, batch, routing, routed)
        return replace(found, hidden_RH=hidden_BTH.flatten(0, 1).index_select(0, rows_R), weight_VH=weight_VH)

    def _teacher(self, models: Models, batch: Batch, rows_R: Tensor) -> TeacherRows:
        if not self.elsewhere:
            return _asked(models.teachers[self.teacher], batch, rows_R)
        said = batch.teacher or TeacherTable()

        def at(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.flatten(0, 1).index_select(0, rows_R)

        return TeacherRows(
            head=None if said.states_BTH is None else models.heads[self.teacher],
            hidden_RH=at(said.states_BTH),
            ids_RK=at(said.ids_BTK),
            logq_RK=at(said.logprobs_BTK),
            log_tail_R=at(said.log_tail_BT),
            logq_y_R=at(batch.teacher_logprobs_BT),
        )


@torch.no_grad()
def _asked(model: PreTrainedModel, batch: Batch, rows_R: Tensor) -> TeacherRows:
    """What a model beside the policy says of the rows: its states and head, or whole logits of a head that has no
    name."""

    def work() -> tuple[Tensor, Tensor | None]:
        head = output_head(model)
        if head is None:
            return target_logits(model, batch).flatten(0, 1).index_select(0, rows_R), None
        states_RH = hidden_states(model, batch).flatten(0, 1).index_select(0, rows_R)
        # A shard's head is there only while its model is entered.
        return states_RH, head.weight_VH.clone() if isinstance(model, FSDPModule) else head.weight_VH

    states, weight = inside(model, work) if isinstance(model, FSDPModule) else work()
    if weight is None:
        return TeacherRows(logits_RV=states)
    head = output_head(model)
    assert head is not None
    return TeacherRows(head=replace(head, weight_VH=weight), hidden_RH=states)
