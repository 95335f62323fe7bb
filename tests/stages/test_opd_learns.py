"""What an opd stage teaches: the student comes nearer to its teacher on held-out problems, and only to that one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from rlreason.config import load
from rlreason.data.prompts import PromptFormat
from rlreason.inputs import RecipeFiles
from rlreason.job import JobOptions, run_job
from rlreason.objective.batch import LossOutput
from rlreason.policy.policies import load_policy
from rlreason.recipe_data import RecipeData
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.open import inline_sampler
from rlreason.stages.opd import OpdWork
from rlreason.trainer.distilling import DistillationLoss
from rlreason.types import Problem, SamplingParams

SHAPE = """hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 64
tie_word_embeddings = true
"""
OPD = """
[[stage]]
kind = "opd"
name = "{name}"
model = "start"
teacher = "{teacher}"
steps = 20
problems_per_step = 8
samples_per_problem = 2
max_tokens = 24
optimizer = {{ lr = 1e-2 }}
"""
RECIPE = f"""
name = "opd"
seed = SEED
[policy]
model_type = "qwen3"
[policy.model]
{SHAPE}
[student]
model_type = "qwen3"
[student.model]
{SHAPE}
[data]
train = "arithmetic"
options = {{ min_terms = 2, max_terms = 3, max_total = 9, negatives = false }}
[cluster]
threads = 1
[teacher.main]
model = "trained"
[teacher.other]
model = "policy"
[[stage]]
kind = "sft"
name = "trained"
model = "policy"
demonstrations = 200
steps = 40
batch_size = 32
optimizer = {{ lr = 1e-2 }}
[[stage]]
kind = "sft"
name = "start"
model = "student"
demonstrations = 200
steps = 10
batch_size = 32
optimizer = {{ lr = 1e-2 }}
"""
#: Whom each stage learns from; "other" is a model that nobody trained.
ARM_TEACHER = {"right": "main", "wrong": "other", "uphill": "main"}


@pytest.fixture
def uphill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage of that name climbs the divergence: its loss has the wrong sign."""
    learn, call = OpdWork._learn, DistillationLoss.__call__
    sign = [1.0]

    def learns(self: OpdWork, *arguments: Any) -> dict[str, float]:
        sign[0] = -1.0 if self.stage.name == "uphill" else 1.0
        return learn(self, *arguments)

    def called(self: DistillationLoss, *arguments: Any) -> LossOutput:
        output = call(self, *arguments)
        return replace(output, loss=sign[0] * output.loss)

    monkeypatch.setattr(OpdWork, "_learn", learns)
    monkeypatch.setattr(DistillationLoss, "__call__", called)


def rows_of(folders: list[Path], problems: list[Problem]) -> list[tuple[list[int], int]]:
    """(token ids, length of the prompt) of what the models answer to problems that nobody trained on."""
    found = []
    for folder in folders:
        policy = load_policy(folder, torch.float32, torch.device("cpu"))
        params = SamplingParams(temperature=1.0, max_tokens=24, seed=7, stream="held out")
        for group in draw_groups(inline_sampler(policy, PromptFormat()), problems, params):
            (one,) = group.completions_G
            found.append(([*map(int, one.prompt_ids), *map(int, one.token_ids)], len(one.prompt_ids)))
    return found


@torch.no_grad()
def divergence(student: Path, teacher: Path, rows: list[tuple[list[int], int]]) -> float:
    """Mean exact KL(student || teacher) of the next token before each token of the answers, in nats, float64."""
    models = [AutoModelForCausalLM.from_pretrained(one).double() for one in (student, teacher)]
    total, count = 0.0, 0
    for ids, prompt in rows:
        logp, logq = (one(torch.tensor([ids])).logits[0, prompt - 1 : -1].log_softmax(-1) for one in models)
        total += float((logp.exp() * (logp - logq)).sum())
        count += len(logp)
    return total / count


#: Share of its divergence that is left. Measured over seeds 1, 2, 3: 0.30, 0.52, 0.42 (mean 0.41, deviation 0.11); with
#: the other teacher 1.18, 1.38, 1.40 (1.32, 0.12), with the wrong sign 2.6 to 3.4. The line between is 3.5 deviations
#: above the mean of what learns, and 4.3 below that of what learns from somebody else.
LINE = 0.8
#: Seeds, and the stages of each: what must come nearer, and a canary that must not.
ARMS = [(1, ("right", "wrong")), (2, ("right", "uphill")), pytest.param(3, ("right",), marks=pytest.mark.slow)]


@pytest.mark.parametrize(("seed", "names"), ARMS)
def test_the_student_comes_nearer_to_its_teacher_on_problems_that_nobody_saw(
    seed: int, names: tuple[str, ...], tmp_path: Path, uphill: None
) -> None:
    path = tmp_path / "recipe.toml"
    stages = "".join(OPD.format(name=name, teacher=ARM_TEACHER[name]) for name in names)
    path.write_text(RECIPE.replace("SEED", str(seed)) + stages, encoding="utf-8")
    recipe = load(path)
    run_job(recipe, path, JobOptions(folder=tmp_path / "run", command="test"), Console(file=io.StringIO()))

    def checkpoint(name: str) -> Path:
        (found,) = (tmp_path / "run").glob(f"stages/*-{name}/checkpoint")
        return found

    data = RecipeData(recipe=recipe, base=tmp_path, files=RecipeFiles(base=tmp_path)).read()
    rows = rows_of([checkpoint("start"), checkpoint("trained")], list(data.of("right").heldout(32)))
    before = divergence(checkpoint("start"), checkpoint("trained"), rows)
    left = {name: divergence(checkpoint(name), checkpoint("trained"), rows) / before for name in names}
    assert before > 1.0
    assert left.pop("right") < LINE
    assert all(share > LINE for share in left.values()), left
