"""docs/scale.md says what the code counts (the columns of LoRA take minutes and are made by scale_page.py alone)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
_SPEC = importlib.util.spec_from_file_location("scale_page", Path(__file__).parent / "scale_page.py")
assert _SPEC is not None
assert _SPEC.loader is not None
scale: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(scale)


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_page_says_how(page: str) -> None:
    assert scale.HEAD in page


@pytest.mark.parametrize(
    ("family", "settings", "batch", "ranks", "tensor_parallel"),
    [
        ("qwen3_moe", "QWEN3_30B_A3B", "GRPO", 8, 2),
        ("deepseek_v3", "DEEPSEEK_V3", "ONE", 224, 32),
        ("qwen3", "QWEN3_32B", "TRACES", 8, None),
    ],
)
def test_the_page_is_what_is_counted(
    page: str, family: str, settings: str, batch: str, ranks: int, tensor_parallel: int | None
) -> None:
    model = scale.Model(family, getattr(scale, settings))
    assert "\n".join(scale.sizes(model)) in page
    memory = model.memory(getattr(scale, batch), ranks)
    for part in memory.parts:
        assert scale.gb(part.bytes) in page
    assert f"**{scale.gb(memory.total)}**" in page
    if tensor_parallel is not None:
        assert scale.engines(model, tensor_parallel) in page
