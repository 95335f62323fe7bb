"""What a stage does with the routers of a mixture of experts, in words: its defaults, and what the recipe changes."""

from __future__ import annotations

from rlreason.config import GrpoStage, Recipe, SftStage

_REPLAYS = {
    "off": "tokens go where the trainer's own routers say",
    "rollout": "tokens go where the sampler sent them (R3)",
    "old": "tokens go where the trainer sent them before the step's first update (R2)",
}


def expert_lines(stage: SftStage | GrpoStage, recipe: Recipe) -> list[str]:
    """Nothing of a stage without any such key whose model may be dense."""
    if isinstance(stage, SftStage):
        steps = stage.router_warmup_steps
        return [f"experts: only the routers learn in the first {steps} steps"] if steps else []
    asked = stage.asks_for_experts or stage.routing_replay != "off" or stage.freeze_router
    if not asked and (recipe.policy.path is not None or "moe" not in recipe.policy.model_type):
        return []
    routers = "the routers stay as they are" if stage.freeze_router else "the routers learn"
    reported = "; the sampler reports its experts" if stage.asks_for_experts else ""
    return [f"experts: no load-balancing loss; {routers}; {_REPLAYS[stage.routing_replay]}{reported}"]
