"""Keys that are of a mixture of experts, against the models that they are for: `run` and `plan` ask the same."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from rlreason.config import EvalStage, GrpoStage, Recipe, RejectStage, SftStage, Stage, TrainingStage
from rlreason.errors import UsageError
from rlreason.routing import MOST_EXPERTS, correction_biases, expert_count
from rlreason.wide_routers import why_not_wide


def check_expert_keys(recipe: Recipe, stage: Stage, model: PreTrainedModel, place: str) -> None:
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
    if recipe.trainer.router_dtype == "float32" and experts and not isinstance(stage, EvalStage | RejectStage):
        why_not = why_not_wide(model)
        if why_not:
            raise UsageError(
                f'trainer.router_dtype = "float32": the routers of {place} ({model.config.model_type}) can\'t be '
                f"followed, as {why_not}: leave it out"
            )
    if recipe.trainer.router_bias_update and experts and not isinstance(stage, EvalStage | RejectStage):
        _check_bias(recipe, stage, model, place)


def _check_bias(recipe: Recipe, stage: TrainingStage, model: PreTrainedModel, place: str) -> None:
    """Whether the stage can balance the experts of its model by steps of its routers' bias."""
    key = f"trainer.router_bias_update = {recipe.trainer.router_bias_update:g}"
    if not correction_biases(model):
        raise UsageError(
            f"{key}: the routers of {place} ({model.config.model_type}) have no correction bias (docs/models.md says "
            "which types have one): leave it out; trainer.router_aux_loss balances by a loss"
        )
    if isinstance(stage, GrpoStage) and stage.freeze_router:
        raise UsageError(
            f"{key} changes which experts the routers of {place} pick, and stage.{stage.name}.freeze_router leaves "
            "them as they are: leave one of the two out"
        )
    if recipe.trainer.lora is not None and stage.lora:
        raise UsageError(
            f"stage.{stage.name}: {key} changes the model itself, of which trainer.lora leaves all as it is: leave it "
            "out, or say lora = false in the stage"
        )


def check_some_experts(recipe: Recipe, trained: Sequence[PreTrainedModel]) -> None:
    """Keys of the trainer that are of experts, where no model has any. ``trained``: all that the run trains."""
    if not trained or any(map(expert_count, trained)):
        return
    spread, balance = recipe.trainer.expert_parallel, recipe.trainer.router_aux_loss
    asked = [f"trainer.expert_parallel = {spread}"] if spread > 1 else []
    step = recipe.trainer.router_bias_update
    asked += [f"trainer.router_bias_update = {step:g}"] if step else []
    asked += [f"trainer.router_aux_loss = {balance:g}"] if not isinstance(balance, str) and balance else []
    asked += ['trainer.router_dtype = "float32"'] if recipe.trainer.router_dtype == "float32" else []
    if asked:
        raise UsageError(f"{asked[0]}, and no model of the run has experts: leave it out")
