"""The student's head with a divergence from a teacher in it, over loss rows only: [B, T, V] never exists.

B = sequences, T = positions, R = loss rows, C = rows of a tile, H = hidden size, V = vocabulary. A tile holds the
logits of C rows, and beside it the teacher's; block by block they become the gradient by the logits (``divergence``:
closed forms that need the row alone), and two products turn that into the gradients by hidden states and weight.
Nothing is computed twice. Loss of a row: w_R · D + c_R · (−log p_y), so that cross-entropy needs no second pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.distillation import divergence
from rlreason.objective.distillation.divergence import Drawn, Rows
from rlreason.objective.distillation.spec import DistillationSpec
from rlreason.objective.distillation.teacher import TeacherRows
from rlreason.objective.loss import with_gradient
from rlreason.objective.products import Products
from rlreason.types import TAIL_FLOOR

#: Rows of a tile: at V = 151,936 a float32 buffer of 622 MB. The student's and the teacher's are held.
CHUNK = 1024
#: Elements of the part of a tile that becomes a gradient at a time, on a CPU and on an accelerator.
_BLOCK, _DEVICE_BLOCK = 1 << 17, 1 << 23
#: Advantages |log q_y − log p_y| below this say nothing of the token.
_TINY = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWeights:
    """What the rows' terms are multiplied with, [R] each: ``divergence_R`` of D, ``cross_entropy_R`` of −log p_y."""

    divergence_R: Tensor
    cross_entropy_R: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRows:
    """The student's side of R rows: states and head of a plain product, or logits where the head is anything else.

    ``targets_R``: the drawn or demonstrated token. ``sampler_logprobs_R``: log μ of it.
    """

    targets_R: Tensor
    sampler_logprobs_R: Tensor
    hidden_RH: Tensor | None = None
    weight_VH: Tensor | None = None
    logits_RV: Tensor | None = None
    #: Quarter (0 to 3) of its sequence's loss tokens; for metrics alone.
    quarters_R: Tensor | None = None

    @property
    def width(self) -> int:
        """Columns of its logits."""
        wide = self.weight_VH.shape[0] if self.weight_VH is not None else None
        if wide is None:
            assert self.logits_RV is not None
            wide = self.logits_RV.shape[1]
        return wide


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationOptions:
    """How it is computed. ``shared``: ids below it are one word to both models; None: all of them."""

    spec: DistillationSpec
    shared: int | None = None
    chunk: int = CHUNK


def distillation_loss(
    student: StudentRows, teacher: TeacherRows, weights: RowWeights, options: DistillationOptions
) -> LossOutput:
    """Σ_R w_R D_R + c_R (−log p_y), to call ``backward()`` on, with metrics of the rows.

    Products, sums and log-probabilities are float32 at least. A row whose teacher has no finite answer adds nothing and
    is counted (``excluded/…``). Raises ValueError where the support needs what the teacher's rows have not.
    """
    return _Pass(student, teacher, weights, options).run()


def rows_of(batch: Batch) -> Tensor:
    """Places b·T + t of the loss tokens of a micro-batch, int64 [R]."""
    rows_R = batch.loss_rows_R
    return batch.loss_mask_BT.reshape(-1).nonzero()[:, 0] if rows_R is None else rows_R


def quarters_of(batch: Batch, rows_R: Tensor) -> Tensor:
    """Quarter (0 to 3) of its sequence's loss tokens that each row is in."""
    seen_BT = batch.loss_mask_BT.cumsum(dim=1) - 1
    count_B1 = batch.loss_mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.floor(4 * seen_BT / count_B1).clamp(0, 3).long().reshape(-1)[rows_R]


