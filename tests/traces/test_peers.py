"""Exports of real rows load where other trainers load theirs: in datasets, and in TRL's SFT trainer, for a step.

Needs trl and rensa: ``pytest -m peer tests/traces/test_peers.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlreason.cli.commands import app
from rlreason.config import PolicyConfig
from rlreason.policy.policies import PolicySource, fresh_tokenizer

pytestmark = pytest.mark.peer
DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "max_position_embeddings": 512,
}  # fmt: skip


def exported(folder: Path) -> Path:
    """Real rows through `rlreason traces import` and `export`, in the form that SFT trainers read."""
    found = DATA / "prime_rl_rollouts.jsonl"
    if not found.exists():
        pytest.skip(f"{found.name} is not there")
    lines = found.read_text(encoding="utf-8").splitlines()[:60]
    rows = [{**json.loads(line), "source": "prime_rl"} for line in lines]
    (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    for arguments in (
        ["import", str(folder / "in.jsonl"), str(folder / "set"), "--format", "rows"],
        ["export", str(folder / "set"), str(folder / "out.jsonl"), "--format", "messages"],
    ):
        done = CliRunner().invoke(app, ["traces", *arguments])
        assert done.exit_code == 0, done.output
    return folder / "out.jsonl"


def test_an_export_trains_in_trl(tmp_path: Path) -> None:
    import datasets
    from trl import SFTConfig, SFTTrainer

    path = exported(tmp_path)
    count = len(path.read_text(encoding="utf-8").splitlines())
    loaded: Any = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == count > 5
    assert [one["role"] for one in loaded[0]["messages"]] == ["user", "assistant"]
    config = PolicyConfig(model_type="qwen3", model=SHAPE, tokenizer={"kind": "bpe", "vocab_size": 400})  # type: ignore[arg-type]
    texts = [message["content"] for one in loaded for message in one["messages"]]
    import torch

    policy = PolicySource(config=config, tokenizer=fresh_tokenizer(config, None, texts)).load(
        torch.float32, torch.device("cpu")
    )
    options = SFTConfig(
        output_dir=str(tmp_path / "trl"), max_steps=1, per_device_train_batch_size=4, max_length=256, report_to=[],
        use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = SFTTrainer(model=policy.model, args=options, train_dataset=loaded, processing_class=policy.tokenizer)
    assert trainer.train().training_loss > 0
