"""Keys that are of a mixture of experts, against the models that they are for: `run` and `plan` ask the same."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from rlreason.config import GrpoStage, Recipe, SftStage, Stage
from rlreason.errors import UsageError
from rlreason.routing import MOST_EXPERTS, expert_count


def check_expert_keys(stage: Stage, model: PreTrainedModel, place: str) -> None:
    """What is asked of a mixture of experts is asked of one. If its routers can be followed shows once it is loaded."""
    experts = expert_count(model)
    asked = {}
    if isinstance(stage, SftStage):
        asked = {"router_warmup_steps": stage.router_warmup_steps > 0}
    elif isinstance(stage, GrpoStage):
        asked = {"routing_replay": stage.routing_replay != "off", "report_experts": stage.report_experts}
        asked["freeze_router"] = stage.freeze_router
    keys = [key for key, wanted in asked.items() if wanted]
    if keys and not experts:
        raise UsageError(f"stage.{stage.name}.{keys[0]} is of a mixture of experts, and {place} has none")
    if experts > MOST_EXPERTS and isinstance(stage, GrpoStage) and (stage.asks_for_experts or asked["routing_replay"]):
        raise UsageError(
            f"stage.{stage.name}: routing is kept in 8 bits, and {place} has {experts} experts: leave "
            "routing_replay and report_experts out"
        )


def check_some_experts(recipe: Recipe, trained: Sequence[PreTrainedModel]) -> None:
    """Keys of the trainer that are of experts, where no model has any. ``trained``: all that the run trains."""
    if not trained or any(map(expert_count, trained)):
        return
    spread, balance = recipe.trainer.expert_parallel, recipe.trainer.router_aux_loss
    asked = [f"trainer.expert_parallel = {spread}"] if spread > 1 else []
    asked += [f"trainer.router_aux_loss = {balance:g}"] if not isinstance(balance, str) and balance else []
    if asked:
        raise UsageError(f"{asked[0]}, and no model of the run has experts: leave it out")
