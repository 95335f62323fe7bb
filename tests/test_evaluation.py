"""`rlreason eval` on a model folder: suites, data, results on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlreason.config import PolicyConfig
from rlreason.tasks.procedural import make_task
from rlreason.errors import UsageError
from rlreason.evaluation import EvalRequest, evaluate_model
from rlreason.policy.policies import fresh_policy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 32,
    }
    folder = tmp_path_factory.mktemp("model")
    config = PolicyConfig(model_type="qwen3", model=shape)
    fresh_policy(config, make_task("arithmetic", {}, 0).alphabet, (), 0, torch.device("cpu")).save(folder)
    return folder


def request(model: Path, **changes: object) -> EvalRequest:
    fields = {"suites": ("arithmetic",), "data": None, "samples": 1, "problems": 20, "max_tokens": 8, "out": None}
    return EvalRequest(model=str(model), **{**fields, **changes})  # type: ignore[arg-type]


def test_a_suite_is_measured_and_written(model: Path, tmp_path: Path) -> None:
    (line,) = evaluate_model(request(model, out=tmp_path / "out", samples=4))
    assert line.startswith("arithmetic: 0.0% [0.0%,")
    assert "of 20 problems" in line
    row = json.loads((tmp_path / "out" / "arithmetic.json").read_text())
    assert row["accuracy"]["count"] == 20
    assert set(row["pass_at_k"]) == {"1", "2", "4"}
    assert sum(row["verdicts"].values()) == 80


def test_own_data(model: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"id": i, "prompt": f"{i}+1=", "answer": str(i + 1)}) for i in range(7)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows) + "\n")
    (line,) = evaluate_model(request(model, suites=("heldout",), data=str(tmp_path / "own.jsonl")))
    assert "of 7 problems" in line


def test_unknown_suite_missing_data_and_model(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'arithmetic'"):
        evaluate_model(request(model, suites=("arithmetics",)))
    with pytest.raises(UsageError, match="give --data"):
        evaluate_model(request(model, suites=("heldout",)))
    with pytest.raises(UsageError, match="can't load a model"):
        evaluate_model(request(tmp_path))
