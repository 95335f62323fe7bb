"""Which trainer the stages train with: a model in this process, or its shards on ranks that stay for all stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from rlreason.cluster.actors import ActorGroup, ActorOptions
from rlreason.cluster.plan import RANK
from rlreason.cluster.run_places import RunPlaces
from rlreason.config import (
    DistillStage,
    GrpoStage,
    OpdStage,
    OptimizerConfig,
    PolicyConfig,
    Recipe,
    SftStage,
    Stage,
    TrainerConfig,
    TrainingStage,
)
from rlreason.config.learning_rates import rate_of
from rlreason.policy.lora import LoraOptions
from rlreason.policy.model import count_parameters
from rlreason.routing import expert_count
from rlreason.sampler.placement import engine_of
from rlreason.trainer.balance import router_coefficient
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource, TrainerOptions
from rlreason.trainer.protocol import Trainer
from rlreason.trainer.rank import RankSpec
from rlreason.trainer.ray_trainer import RayTrainer, start_ranks

#: Without GPUs ranks share the CPUs of the rollout workers.
RANK_OPTIONS = ActorOptions(name=RANK, setting="trainer.ranks")
_CHECKPOINT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": None}


@dataclass(slots=True)
class Trainers:
    """Opens the trainers of one run, one at a time."""

    recipe: Recipe
    device: torch.device
    #: CPU threads of a trainer in this process, each working on a micro-batch.
    threads: int = 1
    #: Of the whole run, where it shares them with what draws.
    places: RunPlaces = field(default=None)  # type: ignore[assignment]
    _ranks: ActorGroup | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.places = self.places or RunPlaces(self.recipe)

    @property
    def computes_on(self) -> torch.device:
        """A device of the kind that models train on; ranks may have GPUs where this process has none."""
        ranks = self.places.plan.ranks if self.recipe.trainer.ranks else None
        return self.device if ranks is None or not ranks.gpus else torch.device("cuda")

    def growth(self, trainer: Trainer, stage: TrainingStage) -> int:
        """Bytes of each of its GPUs that the trainer will yet take and keep: moments, which the first step makes."""
        settings = self.recipe.trainer
        small = lora_options(self.recipe, stage) is not None or settings.offload
        moments = 0 if small else 8 * trainer.parameters[0]
        return moments // max(1, settings.ranks)

    def open(
        self,
        stage: SftStage | GrpoStage | DistillStage | OpdStage,
        model: ModelSource,
        config: PolicyConfig,
        *,
        reference: bool = False,
        teachers: Sequence[ModelSource] = (),
    ) -> Trainer:
        """The trainer of a stage, with ``model``, which ``config`` describes; who asks for it closes it.

        ``reference``: keep the weights that it begins with beside it. Raises UsageError where a model can't be loaded
        or sharded, or Ray has too little for the ranks.
        """
        settings = self.recipe.trainer
        options = TrainerOptions(
            optimizer=settled_optimizer(stage, model),
            total_steps=stage.steps,
            compute_dtype=model.dtype,
            checkpoint_dtype=_CHECKPOINT_DTYPES[settings.checkpoint_dtype],
            micro_batch_tokens=stage.micro_batch,
            threads=self.threads,
            max_skipped=settings.max_skipped_steps,
            activation_checkpointing=settings.activation_checkpointing,
            attention=settings.attention,
            offload=settings.offload,
            tensor_parallel=settings.tensor_parallel,
            expert_parallel=settings.expert_parallel,
            lora=lora_options(self.recipe, stage),
            **router_options(stage),
        )
        if settings.ranks:
            shape = model.source.inspect().model
            options = self._routed(_balanced(options, settings, config, shape), model)
            spec = RankSpec(model=model, options=options, reference=reference, teachers=tuple(teachers))
            if self._ranks is None:
                self._ranks = start_ranks(settings.ranks, RANK_OPTIONS, self.places.take(RANK))
            return RayTrainer(spec, self._ranks)
        policy = model.source.load(torch.float32 if options.lora is None else model.dtype, self.device)
        options = self._routed(_balanced(options, settings, config, policy.model), model)
        taught = [one.source.load(one.dtype, self.device) for one in teachers]
        return LocalTrainer(policy, options, reference=reference, teachers=taught)

    def _routed(self, options: TrainerOptions, model: ModelSource) -> TrainerOptions:
        """``options``, and whether what draws takes routers in float32: vLLM has them in its own dtype."""
        if not options.widens:
            return options
        engine = engine_of(self.places, model.source.inspect())
        return replace(options, sends_float32_routers=engine == "transformers")

    def close(self) -> None:
        """End the ranks."""
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None


def settled_optimizer(stage: TrainingStage, model: ModelSource) -> OptimizerConfig:
    """The stage's optimizer with its learning rate as a number."""
    if stage.optimizer.lr != "auto":
        return stage.optimizer
    shape = model.source.inspect().model
    rate = rate_of(count_parameters(shape)[0], shape.config.model_type)
    return stage.optimizer.model_copy(update={"lr": rate.value})


def router_options(stage: Stage) -> dict[str, Any]:
    """What a stage asks of the routers of a model with experts, as fields of ``TrainerOptions``."""
    if isinstance(stage, SftStage):
        return {"router_steps": stage.router_warmup_steps}
    if not isinstance(stage, GrpoStage):
        return {}
    asked = [f'routing_replay = "{stage.routing_replay}"'] if stage.routing_replay != "off" else []
    asked += ["report_experts = true"] if stage.report_experts else []
    why = f"stage.{stage.name}.{asked[0]}" if asked else ""
    return {"routing": why, "freeze_router": stage.freeze_router}


def _balanced(
    options: TrainerOptions, settings: TrainerConfig, config: PolicyConfig, model: PreTrainedModel
) -> TrainerOptions:
    """``options`` with how the experts of ``model``, which ``config`` describes, are balanced."""
    return replace(
        options,
        router_aux_loss=router_coefficient(settings.router_aux_loss, config, model),
        router_bias_update=settings.router_bias_update if expert_count(model) else 0.0,
        float32_routers=settings.router_dtype == "float32" and bool(expert_count(model)),
    )


def lora_options(recipe: Recipe, stage: TrainingStage) -> LoraOptions | None:
    """The adapter that ``stage`` trains; None: all weights. Its random half depends on the seed alone."""
    lora = recipe.trainer.lora
    if lora is None or not stage.lora:
        return None
    return LoraOptions(rank=lora.rank, alpha=lora.alpha, targets=lora.targets, experts=lora.experts, seed=recipe.seed)
