"""One optimizer step of each trainer over the same rollouts, as its users run it."""

from __future__ import annotations

import logging
import tempfile
from typing import Any, cast

from datasets import Dataset
from rollouts import GROUP, Rollouts
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from rlreason.config import GrpoStage, OptimizerConfig
from rlreason.objective.presets import expand
from rlreason.policy.policies import Policy
from rlreason.stages.grpo import earn, learn
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.trainer.protocol import StepStats
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict

RATE, MOST_TOKENS = 1e-5, 64


class Ours:
    """rlreason: from scored groups to updated weights, credit and packing included."""

    name = "rlreason"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rollouts: Rollouts, threads: int
    ) -> None:
        self.model = model.train()
        self.groups = _groups(rollouts)
        computed = sum(map(len, rollouts.prompts)) + sum(len(row) - 1 for row in rollouts.completions)
        self.stage = GrpoStage(
            kind="grpo",
            name="step",
            steps=10**6,
            problems_per_step=len(rollouts.prompts),
            samples_per_problem=GROUP,
            max_tokens=MOST_TOKENS,
            micro_batch_tokens=int(1.1 * computed / threads),  # one micro-batch a thread
            # TRL's numbers, and no correction: there is no sampler here to correct
            objective=expand({"preset": "dapo", "clip_high": 0.2, "std_epsilon": 1e-4, "correction": "none",
                              "overlong": "keep"}),
            optimizer=OptimizerConfig(lr=RATE, betas=(0.9, 0.999), warmup_steps=0, schedule="constant",
                                      weight_decay=0.0),
        )  # fmt: skip
        options = TrainerOptions(
            optimizer=self.stage.optimizer,
            total_steps=self.stage.steps,
            micro_batch_tokens=self.stage.micro_batch,
            threads=threads,
        )
        self.trainer = LocalTrainer(Policy(model=model, tokenizer=tokenizer), options)

    def step(self) -> None:
        """One update."""
        earned = earn(self.groups, self.stage, self.trainer)
        learn(0, self.groups, earned, self.stage, self.trainer, lambda: None)

    def gradients(self) -> tuple[float, dict[str, Tensor]]:
        """Loss, and gradients before they are clipped; the weights stay."""
        found: dict[str, Tensor] = {}

        class Look:
            """The trainer, but for its optimizer step."""

            forward_backward = self.trainer.forward_backward

            def step(_, __: int) -> StepStats:
                found.update((name, p.grad.clone()) for name, p in self.model.named_parameters())
                self.model.zero_grad()
                return StepStats(grad_norm=0.0, learning_rate=0.0, moved=0.0)

        earned = earn(self.groups, self.stage, self.trainer)
        return learn(0, self.groups, earned, self.stage, cast(LocalTrainer, Look()), lambda: None)["loss"], found


class Trl:
    """TRL's GRPOTrainer: compute_loss, backward, clip, step. Its advantages are made once, outside of the timing."""

    name = "trl"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rollouts: Rollouts, threads: int
    ) -> None:
        logging.getLogger("trl").setLevel(logging.ERROR)
        texts = [f"{index}" for index in range(len(rollouts.prompts))]
        count = len(rollouts.completions)
        trainer: Any = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: rollouts.rewards,
            args=_trl_config(count),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
        )
        trainer._tokenize_prompts = lambda prompts: ([rollouts.prompts[int(p)] for p in prompts], None, {})
        trainer._generate_single_turn = lambda *_, **__: (rollouts.completions, None)
        trainer.create_optimizer_and_scheduler(10**6)
        self.model = trainer.model.train()
        self.inputs = trainer._generate_and_score_completions(
            [{"prompt": text} for text in texts for _ in range(GROUP)]
        )
        trainer.current_gradient_accumulation_steps = 1  # what ``train()`` sets
        self.trainer = trainer

    def _backward(self) -> Tensor:
        with self.trainer.compute_loss_context_manager():
            loss = self.trainer.compute_loss(self.model, self.inputs)
        self.trainer.accelerator.backward(loss)
        return loss.detach()

    def step(self) -> None:
        """One update."""
        self._backward()
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.model.zero_grad()

    def gradients(self) -> tuple[float, dict[str, Tensor]]:
        """Loss, and gradients before they are clipped; the weights stay."""
        loss = float(self._backward())
        found = {name: p.grad.clone() for name, p in self.model.named_parameters()}
        self.model.zero_grad()
        return loss, found


def _groups(rollouts: Rollouts) -> list[Group]:
    groups = []
    for index, prompt in enumerate(rollouts.prompts):
        own = slice(index * GROUP, (index + 1) * GROUP)
        groups.append(
            Group(
                group_id=f"g{index}",
                problem=Problem(id=f"p{index}", prompt="", verifier="math", reference="1"),
                completions_G=tuple(
                    Completion(
                        prompt_ids=tuple(prompt),
                        token_ids=tuple(ids),
                        sampler_logprobs=(0.0,) * len(ids),
                        text="",
                        finish_reason="stop",
                    )
                    for ids in rollouts.completions[own]
                ),
                rewards_G=tuple(RewardResult(score=r, verdict=Verdict.CORRECT) for r in rollouts.rewards[own]),
            )
        )
    return groups


def _trl_config(count: int) -> GRPOConfig:
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=count,
        num_generations=GROUP,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=1,
        max_completion_length=MOST_TOKENS,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        epsilon=0.2,
        optim="adamw_torch_fused",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_strategy="no",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        disable_dropout=True,
        seed=0,
    )
