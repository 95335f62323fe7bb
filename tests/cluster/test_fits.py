"""The shown runs of a policy of 30 billion parameters fit the GPUs that they are shown for, by ``plan``'s count."""

from __future__ import annotations

import json
import shlex

import pytest
from logical import documented

from rlreason.config import load
from rlreason.config.load import locate
from rlreason.errors import UsageError
from rlreason.plan.size import SizeOptions
from rlreason.plan.text import describe

SECTIONS = {"8 GPUs, one host": 8, "64 GPUs, eight hosts": 64}
SHOWN = [(line, gpus) for section, gpus in SECTIONS.items() for line in documented(section)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    for part, first in (("train", 0), ("test", 500)):
        rows = [{"prompt": f"{i}?", "answer": str(i), "solution": f"#### {i}"} for i in range(first, first + 400)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.train={folder}/train.jsonl", f"data.heldout={folder}/test.jsonl"]


def planned(line: str, gpus: int, data: list[str], *more: str) -> str:
    name, *overrides = shlex.split(line)[2:]
    path = locate(name)
    recipe = load(path, (*overrides, *data, *more))
    return describe(recipe, path, SizeOptions(gpu="h100", gpus=gpus))


@pytest.mark.parametrize(("line", "gpus"), SHOWN)
def test_a_shown_run_fits_gpus_of_80_gb(line: str, gpus: int, data: list[str]) -> None:
    text = planned(line, gpus, data)
    assert f"{gpus} x h100" in text
    assert "memory of" in text
    assert "engine of a GPU" in text


def test_all_weights_on_eight_are_refused(data: list[str]) -> None:
    """The canary: what can't fit is not let through."""
    with pytest.raises(UsageError, match=r"the nearest change that fits: trainer\.lora\.rank=16"):
        planned("rlreason run gsm8k_qwen3_moe trainer.ranks=4", 8, data)
