"""What a stage does with the routers of a mixture of experts, in words: its defaults, and what the recipe changes."""

from __future__ import annotations

from typing import Literal

from rlreason.config import DistillStage, GrpoStage, OpdStage, Recipe, SftStage

_REPLAYS = {
    "off": "tokens go where the trainer's own routers say",
    "rollout": "tokens go where the sampler sent them (R3)",
    "old": "tokens go where the trainer sent them before the step's first update (R2)",
}
#: ``trainer.router_dtype``.
_COMPUTED = {"model": "routers compute in the model's own dtype", "float32": "routers compute in float32"}


def expert_lines(stage: SftStage | DistillStage | GrpoStage | OpdStage, recipe: Recipe, *, sparse: bool) -> list[str]:
    """Nothing of a stage without any such key whose model is dense. ``sparse``: it is known to have experts."""
    steps_of_bias = _bias(recipe.trainer.router_bias_update) if sparse else []
    computed = _COMPUTED[recipe.trainer.router_dtype]
    if isinstance(stage, OpdStage):
        return [f"experts: {'; '.join([*steps_of_bias, computed])}"] if sparse else []
    if not isinstance(stage, GrpoStage):
        steps = stage.router_warmup_steps if isinstance(stage, SftStage) else 0
        said = [_balancing(recipe.trainer.router_aux_loss), *steps_of_bias] if sparse else []
        said += [f"only the routers learn in the first {steps} steps"] if steps else []
        said += [computed] if sparse else []
        return [f"experts: {'; '.join(said)}"] if said else []
    asked = stage.asks_for_experts or stage.routing_replay != "off" or stage.freeze_router
    if not asked and not sparse:
        return []
    routers = "the routers stay as they are" if stage.freeze_router else "the routers learn"
    reported = "; the sampler reports its experts" if stage.asks_for_experts else ""
    balanced = "; ".join(["no load-balancing loss", *steps_of_bias])
    return [f"experts: {balanced}; {routers}; {_REPLAYS[stage.routing_replay]}{reported}; {computed}"]


def _bias(update: float) -> list[str]:
    """What ``trainer.router_bias_update`` does in every stage."""
    return (
        [f"each step moves the routers' bias by {update:g} towards experts with less than the mean load"]
        if update
        else []
    )


def _balancing(setting: float | Literal["auto", "off"]) -> str:
    """What ``trainer.router_aux_loss`` does in supervised stages."""
    if setting in {"off", 0.0}:
        return "no load-balancing loss"
    times = "the model's own coefficient, if it has one" if setting == "auto" else f"{setting:g}"
    return f"load-balancing loss x {times}"
