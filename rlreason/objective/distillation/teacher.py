"""What is known of a teacher's distribution at the rows of a micro-batch, and the head that turns states into logits.

R = rows (loss tokens), H = the teacher's hidden size, V = its vocabulary, K = words of its support.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHead:
    """A language-model head: cap · tanh(scale · (hidden · weightᵀ + bias) / cap), of states *after* the last norm.

    Example: ``OutputHead(weight_VH=model.lm_head.weight)``; Gemma 2 has a ``soft_cap``, Cohere and Granite a ``scale``.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def on(self, device: torch.device) -> OutputHead:
        """The same on ``device``."""
        bias = None if self.bias_V is None else self.bias_V.detach().to(device)
        return replace(self, weight_VH=self.weight_VH.detach().to(device), bias_V=bias)

    def logits(self, hidden_RH: Tensor, out_RV: Tensor) -> Tensor:
        """Logits into ``out_RV``, in its dtype."""
        torch.mm(hidden_RH.to(out_RV.dtype), self.weight_VH.detach().to(out_RV.dtype).t(), out=out_RV)
        if self.bias_V is not None:
            out_RV += self.bias_V.detach()
        if self.scale != 1.0:
            out_RV *= self.scale
        if self.soft_cap is not None:
            out_RV.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return out_RV


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRows:
    """A teacher's answer for R loss tokens, in one of four kinds; nothing of it carries a gradient.

    Hidden states with their ``head``, or whole ``logits_RV``: exact. ``ids_RK``, ``logq_RK``, ``log_tail_R``: its k
    most probable words and log of what is left. ``logq_y_R``: log q of the drawn token, beside S or alone.
    """

    head: OutputHead | None = None
    hidden_RH: Tensor | None = None
    logits_RV: Tensor | None = None
    ids_RK: Tensor | None = None
    logq_RK: Tensor | None = None
    log_tail_R: Tensor | None = None
    logq_y_R: Tensor | None = None

    @property
    def width(self) -> int:
        """Columns of the teacher's logits; 0 where only words are given."""
        if self.logits_RV is not None:
            return self.logits_RV.shape[1]
        return 0 if self.head is None else self.head.weight_VH.shape[0]

    def rows(self, part: slice) -> TeacherRows:
        """Some of the rows."""

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[part]

        return TeacherRows(
            head=self.head,
            hidden_RH=of(self.hidden_RH),
            logits_RV=of(self.logits_RV),
            ids_RK=of(self.ids_RK),
            logq_RK=of(self.logq_RK),
            log_tail_R=of(self.log_tail_R),
            logq_y_R=of(self.logq_y_R),
        )

    def logits(self, out_RV: Tensor) -> Tensor:
        """Its logits, into ``out_RV``."""
        if self.logits_RV is not None:
            return out_RV.copy_(self.logits_RV)
        assert self.head is not None, "a teacher of all words has a head"
        assert self.hidden_RH is not None
        return self.head.logits(self.hidden_RH, out_RV)
