"""`rlreason doctor canary`: its line by hand, a sound recipe that learns, an engine that keeps its first weights."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import Tensor
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.config import GrpoStage, PolicyConfig, Recipe, load, locate
from rlreason.errors import UsageError
from rlreason.length_canary import CanaryRequest, Learned, canary_recipe, judged
from rlreason.policy.policies import fresh_policy
from rlreason.sampler import worker
from rlreason.sampler.jobs import EngineSpec
from rlreason.sampler.transformers_engine import TransformersEngine
from rlreason.tasks.procedural import make_task

TASK = make_task("arithmetic", {"min_terms": 2, "max_terms": 4}, seed=0)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
         "intermediate_size": 64, "initializer_range": 0.3}  # fmt: skip
FEW = ("--steps", "10", "--problems", "6", "--samples", "6", "--max-tokens", "32", "--lr", "0.02")


def test_the_difference_by_hand() -> None:
    found = judged([4.0, 2.0, 3.0], [1.0, 2.0])
    assert (found.first, found.last) == (3.0, 1.5)
    assert found.change == pytest.approx(-1.5 / math.sqrt(1.0 / 3 + 0.5 / 2))
    assert judged([2.0, 2.0], [2.0, 2.0]) == Learned(first=2.0, last=2.0, change=0.0)
    assert judged([2.0, 2.0], [1.0, 1.0]).enough


def test_what_counts_as_learned() -> None:
    assert not Learned(first=40.0, last=33.0, change=-9.0).enough  # too little
    assert not Learned(first=40.0, last=20.0, change=-4.0).enough  # too unsure
    assert Learned(first=40.0, last=32.0, change=-4.5).enough
    rng = random.Random(0)
    chances = [
        judged([rng.gauss(20.0, 8.0) for _ in range(16)], [rng.gauss(20.0, 8.0) for _ in range(80)])
        for _ in range(1500)
    ]
    assert sum(one.change <= -2.5 for one in chances) > 2  # a weaker limit would be met by chance
    assert sum(one.enough for one in chances) <= 1


def test_the_recipe_s_own_way_is_kept() -> None:
    own = load(locate("quickstart"), ("sampler.delivery=delta", "stage.grpo.staleness=2", "seed=7"))
    made = canary_recipe(own, CanaryRequest())
    (stage,) = made.stage
    assert isinstance(stage, GrpoStage)
    assert (made.policy, made.sampler, made.cluster, made.seed) == (own.policy, own.sampler, own.cluster, 7)
    assert (stage.staleness, stage.steps, stage.optimizer.lr) == (2, 22, 1e-3)  # the first 3 draw untrained weights
    assert canary_recipe(own, CanaryRequest(lr=2e-5)).stage[0].optimizer.lr == 2e-5  # type: ignore[union-attr]
    assert Recipe.model_validate(made.model_dump()) == made


def test_every_shipped_recipe_that_learns_from_draws_has_a_canary() -> None:
    from rlreason.config.load import shipped_recipes

    for name in shipped_recipes():
        recipe = load(locate(name))
        if {"grpo", "opd"} & {stage.kind for stage in recipe.stage}:
            assert canary_recipe(recipe, CanaryRequest()).stage[0].name == "canary"
        else:
            with pytest.raises(UsageError, match="no grpo or opd stage"):
                canary_recipe(recipe, CanaryRequest())


def recipe_in(folder: Path, **sampler: Any) -> Path:
    fresh_policy(PolicyConfig(model_type="qwen3", model=SHAPE), TASK.alphabet, (), 0, torch.device("cpu")).save(
        folder / "model"
    )
    stage = {"kind": "grpo", "name": "rl", "steps": 5, "problems_per_step": 4, "samples_per_problem": 4,
             "max_tokens": 32}  # fmt: skip
    tables = {
        "name": "tiny",
        "policy": {"path": str(folder / "model")},
        "data": {"train": "arithmetic", "options": {"min_terms": 2, "max_terms": 4}},
        "sampler": sampler,
        "stage": [stage],
    }
    path = folder / "tiny.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path


def test_a_sound_recipe_learns(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "canary", str(recipe_in(tmp_path)), *FEW, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "learned in 10 steps (delivery auto by host, staleness 0)" in done.output
    assert (tmp_path / "run" / "report.html").is_file()


class Deaf(TransformersEngine):
    """Draws with the first weights that it was given, whatever comes later: as where an adapter is never swapped."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._first: dict[str, Tensor] = {}

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> tuple[str, ...]:
        given = {name: tensor.clone() for name, tensor in weights}
        self._first = self._first or given
        return super().load(iter(self._first.items()), version)


def test_an_engine_that_keeps_its_weights_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TransformersEngine", Deaf)
    done = CliRunner().invoke(app, ["doctor", "canary", str(recipe_in(tmp_path, canary=False)), *FEW])
    assert done.exit_code == 1, done.output
    assert "NOT learned in 10 steps" in done.output
    assert "deliveries do not arrive" in done.output.replace("\n", " ")
