"""docs/scale.md says what the code counts (the columns of LoRA take minutes and are made by scale_page.py alone)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
_SPEC = importlib.util.spec_from_file_location("scale_page", Path(__file__).parent / "scale_page.py")
assert _SPEC is not None
assert _SPEC.loader is not None
scale: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["scale_page"] = scale
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


def test_steps_are_what_is_counted_and_can_be_recomputed(page: str) -> None:
    dense = scale.Model("qwen3", scale.QWEN3_32B)
    lines = scale.step(scale.Case(model=dense, batch=scale.TRACES, rows=64, gpus=16, ranks=16))
    assert "\n".join(lines) in page
    # From the page's own numbers, by hand: 22 micro-batches; 815, 60, 19 and 219 TFLOP; 16 GPUs at 989 TFLOP/s.
    operations = 22 * (4 * 815 + 3 * 19 + 4 * 60 - 219) / 1e3
    assert operations == pytest.approx(73.4, rel=0.01)
    assert "73.4 PFLOP" in page
    pairs = 3 * 256**2 / 2 + 3 * 4095 * (256 + 4095 / 2)
    assert f"{pairs / 1e6:,.2f} M visible pairs" in page
    assert 2 * 64 * (128 + 128) * 64 * pairs / 1e12 == pytest.approx(60, rel=0.01)
