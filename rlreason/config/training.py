"""What all stages that train share: the optimizer's table and the keys of their steps and evaluations."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlreason.config.engine import Section

#: Names of stages and endpoints.
NAME = r"^[a-z0-9][a-z0-9_]*$"


def stage_of(model: str) -> str:
    """The stage of a model's name: "grpo" of "grpo", of "grpo@best" and of "grpo@50"."""
    return model.partition("@")[0]


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    #: Learning rate after the warm-up. auto, of sft and distill stages: by the model's size, from DeepSeek-R1's table
    #: of students; `rlreason plan` says which row (docs/r1.md).
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = 1e-6
    #: Decay of the running means of the gradient and of its square.
    betas: tuple[float, float] = (0.9, 0.95)
    #: Of matrices; norms and biases have none.
    weight_decay: float = Field(0.0, ge=0)
    #: Steps in which the learning rate rises from 0.
    warmup_steps: int = Field(0, ge=0)
    #: How the learning rate falls after the warm-up.
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    #: Learning rate of the last step, as a share of lr; not of constant.
    final_lr_ratio: float = Field(0.1, ge=0, le=1)
    #: Gradients with a larger norm are scaled down to it.
    max_grad_norm: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _ratio_is_read(self) -> OptimizerConfig:
        if self.schedule == "constant" and self.final_lr_ratio != type(self).model_fields["final_lr_ratio"].default:
            raise ValueError(
                f'final_lr_ratio = {self.final_lr_ratio:g} changes nothing with schedule = "constant": say '
                '"linear" or "cosine", or leave it out'
            )
        return self

    @property
    def rate(self) -> float:
        """``lr`` as a number: what a trainer is given, whose stage has settled it."""
        assert self.lr != "auto"
        return self.lr


#: Tokens of a micro-batch where the memory was not asked.
MICRO_BATCH = 16384
#: Longest answer of a held-out evaluation, of stages that draw no answers themselves.
EVALUATED = 64


class TrainingStage(Section):
    """What all stages that train share."""

    kind: str
    #: Name of the stage in overrides, folders and reports; other stages refer to it.
    name: str = Field(pattern=NAME)
    #: Optimizer steps; of a grpo stage batches of rollouts, each with ``updates_per_step`` optimizer steps.
    steps: int = Field(ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    #: Tokens that one micro-batch computes at most, a shared prompt counted once; changes memory and speed, never the
    #: loss. Default: what fits the memory, up to 1,024 on a CPU, whose cores each compute whole micro-batches, and
    #: 32,768 on a GPU; the run's recipe.toml has it.
    micro_batch_tokens: int | None = Field(None, ge=1)
    #: With [trainer.lora], whether this stage trains the adapter; false: all weights, as in a cold start.
    lora: bool = True
    #: Named set whose held-out problems are evaluated; default: those of the stage's own set, or ``data.heldout``.
    heldout: str | None = None
    #: Steps between held-out evaluations; 0 never, the last step always counts when it is not 0.
    eval_every: int = Field(0, ge=0)
    #: Held-out problems of each of these evaluations.
    eval_problems: int = Field(200, ge=1)
    #: Longest answer in these evaluations; default: ``max_tokens`` of a stage that draws, of the others 64.
    eval_max_tokens: int | None = Field(None, ge=1)

    @property
    def longest_evaluated(self) -> int:
        """``eval_max_tokens``, or its default."""
        return self.eval_max_tokens or EVALUATED

    @property
    def micro_batch(self) -> int:
        """``micro_batch_tokens``, which a run settles before it begins (``plan.micro_batches``)."""
        return self.micro_batch_tokens or MICRO_BATCH


class SupervisedStage(TrainingStage):
    """What stages that learn given rows share."""

    #: Optimizer steps; or say epochs.
    steps: int = Field(0, ge=0)
    #: In place of steps: how often every row is learnt, also a fraction. The rows are counted when the stage begins; of
    #: a distill stage they are those that were kept and fit the student, and the general data.
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if (self.epochs is None) == (self.steps == 0):
            missing = "say how long the stage is: steps = … or epochs = …"
            raise ValueError(missing if self.epochs is None else "say steps or epochs, not both (steps = 0 is none)")
        return self

    def counted(self, rows: int) -> Self:
        """With the steps in which ``rows`` rows are learnt ``epochs`` times: the last batch is filled with the first
        rows of the next epoch."""
        if self.epochs is None:
            return self
        # Before it is rounded up: 0.1 * 30 is more than 3.
        steps = math.ceil(round(self.epochs * rows / self.batch_size, 9))
        return self.model_copy(update={"steps": max(1, steps)})


def check_rate(stage: TrainingStage, *, lora: bool) -> None:
    """Raise ValueError where R1's table is not of what the stage trains; ``lora``: an adapter."""
    if stage.optimizer.lr != "auto":
        return
    where = f'stage.{stage.name}.optimizer.lr = "auto" takes DeepSeek-R1\'s table, which is of '
    if stage.kind not in ("sft", "distill"):
        raise ValueError(f"{where}supervised training: write a number")
    if lora:
        raise ValueError(
            f"{where}all weights, and the stage trains an adapter: write a number, about ten times as large, or "
            "lora = false in the stage"
        )
