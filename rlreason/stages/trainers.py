"""Which trainer the stages train with: a model in this process, or its shards on ranks that stay for all stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from rlreason.cluster.actors import ActorGroup, ActorOptions
from rlreason.config import DistillStage, GrpoStage, PolicyConfig, Recipe, SftStage
from rlreason.policy.lora import LoraOptions
from rlreason.trainer.balance import router_coefficient
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource, TrainerOptions
from rlreason.trainer.protocol import Trainer
from rlreason.trainer.rank import RankSpec
from rlreason.trainer.ray_trainer import RayTrainer, start_ranks

_CHECKPOINT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": None}


@dataclass(slots=True)
class Trainers:
    """Opens the trainers of one run, one at a time."""

    recipe: Recipe
    device: torch.device
    #: CPU threads of a trainer in this process, each working on a micro-batch.
    threads: int = 1
    _ranks: ActorGroup | None = field(default=None, init=False)

    def open(
        self,
        stage: SftStage | GrpoStage | DistillStage,
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
            optimizer=stage.optimizer,
            total_steps=stage.steps,
            compute_dtype=model.dtype,
            checkpoint_dtype=_CHECKPOINT_DTYPES[settings.checkpoint_dtype],
            micro_batch_tokens=stage.micro_batch_tokens,
            threads=self.threads,
            max_skipped=settings.max_skipped_steps,
            activation_checkpointing=settings.activation_checkpointing,
            attention=settings.attention,
            offload=settings.offload,
            lora=lora_options(self.recipe),
        )
        if settings.ranks:
            shape = model.source.inspect().model
            options = replace(options, router_aux_loss=router_coefficient(settings.router_aux_loss, config, shape))
            spec = RankSpec(model=model, options=options, reference=reference, teachers=tuple(teachers))
            if self._ranks is None:
                self._ranks = start_ranks(settings.ranks, rank_options(self.recipe))
            return RayTrainer(spec, self._ranks)
        policy = model.source.load(torch.float32 if options.lora is None else model.dtype, self.device)
        options = replace(options, router_aux_loss=router_coefficient(settings.router_aux_loss, config, policy.model))
        taught = [one.source.load(one.dtype, self.device) for one in teachers]
        return LocalTrainer(policy, options, reference=reference, teachers=taught)

    def close(self) -> None:
        """End the ranks."""
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None


def rank_options(recipe: Recipe) -> ActorOptions:
    """What each rank of the trainer may use: a GPU where there are any; CPUs it shares with the rollout workers."""
    gpus = 1.0 if torch.cuda.is_available() else 0.0
    return ActorOptions(name="trainer rank", setting="trainer.ranks", address=recipe.cluster.address, gpus=gpus)


def lora_options(recipe: Recipe) -> LoraOptions | None:
    """The recipe's adapter; its random half depends on the seed alone."""
    lora = recipe.trainer.lora
    if lora is None:
        return None
    return LoraOptions(rank=lora.rank, alpha=lora.alpha, targets=lora.targets, experts=lora.experts, seed=recipe.seed)
