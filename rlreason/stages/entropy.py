"""Adaptive entropy of a GRPO stage (Skywork-OR1, arXiv 2505.22312): the bonus's coefficient follows the entropy.

As TRL has it, but once a step and not once an update: the entropy is that of the step's one read of metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import JsonValue

from rlreason.config import GrpoStage
from rlreason.objective.spec import ObjectiveSpec


@dataclass(slots=True)
class EntropyControl:
    """The coefficient, and the mean entropy of the last step that trained anything; None before the first.

    Example: ``EntropyControl(coef=0.01, entropy=0.35)``.
    """

    coef: float
    entropy: float | None = None

    @staticmethod
    def begun(spec: ObjectiveSpec, position: Mapping[str, JsonValue] | None = None) -> EntropyControl:
        """That of a stage that begins, or goes on from a state's ``position``."""
        saved = None if position is None or not spec.entropy_target else position["entropy"]
        if not isinstance(saved, dict):
            return EntropyControl(spec.entropy_coef)
        entropy = saved["entropy"]
        return EntropyControl(float(str(saved["coef"])), None if entropy is None else float(str(entropy)))

    def state(self) -> dict[str, JsonValue]:
        """What a saved state holds of it."""
        return {"coef": self.coef, "entropy": self.entropy}

    def applied(self, spec: ObjectiveSpec) -> float:
        """The coefficient of the next step: with a target, 0 unless the last step's entropy was at most that."""
        if not spec.entropy_target:
            return spec.entropy_coef
        low = self.entropy is not None and self.entropy <= spec.entropy_target
        return self.coef if low else 0.0

    def of_step(self, stage: GrpoStage) -> GrpoStage:
        """``stage`` with the coefficient of the next step."""
        if not stage.objective.entropy_target:
            return stage
        objective = replace(stage.objective, entropy_coef=self.applied(stage.objective))
        return stage.model_copy(update={"objective": objective})

    def seen(self, scalars: Mapping[str, float], spec: ObjectiveSpec) -> dict[str, float]:
        """A step was trained, with these metrics: ``entropy`` among them where it trained anything. Returns the
        coefficient that it had, as a metric, where there is a bonus."""
        had = self.applied(spec)
        if spec.entropy_target and "entropy" in scalars:
            low = scalars["entropy"] <= spec.entropy_target
            step = spec.entropy_coef_delta if low else -spec.entropy_coef_delta
            self.coef = min(max(self.coef + step, 0.0), spec.entropy_coef_max)
            self.entropy = scalars["entropy"]
        return {"entropy/coef": had} if spec.entropy_coef or spec.entropy_target else {}
