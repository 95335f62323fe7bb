"""GRPO steps of a real model as each trainer's users run them: drawing, scoring, learning, weights handed on.

Both get the same prompts (text), the same number of completions of at most the same length at temperature 1, a reward
that differs within every group, DAPO's loss and AdamW. Nothing is left out of the timing but loading.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUP = 8
RATE = 1e-6
SYSTEM = "Work the problem out in short steps. Write the final number inside \\boxed{}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is done. Example: ``Work(model="model.gguf", steps=4, groups=8, tokens=64, dtype="bfloat16")``."""

    model: str
    steps: int
    groups: int
    #: Longest completion.
    tokens: int
    dtype: str
    #: Of ours "transformers" or "vllm"; of TRL "weights" where ``dtype`` is that of the weights, else "autocast".
    way: str
    #: TRL's rows of one forward pass; more of them are gradient accumulation.
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of each step: seconds in all, of which drawing (None: not told apart), and tokens of its completions."""

    seconds: list[float]
    drawing: list[float] | None
    tokens: list[float]


RECIPE = """
name = "step"
[policy]
path = "{model}"
dtype = "{dtype}"
[data]
train = "word_problems"
system = '{system}'
answer_style = "boxed"
[reward]
"{folder}/spread.py:spread" = 1.0
[sampler]
engine = "{way}"
max_rows = {completions}
max_length = 320
[trainer]
save_every = 0
[[stage]]
kind = "grpo"
name = "rl"
steps = {steps}
problems_per_step = {groups}
samples_per_problem = {group}
max_tokens = {tokens}
optimizer = {{ lr = {rate} }}
objective = {{ preset = "dapo", overlong = "keep" }}
"""
SPREAD = """
from rlreason import reward

@reward("spread")
def spread(problem, completion):
    return int(sum(completion.token_ids)) % 7 / 7
"""


def ours(work: Work) -> Measured:
    """Through ``rlreason run``, from a recipe."""
    from rich.console import Console

    from rlreason.config import load
    from rlreason.job import JobOptions, run_job
    from rlreason.policy.process import prepare_process

    prepare_process()
    folder = Path(tempfile.mkdtemp())
    (folder / "spread.py").write_text(SPREAD, encoding="utf-8")
    recipe = folder / "step.toml"
    text = RECIPE.format(
        model=work.model, dtype=work.dtype, system=SYSTEM, folder=folder, way=work.way, steps=work.steps,
        completions=work.groups * GROUP, groups=work.groups, group=GROUP, tokens=work.tokens, rate=RATE,
    )  # fmt: skip
    recipe.write_text(text, encoding="utf-8")
    run_job(load(recipe), recipe, JobOptions(folder=folder / "run", command="bench"), Console(quiet=True))
    lines = (folder / "run" / "stages" / "01-rl" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return Measured(
        seconds=[row["seconds"] for row in rows],
        drawing=[row["seconds/sample"] for row in rows],
        tokens=[row["length/mean"] * work.groups * GROUP for row in rows],
    )


def prompts(work: Work) -> list[str]:
    """The prompts of our run's steps, in its order, as text."""
    from rlreason.data.prompts import PromptFormat
    from rlreason.policy.loading import load_tokenizer
    from rlreason.tasks.procedural import make_task

    task = make_task("word_problems", {}, seed=0)
    tokenizer, format_ = load_tokenizer(work.model), PromptFormat(system=SYSTEM, style="boxed")
    problems = [task.problem("train", index) for index in range(work.groups * work.steps)]
    return [format_.render(problem, tokenizer).text for problem in problems]


def trl(work: Work) -> Measured:
    """Through ``GRPOTrainer.train``."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlreason.policy.loading import load_model, load_tokenizer

    weights = torch.bfloat16 if (work.dtype, work.way) == ("bfloat16", "weights") else torch.float32
    model = load_model(work.model, weights, torch.device("cpu"))
    model.set_attn_implementation("sdpa")
    completions = work.groups * GROUP
    rows = min(work.rows, completions)
    lengths: list[float] = []

    def spread(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.append(float(sum(map(len, completion_ids))))
        return [sum(ids) % 7 / 7 for ids in completion_ids]

    seconds: list[float] = []

    class Clock(TrainerCallback):
        """A step as transformers' Trainer has it, drawing included."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    options = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=(work.dtype, work.way) == ("bfloat16", "autocast"),
        gradient_checkpointing=False, per_device_train_batch_size=rows, gradient_accumulation_steps=completions // rows,
        num_generations=GROUP, max_completion_length=work.tokens, max_steps=work.steps, temperature=1.0, top_k=0,
        beta=0.0, loss_type="dapo", learning_rate=RATE, lr_scheduler_type="constant", optim="adamw_torch_fused",
        weight_decay=0.0, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        shuffle_dataset=False, seed=0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=spread, args=options, processing_class=load_tokenizer(work.model),
        train_dataset=Dataset.from_dict({"prompt": prompts(work)}), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return Measured(seconds=seconds, drawing=None, tokens=lengths)