@dataclass(slots=True)
class _Pass:
    """The buffers of one call."""

    student: StudentRows
    teacher: TeacherRows
    weights: RowWeights
    options: DistillationOptions
    sums: dict[str, Tensor] = field(default_factory=dict, init=False)

    def run(self) -> LossOutput:
        student, rows = self.student, len(self.student.targets_R)
        _check_support(self.options.spec, self.teacher)
        given = student.logits_RV if student.hidden_RH is None else student.hidden_RH
        assert given is not None
        # bfloat16 and float16 are computed in float32, float64 in itself.
        dtype = torch.promote_types(given.dtype, torch.float32)
        grad = torch.is_grad_enabled()
        of_hidden = _like(student.hidden_RH, dtype) if grad else None
        of_weight = _like(student.weight_VH, dtype) if grad else None
        of_logits = _like(student.logits_RV, dtype) if grad and student.hidden_RH is None else None
        tile = min(self.options.chunk, max(1, rows))
        z_CV = given.new_empty((tile, student.width), dtype=dtype)
        u_CV = given.new_empty((tile, self.teacher.width), dtype=dtype)
        wide_VH = None if student.weight_VH is None else student.weight_VH.detach().to(dtype)
        total = given.new_zeros((), dtype=torch.float64)
        for start in range(0, rows, tile):
            part = slice(start, min(rows, start + tile))
            size = part.stop - part.start
            if wide_VH is None:
                assert student.logits_RV is not None
                z_CV[:size] = student.logits_RV.detach()[part]
            else:
                assert student.hidden_RH is not None
                torch.mm(student.hidden_RH.detach()[part].to(dtype), wide_VH.t(), out=z_CV[:size])
            if self.teacher.width:
                self.teacher.rows(part).logits(u_CV[:size])
            total += self._tile(z_CV[:size], u_CV[:size], part)
            if wide_VH is not None and (of_hidden is not None or of_weight is not None):
                assert student.weight_VH is not None
                assert student.hidden_RH is not None
                products = Products.of(z_CV[:size], student.weight_VH.detach(), wide_VH)
                if of_hidden is not None:
                    products.by_hidden(of_hidden[part])
                if of_weight is not None:
                    products.by_weight(student.hidden_RH.detach()[part].to(dtype), of_weight, add=True)
            if of_logits is not None:
                of_logits[part] = z_CV[:size]
        pairs = [
            (one, found.to(one.dtype))
            for one, found in (
                (student.hidden_RH, of_hidden),
                (student.weight_VH, of_weight),
                (student.logits_RV, of_logits),
            )
            if one is not None and found is not None
        ]
        loss = total.to(dtype)
        return LossOutput(loss=with_gradient(loss, *pairs) if pairs else loss, sums=self.sums)

    def _tile(self, z_CV: Tensor, u_CV: Tensor, part: slice) -> Tensor:
        """Logits of a tile -> their gradient, in place; the tile's loss, float64."""
        total = z_CV.new_zeros((), dtype=torch.float64)
        most = _BLOCK if z_CV.device.type == "cpu" else _DEVICE_BLOCK
        size = max(1, most // max(1, z_CV.shape[1]))
        for start in range(0, len(z_CV), size):
            inner = slice(start, min(len(z_CV), start + size))
            at = slice(part.start + inner.start, part.start + inner.stop)
            total += self._block(z_CV[inner], u_CV[inner], at)
        return total

    def _block(self, z_CV: Tensor, u_CV: Tensor, at: slice) -> Tensor:
        weight_C = self.weights.divergence_R[at].to(z_CV.dtype)
        targets_C1 = self.student.targets_R[at].unsqueeze(1)
        log_total_C1 = z_CV.logsumexp(dim=1, keepdim=True)
        logp_y_C = (z_CV.gather(1, targets_C1) - log_total_C1).squeeze(1)
        cross_C = self.weights.cross_entropy_R
        cross_gradient_CV: Tensor | None = None
        total = z_CV.new_zeros((), dtype=torch.float64)
        if cross_C is not None:
            factor_C1 = cross_C[at].to(z_CV.dtype).unsqueeze(1)
            cross_gradient_CV = (z_CV - log_total_C1).exp_().mul_(factor_C1).scatter_add_(1, targets_C1, -factor_C1)
            total -= (factor_C1.squeeze(1) * logp_y_C).sum(dtype=torch.float64)
            self._add("loss", -logp_y_C)
        found, causes = self._divergence(z_CV, u_CV, logp_y_C, at)
        kept_C = torch.stack(list(causes.values())).any(dim=0).logical_not_()
        shared = found.gradient_RV.shape[1]
        factor_C = torch.where(kept_C, weight_C, torch.zeros_like(weight_C))
        z_CV[:, :shared] = torch.where(kept_C.unsqueeze(1), found.gradient_RV, z_CV.new_zeros(()))
        z_CV[:, :shared] *= factor_C.unsqueeze(1)
        z_CV[:, shared:] = 0.0
        if cross_gradient_CV is not None:
            z_CV += cross_gradient_CV
        value_C = torch.where(kept_C, found.value_R, torch.zeros_like(found.value_R))
        self._measure(found, value_C, kept_C, causes, at)
        return total + (factor_C * value_C).sum(dtype=torch.float64)

    def _divergence(self, z_CV: Tensor, u_CV: Tensor, logp_y_C: Tensor, at: slice) -> tuple[Rows, dict[str, Tensor]]:
        """The rows' divergence, and which rows have none, by cause."""
        spec, teacher = self.options.spec, self.teacher.rows(at)
        shared = min(one for one in (self.options.shared, z_CV.shape[1], u_CV.shape[1] or None) if one)
        cut_CV = z_CV[:, :shared]
        self._padded("student", z_CV, shared)
        if spec.support == "full":
            self._padded("teacher", u_CV, shared)
            theirs_CV = u_CV[:, :shared]
            wrong_C = ~(theirs_CV.logsumexp(dim=1).isfinite())
            if spec.temperature != 1.0:
                cut_CV, theirs_CV = cut_CV / spec.temperature, theirs_CV / spec.temperature
            logq_CV = torch.log_softmax(theirs_CV, dim=1)
            found = divergence.between(torch.log_softmax(cut_CV, dim=1), logq_CV, spec)
            found.gradient_RV /= spec.temperature
            self._advantage(logp_y_C, logq_CV.gather(1, self._drawn_ids(at, shared)).squeeze(1))
        else:
            found, wrong_C = self._of_words(cut_CV, teacher, logp_y_C, at)
        infinite_C = ~wrong_C & ~found.value_R.isfinite()
        return found, {"teacher_not_finite": wrong_C, "no_finite_divergence": infinite_C}

    def _of_words(self, z_CV: Tensor, teacher: TeacherRows, logp_y_C: Tensor, at: slice) -> tuple[Rows, Tensor]:
        spec = self.options.spec
        drawn = Drawn(ids_R=z_CV.new_zeros(0), logq_R=z_CV.new_zeros(0), ratio_R=z_CV.new_zeros(0))
        wrong_C = torch.zeros(len(z_CV), dtype=torch.bool, device=z_CV.device)
        if teacher.logq_y_R is not None:
            logq_C = divergence.at_least(teacher.logq_y_R.to(z_CV.dtype), spec.floor)
            ratio_C = (logp_y_C - self.student.sampler_logprobs_R[at].to(z_CV.dtype)).exp()
            drawn = Drawn(
                ids_R=self._drawn_ids(at, z_CV.shape[1]).squeeze(1),
                logq_R=logq_C,
                ratio_R=torch.minimum(ratio_C, ratio_C.new_tensor(spec.ratio_cap)),
            )
            self._advantage(logp_y_C, logq_C)
            wrong_C |= ~logq_C.isfinite()
            if spec.needs_drawn:
                wrong_C |= self.student.targets_R[at] >= z_CV.shape[1]  # a word that the teacher has not
                self._add("ratio/capped", (ratio_C > spec.ratio_cap).to(z_CV.dtype))
        if spec.support == "sampled":
            return divergence.sampled(z_CV, drawn), wrong_C
        ids_CK, logq_CK = teacher.ids_RK, teacher.logq_RK
        assert ids_CK is not None
        assert logq_CK is not None
        logq_CK = logq_CK.to(z_CV.dtype)
        if spec.support == "unbiased":
            logq_CK = divergence.at_least(logq_CK, spec.floor)
            return divergence.unbiased(z_CV, ids_CK, logq_CK, drawn), wrong_C | logq_CK.isnan().any(dim=1)
        assert teacher.log_tail_R is not None
        log_tail_C = teacher.log_tail_R.to(z_CV.dtype)
        wrong_C = logq_CK.isnan().any(dim=1) | log_tail_C.isnan() | (log_tail_C > 0)
        return divergence.with_tail(z_CV, ids_CK, logq_CK, log_tail_C, spec), wrong_C

    def _drawn_ids(self, at: slice, shared: int) -> Tensor:
        """The drawn tokens, [C, 1]; one that the teacher has no word for is replaced, and counts for nothing."""
        return self.student.targets_R[at].clamp(max=shared - 1).unsqueeze(1)

    def _padded(self, who: str, z_CV: Tensor, shared: int) -> None:
        """Probability that the raw model gives to ids that the other has no word for."""
        if z_CV.shape[1] > shared:
            outside_C = z_CV[:, shared:].logsumexp(dim=1) - z_CV.logsumexp(dim=1)
            self._add(f"padded_mass/{who}", outside_C.exp())

    def _advantage(self, logp_y_C: Tensor, logq_y_C: Tensor) -> None:
        """A = log q_y − log p_y of the rows' own tokens."""
        gap_C = (logq_y_C - logp_y_C).nan_to_num(0.0, 0.0, 0.0)
        self._add("advantage/mean", gap_C)
        self._add("advantage/size", gap_C.abs())
        self._add("advantage/positive", (gap_C > 0).to(gap_C.dtype))
        self._add("advantage/tiny", (gap_C.abs() < _TINY).to(gap_C.dtype))

    def _measure(self, found: Rows, value_C: Tensor, kept_C: Tensor, causes: dict[str, Tensor], at: slice) -> None:
        full = self.options.spec.support == "full"
        self._add("divergence", value_C)
        if self.student.quarters_R is not None:
            quarters_C = self.student.quarters_R[at]
            for quarter in range(4):
                self._add(f"divergence/quarter{quarter + 1}", value_C * (quarters_C == quarter))
        named = {
            "kl/forward": found.forward_R,
            "kl/reverse": found.reverse_R,
            "kl/jsd": found.jsd_R,
            "entropy": found.entropy_R,
            "entropy/teacher": found.teacher_entropy_R,
            "tail/student": found.tail_R,
            "tail/teacher": found.teacher_tail_R,
            "top_k/overlap": found.overlap_R,
        }
        for name, values in named.items():
            if values is not None:
                bound = "" if full or not name.startswith("kl/") else "_at_least"
                self._add(name + bound, torch.where(kept_C, values, torch.zeros_like(values)))
        if found.tail_R is not None:
            self._add("tail/over_1pct", (found.tail_R > 0.01).to(value_C.dtype))
        if found.teacher_tail_R is not None:
            tiny_C = (found.teacher_tail_R > 0) & (found.teacher_tail_R <= 1.001 * TAIL_FLOOR)
            self._add("tail/teacher_at_floor", tiny_C.to(value_C.dtype))
        for cause, which_C in causes.items():
            self._add(f"excluded/{cause}", which_C.to(value_C.dtype))

    def _add(self, name: str, values_C: Tensor) -> None:
        found = values_C.detach().sum(dtype=torch.float64)
        self.sums[name] = self.sums[name] + found if name in self.sums else found


def _like(given: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Zeros for the gradient of ``given``; None where it needs none."""
    return torch.zeros_like(given, dtype=dtype) if given is not None and given.requires_grad else None


def _check_support(spec: DistillationSpec, teacher: TeacherRows) -> None:
    has = {
        "full": teacher.width > 0,
        "tail": teacher.ids_RK is not None and teacher.log_tail_R is not None,
        "unbiased": teacher.ids_RK is not None and teacher.logq_y_R is not None,
        "sampled": teacher.logq_y_R is not None,
    }
    if not has[spec.support]:
        raise ValueError(f'support = "{spec.support}" needs what the teacher\'s rows have not')
