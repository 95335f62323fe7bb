"""A teacher behind vLLM says what the same model says in transformers, of the same tokens."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason.sampler.open import installed

HERE = Path(__file__).parent


@pytest.mark.skipif(not installed("vllm"), reason="vLLM is not installed")
def test_a_teacher_behind_vllm_says_what_transformers_says() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "vllm_scores.py")], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("tail", "all", "drawn"):
        assert found[name]["ids"] == 0
        # Measured: 1.2e-5, the rounding of two float32 implementations whose logits are of tens.
        assert max(found[name]["drawn"], found[name]["words"]) < 1e-4
        assert found[name]["rest"] < 1e-2  # one minus a sum, where it is above 1e-4; measured: 9e-4
    # Canary: a softmax over all words of the teacher, of which the student has a half.
    assert found["not cut"]["drawn"] > 1.0
    assert found["greedy"]["differ"] == 0
    assert found["alone"] == {"drawn": 0, "words": 0, "ids": 0, "rest": 0}
    assert found["whole"]["rest"] == -math.inf  # its words are all there are: nothing is left
    assert found["strange"]["from"] == 7  # from the first word on that it has not
    assert "a teacher behind vLLM scores at most 255" in found["long"]
