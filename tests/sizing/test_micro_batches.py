"""Tokens of a micro-batch where the recipe says nothing of them: what fits, said by `plan`, written into the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlreason.check import check
from rlreason.config import MICRO_BATCH, Recipe, load, recipe_toml
from rlreason.cores import usable_memory
from rlreason.plan import budget, trainer_gpu
from rlreason.plan.budget import Budgets, Setup
from rlreason.plan.micro_batches import settled, settled_as
from rlreason.plan.size import SizeOptions
from rlreason.plan.text import describe
from rlreason.sizing.gpus import GPUS, named
from rlreason.stages.trainers import Trainers
from rlreason.trainer.local import LocalTrainer

RECIPE = """
name = "sized"
[policy]
model_type = "qwen3"
dtype = "float32"
[policy.tokenizer]
kind = "characters"
[policy.model]
hidden_size = 256
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 64
intermediate_size = 768
max_position_embeddings = 4096
[data]
train = "arithmetic"
[cluster]
threads = 1
[[stage]]
kind = "sft"
name = "sft"
steps = 1
batch_size = 64
[[stage]]
kind = "grpo"
name = "grpo"
steps = 1
problems_per_step = 16
samples_per_problem = 8
max_tokens = 512
[[stage]]
kind = "grpo"
name = "said"
steps = 1
problems_per_step = 4
max_tokens = 64
micro_batch_tokens = 777
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "recipe.toml"
    found.write_text(RECIPE)
    return found


@pytest.fixture
def short(path: Path) -> Path:
    """The recipe with answers so short that memory, and not a row, bounds a micro-batch of a CPU."""
    path.write_text(RECIPE.replace("max_tokens = 512", "max_tokens = 64"))
    return path


def budgets(path: Path, *overrides: str, gpu: str | None = None) -> tuple[Budgets, Recipe]:
    checked = check(load(path, overrides), path.parent)
    return Budgets(checked.recipe, checked.data, None if gpu is None else GPUS[gpu]), checked.recipe


def tokens(recipe: Recipe) -> list[int | None]:
    return [one.micro_batch_tokens for one in recipe.stage]  # type: ignore[union-attr]


def test_as_many_as_fit_and_no_more(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, recipe = budgets(short)
    grpo = recipe.stage[1]
    assert found.setup(grpo).micro_batch_tokens == budget.MOST_TOKENS_CPU  # type: ignore[arg-type]
    for gigabytes in (0.28, 0.2):
        monkeypatch.setattr(budget, "usable_memory", lambda: gigabytes * 1e9)  # noqa: B023
        found, _ = budgets(short)
        setup = found.setup(grpo)  # type: ignore[arg-type]
        assert setup.micro_batch_tokens < budget.MOST_TOKENS_CPU
        assert found.memory(grpo, setup).total <= found.room == gigabytes * 0.5e9  # type: ignore[arg-type]
        twice = Setup.of(recipe, grpo, 2 * setup.micro_batch_tokens)
        assert found.memory(grpo, twice).total > found.room  # type: ignore[arg-type]
    monkeypatch.setattr(budget, "usable_memory", lambda: 1e6)  # nothing fits: one row is all there can be
    found, _ = budgets(short)
    assert found.micro_batch(grpo, found.setup(grpo)).rows == 1  # type: ignore[arg-type]


def test_ranks_on_a_cpu_share_its_memory(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "usable_memory", lambda: 0.8e9)
    one, recipe = budgets(short, "cluster.kind=ray")
    two, _ = budgets(short, "cluster.kind=ray", "trainer.ranks=4")
    assert two.room == one.room / 4
    assert two.setup(recipe.stage[1]).micro_batch_tokens < one.setup(recipe.stage[1]).micro_batch_tokens  # type: ignore[arg-type]


def test_of_a_gpu(path: Path) -> None:
    found, recipe = budgets(path, gpu="h100")
    assert found.setup(recipe.stage[1]).micro_batch_tokens == budget.MOST_TOKENS_GPU  # type: ignore[arg-type]
    wide = ("policy.model.hidden_size=2048", "policy.model.intermediate_size=8192", "policy.model.num_hidden_layers=16")
    found, recipe = budgets(path, *wide, gpu="l4")
    setup = found.setup(recipe.stage[1])  # type: ignore[arg-type]
    assert 512 <= setup.micro_batch_tokens < budget.MOST_TOKENS_GPU


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("H100", "h100"), ("A100 A100-80G", "a100"), ("A100", "a100-40"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"), ("AMD-Instinct-MI300X-OAM", "mi300x"), ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("GH200", None),
        ("", None),
    ],
)  # fmt: skip
def test_gpus_have_the_names_of_drivers_and_of_ray(name: str, key: str | None) -> None:
    assert named(name) == (None if key is None else GPUS[key])


