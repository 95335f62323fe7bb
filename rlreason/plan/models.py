"""What `rlreason plan` can refuse as a run would: models whose config can be read here, against the recipe's keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

from rlreason.config import EvalStage, PolicyConfig, RejectStage
from rlreason.errors import UsageError
from rlreason.policy.loading import check_shape, locate_model
from rlreason.routing import check_experts
from rlreason.sizing.shape import empty_model
from rlreason.stages.expert_keys import check_expert_keys, check_some_experts
from rlreason.stages.references import References
from rlreason.trainer.balance import router_coefficient

if TYPE_CHECKING:
    from rlreason.plan.budget import Budgets


def check_known_models(budgets: Budgets) -> None:
    """Raise UsageError, as a run would, for a config that is refused and for keys that its model can't have. A model
    that is not on this machine is passed over."""
    recipe, references = budgets.recipe, References(budgets.recipe)
    models, unknown = {}, False
    for name, config in (("policy", recipe.policy), ("student", recipe.student)):
        if config is None or not references.uses(name):
            continue
        if not _is_here(config):
            unknown = True
            continue
        place = config.path or f"[{name}]"
        found = budgets.config(config)
        if config.path is not None:
            check_shape(found, config, config.path)
        models[name] = empty_model(found)
        check_experts(models[name], place)
        router_coefficient(recipe.trainer.router_aux_loss, config, models[name])
    trained = []
    for stage in recipe.stage:
        if isinstance(stage, EvalStage) or stage.model in recipe.endpoint:
            continue
        table = references.root(references.model_of(stage))
        if table in models:
            config = references.config(table)
            check_expert_keys(recipe, stage, models[table], config.path or f"[{table}]")
            trained += [] if isinstance(stage, RejectStage) else [models[table]]
    if not unknown:
        check_some_experts(recipe, trained)


def _is_here(policy: PolicyConfig) -> bool:
    """Whether its config can be read without asking the hub."""
    if policy.path is None:
        return True
    try:
        place = locate_model(policy.path)
    except UsageError:
        return False
    return Path(place).exists() or isinstance(try_to_load_from_cache(place, "config.json"), str)
