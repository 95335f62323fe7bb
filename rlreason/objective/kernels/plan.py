"""What a kernel is compiled for: the objective, and which of its inputs exist."""

from __future__ import annotations

from dataclasses import dataclass

from rlreason.objective.spec import ObjectiveSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """A compile-time constant of the token kernels: each distinct plan is one build."""

    spec: ObjectiveSpec
    #: Whether π_old is read; else it is the current policy.
    has_old: bool
    #: Whether π_ref is read.
    has_reference: bool

    @property
    def row_local(self) -> bool:
        """Whether a token's loss and gradient follow from its own row."""
        return self.spec.is_row_local(has_old=self.has_old)