def test_of_the_ranks_gpus_and_not_of_the_drivers_cpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without GPU before a Ray with some: what `plan --gpu` says of the smallest kind."""
    wide = ("policy.model.hidden_size=2048", "policy.model.intermediate_size=8192", "policy.model.num_hidden_layers=16")
    ranks = (*wide, "trainer.ranks=2", "cluster.kind=ray", "policy.dtype=bfloat16")

    def chosen(*kinds: str) -> int | None:
        nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": False, "Resources": {"GPU": 8.0}}]
        nodes += [{"Alive": True, "Resources": {"GPU": 2.0} | ({kind: 1.0} if kind else {})} for kind in kinds]
        monkeypatch.setattr(trainer_gpu, "_nodes", lambda _: nodes)
        return tokens(settled(check(load(path, ranks), path.parent)).recipe)[1]

    def planned(gpu: str | None) -> int:
        found, recipe = budgets(path, *ranks, gpu=gpu)
        return found.setup(recipe.stage[1]).micro_batch_tokens  # type: ignore[arg-type]

    assert chosen("accelerator_type:H100", "accelerator_type:L4") == planned("l4") < planned("h100")
    assert chosen("accelerator_type:H100") == planned("h100")
    assert chosen("") == planned("l4")  # of kinds that nobody knows the smallest that is known
    assert chosen() == planned(None)  # ranks without GPUs


def test_plan_says_them(path: Path) -> None:
    text = describe(load(path), path, SizeOptions(gpu="h100"))
    assert "(at most 32,768: what fits)" in text
    assert text.count("what fits)") == 2  # not of the stage that says it itself


def test_a_run_writes_them_down_and_goes_on_with_them(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "usable_memory", lambda: 0.28e9)
    first = settled(check(load(short), short.parent))
    assert tokens(first.recipe)[2] == 777
    chosen = tokens(first.recipe)
    assert None not in chosen
    assert chosen[1] != budget.MOST_TOKENS_CPU
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(recipe_toml(first.recipe))
    monkeypatch.setattr(budget, "usable_memory", lambda: 64e9)  # another machine
    again = settled(settled_as(check(load(short), short.parent), run))
    assert tokens(again.recipe) == chosen
    assert tokens(settled(check(load(short), short.parent)).recipe)[1] == budget.MOST_TOKENS_CPU
    mended = settled_as(check(load(short, ("stage.grpo.micro_batch_tokens=99",)), short.parent), run)
    assert tokens(mended.recipe)[1] == 99  # what the user says counts


def test_a_trainer_is_given_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlreason.policy.policies import PolicySource, fresh_tokenizer
    from rlreason.trainer.options import ModelSource

    monkeypatch.setattr(budget, "usable_memory", lambda: 2e9)
    recipe = settled(check(load(path), path.parent)).recipe
    source = PolicySource(config=recipe.policy, tokenizer=fresh_tokenizer(recipe.policy, "0123456789", ()))
    trainer = Trainers(recipe, torch.device("cpu")).open(
        recipe.stage[1],  # type: ignore[arg-type]
        ModelSource(source=source, dtype=torch.float32),
        recipe.policy,
    )
    assert isinstance(trainer, LocalTrainer)
    assert trainer._options.micro_batch_tokens == tokens(recipe)[1]


def test_a_model_that_is_not_here_gets_the_plain_number(path: Path) -> None:
    recipe = RECIPE.replace('model_type = "qwen3"', 'path = "not/here"').replace('kind = "characters"', 'kind = "bpe"')
    path.write_text(recipe.replace(RECIPE[RECIPE.index("[policy.model]") : RECIPE.index("[data]")], ""))
    assert tokens(settled(check(load(path), path.parent)).recipe)[:2] == [MICRO_BATCH, MICRO_BATCH]


def test_memory_of_a_container(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job\n")
    assert usable_memory(tmp_path / "none", membership) > 1e8
    (tmp_path / "job").mkdir()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "job" / "memory.max").write_text("1000000\n")
    assert usable_memory(tmp_path, membership) == 1000000
    old = tmp_path / "v1"
    (old / "memory").mkdir(parents=True)
    (old / "memory" / "memory.limit_in_bytes").write_text("2000000\n")
    assert usable_memory(old, membership) == 2000000
